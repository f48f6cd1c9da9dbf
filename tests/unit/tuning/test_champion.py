"""A champion that is out already."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from dreamfleet.tuning.champion import (
    CHAMPION,
    PUBLISHED,
    _judged,
    again_command,
    published_before,
)
from tests.unit.tuning.test_study import halved, opened, run


def test_other_finals_are_held_again(tmp_path: Path) -> None:
    study = opened(f"sqlite:///{tmp_path / 'study.db'}", halved(tune__num_samples=1))
    host = study.ask()
    assert host
    run(study, host.number, 0.3, 0.3, 0.3)
    request = cast(Any, SimpleNamespace(display_name="Rex"))
    study.study.set_user_attr(PUBLISHED, {**_judged(study, "50 steps"), "alignment": 0.3})
    assert published_before(study, request, tmp_path, "50 steps") is None, "its files are gone"
    (tmp_path / CHAMPION).mkdir()
    known = published_before(study, request, tmp_path, "50 steps")
    assert known is not None and (known.alignment, known.trials) == (0.3, {"COMPLETE": 1})
    assert published_before(study, request, tmp_path, "20 steps") is None, "drawn otherwise"


def test_the_command_of_the_report_can_be_pasted() -> None:
    place = Path("/runs/my dog's sweep; 1")
    assert shlex.split(again_command(place))[3:] == [f"{place}/config.yaml", "--overwrite"]
    assert again_command(Path("/runs/rex")) == (
        "dreamfleet tune --config /runs/rex/config.yaml --overwrite"
    )
