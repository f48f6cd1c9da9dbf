"""The engines as the ingress sees them: through a Serve handle, or one in the same process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from dreamfleet.errors import DreamfleetError
from dreamfleet.serving.orders import BaseAbout, DrawOrder, Event
from dreamfleet.serving.problems import busy, not_ready
from dreamfleet.serving.replica import EngineReplica
from dreamfleet.serving.service import ReplicaLost
from dreamfleet.serving.settings import APP_NAME, ENGINE

BUSY_S = 2.0
STATS_FOR_S = 2.0  # anybody may ask for /metrics, and each asks every engine


class LocalBackend:
    """One engine in this process, for tests and tools."""

    def __init__(self, engine: EngineReplica) -> None:
        self._engine = engine

    async def about(self) -> BaseAbout:
        return await self._engine.about()

    async def draw(self, order: DrawOrder) -> list[bytes]:
        return await self._engine.draw_order(order)

    def draw_events(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        return self._engine.draw_events(order)

    async def prefetch(self, order: DrawOrder) -> None:
        for ref, _ in order.adapters:
            await self._engine.prefetch(ref)

    async def stats(self) -> dict[str, float]:
        return await self._engine.stats()

    async def num_replicas(self) -> int:
        return 1

    async def tell_demand(self, pictures: int) -> None:
        """There are no more engines to be had."""


class ServeBackend:
    """Engines behind a Serve handle.

    Args:
        handle: of the engines' deployment.
        ingress: name of the replica that asks.
        scaled: whether Serve adds engines when more pictures are wanted.
    """

    def __init__(self, handle: Any, ingress: str, *, scaled: bool = False) -> None:
        self._handle, self._ingress, self._scaled = handle, ingress, scaled
        self._stats: asyncio.Future[dict[str, float]] | None = None
        self._stats_at = 0.0

    async def about(self) -> BaseAbout:
        with _own_errors():
            return await self._handle.about.remote()

    async def draw(self, order: DrawOrder) -> list[bytes]:
        with _own_errors():
            response = self._near(order).draw_order.remote(order)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise

    async def draw_events(self, order: DrawOrder) -> AsyncGenerator[Event, None]:
        with _own_errors():
            events = self._near(order, stream=True).draw_events.remote(order)
            try:
                async for event in events:
                    yield event
            except (asyncio.CancelledError, GeneratorExit):
                events.cancel()
                raise

    async def prefetch(self, order: DrawOrder) -> None:
        with _own_errors():
            for ref, _ in order.adapters:
                await self._near(order).prefetch.remote(ref)

    async def stats(self) -> dict[str, float]:
        now = time.monotonic()
        if self._stats is None or now - self._stats_at >= STATS_FOR_S:
            self._stats, self._stats_at = asyncio.ensure_future(self._asked_stats()), now
        return await asyncio.shield(self._stats)

    async def _asked_stats(self) -> dict[str, float]:
        with _own_errors():
            asked = self._handle.broadcast("stats")
            answers = await asked.results_async(return_exceptions=True)  # one may be going
            return combined([own for own in answers if isinstance(own, dict)])

    async def num_replicas(self) -> int:
        return await asyncio.to_thread(_running_engines)

    async def tell_demand(self, pictures: int) -> None:
        if self._scaled:
            told = self._handle.broadcast("note_demand", self._ingress, pictures)
            await told.results_async(return_exceptions=True)

    def _near(self, order: DrawOrder, **options: Any) -> Any:
        """The handle, told what to look for in a replica."""
        if order.affinity:
            options["multiplexed_model_id"] = order.affinity
        return self._handle.options(**options) if options else self._handle


def combined(engines: list[dict[str, float]]) -> dict[str, float]:
    """Figures of all engines: counts and bytes as sums, times (seconds, `_s`) as means."""
    found: dict[str, float] = {}
    for name in dict.fromkeys(name for own in engines for name in own):
        values = [own[name] for own in engines if name in own]
        mean = name.endswith("_s") and not name.endswith("_per_s")
        found[name] = sum(values) / (len(values) if mean else 1)
    return found


def _running_engines() -> int:
    from ray import serve

    states = serve.status().applications[APP_NAME].deployments[ENGINE].replica_states
    return int(states.get("RUNNING", 0))


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Ray's errors as ours: the cause of a failed call, a lost replica, a full queue."""
    from ray.exceptions import RayActorError, RayTaskError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    try:
        yield
    except RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DreamfleetError):
            raise cause from None
        if isinstance(cause, RayActorError):
            raise ReplicaLost(str(cause)) from None
        raise
    except RayActorError as error:
        raise ReplicaLost(str(error)) from error
    except BackPressureError as error:
        raise busy(BUSY_S) from error
    except DeploymentUnavailableError as error:
        raise not_ready("the engines are not there") from error
