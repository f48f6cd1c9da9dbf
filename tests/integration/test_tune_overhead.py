"""Tune and Optuna themselves: many trials that compute nothing."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest

from dreamfleet.tuning.engine import Sampling, Work
from dreamfleet.tuning.search import TRIAL_MEMORY_BYTES, Slots, Sweep, fit
from dreamfleet.tuning.study import Asked, Owner, SubjectStudy, open_storage
from dreamfleet.tuning.trial import Order, Reading
from tests.unit.tuning.test_space import recipe

NUM_TRIALS = 200
SETTLED = 60  # trials after which memory may not grow much
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


@pytest.mark.slow
@pytest.mark.usefixtures("ray_running")
def test_two_hundred_thin_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe(tune__num_samples=NUM_TRIALS)
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}")
    study = SubjectStudy(storage, "rex", config, {}, resume=False, owner=Owner("", ""))
    reading = asdict(Reading(0, 0.0, 0.6, {}, {f"p{i}": 0.6 for i in range(6)}, {}))

    def order(study: SubjectStudy, asked: Asked, job: str, engine: str) -> Order:
        work = Work(job, "rex", asked.params, 0, study.steps, str(tmp_path))
        return Order(work, {}, Sampling(1, 1.0, "ddim"), "", None)

    def thin(settings: Any) -> None:  # sent by value: workers know nothing of the tests
        import json

        from ray import tune

        work = settings["order"].work
        for step in work.steps:
            score = 1 / (1 + abs(work.params["sude.weight"] - 1)) + 0.001 * step
            own = {**reading, "step": step, "alignment": score}
            tune.report({"step": step, "reading": json.dumps(own)})

    scales, began = Scales(), time.perf_counter()
    sweep = Sweep([study], Slots(4, ["none"]), order, lambda engine, job: None, scales)
    fit(sweep, thin, {"memory": float(TRIAL_MEMORY_BYTES)}, str(tmp_path / "tune"))
    took = time.perf_counter() - began
    assert study.done == NUM_TRIALS and study.finished
    growth = scales.bytes[-1] - scales.bytes[SETTLED]
    with capsys.disabled():
        print(f"\n{took / NUM_TRIALS:.2f} s a trial; {growth / 2**20:.0f} MiB more after {SETTLED}")
    assert growth < GROWTH_BYTES
