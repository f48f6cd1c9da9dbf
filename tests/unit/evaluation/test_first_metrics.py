"""First metrics against judges whose answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamfleet.evaluation import first_metrics as module
from dreamfleet.evaluation.first_metrics import first_metrics, without_token
from dreamfleet.evaluation.report import Grid


class ColourJudge:
    """Embeds a picture as its mean colour, and a text as the colour that it names."""

    def embed(self, images: Sequence[Image.Image], masks: Any = None) -> np.ndarray:
        return np.stack([np.asarray(i.convert("RGB"), float).mean(axis=(0, 1)) for i in images])

    embed_images = embed

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        assert not any("sks" in text for text in texts)
        colours = {"red": (1, 0, 0), "blue": (0, 0, 1)}
        return np.array([next(v for k, v in colours.items() if k in text) for text in texts], float)


def _picture(colour: str) -> Image.Image:
    return Image.new("RGB", (8, 8), colour)


GRIDS = [
    Grid("a photo of a red sks dog", [_picture("red")] * 2, [_picture("red"), _picture("blue")]),
    Grid("a photo of a blue sks dog", [_picture("red")] * 2, [_picture("blue")] * 2),
]


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_loaded", lambda name: ColourJudge())


def test_each_metric_stands_beside_the_bare_bases(judges: None) -> None:
    found = {m.key: m for m in first_metrics("embedded", "sks", [_picture("red")], GRIDS)}
    assert found["identity"].value == pytest.approx(1.0)
    assert found["identity"].baseline == pytest.approx(0.25)
    assert found["clip_t"].value == pytest.approx(0.5)  # it draws red, whatever it is asked for
    assert found["clip_t"].baseline == pytest.approx(0.75)
    assert found["diversity"].value == pytest.approx(0.0)
    assert found["diversity"].baseline == pytest.approx(0.5)
    assert all(metric.backbone and metric.explanation for metric in found.values())


def test_without_bare_pictures_there_is_no_baseline(judges: None) -> None:
    grids = [Grid("a red sks dog", [_picture("red")])]
    found = first_metrics("embedded", "sks", [_picture("red")], grids)
    assert [metric.key for metric in found] == ["identity", "clip_t"]  # one picture: no diversity
    assert all(metric.baseline is None for metric in found)


def test_other_bases_and_empty_grids_have_none(judges: None) -> None:
    assert first_metrics("some/base", "sks", [_picture("red")], GRIDS) == []
    assert first_metrics("embedded", "sks", [_picture("red")], []) == []
    assert first_metrics("embedded", "sks", [], GRIDS) == []


def test_missing_judges_give_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_loaded", lambda name: None)
    assert first_metrics("embedded", "sks", [_picture("red")], GRIDS) == []


def test_the_identifier_gives_way_to_an_article() -> None:
    assert without_token("a photo of sks dog in the snow", "sks") == "a photo of a dog in the snow"
    assert without_token("a photo of sks old dog", "sks") == "a photo of an old dog"
    assert without_token("asks a question", "sks") == "asks a question"
    assert without_token("a photo of zwx+ dog", "zwx+") == "a photo of a dog"
    assert without_token("a photo of a wet sks dog", "sks") == "a photo of a wet dog"
