"""The training loop of one subject, the same under Ray Train, in a fleet's engine and in this
process.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from dreamfleet.config import dump_config
from dreamfleet.errors import ConfigError, DreamfleetError, ResumeError, TrainingError
from dreamfleet.runtime.engine_actor import EngineSource
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import (
    Checkpoint,
    CheckpointFolder,
    json_lines,
    read_json_lines,
)
from dreamfleet.training.export import ADAPTER, exported_files
from dreamfleet.training.fingerprint import check_same_run, run_fingerprint
from dreamfleet.training.group import Group
from dreamfleet.training.jobs import build_job
from dreamfleet.training.memory import free_device_memory, is_out_of_memory, out_of_memory_message
from dreamfleet.training.output import CONFIG
from dreamfleet.training.parallel import is_sharded
from dreamfleet.training.samples import draw_preview
from dreamfleet.training.task import (
    DirectReporter,
    PreviewEvent,
    Reporter,
    StageEvent,
    StepEvent,
    TrainOutcome,
    TrainTask,
)

if TYPE_CHECKING:
    from dreamfleet.bases import Base
    from dreamfleet.engine.packed_job import AnyJob

STATE = "state.pt"
HISTORY = "metrics.jsonl"
# What every worker of a group meets at the same step: settings, a checkpoint of others, a common
# gradient that is no number.
COMMON_ERRORS = (ConfigError, ResumeError, TrainingError)

# Called on every worker after a checkpoint was written (step, metrics of the step).
OnCheckpoint = Callable[[int, Mapping[str, float]], None]


def train_in_process(
    task: TrainTask,
    *,
    reporter: Reporter | None = None,
    group: Group | None = None,
    on_checkpoint: OnCheckpoint | None = None,
) -> TrainOutcome:
    """Train one subject here: no Ray needed. Goes on from the newest whole checkpoint in
    `task.checkpoints`.

    Idempotent: a finished run is returned as it is; a stopped or killed one continues bit for bit.

    Returns:
        The outcome; `status` is "failed" with a message for errors that another attempt would
        repeat.
    """
    run = Run(
        task,
        reporter or DirectReporter(),
        group or Group(),
        on_checkpoint or (lambda step, metrics: None),
    )
    try:
        return run.run()
    except (DreamfleetError, RuntimeError, MemoryError) as error:
        outcome = run.failed(error)
    del run
    free_device_memory()  # out here the error's traceback holds the job no longer
    return outcome


def earlier_outcome(task: TrainTask, world_size: int) -> TrainOutcome | None:
    """The outcome of a run that already reached its last step and wrote its adapter, else None.

    Raises:
        ResumeError: what lies there was trained under other settings.
    """
    checkpoints = CheckpointFolder(Folder(task.checkpoints))
    adapter = checkpoints.read(ADAPTER)
    found = adapter or checkpoints.newest()
    if found is not None:
        _check_goes_on(found, _fingerprint(task, world_size), task)
    if adapter is None or adapter.step < int(task.config.train.max_train_steps or 0):
        return None
    return TrainOutcome(
        task.subject.id,
        "finished",
        adapter.step,
        train_seconds=float(adapter.info.get("train_seconds", 0.0)),
        history=read_json_lines(adapter.files[HISTORY]),
        resumed_from=adapter.step,
    )


def _check_goes_on(found: Checkpoint, fingerprint: Mapping[str, Any], task: TrainTask) -> None:
    """Raise ResumeError unless `task` can go on from `found`."""
    check_same_run(found.info["fingerprint"], fingerprint, task.checkpoints)
    wanted = int(task.config.train.max_train_steps or 0)
    if found.step > wanted:
        raise ResumeError(
            f"{task.checkpoints}: trained for {found.step} steps already, and "
            f"train.max_train_steps is {wanted}; ask for as many or more, or begin again with "
            "--overwrite or another --output-dir"
        )


def _fingerprint(task: TrainTask, world_size: int) -> dict[str, Any]:
    return run_fingerprint(
        task.config,
        world_size=world_size,
        subject_key=task.subject.content_key,
        prior_key=task.prior.key if task.prior else "",
        base_hash=task.base_hash,
    )


@dataclass
class Run:
    """One subject's training around the engine's job: checkpoints, events, figures, the adapter.

    `run` does it all with a base of its own; where subjects share one, others call `begin`,
    `after_step` and `finish`.
    """

    task: TrainTask
    reporter: Reporter
    group: Group = field(default_factory=Group)
    on_checkpoint: OnCheckpoint = lambda step, metrics: None

    def __post_init__(self) -> None:
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.resumed_from: int | None = None
        self.checkpoints = CheckpointFolder(Folder(self.task.checkpoints))
        self.fingerprint = _fingerprint(self.task, self.group.world_size)

    @property
    def last_step(self) -> int:
        return int(self.task.config.train.max_train_steps or 0)

    def run(self) -> TrainOutcome:
        """Train to the end, from wherever the run is."""
        done = self.finished_before()
        if done is not None:
            return done
        self._say("started", "loading the base model")
        job = build_job(self.task, self._load_base(), self.group)
        self.begin(job)
        while self.step < self.last_step:
            started = time.perf_counter()
            own = figures(asdict(job.step()))
            metrics, stop = self.group.agree(own, self.reporter.should_stop())
            if self.after_step(job, metrics, stop, time.perf_counter() - started):
                return self.stopped()
        return self.finish(job)

    def finished_before(self) -> TrainOutcome | None:
        """The outcome of a run that is done already, else None.

        Raises:
            ResumeError: what lies there was trained under other settings.
        """
        adapter = self.checkpoints.read(ADAPTER)
        if adapter is None or adapter.step < self.last_step:
            return None
        _check_goes_on(adapter, self.fingerprint, self.task)
        self.step = adapter.step
        self._recall(adapter)
        return self._outcome("finished")

    def begin(self, job: AnyJob) -> None:
        """Put the newest whole checkpoint into a fresh job, if there is one."""
        checkpoint = self.checkpoints.newest()
        if checkpoint is None:
            return
        import torch

        _check_goes_on(checkpoint, self.fingerprint, self.task)
        state = torch.load(
            io.BytesIO(checkpoint.files[STATE]), map_location="cpu", weights_only=True
        )
        job.load_state_dict(state)
        self.step = self.resumed_from = checkpoint.step
        self._recall(checkpoint)
        self._say("resumed", f"going on from step {checkpoint.step}")

    def after_step(
        self, job: AnyJob, metrics: Mapping[str, float], stop: bool, seconds: float
    ) -> bool:
        """Note a step of `job`, write what is due after it; True when the run stops here.

        Args:
            metrics: of all workers, as `figures` gives them.
            stop: someone asked to stop; a checkpoint is written then.
            seconds: what the step took.
        """
        self.seconds += seconds
        self.step += 1
        self._record(metrics)
        last = self.step == self.last_step
        if last or stop or self.step % self.task.config.train.checkpointing_steps == 0:
            self._save(job, metrics)
        if stop and not last:
            return True
        self._preview(job, last)
        return False

    def stopped(self) -> TrainOutcome:
        """The outcome of a run that was asked to stop."""
        self.reporter.flush()
        return self._outcome("stopped")

    def finish(self, job: AnyJob) -> TrainOutcome:
        """Write the adapter and its pictures."""
        self._export(job)
        self.reporter.flush()
        return self._outcome("finished")

    def failed(self, error: Exception) -> TrainOutcome:
        """The outcome for an error that another attempt would repeat; others are raised again.

        So is, where other workers wait for this one in their next collective, what happened to it
        alone: returning would let them wait for ever.

        Raises:
            TrainingError: out of memory, where there are other workers.
        """
        identity, step = self.task.subject.id, self.step
        several = self.group.world_size > 1
        if isinstance(error, COMMON_ERRORS if several else DreamfleetError):
            return TrainOutcome(identity, "failed", step, message=str(error))
        if not is_out_of_memory(error):
            raise error
        message = out_of_memory_message(identity, step, self.task.device, self.task.config)
        if several:
            raise TrainingError(message)
        return TrainOutcome(identity, "failed", step, message=message)

    def _load_base(self) -> Base:
        return EngineSource.of(self.task.config, self.task.device).load()

    def _recall(self, checkpoint: Checkpoint) -> None:
        self.resumed_from = checkpoint.step
        self.history = read_json_lines(checkpoint.files[HISTORY])
        self.seconds = float(checkpoint.info.get("train_seconds", 0.0))

    def _record(self, metrics: Mapping[str, float]) -> None:
        known = {name: value for name, value in metrics.items() if not math.isnan(value)}
        self.history.append({"step": self.step, **known})
        if self.group.rank == 0:
            self.reporter.send(StepEvent(self.task.subject.id, self.step, known))

    def _save(self, job: AnyJob, metrics: Mapping[str, float]) -> None:
        state = job.state_dict() if self.group.rank == 0 or self._sharded else {}
        if self.group.rank == 0:
            import torch

            buffer = io.BytesIO()
            torch.save(state, buffer)
            files = {
                STATE: buffer.getvalue(),
                HISTORY: json_lines(self.history),
                CONFIG: dump_config(self.task.config).encode(),
            }
            self.checkpoints.save(
                self.step, files, self._info(), self.task.config.train.checkpoints_total_limit
            )
        self.on_checkpoint(self.step, metrics)

    def _info(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "train_seconds": round(self.seconds, 3)}

    def _preview(self, job: AnyJob, last: bool) -> None:
        every = self.task.config.sampling.validation_steps
        if not every or last or self.step % every or not self._draws(job):
            return
        images = draw_preview(job, self.task)
        self.reporter.send(PreviewEvent(self.task.subject.id, self.step, images))

    def _export(self, job: AnyJob) -> None:
        if not self._draws(job):
            return
        self._say("sampling", "drawing samples")
        files = exported_files(job, self.task)
        files[HISTORY] = json_lines(self.history)
        self.checkpoints.write(ADAPTER, files, {**self._info(), "step": self.step})

    def _draws(self, job: AnyJob) -> bool:
        """Whether this worker draws and exports; a sharded model is put together for it, by all."""
        if self._sharded:
            job.gather()
        return self.group.rank == 0

    @property
    def _sharded(self) -> bool:
        return is_sharded(self.task.config, self.group)

    def _say(self, stage: Any, text: str) -> None:
        if self.group.rank == 0:
            self.reporter.send(StageEvent(self.task.subject.id, text, stage, self.step))

    def _outcome(self, status: Any) -> TrainOutcome:
        return TrainOutcome(
            self.task.subject.id,
            status,
            self.step,
            train_seconds=self.seconds,
            history=self.history,
            resumed_from=self.resumed_from,
        )


def figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a step; what did not apply at it (None) is NaN, so that every worker sends the
    same names.
    """
    return {
        name: math.nan if value is None else float(value)
        for name, value in metrics.items()
        if name not in ("step",)
    }
