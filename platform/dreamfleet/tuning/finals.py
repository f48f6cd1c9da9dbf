"""The finalists: the best two settings and the host, trained on new seeds and judged on more
pictures.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from dreamfleet.config import RunConfig
from dreamfleet.seeding import key_to_int
from dreamfleet.tuning.engine import Sampling, Work
from dreamfleet.tuning.pictures import Shot, shots, subject_shots
from dreamfleet.tuning.rule import Candidate, best_first, fidelity_excess
from dreamfleet.tuning.study import SubjectStudy
from dreamfleet.tuning.trial import AloneRunner, Order, Reading, readings

if TYPE_CHECKING:
    from dreamfleet.training.task import TrainTask

FINALISTS = 2
SEED_LIMIT = 2**31
SAMPLES = 8  # pictures of the champion in its folder, beside those of its own prompt
SUBJECT_SAMPLES = 4


@dataclass(frozen=True)
class Contender:
    """A setting in the finals.

    Attributes:
        number: of its trial.
        params, steps: what is trained.
        is_host: the recipe without SuDe.
    """

    number: int
    params: Mapping[str, Any]
    steps: int
    is_host: bool


@dataclass(frozen=True)
class FinalScore:
    """A contender's means over new seeds, and how it stands against the host."""

    contender: Contender
    alignment: float
    fidelity: float
    excess: float
    readings: Mapping[int, Reading]  # by training seed

    @property
    def candidate(self) -> Candidate:
        return Candidate(str(self.contender.number), self.alignment, self.excess, self.fidelity)


@dataclass(frozen=True)
class Finals:
    """How they ended; the winner comes first."""

    scores: Sequence[FinalScore]

    @property
    def winner(self) -> FinalScore:
        return self.scores[0]

    @property
    def host(self) -> FinalScore:
        return next(score for score in self.scores if score.contender.is_host)


@dataclass(frozen=True)
class Exported:
    """The champion's files, and pictures with and without it."""

    files: Mapping[str, bytes]
    shots: Sequence[Shot]
    pngs: Sequence[bytes]
    bare: Sequence[bytes]


def contenders(study: SubjectStudy) -> list[Contender]:
    """The host and the best two others by the selection rule, pruned ones at their best rung. Where
    fewer than two are allowed, whole ones come next by how little they fail, then those that the
    pruner ended last, at the recipe's length: rungs are read off few pictures, and at an early one
    hardly anything tells settings apart. None is a copy of another or of the host.
    """
    host = study.host()
    assert host is not None
    others = {s.candidate.label: s for s in study.standings() if s.trial.number != host.number}
    order = [others[own.label] for own in best_first([s.candidate for s in others.values()])]
    last = study.steps[-1]
    allowed = [(own.trial, own.steps) for own in order if own.candidate.feasible]
    failing = [own.trial for own in order if not own.candidate.feasible]
    whole = [(t, int(t.user_attrs["steps"])) for t in failing if t.state == TrialState.COMPLETE]
    pruned = [(t, last) for t in failing if t.state == TrialState.PRUNED]
    pruned.sort(key=lambda own: _progress(own[0]), reverse=True)
    found = [Contender(host.number, host.user_attrs["setting"], last, True)]
    for trial, steps in [*allowed, *whole, *pruned]:
        own = Contender(trial.number, trial.user_attrs["setting"], steps, False)
        if (own.params, steps) not in [(other.params, other.steps) for other in found]:
            found.append(own)
    return [*found[1 : FINALISTS + 1], found[0]]


def _progress(pruned: FrozenTrial) -> tuple[int, float]:
    """How far a trial came, and how well it did there."""
    return max(pruned.intermediate_values.items())


def final_seeds(config: RunConfig) -> list[int]:
    """Training seeds that no trial has used."""
    own = config.train.seed
    found = (key_to_int("tune final", own, number) % SEED_LIMIT for number in range(64))
    return [seed for seed in found if seed != own][: config.tune.final_seeds]


def final_shots(config: RunConfig) -> tuple[Shot, ...]:
    """What finalists are judged by."""
    return tuple(shots(config, config.tune.final_images))


def final_order(
    config: RunConfig,
    contender: Contender,
    seed: int,
    folder: str,
    *,
    subject: str,
    key: str,
    **where: Any,
) -> Order:
    """One training of the finals.

    Args:
        key: as `Work` has it.
        where: engine, judge and device, as `Order` has them.
    """
    sampling = config.sampling
    work = Work(
        f"{subject}#final-{contender.number}-{seed}", subject, contender.params, seed,
        (contender.steps,), folder, key,
    )  # fmt: skip
    how = Sampling(sampling.num_inference_steps, sampling.guidance_scale, sampling.scheduler)
    return Order(work, {contender.steps: final_shots(config)}, how, **where)


def run_all(
    work: Sequence[Any], run: Callable[[Any], Any], at_once: int, done: Callable[[int], None]
) -> list[Any]:
    """`run` each piece of work, some at once; results in order.

    Not by `concurrent.futures`: the program's end waits for its threads, and one that waits for
    Ray would keep an interrupted command alive. And a Ctrl-C inside `Future.result` can come out as
    another error.
    """
    waiting: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    over = threading.Event()

    def take_turns() -> None:
        while not over.is_set():
            try:
                number, one = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((number, run(one), None))
            except BaseException as error:
                ended.put((number, None, error))

    for item in enumerate(work):
        waiting.put(item)
    results: dict[int, Any] = {}
    try:
        for _ in range(min(max(1, at_once), len(work))):
            threading.Thread(target=take_turns, name="finals", daemon=True).start()
        while len(results) < len(work):
            number, result, error = ended.get()
            if error is not None:
                raise error
            results[number] = result
            done(len(results))
    finally:
        over.set()
    return [results[number] for number in range(len(work))]


def final_reading(order: Order, task: TrainTask | None = None) -> Reading:
    """Train and judge one, here."""
    *_, last = readings(order, task)
    return last


def decided(
    found: Mapping[tuple[int, int], Reading], those: Sequence[Contender], margin: float
) -> Finals:
    """The finals' order by the selection rule; the host wins a tie.

    Args:
        found: readings by trial number and seed.
    """

    def pictures(own: Contender) -> dict[str, float]:
        return {
            f"{seed}: {name}": value
            for (number, seed), reading in found.items()
            if number == own.number
            for name, value in reading.fidelities.items()
        }

    host = next(own for own in those if own.is_host)
    scores = []
    for own in those:
        mine = {seed: reading for (number, seed), reading in found.items() if number == own.number}
        excess = fidelity_excess(pictures(own), pictures(host), margin)
        scores.append(
            FinalScore(
                own,
                sum(reading.alignment for reading in mine.values()) / len(mine),
                sum(reading.fidelity for reading in mine.values()) / len(mine),
                -margin if own.is_host else excess,
                mine,
            )
        )
    scores.sort(key=lambda score: not score.contender.is_host)  # before its equals
    order = [own.label for own in best_first([score.candidate for score in scores])]
    return Finals(sorted(scores, key=lambda score: order.index(score.candidate.label)))


def sample_shots(config: RunConfig) -> tuple[Shot, ...]:
    """What is shown of the champion."""
    return (*subject_shots(config, SUBJECT_SAMPLES), *final_shots(config)[:SAMPLES])


def exported(order: Order, config: RunConfig, task: TrainTask | None = None) -> Exported:
    """The adapter of a training of the finals, with pictures; trained again if it is gone."""
    wanted, step = sample_shots(config), order.work.steps[-1]
    if order.engine is None:
        assert task is not None
        runner = AloneRunner(order, task)
        return Exported(*runner.export(step, wanted))
    import ray

    engine = ray.get_actor(order.engine)
    pngs, _ = ray.get(engine.rung.remote(order.work, step, step, wanted, order.sampling))
    files = ray.get(engine.export_files.remote(order.work.job_id))
    bare = ray.get(engine.draw_shots.remote(wanted, order.sampling))
    return Exported(files, wanted, pngs, bare)
