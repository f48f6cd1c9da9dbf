"""What becomes of a training whose storage fails, and how the run above many ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamfleet.config import RunConfig
from dreamfleet.errors import TrainingError
from dreamfleet.personalization import finishing
from dreamfleet.personalization.command import Command
from dreamfleet.personalization.finishing import Finisher
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.output import OutputFolder
from dreamfleet.training.task import TrainOutcome
from tests.unit.data.helpers import config_for


class Ends:
    """A tracker, and each of its runs: keeps how they ended."""

    uri = None

    def __init__(self) -> None:
        self.ended: dict[str, str] = {}

    def start_run(self, name: str, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(
            finish=lambda status="FINISHED", timeout_s=0.0: self.ended.update({name: status})
        )

    def close(self) -> None:
        pass


def finisher(tmp_path: Path, tracker: Ends, *names: str) -> Finisher:
    """Of subjects that are trained."""
    requests = [
        SimpleNamespace(id=name, display_name=name, config=config_for(tmp_path)) for name in names
    ]
    folders = {
        name: OutputFolder.of(Folder(str(tmp_path / "out" / name)), None, name) for name in names
    }
    command = Command(
        cast(Any, requests), cast(Any, None), RunConfig(), Folder(str(tmp_path / "fleet")), folders,
        False, False, SilentProgress(),
    )  # fmt: skip
    return Finisher(command, cast(Any, None), cast(Any, tracker))


def full_disk(self: Finisher, outcome: TrainOutcome, run: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_said_with_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Finisher, "_publish", full_disk)
    tracker = Ends()
    own = finisher(tmp_path, tracker, "ada")
    with pytest.raises(TrainingError, match="ada: .*No space left.*--resume goes on"):
        own.finish(TrainOutcome("ada", "finished", 6))
    assert tracker.ended == {"ada": "FAILED"}


def test_among_several_not_even_the_marker_ends_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: OutputFolder, values: Any) -> None:
        if "ada" in self.place.location:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(OutputFolder, "update_info", no_room)
    tracker = Ends()
    own = finisher(tmp_path, tracker, "ada", "bo")
    for name in ("ada", "bo"):
        own.finish(TrainOutcome(name, "failed", 3, message="broke down"))
    own.close()
    assert "No space left" in own.results["ada"].message
    assert own.results["bo"].message == "broke down"
    assert tracker.ended == {"bo": "FAILED", "fleet": "FAILED"}, "the run above them, too"


def test_an_error_among_several_is_named_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Finisher, outcome: TrainOutcome, run: Any) -> Any:
        raise KeyError("loss")

    monkeypatch.setattr(Finisher, "_publish", broken)
    own = finisher(tmp_path, Ends(), "ada", "bo")
    own.finish(TrainOutcome("ada", "finished", 6))
    assert own.results["ada"].message == "KeyError: 'loss'"


@pytest.mark.parametrize(("broke_off", "status"), [(True, "KILLED"), (False, "FINISHED")])
def test_the_run_above_many_ends_as_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broke_off: bool, status: str
) -> None:
    done = SimpleNamespace(status="finished")
    monkeypatch.setattr(finishing.Finisher, "_publish", lambda *_: done)
    tracker = Ends()
    own = finisher(tmp_path, tracker, "ada", "bo")
    own.finish(TrainOutcome("ada", "finished", 6))
    if broke_off:
        own.abandon()
    own.close()
    assert tracker.ended["fleet"] == status
