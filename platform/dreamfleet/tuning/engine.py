"""The engine as trials use it: an adapter trained from rung to rung, drawn where it is trained.

One call per rung, idempotent as a whole: Ray repeats it when the engine was lost, and a trial that
was lost asks again. A job goes on from the state that was written at its last rung.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from dreamfleet.config import RunConfig
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import TrainingError
from dreamfleet.runtime.engine_actor import EngineActor, EngineSource
from dreamfleet.runtime.storage import Folder
from dreamfleet.tuning.pictures import Shot
from dreamfleet.tuning.space import applied

if TYPE_CHECKING:
    from dreamfleet.engine.engine import Engine
    from dreamfleet.engine.spec import TrainJobSpec
    from dreamfleet.training.task import TrainTask

STATE = "state.pt"


@dataclass(frozen=True)
class Work:
    """One training of a sweep: a trial's, or a finalist's.

    Attributes:
        job_id: unique within a sweep's engines.
        subject: whose task.
        params: the setting (`space.applied`).
        seed: of the training.
        steps: at which it is read, rising; the last one ends it.
        folder: where its state and its readings lie; a folder or URI.
        key: of all that decides these; what lies there under another key is another training's.
    """

    job_id: str
    subject: str
    params: Mapping[str, Any]
    seed: int
    steps: tuple[int, ...]
    folder: str
    key: str = ""


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn."""

    num_inference_steps: int
    guidance_scale: float | None
    scheduler: Any


def work_config(task: TrainTask, work: Work) -> RunConfig:
    """The configuration of a training of a sweep."""
    config = applied(task.config, work.params, seed=work.seed)
    train = config.train.model_copy(update={"max_train_steps": work.steps[-1]})
    return config.model_copy(update={"train": train})


def work_task(task: TrainTask, work: Work) -> TrainTask:
    """The subject's task with the settings of `work`."""
    config = work_config(task, work)
    prior = task.prior if config.prior.with_prior_preservation else None
    return replace(task, config=config, prior=prior)


class TuneEngine(EngineActor):
    """An engine whose jobs are trials.

    Args:
        source, settings: as `EngineActor`.
        tasks: Ray references of the subjects' tasks, by subject.
    """

    def __init__(
        self, source: EngineSource, settings: EngineSettings, tasks: Mapping[str, Any]
    ) -> None:
        super().__init__(source, settings)
        self._references = tasks
        self._tasks: dict[str, TrainTask] = {}
        self._released: set[str] = set()
        self._kept: dict[str, int] = {}  # job -> the rung whose adapter is drawable
        self._training_job: dict[str, asyncio.Lock] = {}

    async def rung(
        self, work: Work, step: int, then: int, shots: Sequence[Shot], sampling: Sampling
    ) -> tuple[list[bytes], dict[str, float]]:
        """Train to `step`, draw `shots` with what is learnt so far, and go on to `then` meanwhile.

        Returns:
            PNGs in the order of `shots`, and the figures of the step.

        Raises:
            TrainingError: the job failed, or was released meanwhile.
        """
        # One at a time: a trial that was lost asks again while its first call still trains, and
        # whoever came second to the rung would find the job beyond it.
        lock = self._training_job.setdefault(work.job_id, asyncio.Lock())
        async with lock:
            await self._ensure(work, step)
            figures = await self._train_to(work, step, then)
        pngs = await self.draw_shots(shots, sampling, _name(work.job_id, step))
        return pngs, figures

    async def draw_shots(
        self, shots: Sequence[Shot], sampling: Sampling, adapter: str | None = None
    ) -> list[bytes]:
        """PNGs of `shots`, by an adapter that is here or by the bare base."""
        from dreamfleet.data.photos import to_png
        from dreamfleet.engine.packed_sampling import ImageRequest

        requests = [
            ImageRequest(
                shot.prompt,
                shot.seed,
                num_inference_steps=sampling.num_inference_steps,
                guidance_scale=sampling.guidance_scale,
                scheduler=sampling.scheduler,
                adapters=((adapter, 1.0),) if adapter else (),
            )
            for shot in shots
        ]
        tickets = await self._ask(lambda engine: [engine.submit(own) for own in requests])
        try:
            images = await asyncio.gather(*(asyncio.wrap_future(own.image) for own in tickets))
        finally:
            for ticket in tickets:
                ticket.cancel()
        return [to_png(image) for image in images]

    async def export_files(self, job_id: str) -> dict[str, bytes]:
        """A job's adapter as files by name."""
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            paths = await self._ask(lambda engine: engine.job(job_id).export(folder))
            return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    async def release(self, job_id: str) -> None:
        """End a job for good: a late call of its trial is refused, its slot is free at once."""
        self._released.add(job_id)
        step = self._kept.pop(job_id, None)

        def end(engine: Engine) -> None:
            engine.release(job_id)
            if step is not None:
                engine.remove_adapter(_name(job_id, step))

        await self._ask(end)

    async def times(self) -> dict[str, float]:
        """Seconds of training and drawing, and from the first to the last step; zeros where the
        base was never loaded, or could not be.
        """
        names = ("training_total_s", "sampling_total_s", "first_to_last_step_s")
        figures = {} if self._loop is None or self._loop.trouble() else await self.metrics()
        return {name: figures.get(name, 0.0) for name in names}

    async def node(self) -> str:
        """Ray's id of the machine."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def _ensure(self, work: Work, step: int) -> None:
        """The job is in a slot, at `step` at most unless its adapter of `step` is kept."""
        self._refuse_released(work.job_id)
        present = await self._ask(lambda engine: engine.has_job(work.job_id))
        if present:
            return
        task = await self._task(work.subject)
        spec, state = await asyncio.to_thread(_prepare, task, work, step)
        await self._ask(lambda engine: engine.add_job(work.job_id, spec, state=state) and None)
        if work.job_id in self._released:  # while it was being prepared
            await self.release(work.job_id)
            self._refuse_released(work.job_id)

    async def _train_to(self, work: Work, step: int, then: int) -> dict[str, float]:
        job_id, name = work.job_id, _name(work.job_id, step)
        if self._kept.get(job_id) == step:  # asked before: the job may be further by now
            await self._ask(lambda engine: engine.run_until(job_id, then))
            return {}
        try:
            reached = await self._ask(lambda engine: engine.run_until(job_id, step))
            metrics = await asyncio.wrap_future(reached)
        except asyncio.CancelledError:
            self._refuse_released(job_id)
            raise
        before = self._kept.get(job_id)

        def keep(engine: Engine) -> dict[str, Any]:
            job = engine.job(job_id)
            if job.step_index != step:
                raise TrainingError(f"{job_id}: is at step {job.step_index}, was asked for {step}")
            engine.add_adapter(name, job.final_state())
            if before is not None:
                engine.remove_adapter(_name(job_id, before))
            state = job.state_dict()
            engine.run_until(job_id, then)
            return state

        state = await self._ask(keep)
        self._kept[job_id] = step
        await asyncio.to_thread(write_state, work, step, state)
        from dreamfleet.training.worker import figures

        known = figures(asdict(metrics)) if metrics is not None else {}
        return {key: value for key, value in known.items() if value == value}

    async def _task(self, subject: str) -> TrainTask:
        if subject not in self._tasks:
            self._tasks[subject] = await self._references[subject]
        return self._tasks[subject]

    def _refuse_released(self, job_id: str) -> None:
        if job_id in self._released:
            raise TrainingError(f"{job_id}: was ended")


def _name(job_id: str, step: int) -> str:
    return f"{job_id}@{step}"


def _prepare(
    task: TrainTask, work: Work, step: int
) -> tuple[TrainJobSpec, Mapping[str, Any] | None]:
    from dreamfleet.training.group import Group
    from dreamfleet.training.jobs import job_spec

    return job_spec(work_task(task, work), Group()), read_state(work, step)


def read_state(work: Work, step: int) -> Mapping[str, Any] | None:
    """What an earlier attempt left, if it is of use on the way to `step`."""
    import torch

    try:
        data = Folder(work.folder).read(STATE)
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # none there, or damaged, which shows in as many ways as there are bytes
        return None
    of_use = stored.get("key") == work.key and stored["step"] <= step
    return stored["state"] if of_use else None


def write_state(work: Work, step: int, state: Mapping[str, Any]) -> None:
    """Keep what the next attempt goes on from; whole or not at all."""
    import torch

    buffer = io.BytesIO()
    torch.save({"key": work.key, "step": step, "state": state}, buffer)
    Folder(work.folder).write(STATE, buffer.getvalue())
