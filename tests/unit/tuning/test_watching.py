"""What the terminal shows of a sweep."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from dreamfleet.runtime.progress import REPEATED_AFTER, ConsoleProgress, SilentProgress
from dreamfleet.runtime.storage import Folder
from dreamfleet.tracking import NullTracker
from dreamfleet.tuning.engine import STATE
from dreamfleet.tuning.study import SubjectStudy
from dreamfleet.tuning.watching import COLUMNS, Recorder, Watcher
from tests.unit.tuning.test_study import halved, opened, reading, run


@pytest.fixture
def study(tmp_path: Path) -> SubjectStudy:
    """The host has ended, one trial is at its first rung, one has just begun."""
    study = opened(f"sqlite:///{tmp_path / 'study.db'}", halved(tune__num_samples=5))
    host, second, _ = (own.number for own in [study.ask() for _ in range(3)] if own)
    run(study, host, 0.3, 0.3, 0.3)
    study.read(second, reading(10, 0.5))
    return study


def test_the_table_of_a_sweep(study: SubjectStudy) -> None:
    with SilentProgress().board(COLUMNS) as board:
        watcher = Watcher(cast(Any, None), board, [study], lambda: (2, 4))
    assert watcher.title() == "trials 1/5, slots 2/4, best #0 0.300"
    recipe = "λ 0, ρ* 1, lr 0.001, rank 8"
    assert watcher.rows() == [
        ("rex #1", "10/40", "0.500", "0.600", "0.2", recipe),
        ("rex #2", "0/40", "", "", "0.4", recipe),
        ("rex #0 best", "40/40", "0.300", "0.600", "0", "λ 0, lr 0.001, rank 8"),
    ]
    watcher._begun -= 600
    watcher._done_before = 0
    assert watcher.title().endswith(", about 40 min left")


def test_the_table_knows_a_trial_that_has_just_ended(study: SubjectStudy) -> None:
    asked = study.running[1]
    with SilentProgress().board(COLUMNS) as board:
        recorder = cast(Any, SimpleNamespace(settle=lambda own: None))
        watcher = Watcher(recorder, board, [study], lambda: (2, 4))
        assert watcher.title().startswith("trials 1/5")
        run(study, asked.number, 0.5, 0.6, 0.7)
        watcher.ended(study, asked)
    assert watcher.title().startswith("trials 2/5, slots 2/4, best #1 0.700")


def test_what_will_not_be_asked_again_leaves_no_state(study: SubjectStudy, tmp_path: Path) -> None:
    """Neither what counts nor what failed for good; a new driver's retries have their folder."""

    def folder(own: SubjectStudy, root: int) -> Folder:
        return Folder(str(tmp_path / f"{root}"))

    for root in range(3):
        folder(study, root).write(STATE, b"state")
    study.end(1, "its loss is not a number")
    study.read(2, reading(10, 0.5))
    again = opened(f"sqlite:///{tmp_path / 'study.db'}", study.config, resume=True)
    Recorder(NullTracker(), "key", "", folder).settle(again)
    assert [root for root in range(3) if folder(study, root).exists(STATE)] == [2]
    while (own := again.ask()) is not None:
        run(again, own.number, 0.5, 0.5, 0.5)
    Recorder(NullTracker(), "key", "", folder).settle(again)
    assert not folder(study, 2).exists(STATE)


def test_a_log_says_at_once_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [100.0], io.StringIO()
    monkeypatch.setattr("dreamfleet.runtime.progress.time.monotonic", lambda: now[0])
    progress = ConsoleProgress(Console(file=written), log_every_s=10.0)
    with progress.board(COLUMNS) as board:
        for title in ["trials 0/4"] * (REPEATED_AFTER + 1) + ["trials 1/4"]:
            board.show(title, [])
            now[0] += 10.0
    assert written.getvalue().split("\n") == ["trials 0/4", "trials 0/4", "trials 1/4", ""]
