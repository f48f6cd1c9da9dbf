"""The joint between Ray Tune and Optuna: Tune executes, the studies decide.

A thin searcher asks and tells, a thin scheduler passes rungs on and stops what the study prunes, a
callback gives slots back. Nothing is kept here that a new driver would need: not `OptunaSearch`
(it repeats told trials after a restore), not Tune's own schedulers (their stopped trials would be
told complete), not `Tuner.restore` (its snapshot lags behind the database).
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray import cloudpickle, tune
from ray.tune import registry
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from dreamfleet.errors import DreamfleetError, TrainingError, first_line
from dreamfleet.tuning.study import Asked, SubjectStudy
from dreamfleet.tuning.trainables import JOB, ORDER
from dreamfleet.tuning.trial import ERROR, READING, Order, Reading

LOST = "its process was lost too often"
TRIAL_MEMORY_BYTES = 100 * 2**20  # what a trial's process takes; it computes nothing


@dataclass
class Slots:
    """Places for trials: so many on each engine."""

    per_engine: int
    engines: Sequence[str]
    taken: dict[str, str] = field(default_factory=dict)  # job -> engine

    def take(self, job: str) -> str | None:
        """The engine with the most room; None: all are full."""
        load = {name: list(self.taken.values()).count(name) for name in self.engines}
        name = min(load, key=lambda own: load[own])
        if load[name] >= self.per_engine:
            return None
        self.taken[job] = name
        return name

    def give_back(self, job: str) -> str | None:
        """Free the job's place; returns its engine, None where it had none."""
        return self.taken.pop(job, None)

    @property
    def total(self) -> int:
        return self.per_engine * len(self.engines)


class Witness(Protocol):
    """Who wants to know what happens."""

    def started(self, study: SubjectStudy, asked: Asked) -> None: ...

    def read(self, study: SubjectStudy, asked: Asked, reading: Reading) -> None: ...

    def ended(self, study: SubjectStudy, asked: Asked) -> None: ...

    def tick(self) -> None: ...


@dataclass
class Sweep:
    """All studies of a command, their trials under way, and the places for these.

    Attributes:
        order: makes a trial's order: study, trial, job id, engine's name.
        free: gives a job's slot on an engine back.
        broken: why it cannot go on, e.g. a database that takes no more. Tune only logs some of what
            its hooks raise, and would wait without end for a trial that was never told.
    """

    studies: Sequence[SubjectStudy]
    slots: Slots
    order: Callable[[SubjectStudy, Asked, str, str], Order]
    free: Callable[[str, str], None]
    witness: Witness
    jobs: dict[str, tuple[SubjectStudy, Asked]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # job -> of its last attempt's failure
    broken: Exception | None = None
    _turn: Any = field(default_factory=itertools.count)

    @property
    def finished(self) -> bool:
        return all(study.finished for study in self.studies)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """For Tune's hooks: what goes wrong in one is kept for `check`."""
        try:
            yield
        except Exception as error:
            self.broken = self.broken or error

    def check(self) -> None:
        """Raise what has gone wrong, as what a user can mend."""
        if isinstance(self.broken, DreamfleetError):
            raise self.broken
        if self.broken is not None:
            raise TrainingError(
                f"the sweep broke off ({type(self.broken).__name__}: {first_line(self.broken)}); "
                "what has ended is kept: mend that and go on with --resume"
            ) from self.broken

    def next_order(self) -> tuple[str, Order] | None:
        """A trial of the next study in turn that wants one, if there is a place."""
        if len(self.slots.taken) >= self.slots.total:
            return None
        first = next(self._turn)
        for offset in range(len(self.studies)):
            study = self.studies[(first + offset) % len(self.studies)]
            asked = study.ask()
            if asked is None:
                continue
            job = f"{study.name}#{asked.number}"
            engine = self.slots.take(job)
            assert engine is not None
            self.jobs[job] = (study, asked)
            self.witness.started(study, asked)
            return job, self.order(study, asked, job, engine)
        return None

    def reading(self, job: str, result: Mapping[str, Any]) -> bool:
        """Take a trial's result; True: stop it."""
        study, asked = self.jobs[job]
        if ERROR in result:
            asked.error = str(result[ERROR])
            return True
        if READING not in result:  # Tune's own last result
            return False
        reading = Reading(**json.loads(result[READING]))
        is_new = reading.step not in asked.readings  # another attempt begins with what is known
        stop = study.read(asked.number, reading)
        if is_new:
            self.witness.read(study, asked, reading)
        return stop

    def end(self, job: str, error: str = "") -> None:
        """A trial is over."""
        found, reason = self.jobs.pop(job, None), self.reasons.pop(job, error)
        if found is None:
            return
        study, asked = found
        study.end(asked.number, error and reason)
        self.witness.ended(study, asked)

    def release(self, job: str) -> None:
        """Its slot is free for the next."""
        engine = self.slots.give_back(job)
        if engine is not None:
            self.free(engine, job)


class StudySearcher(Searcher):
    """Asks the studies for trials and tells them how these ended."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep, self._jobs = sweep, dict[str, str]()

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        found = None
        with self._sweep.noting():
            if self._sweep.finished:
                return Searcher.FINISHED
            found = self._sweep.next_order()
        if found is None:
            return None
        self._jobs[trial_id] = found[0]
        return {JOB: found[0], ORDER: found[1]}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler takes results."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        job = self._jobs.pop(trial_id, None)
        if job is not None:
            with self._sweep.noting():
                self._sweep.release(job)
                self._sweep.end(job, LOST if error else "")

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the studies are on disk."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __reduce__(self) -> Any:  # Tune pickles its settings for a restore that is never asked for
        return (object, ())


class RungScheduler(FIFOScheduler):
    """Stops a trial where its study prunes it."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__()
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = False
        with self._sweep.noting():
            stop = self._sweep.reading(trial.config[JOB], result)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Before the searcher is told that no further attempt is made, and before each of these."""
        error = _kept_error(trial)  # of a process that died it says nothing more
        if isinstance(error, ray.exceptions.RayTaskError):
            reason = f"every attempt failed: {first_line(error.cause or error)}"
            self._sweep.reasons[trial.config[JOB]] = reason

    def __reduce__(self) -> Any:
        return (object, ())


def _kept_error(trial: Any) -> Any:
    """What ended a trial's attempt, from where Tune has just written it: `get_pickled_error` reads
    the trial's storage, to which that file is copied now and then.
    """
    try:
        with open(trial.pickled_error_file, "rb") as file:
            return cloudpickle.load(file)
    except Exception:  # none was written, or it holds what cannot be loaded here
        return None


class SlotCallback(tune.Callback):
    """Gives a slot back as soon as Tune has stopped a trial, before its process is gone."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        with self._sweep.noting():
            self._sweep.release(trial.config[JOB])

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        with self._sweep.noting():
            self._sweep.release(trial.config[JOB])

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self._sweep.check()
        self._sweep.witness.tick()

    def __reduce__(self) -> Any:
        return (object, ())


def fit(sweep: Sweep, trainable: Any, bundle: Mapping[str, float], folder: str) -> None:
    """Run all trials of all studies.

    Args:
        trainable: `packed_trainable`, or `alone_trainable` with its tasks.
        bundle: Ray resources of a trial.
        folder: for Tune's own files, which nobody reads again.

    Raises:
        KeyboardInterrupt: as it is; what runs stays RUNNING in the studies for `--resume`.
        TrainingError: a study cannot be asked or told; likewise.
    """
    if sweep.finished:
        return
    resources = tune.PlacementGroupFactory([dict(bundle)])
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=tune.TuneConfig(
            num_samples=-1,
            search_alg=StudySearcher(sweep),
            scheduler=RungScheduler(sweep),
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.config[JOB]),
            trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=folder,
            verbose=0,
            callbacks=[SlotCallback(sweep)],
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    )
    try:
        tuner.fit()
        sweep.check()
        registry._unregister_all()
    finally:
        # What is left Tune would unregister when the interpreter ends, and start a new Ray for it:
        # ours is gone then, or going, and would not answer.
        registry._global_registry._registered.clear()
