"""The page of a study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamfleet.runtime.storage import Folder
from dreamfleet.tuning.finals import contenders
from dreamfleet.tuning.report import _sheets
from dreamfleet.tuning.trial import sheet_name
from tests.unit.tuning.test_study import asked_for, halved, opened, run


def test_the_finalists_pictures_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where others are better aligned, but far from the subject."""
    config = halved(tune__num_samples=8, tune__max_concurrent_trials=8, tune__pruner="none")
    study = opened(f"sqlite:///{tmp_path / 'study.db'}", config)
    host, *others = asked_for(study, 8)
    run(study, host, 0.3, 0.3, 0.3)
    for number in others:
        allowed = number == others[-1]
        values = (0.35, 0.5, 0.4) if allowed else (0.9, 0.9, 0.9)
        run(study, number, *values, fidelity=0.6 if allowed else 0.1 + 0.01 * number)
    for number in [host, *others]:
        for step in study.steps:
            Folder(str(tmp_path / f"{number}")).write(sheet_name(step), b"png")
    scores = [
        SimpleNamespace(candidate=SimpleNamespace(label=str(own.number)))
        for own in contenders(study)
    ]
    report: Any = SimpleNamespace(
        study=study,
        finals=SimpleNamespace(scores=scores),
        sheets=lambda root: Folder(str(tmp_path / f"{root}")),
    )
    monkeypatch.setattr("dreamfleet.tuning.report.SHOWN_SHEETS", 4)
    shown = [name for name, _ in _sheets(cast(Any, report))]
    champion, second, next_best = others[-1], others[-2], others[-3]
    assert shown == [
        f"#{champion}, 20 steps", f"#{second}, 40 steps", f"#{host}, 40 steps",
        f"#{next_best}, 40 steps",
    ]  # fmt: skip
