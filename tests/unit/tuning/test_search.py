"""What the joint between Tune and the studies passes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from dreamfleet.tuning.engine import Sampling, Work
from dreamfleet.tuning.search import Slots, Sweep
from dreamfleet.tuning.study import Asked, SubjectStudy
from dreamfleet.tuning.trial import Order, as_result
from tests.unit.tuning.test_study import halved, opened, reading


def test_what_a_lost_trial_had_shown_is_not_shown_again(tmp_path: Path) -> None:
    """Its next attempt begins with the rungs that are known."""
    study = opened(f"sqlite:///{tmp_path / 'study.db'}", halved(tune__num_samples=1))
    seen: list[int] = []
    witness = SimpleNamespace(
        started=lambda *about: None, read=lambda own, asked, found: seen.append(found.step)
    )

    def order(study: SubjectStudy, asked: Asked, job: str, engine: str) -> Order:
        work = Work(job, study.name, asked.params, 0, study.steps, "")
        return Order(work, {}, Sampling(1, 1.0, "ddim"), "", None)

    sweep = Sweep([study], Slots(1, ["engine"]), order, lambda *about: None, cast(Any, witness))
    found = sweep.next_order()
    assert found is not None and sweep.next_order() is None
    for step in (10, 10, 20):
        assert not sweep.reading(found[0], as_result(reading(step, 0.5)))
    assert seen == [10, 20] and sorted(study.running[0].readings) == [10, 20]
