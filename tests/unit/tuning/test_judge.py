"""What trials are judged by: the same pictures for all, states and scenes apart."""

from __future__ import annotations

import asyncio
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamfleet.data.photos import to_png
from dreamfleet.errors import BadInputError, ConfigError, TrainingError
from dreamfleet.evaluation.judges import JudgeSpec
from dreamfleet.tuning.judge import (
    JudgeActor,
    JudgeSource,
    JudgeTimeoutError,
    Reference,
    WorldJudge,
    score,
    sheet,
)
from dreamfleet.tuning.pictures import shots
from tests.tiny_evaluators import make_tiny_evaluators, write_tiny_blip
from tests.unit.tuning.test_space import recipe


def pictures(count: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    arrays = generator.integers(0, 255, (count, 64, 64, 3), dtype=np.uint8)
    return [to_png(Image.fromarray(array)) for array in arrays]


def test_fewer_pictures_are_a_beginning_of_more() -> None:
    config = recipe()
    many = shots(config, 24)
    assert shots(config, 8) == many[:8]
    assert [shot.kind for shot in many[:4]] == ["state", "scene", "state", "scene"]
    assert len({shot.name for shot in many}) == 24
    assert shots(recipe(train__seed=5), 24) == many, "training seeds share their noise"
    assert all("sks" in shot.prompt for shot in many)


def test_states_can_be_chosen() -> None:
    config = recipe(tune__states=["sleeping", "jumping"])
    states = [shot.state for shot in shots(config, 8) if shot.kind == "state"]
    assert states == ["sleeping", "jumping"] * 2
    with pytest.raises(ConfigError, match="'golden' is not asked of dog"):
        shots(recipe(tune__states=["golden"]), 4)
    with pytest.raises(BadInputError, match="no class 'gnu'"):
        shots(recipe(subject__class_word="gnu"), 4)


def test_the_worlds_judges_score_states_and_scenes(tmp_path: Path) -> None:
    spec = JudgeSpec(world=True, oracle="A", evaluators=str(make_tiny_evaluators(tmp_path / "e")))
    reference = Reference(tuple(pictures(2)), "dog", "sks")
    judge = JudgeSource(spec, {"rex": reference}).load()
    assert isinstance(judge, WorldJudge)
    wanted, pngs = shots(recipe(), 6), pictures(6)
    verdict = score(judge, "rex", wanted, pngs)
    assert set(verdict.alignments) == {s.name for s in wanted if s.kind == "state"}
    assert set(verdict.fidelities) == {s.name for s in wanted if s.kind == "scene"}
    assert 0 < verdict.alignment < 1
    assert verdict.fidelity == pytest.approx(np.mean(list(verdict.fidelities.values())))
    same = [reference.photos[0]] * 6
    alone = JudgeSource(spec, {"rex": Reference((reference.photos[0],), "dog", "sks")}).load()
    assert score(alone, "rex", wanted, same).fidelity == pytest.approx(1.0, abs=1e-5)
    page = Image.open(io.BytesIO(sheet(wanted, pngs)))
    assert page.size == (3 * 64, 2 * 64)


def test_judges_that_are_not_there_are_refused(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none")
    JudgeSource.of(recipe(), {}, "cpu").check()
    made = str(make_tiny_evaluators(tmp_path / "e"))
    JudgeSource.of(recipe(tune__evaluators=made), {}, "cpu").check()
    with pytest.raises(BadInputError, match=r"oracle_a.*none"):
        JudgeSource.of(recipe(tune__evaluators=nowhere), {}, "cpu").check()
    judges = {"tune__blip": str(write_tiny_blip(tmp_path / "b")), "tune__dino": nowhere}
    with pytest.raises(BadInputError, match=r"none.*cannot be loaded"):
        JudgeSource.of(recipe(base_model="a base", **judges), {}, "cpu").check()


def test_a_score_that_is_no_number_fails_the_trial() -> None:
    class Broken:
        def alignment(self, subject: str, shots: object, images: object) -> list[float]:
            return [float("nan")] * 2

        def fidelity(self, subject: str, images: object) -> list[float]:
            return [0.5] * 2

    with pytest.raises(TrainingError, match="not a number"):
        score(Broken(), "rex", shots(recipe(), 4), pictures(4))


def test_judges_that_hang_are_not_waited_for() -> None:
    woken = threading.Event()

    class Hanging:
        def load(self) -> Hanging:
            return self

        def alignment(self, subject: str, shots: object, images: object) -> list[float]:
            woken.wait(60)
            return [0.5] * 2

        def fidelity(self, subject: str, images: object) -> list[float]:
            return [0.5] * 2

    async def ask() -> None:
        try:
            await JudgeActor(Hanging(), 0.1).score("rex", shots(recipe(), 4), pictures(4))
        finally:
            woken.set()

    with pytest.raises(JudgeTimeoutError, match=r"rex: .* within 0.1 s; .*tune.judge_timeout_s"):
        asyncio.run(ask())
