"""The engine as a Ray actor, one per device.

The engine steps in a thread of its own (`engine/loop.py`), the actor's event loop stays free for
callers. Calls are idempotent, so that Ray may repeat them after a restart.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig
from dreamfleet.engine.settings import EngineSettings

if TYPE_CHECKING:
    from PIL import Image

    from dreamfleet.bases import Base
    from dreamfleet.engine.engine import Engine
    from dreamfleet.engine.loop import EngineLoop
    from dreamfleet.engine.metrics import StepMetrics
    from dreamfleet.engine.packed_sampling import ImageRequest, Ticket
    from dreamfleet.engine.spec import TrainJobSpec

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
    def of(config: RunConfig, device: str) -> EngineSource:
        """The base of a run."""
        train, checked = config.train, config.sampling.safety_checker == "auto"
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

    async def add_job(
        self, job_id: str, spec: TrainJobSpec, state: dict[str, Any] | None = None
    ) -> int:
        """As `Engine.add_job`; returns the job's steps so far."""
        return await self._ask(lambda e: e.add_job(job_id, spec, state=state).step_index)

    async def run_until(self, job_id: str, step: int) -> StepMetrics | None:
        """Train a job until `step` steps are done; that step's figures."""
        return await asyncio.wrap_future(
            await self._ask(lambda engine: engine.run_until(job_id, step))
        )

    async def job_state(self, job_id: str) -> dict[str, Any]:
        """All that a job needs to go on elsewhere."""
        return await self._ask(lambda engine: engine.job(job_id).state_dict())

    async def export_job(self, job_id: str, folder: str) -> list[str]:
        """Write a job's adapter; returns the files."""
        paths = await self._ask(lambda engine: engine.job(job_id).export(folder))
        return [str(path) for path in paths]

    async def keep_job_as_adapter(self, job_id: str, name: str) -> None:
        """Make what a job has learnt so far drawable under a name."""
        await self._ask(lambda e: e.add_adapter(name, e.job(job_id).final_state()))

    async def release(self, job_id: str) -> None:
        """End a job and free its slot."""
        await self._ask(lambda engine: engine.release(job_id))

    async def add_adapter(self, name: str, path: str) -> None:
        """Load an adapter's file or folder into host memory."""
        await self._ask(lambda engine: engine.add_adapter(name, path))

    async def remove_adapter(self, name: str) -> None:
        """Forget an adapter."""
        await self._ask(lambda engine: engine.remove_adapter(name))

    async def draw(self, request: ImageRequest) -> Image.Image:
        """One picture. Cancelling the call stops it before the next step."""
        (ticket,) = await self._submitted(lambda engine: [engine.submit(request)])
        try:
            return await asyncio.wrap_future(ticket.image)
        finally:
            ticket.cancel()

    async def draw_steps(
        self, request: ImageRequest
    ) -> AsyncIterator[tuple[int, int] | Image.Image]:
        """(steps done, steps in all) after each step, then the picture.

        A consumer that goes away stops it before the next step.
        """
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def on_step(done: int, total: int) -> None:
            loop.call_soon_threadsafe(events.put_nowait, (done, total))

        def over(image: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, None)

        (ticket,) = await self._submitted(lambda engine: [engine.submit(request, on_step)])
        ticket.image.add_done_callback(over)
        try:
            while (event := await events.get()) is not None:
                yield event
            yield ticket.image.result()
        finally:
            ticket.cancel()

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
