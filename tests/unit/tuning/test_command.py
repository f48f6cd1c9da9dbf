"""What a sweep refuses before anything is started or written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamfleet.errors import BadInputError
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.tuning.command import Command, _check_storage, _warn_of_idle_settings
from tests.unit.tuning.test_space import recipe


@pytest.mark.parametrize(
    "tail",
    ["fleet:secret@host/studies", "fleet:secret/2@host/studies", "host/studies?password=secret"],
)
def test_a_password_is_not_written_down(tail: str) -> None:
    with pytest.raises(BadInputError, match="PGPASSWORD") as caught:
        _check_storage(recipe(tune__storage=f"postgresql+psycopg://{tail}"))
    assert "secret" not in str(caught.value)
    _check_storage(recipe(tune__storage="postgresql+psycopg://fleet@host:5432/studies"))
    _check_storage(recipe())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tune__blip": "b", "tune__dino": "d"}, ["without effect: tune.blip, tune.dino"]),
        ({"base_model": "a base", "tune__blip": "b"}, []),
        ({"base_model": "a base", "tune__evaluators": "e"}, ["without effect: tune.evaluators"]),
        ({"tune__sampler": "nsga2", "tune__pruner": "hyperband"}, ["without effect: tune.pruner"]),
        (
            {"tune__placement": "one_per_device", "cluster__max_slots": 2},
            ["without effect: cluster.max_slots"],
        ),
        ({"train__mode": "full", "space__rank": [4]}, ["without effect: space.rank"]),
        ({"space__rank": [4], "cluster__max_slots": 2, "tune__pruner": "none"}, []),
        (
            {"sampling__validation_steps": 50, "sampling__num_validation_images": 2},
            ["without effect: sampling.num_validation_images, sampling.validation_steps"],
        ),
        (
            {"sampling__validation_prompts": ["a {token}"], "sampling__num_inference_steps": 50},
            ["without effect: sampling.validation_prompts"],
        ),
        (
            {"train__checkpointing_steps": 10, "train__checkpoints_total_limit": 3},
            ["without effect: train.checkpointing_steps, train.checkpoints_total_limit"],
        ),
        (
            {"cluster__max_failures": 0, "cluster__parallel": "data"},
            ["without effect: cluster.max_failures", "without effect: cluster.parallel"],
        ),
        (
            {
                "tune__num_rungs": 1,
                "tune__pruner": "none",
                "tune__images_per_rung": 4,
                "tune__reduction_factor": 2,
                "tune__sampler": "nsga2",
            },
            ["without effect: tune.pruner, tune.reduction_factor, tune.images_per_rung"],
        ),
    ],
)
def test_settings_without_effect_are_named(given: dict[str, Any], said: list[str]) -> None:
    lines: list[str] = []
    _warn_of_idle_settings(recipe(**given), cast(Any, SimpleNamespace(warn=lines.append)))
    assert [line.partition(" (")[0] for line in lines] == said


def test_a_database_that_cannot_be_opened_is_refused_first(tmp_path: Path) -> None:
    config = recipe(tune__storage="studies.db")
    files, progress = cast(Any, None), SilentProgress()
    with pytest.raises(BadInputError, match=r"studies\.db.*SQLAlchemy URL"):
        Command([], files, config, tmp_path, False, False, progress).execute()
    assert not list(tmp_path.iterdir())


def test_sweeps_on_one_storage_have_folders_of_their_own(tmp_path: Path) -> None:
    config = recipe(cluster__storage_path=str(tmp_path / "storage"))
    output = tmp_path / "out"
    output.mkdir()

    def begun(resume: bool = False, overwrite: bool = False) -> Command:
        files, progress = cast(Any, None), SilentProgress()
        command = Command([], files, config, output, resume, overwrite, progress)
        command.key = command._begin()
        return command

    first = begun()
    place = Path(first.trial_folder("rex", 0))
    place.mkdir(parents=True)
    assert begun(resume=True).trial_folder("rex", 0) == str(place)
    second = begun(overwrite=True)
    assert not place.exists() and second.trial_folder("rex", 0) != str(place)
    assert begun(overwrite=True).former_keys == [second.key, first.key]
