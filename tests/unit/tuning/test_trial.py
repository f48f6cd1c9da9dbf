"""What a trial leaves for its next attempt, and for nobody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dreamfleet.runtime.storage import Folder
from dreamfleet.tuning.engine import Work
from dreamfleet.tuning.trial import READINGS, Reading, _keep, known_readings, sheet, sheet_name


def test_readings_are_those_of_the_very_same_training(tmp_path: Path) -> None:
    work = Work("rex#1", "rex", {}, 0, (2, 4), str(tmp_path), "setting a")
    assert known_readings(work) == {}
    own = Reading(2, 0.5, 0.6, {"p": 0.5}, {"q": 0.6}, {"loss": 1.0})
    _keep(work, [own])
    assert known_readings(work) == {2: own}
    assert known_readings(replace(work, key="setting b")) == {}, "another sweep's, another seed's"
    (tmp_path / READINGS).write_text("[", encoding="utf-8")
    assert known_readings(work) == {}


def test_pictures_are_found_behind_uris_too(tmp_path: Path) -> None:
    place = Folder(f"file://{tmp_path}")
    assert sheet(place, 2) is None
    place.write(sheet_name(2), b"png")
    assert sheet(place, 2) == b"png"
