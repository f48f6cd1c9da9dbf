"""What a trial does: train to a rung, have its pictures judged, report, go on. Thin: the process of
a packed trial imports no torch.

What was judged is kept beside the training's state, so that another attempt (after the loss of the
trial, its engine, the driver or the node) repeats no reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dreamfleet.errors import DreamfleetError, first_line
from dreamfleet.runtime.storage import Folder
from dreamfleet.tuning.engine import Sampling, Work, read_state, work_task, write_state
from dreamfleet.tuning.judge import JudgeTimeoutError, Verdict
from dreamfleet.tuning.pictures import Shot

if TYPE_CHECKING:
    from dreamfleet.training.task import TrainTask

READINGS = "readings.json"
JUDGE_ATTEMPTS = 2  # of judges that hang: it may have been the machine
ERROR, READING = "error", "reading"  # keys of a result

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Order:
    """All that a trial is told; plain data.

    Attributes:
        work: what to train.
        shots: by step of `work.steps`, what to draw there.
        sampling: how.
        judge: name of the judges' actor.
        engine: name of the engine's actor; None: a base of its own.
        device: for a base of its own.
    """

    work: Work
    shots: Mapping[int, tuple[Shot, ...]]
    sampling: Sampling
    judge: str
    engine: str | None
    device: str = "cpu"


@dataclass(frozen=True)
class Reading:
    """A trial at a rung."""

    step: int
    alignment: float
    fidelity: float
    alignments: dict[str, float]
    fidelities: dict[str, float]
    figures: dict[str, float]


def run_trial(order: Order, report: Report, task: TrainTask | None = None) -> None:
    """Report every rung; an error that another attempt would repeat is reported too, as the last
    result.
    """
    import ray

    try:
        for reading in readings(order, task):
            report(as_result(reading))
    except ray.exceptions.RayTaskError as error:  # may be the other too, with a long text
        report({"step": 0, ERROR: first_line(error.cause or error)})
    except DreamfleetError as error:
        report({"step": 0, ERROR: first_line(error)})


def as_result(reading: Reading) -> dict[str, Any]:
    """What Tune is told; as text, because Tune takes nested results to pieces."""
    return {"step": reading.step, READING: json.dumps(asdict(reading))}


def readings(order: Order, task: TrainTask | None = None) -> Iterator[Reading]:
    """Each rung in turn: known ones at once, the others when they are judged."""
    known = known_readings(order.work)
    steps = order.work.steps
    runner: PackedRunner | AloneRunner | None = None
    for number, step in enumerate(steps):
        if step in known:
            yield known[step]
            continue
        runner = runner or _runner(order, task)
        then = steps[min(number + 1, len(steps) - 1)]
        verdict, figures = runner.read(step, then)
        reading = Reading(step=step, figures=figures, **vars(verdict))
        known[step] = reading
        _keep(order.work, list(known.values()))
        yield reading


def known_readings(work: Work) -> dict[int, Reading]:
    """What was judged before of this very training, by step."""
    try:
        stored = json.loads(Folder(work.folder).read(READINGS))
        rows = stored["readings"] if stored["key"] == work.key else ()
        return {row["step"]: Reading(**row) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _keep(work: Work, found: Sequence[Reading]) -> None:
    stored = {"key": work.key, "readings": [asdict(own) for own in found]}
    Folder(work.folder).write(READINGS, json.dumps(stored).encode())


def sheet_name(step: int) -> str:
    """The file with a rung's pictures."""
    return f"step-{step:05d}.png"


def sheet(folder: Folder, step: int) -> bytes | None:
    """A rung's pictures as a PNG; None: they are not there."""
    try:
        return folder.read(sheet_name(step))
    except OSError:
        return None


def _runner(order: Order, task: TrainTask | None) -> PackedRunner | AloneRunner:
    if order.engine is not None:
        return PackedRunner(order)
    if task is None:
        raise AssertionError("a trial with a base of its own needs its task")
    return AloneRunner(order, task)


class _Runner:
    """Hands pictures to the judges, wherever they were drawn."""

    def __init__(self, order: Order) -> None:
        import ray

        self.order, self.work = order, order.work
        self._judge = ray.get_actor(order.judge)

    def judged(self, step: int, pngs: Any) -> Verdict:
        """The verdict on PNGs or on a reference to them."""
        verdict, png = self._judgement(self.order.shots[step], pngs)
        Folder(self.work.folder).write(sheet_name(step), png)
        return verdict

    def _judgement(
        self, shots: Sequence[Shot], pngs: Any, attempts: int = JUDGE_ATTEMPTS
    ) -> tuple[Verdict, bytes]:
        import ray

        try:
            found: tuple[Verdict, bytes] = ray.get(
                self._judge.score.remote(self.work.subject, shots, pngs)
            )
            return found
        except JudgeTimeoutError:
            # A thread that hangs cannot be ended. Its process can: Ray starts another, and asks it
            # what others had asked this one.
            ray.kill(self._judge, no_restart=False)
            if attempts == 1:
                raise
        return self._judgement(shots, pngs, attempts - 1)


class PackedRunner(_Runner):
    """A slot of an engine that others share."""

    def __init__(self, order: Order) -> None:
        super().__init__(order)
        import ray

        assert order.engine is not None
        self._engine = ray.get_actor(order.engine)

    def read(self, step: int, then: int) -> tuple[Any, dict[str, float]]:
        """The pictures go from the engine to the judges; this process never holds them."""
        import ray

        order = self.order
        call = self._engine.rung.options(num_returns=2)
        pngs, figures = call.remote(order.work, step, then, order.shots[step], order.sampling)
        verdict = self.judged(step, pngs)
        return verdict, ray.get(figures)


class AloneRunner(_Runner):
    """The ordinary training, on a base of its own: for full fine-tuning, and to check the other."""

    def __init__(self, order: Order, task: TrainTask) -> None:
        super().__init__(order)
        from dreamfleet.runtime.engine_actor import EngineSource
        from dreamfleet.training.group import Group
        from dreamfleet.training.jobs import build_job

        self.task = work_task(task, order.work)
        base = EngineSource.of(self.task.config, order.device, for_scores=True).load()
        self.job = build_job(self.task, base, Group())
        self._state_known = False

    def read(self, step: int, then: int) -> tuple[Any, dict[str, float]]:
        """Train on, write the state down, draw."""
        known = self._train_to(step)
        with self.job.final_weights() as base:
            pngs = draw_with(base, self.order.shots[step], self.order.sampling)
        verdict = self.judged(step, pngs)
        return verdict, {name: value for name, value in known.items() if value == value}

    def export(
        self, step: int, shots: Sequence[Shot]
    ) -> tuple[dict[str, bytes], Sequence[Shot], list[bytes], list[bytes]]:
        """Files of the adapter at `step`, then `shots` with it and without."""
        import tempfile

        self._train_to(step)
        with tempfile.TemporaryDirectory() as place:
            paths = self.job.export(place)
            files = {path.relative_to(place).as_posix(): path.read_bytes() for path in paths}
        with self.job.final_weights() as base:
            pngs = draw_with(base, shots, self.order.sampling)
        with self.job.bare_base() as base:
            bare = draw_with(base, shots, self.order.sampling)
        return files, shots, pngs, bare

    def _train_to(self, step: int) -> dict[str, float]:
        from dreamfleet.training.worker import figures

        if not self._state_known:
            state = read_state(self.work, step)
            if state is not None:
                self.job.load_state_dict(state)
            self._state_known = True
        known: dict[str, float] = {}
        while self.job.step_index < step:
            known = figures(asdict(self.job.step()))
        write_state(self.work, step, self.job.state_dict())
        return known


def draw_with(base: Any, shots: Sequence[Shot], sampling: Sampling) -> list[bytes]:
    """PNGs of `shots` by a base as it is."""
    from dreamfleet.data.photos import to_png
    from dreamfleet.engine.sampling import sample_images
    from dreamfleet.training.samples import PIXELS_AT_ONCE

    at_once = max(1, PIXELS_AT_ONCE // base.resolution**2)
    pngs: list[bytes] = []
    for start in range(0, len(shots), at_once):
        chunk = shots[start : start + at_once]
        images = sample_images(
            base,
            [shot.prompt for shot in chunk],
            [shot.seed for shot in chunk],
            num_inference_steps=sampling.num_inference_steps,
            guidance_scale=sampling.guidance_scale,
            scheduler=sampling.scheduler,
        )
        pngs += [to_png(image) for image in images]
    return pngs
