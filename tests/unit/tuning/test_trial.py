"""What a trial leaves for its next attempt, and for nobody else."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from dreamfleet.runtime.storage import Folder
from dreamfleet.tuning.engine import Sampling, TuneEngine, Work
from dreamfleet.tuning.judge import JudgeActor, JudgeTimeoutError, Verdict
from dreamfleet.tuning.pictures import Shot
from dreamfleet.tuning.trial import (
    READINGS,
    Order,
    Reading,
    _keep,
    known_readings,
    sheet,
    sheet_name,
)


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


def test_what_a_trial_is_sent_needs_no_torch(tmp_path: Path) -> None:
    shot = Shot("a photo of sks dog", "state", 0, state="sleeping")
    work = Work("rex#1", "rex", {"sude.weight": 0.4}, 0, (2, 4), str(tmp_path))
    order = Order(work, {2: (shot,)}, Sampling(2, None, "ddim"), "judge", "engine")
    # Ray sends the class of an actor with its handle.
    sent = [order, Verdict(0.5, 0.6, {}, {}), JudgeTimeoutError("late"), JudgeActor, TuneEngine]
    path = tmp_path / "sent.pickle"
    path.write_bytes(pickle.dumps(sent))
    program = (
        "import pickle, sys, dreamfleet.tuning.trainables, dreamfleet.tuning.trial\n"
        "pickle.load(open(sys.argv[1], 'rb'))\n"
        "sys.exit(' '.join({'torch', 'diffusers', 'scipy', 'optuna', 'mlflow'} & set(sys.modules))"
        " or 0)"
    )
    ran = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
