"""The engine as a Ray actor, one per device.

The engine steps in a thread of its own (`engine/loop.py`), the actor's event loop stays free for
callers. Subclasses say what it is for; their calls are idempotent, so that Ray may repeat them
after a restart.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig
from dreamfleet.engine.settings import EngineSettings

if TYPE_CHECKING:
    from dreamfleet.bases import Base
    from dreamfleet.engine.engine import Engine
    from dreamfleet.engine.loop import EngineLoop
    from dreamfleet.engine.packed_sampling import Ticket

MAX_CONCURRENCY = 1000  # calls that wait cost next to nothing


@dataclass(frozen=True)
class EngineSource:
    """Which base an engine loads.

    Attributes:
        base_model: embedded, a folder or a hub id, as `RunConfig.base_source`.
        device: cpu or cuda.
        mixed_precision: no, fp16 or bf16, as in `TrainConfig`.
        safety_checker: whether pictures go through the base's own, where it has one.
        allow_tf32: as in `TrainConfig`.
    """

    base_model: str
    device: str
    mixed_precision: str = "no"
    safety_checker: bool = False
    allow_tf32: bool = False

    @staticmethod
    def of(config: RunConfig, device: str, *, for_scores: bool = False) -> EngineSource:
        """The base of a run.

        Args:
            for_scores: pictures are read by judges, or trained on: no safety checker blacks them
                out, for that would be taken for a setting's doing.
        """
        train = config.train
        checked = config.sampling.safety_checker == "auto" and not for_scores
        return EngineSource(
            config.base_source, device, train.mixed_precision, checked, train.allow_tf32
        )

    def load(self) -> Base:
        """The base, frozen.

        Raises:
            BaseModelError: it cannot be loaded.
        """
        import torch

        from dreamfleet.bases import load_base

        dtypes = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        return load_base(
            self.base_model,
            device=self.device,
            dtype=dtypes[self.mixed_precision],
            safety_checker=self.safety_checker,
        )


class EngineActor:
    """A base and its engine; both are made when they are first needed.

    Args:
        source: what to load.
        settings: bounds.
    """

    def __init__(self, source: EngineSource, settings: EngineSettings) -> None:
        self._source, self._settings = source, settings
        self._loop: EngineLoop | None = None
        self._starting = threading.Lock()

    @property
    def loop(self) -> EngineLoop:
        """The engine's thread (callable from any)."""
        from dreamfleet.engine.loop import EngineLoop

        with self._starting:
            if self._loop is None:
                self._loop = EngineLoop(self._build)
            return self._loop

    async def ping(self) -> bool:
        """Whether the base is loaded and the thread answers."""
        await self._ask(lambda engine: None)
        return True

    async def metrics(self) -> dict[str, float]:
        """As `Engine.metrics`."""
        return await self._ask(lambda engine: engine.metrics())

    async def close(self) -> None:
        """End the engine's thread."""
        await asyncio.to_thread(self.loop.close)

    async def _submitted(self, submit: Callable[[Engine], list[Ticket]]) -> list[Ticket]:
        """Tickets of requests. A caller that goes away while the engine takes them leaves none
        behind.
        """
        asked = self.loop.call(submit)
        try:
            return await asyncio.wrap_future(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(_cancel)
            raise

    async def _ask(self, command: Any) -> Any:
        return await asyncio.wrap_future(self.loop.call(command))

    def _build(self) -> Engine:
        from dreamfleet.bases.acceleration import use_tf32
        from dreamfleet.engine.engine import Engine

        if self._source.allow_tf32:
            use_tf32()
        return Engine(self._source.load(), self._settings)


def _cancel(asked: Future[list[Ticket]]) -> None:
    """Stop what was submitted for nobody."""
    if not asked.cancelled() and asked.exception() is None:
        for ticket in asked.result():
            ticket.cancel()


def start_engine(kind: type[EngineActor], *arguments: Any, name: str, **resources: Any) -> Any:
    """A named engine's handle; it comes back by itself when it is lost.

    Args:
        kind, arguments: what is made.
        name: under which others find it (`ray.get_actor`).
        resources: Ray's, e.g. `num_cpus=1, num_gpus=1`.
    """
    import ray

    actor = ray.remote(
        max_restarts=-1, max_task_retries=-1, max_concurrency=MAX_CONCURRENCY, **resources
    )(kind)
    return actor.options(name=name).remote(*arguments)
