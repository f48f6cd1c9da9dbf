"""What a sweep refuses before anything is started or written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.tuning.command import Command, Run, _check_gpus, _check_storage
from dreamfleet.tuning.finals import Contender
from dreamfleet.tuning.trial import Reading
from tests.unit.tuning.test_space import recipe


@pytest.mark.parametrize("tail", ["fleet:secret@host/studies", "host/studies?password=secret"])
def test_a_password_is_not_written_down(tail: str) -> None:
    with pytest.raises(BadInputError, match="PGPASSWORD") as caught:
        _check_storage(recipe(tune__storage=f"postgresql+psycopg://{tail}"))
    assert "secret" not in str(caught.value)
    _check_storage(recipe(tune__storage="postgresql+psycopg://fleet@host:5432/studies"))
    _check_storage(recipe())


def test_engines_leave_the_judge_a_place() -> None:
    session = cast(Any, SimpleNamespace(num_gpus=2.0))
    _check_gpus(2, 0.9, 0.1, session)
    _check_gpus(2, 1.0, 0.0, session)
    with pytest.raises(ConfigError, match="judge_num_gpus"):
        _check_gpus(2, 1.0, 0.1, session)


def test_a_finalist_that_fails_leaves_the_others() -> None:
    said: list[str] = []
    command = SimpleNamespace(
        progress=SimpleNamespace(warn=said.append), _failed=lambda *about: said.append(about[1])
    )
    run = Run(cast(Any, command), cast(Any, None), cast(Any, None), "")
    study = cast(Any, SimpleNamespace(name="rex", tune=recipe().tune))
    host, other = Contender(0, {}, 40, True), Contender(5, {}, 20, False)
    good = Reading(40, 0.5, 0.6, {}, {"a": 0.6, "b": 0.6}, {})
    found: dict[tuple[int, int], Reading | str] = {(0, 1): good, (5, 1): good}
    finals = run._decided(study, [other, host], found | {(5, 2): "loss is not a number"})
    assert finals is not None and [own.contender for own in finals.scores] == [host]
    assert "trial 5" in said.pop() and not said
    assert run._decided(study, [other, host], found | {(0, 2): "out of memory"}) is None
    assert "out of memory" in said.pop()


def test_a_study_goes_on_with_more_trials() -> None:
    """Its first four need no prior set, the others may: the settings are the same."""

    def settings(num_samples: int) -> dict[str, Any]:
        run = Run(cast(Any, None), cast(Any, None), cast(Any, None), "")
        run._prior_keys["rex"] = "prior"
        subject = SimpleNamespace(id="rex", content_key="photos")
        config = recipe(base_model="embedded", tune__num_samples=num_samples)
        task = SimpleNamespace(config=config, subject=subject, base_hash="base")
        return run._fingerprint(cast(Any, task))

    four = settings(4)
    assert four == settings(16) and four["prior set"] == "prior"
    assert four["space"]["prior.weight"] == "0 to 2"


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
