"""Tune and Optuna themselves: many trials that compute nothing, and two that fail."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from dreamfleet.errors import TrainingError
from dreamfleet.tuning.engine import Sampling, Work
from dreamfleet.tuning.search import TRIAL_MEMORY_BYTES, Slots, Sweep, fit
from dreamfleet.tuning.study import Asked, Owner, SubjectStudy, open_storage
from dreamfleet.tuning.trial import Order, Reading
from tests.unit.tuning.test_space import recipe

BROKEN, RAISING = 3, 5  # trials: one says what is wrong, one dies
GROWTH_BYTES = 60 * 2**20


class Scales:
    """Weighs this process whenever a trial ends."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def started(self, study: SubjectStudy, asked: Asked) -> None: ...

    def read(self, study: SubjectStudy, asked: Asked, reading: Reading) -> None: ...

    def ended(self, study: SubjectStudy, asked: Asked) -> None:
        self.bytes.append(psutil.Process().memory_info().rss)

    def tick(self) -> None: ...


@pytest.mark.usefixtures("ray_running")
@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
def test_thin_trials(count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe(tune__num_samples=count)
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = SubjectStudy(storage, "rex", config, {}, resume=False, owner=Owner("", ""))
    reading = asdict(Reading(0, 0.0, 0.6, {}, {f"p{i}": 0.6 for i in range(6)}, {}))

    def order(study: SubjectStudy, asked: Asked, job: str, engine: str) -> Order:
        work = Work(job, "rex", asked.params, 0, study.steps, str(tmp_path))
        return Order(work, {}, Sampling(1, 1.0, "ddim"), "", None)

    broken, raising = BROKEN, RAISING

    def thin(settings: Any) -> None:  # sent by value: workers know nothing of the tests
        import json

        from ray import tune

        work = settings["order"].work
        number = int(work.job_id.partition("#")[2])
        if number == broken:
            tune.report({"step": 0, "error": "its loss is not a number"})
            return
        if number == raising:
            raise RuntimeError("out of luck")
        for step in work.steps:
            score = 1 / (1 + abs(work.params["sude.weight"] - 1)) + 0.001 * step
            own = {**reading, "step": step, "alignment": score}
            tune.report({"step": step, "reading": json.dumps(own)})

    scales, began, computed = Scales(), time.perf_counter(), time.process_time()
    sweep = Sweep([study], Slots(4, ["none"]), order, lambda engine, job: None, scales)
    fit(sweep, thin, {"memory": float(TRIAL_MEMORY_BYTES)}, str(tmp_path / "tune"))
    took, computed = time.perf_counter() - began, time.process_time() - computed
    assert study.done == count and study.finished
    errors = {trial.number: trial.user_attrs["error"] for trial in study.failures}
    assert errors == {
        BROKEN: "its loss is not a number", RAISING: "every attempt failed: out of luck",
    }  # fmt: skip
    settled = count // 2  # trials after which memory may not grow much: all is imported
    growth = scales.bytes[-1] - scales.bytes[settled]
    with capsys.disabled():
        print(
            f"\n{count} trials: {took / count:.2f} s each, of which the driver computes "
            f"{computed / count:.2f} s; {growth / 2**20:.0f} MiB more after {settled}"
        )
    assert growth < GROWTH_BYTES


@pytest.mark.usefixtures("ray_running")
def test_a_database_that_takes_no_more_ends_the_sweep(tmp_path: Path) -> None:
    """Tune only logs what its hooks raise when a trial ends; it would be waited for without end."""
    config = recipe(tune__num_samples=4)
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = SubjectStudy(storage, "rex", config, {}, resume=False, owner=Owner("", ""))

    def order(study: SubjectStudy, asked: Asked, job: str, engine: str) -> Order:
        work = Work(job, "rex", asked.params, 0, study.steps, str(tmp_path))
        return Order(work, {}, Sampling(1, 1.0, "ddim"), "", None)

    def full(*about: Any, **more: Any) -> None:
        raise OSError("no space left on device")

    def failing(settings: Any) -> None:
        from ray import tune

        tune.report({"step": 0, "error": "its loss is not a number"})

    study.study.tell = full  # type: ignore[method-assign]
    sweep = Sweep([study], Slots(4, ["none"]), order, lambda engine, job: None, Scales())
    with pytest.raises(TrainingError, match=r"OSError: no space left on device.*--resume"):
        fit(sweep, failing, {"memory": float(TRIAL_MEMORY_BYTES)}, str(tmp_path / "tune"))
    assert study.running, "asked again by --resume"
