"""`dreamfleet launch`: what it refuses before it trains, and what it says of the first picture."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreamfleet import launch as launching
from dreamfleet.config import ClusterConfig, RunConfig
from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.launch import PICTURE, LaunchSettings, Made, launch
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.serving.keys import KeyFile

PNG = b"\x89PNG"
Answer = list[tuple[int, bytes]] | Exception


class Told(SilentProgress):
    """Notes warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture(autouse=True)
def subjects(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whose photos are given."""
    found = [SimpleNamespace(id="biscuit")]
    monkeypatch.setattr("dreamfleet.data.subjects.requested_subjects", lambda config: found)
    return found


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, fleet_home: Path, tmp_path: Path) -> list[Answer]:
    """A launch whose training is done and whose service answers so."""
    found: list[Answer] = []

    def query(address: str, wish: Mapping[str, Any], **_: Any) -> list[tuple[int, bytes]]:
        answer = found.pop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def serve(settings: object, *, on_ready: Sequence[Any], **_: Any) -> None:
        on_ready[0].__self__._draw()  # in this thread

    made = Made("biscuit", tmp_path, {"adapters": str(tmp_path)})
    monkeypatch.setattr(launching, "make_adapters", lambda *given: made)
    monkeypatch.setattr("dreamfleet.serving.client.query", query)
    monkeypatch.setattr("dreamfleet.serving.server.serve_foreground", serve)
    return found


def launched(once: bool = False) -> tuple[list[str], list[str], DreamfleetError | None]:
    """Results, warnings, and what it ended with."""
    lines, told, ended = list[str](), Told(), None
    config = RunConfig.model_validate({"tracking": {"enabled": False}})
    settings = LaunchSettings(port=0, show=False, once=once)
    try:
        launch(config, settings, say=lines.append, progress=told)
    except DreamfleetError as error:
        ended = error
    return lines, told.warnings, ended


def test_a_first_picture(answers: list[Answer], tmp_path: Path) -> None:
    answers.append([(0, PNG)])
    lines, warnings, ended = launched()
    assert [line.split()[0] for line in lines] == ["studio", "API", "picture"]
    assert (tmp_path / PICTURE).read_bytes() == PNG and not warnings and ended is None
    assert KeyFile().keys() == [], "its key was for this launch"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BadInputError("its rank is 256"), "its rank is 256"),
        (http.client.IncompleteRead(b"half"), "IncompleteRead"),
    ],
)
def test_no_first_picture(answers: list[Answer], error: Exception, words: str) -> None:
    """Who waits is told at once, and can use the service; with `--once` it is a failure."""
    answers += [error, error]
    lines, (warning,), ended = launched()
    assert [line.split()[0] for line in lines] == ["studio", "API"]
    assert words in warning and words in str(ended)
    lines, warnings, ended = launched(once=True)
    assert (lines, warnings) == ([], []) and words in str(ended)


def test_a_picture_that_cannot_be_written(answers: list[Answer], tmp_path: Path) -> None:
    (tmp_path / PICTURE).mkdir()
    answers.append([(0, PNG)])
    _, (warning,), _ = launched()
    assert f"{tmp_path}: cannot be written" in warning


@pytest.mark.parametrize(
    ("recipe", "prompt", "words"),
    [
        ({"train": {"mode": "full"}}, None, "train.mode = 'full'"),
        ({"train": {"rank": 129}}, None, "up to 129, and `launch` serves up to 128"),
        ({"train": {"rank": 65}, "tune": {"num_samples": 2}}, None, "up to 130"),
        ({"space": {"rank": [8, 200]}}, None, "up to 200"),
        ({}, "x" * 2001, "--prompt: 2001 characters; expected at most 2000"),
    ],
    ids=["full", "rank", "twice the rank", "space", "prompt"],
)
def test_what_cannot_be_served_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], prompt: str | None, words: str
) -> None:
    monkeypatch.setattr(launching, "make_adapters", _in_vain)
    settings = LaunchSettings(prompt, port=0)
    with pytest.raises(BadInputError, match=words):
        launch(RunConfig.model_validate(recipe), settings, say=print)


@pytest.mark.parametrize(
    ("recipe", "ids", "words"),
    [
        ({"output_dir": "runs/base"}, ["biscuit"], "output folder 'base': .*the base model's own"),
        ({"output_dir": "runs/dog@2"}, ["biscuit"], "output folder 'dog@2': .*before an alias"),
        ({}, ["biscuit", "base"], "subject 'base'"),
        ({"tune": {"num_samples": 2}}, ["base"], "subject 'base'"),
    ],
)
def test_a_name_that_nobody_could_ask_for_is_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
    subjects: list[Any],
    recipe: dict[str, Any],
    ids: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(launching, "make_adapters", _in_vain)
    subjects[:] = [SimpleNamespace(id=own) for own in ids]
    with pytest.raises(BadInputError, match=words):
        launch(RunConfig.model_validate(recipe), LaunchSettings(port=0), say=print)


def test_damaged_keys_are_refused_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch, fleet_home: Path
) -> None:
    monkeypatch.setattr(launching, "make_adapters", _in_vain)
    KeyFile().create()
    KeyFile().path.write_text("{", encoding="utf-8")
    with pytest.raises(BadInputError, match="not a file of keys"):
        launch(RunConfig(), LaunchSettings(port=0), say=print)


def _in_vain(*given: object) -> Made:
    raise AssertionError("trained in vain")


def test_it_is_served_where_it_was_trained(
    answers: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Ray of `--ray-address` is asked before the training whether it can serve."""
    asked: list[ClusterConfig] = []

    def serve(settings: object, *, cluster: ClusterConfig, **_: Any) -> None:
        asked.append(cluster)

    monkeypatch.setattr(
        "dreamfleet.serving.server.check_place", lambda *given: asked.append(given[2])
    )
    monkeypatch.setattr("dreamfleet.serving.server.serve_foreground", serve)
    recipe = {"tracking": {"enabled": False}, "cluster": {"ray_address": "head:6379"}}
    launch(RunConfig.model_validate(recipe), LaunchSettings(), say=print)
    assert [own.ray_address for own in asked] == ["head:6379", "head:6379"]


def test_interrupted_before_its_only_picture_it_is_interrupted(
    answers: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends the service in good order; but this is no service."""
    monkeypatch.setattr("dreamfleet.serving.server.serve_foreground", lambda settings, **more: None)
    assert launched() == ([], [], None)
    with pytest.raises(KeyboardInterrupt):
        launched(once=True)


@pytest.mark.parametrize(
    "recipe",
    [
        {"train": {"rank": 128}},
        {"train": {"rank": 128}, "space": {"rank": [64, 128]}},
        {"tune": {"num_samples": 2}},
    ],
)
def test_what_can_be_served_is_made(
    monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any]
) -> None:
    def made(*given: object) -> Made:
        raise DreamfleetError("it is made")

    monkeypatch.setattr(launching, "make_adapters", made)
    settings = LaunchSettings("x" * 2000, port=0)
    with pytest.raises(DreamfleetError, match="it is made"):
        launch(RunConfig.model_validate(recipe), settings, say=print)
