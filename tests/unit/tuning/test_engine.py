"""The engine of a sweep, without Ray around it: rungs, states, loss and release."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import BaseModelError, TrainingError
from dreamfleet.runtime.engine_actor import EngineSource
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.task import TrainTask
from dreamfleet.tuning.engine import Sampling, TuneEngine, Work, read_state
from dreamfleet.tuning.pictures import Shot
from tests.unit.training.test_fleet import real_task

pytestmark = pytest.mark.heavy

SHOTS = (Shot("a photo of sks dog", "state", 3), Shot("a photo of sks dog in the snow", "scene", 4))
SAMPLING = Sampling(2, 2.0, "ddim")


class Ready:
    """A reference that awaits like Ray's."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Any:
        yield from ()
        return self._value


@pytest.fixture
def task(tiny_base_folder: Path, tmp_path: Path) -> TrainTask:
    return real_task(tiny_base_folder, tmp_path, "rex")


def started(base: Path, task: TrainTask) -> TuneEngine:
    return TuneEngine(EngineSource(str(base), "cpu"), EngineSettings(4), {"rex": Ready(task)})


def work(folder: Path, number: int, **params: Any) -> Work:
    setting: Mapping[str, Any] = {"sude.weight": 0.0, "prior.weight": 0.0, **params}
    return Work(f"rex#{number}", "rex", setting, 0, (2, 4), str(folder / f"{number:04d}"))


def test_a_lost_engine_gives_the_same_pictures(
    tiny_base_folder: Path, task: TrainTask, tmp_path: Path
) -> None:
    whole, parted = work(tmp_path, 0), work(tmp_path, 1)

    async def undisturbed(engine: TuneEngine) -> list[list[bytes]]:
        first, figures = await engine.rung(whole, 2, 4, SHOTS, SAMPLING)
        assert figures["loss"] > 0
        again, _ = await engine.rung(whole, 2, 4, SHOTS, SAMPLING)
        assert again == first, "asked again, the rung's own adapter draws, however far the job is"
        second, _ = await engine.rung(whole, 4, 4, SHOTS, SAMPLING)
        files = await engine.export_files(whole.job_id)
        assert list(files) == ["pytorch_lora_weights.safetensors"]
        await engine.close()
        return [first, second]

    async def one_rung(step: int, then: int) -> list[bytes]:
        engine = started(tiny_base_folder, task)
        pngs, _ = await engine.rung(parted, step, then, SHOTS, SAMPLING)
        await engine.close()
        return pngs

    expected = asyncio.run(undisturbed(started(tiny_base_folder, task)))
    assert [asyncio.run(one_rung(2, 4)), asyncio.run(one_rung(4, 4))] == expected
    assert read_state(parted, 3) is None, "a state beyond the rung is of no use for it"
    assert read_state(parted, 4) is not None
    assert read_state(replace(parted, key="other"), 4) is None, "another training's"
    Folder(parted.folder).write("state.pt", b"half a file")
    assert read_state(parted, 4) is None


def test_a_released_job_stays_away(tiny_base_folder: Path, task: TrainTask, tmp_path: Path) -> None:
    async def run() -> None:
        engine = started(tiny_base_folder, task)
        own = work(tmp_path, 0)
        long = replace(own, steps=(10_000,))
        waiting = asyncio.create_task(engine.rung(long, 10_000, 10_000, SHOTS, SAMPLING))
        while (await engine.metrics())["jobs"] < 1:
            assert not waiting.done(), waiting
            await asyncio.sleep(0.01)
        await engine.release(own.job_id)
        with pytest.raises(TrainingError, match="ended"):
            await waiting
        with pytest.raises(TrainingError, match="ended"):
            await engine.rung(own, 2, 4, SHOTS, SAMPLING)
        assert (await engine.metrics())["slots"] == 0
        await engine.close()

    asyncio.run(run())


def test_a_trial_that_asks_twice_comes_to_its_rung_once(
    tiny_base_folder: Path, task: TrainTask, tmp_path: Path
) -> None:
    """A lost trial's call goes on in the engine while its next attempt makes the same one."""

    async def run() -> None:
        engine = started(tiny_base_folder, task)
        own, kept, ask = work(tmp_path, 0), list[str](), engine._ask

        async def slowly(command: Any) -> Any:
            if command.__name__ == "keep":
                kept.append(command.__name__)
                await asyncio.sleep(0.2 * (len(kept) - 1))  # the job goes on meanwhile
            return await ask(command)

        engine._ask = slowly  # type: ignore[method-assign]
        first, second = await asyncio.gather(
            engine.rung(own, 2, 4, SHOTS, SAMPLING), engine.rung(own, 2, 4, SHOTS, SAMPLING)
        )
        assert first[0] == second[0] and len(kept) == 1
        await engine.close()

    asyncio.run(run())


def test_an_engine_without_its_base_did_nothing(task: TrainTask, tmp_path: Path) -> None:
    async def run() -> None:
        engine = started(tmp_path / "no base", task)
        with pytest.raises(BaseModelError):
            await engine.rung(work(tmp_path, 0), 2, 4, SHOTS, SAMPLING)
        assert set((await engine.times()).values()) == {0.0}

    asyncio.run(run())


def _difference(one: Mapping[int, list[bytes]], other: Mapping[int, list[bytes]]) -> int:
    """The largest of any pixel, of 255."""
    return max(
        int(np.abs(_pixels(own) - _pixels(its)).max())
        for number in one
        for own, its in zip(one[number], other[number], strict=True)
    )


def _pixels(png: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(png)), dtype=int)


def test_settings_of_one_engine_differ(
    tiny_base_folder: Path, task: TrainTask, tmp_path: Path
) -> None:
    """Rank, weight and seed are the trial's own, and no trial touches another."""

    async def run(numbers: list[int]) -> dict[int, list[bytes]]:
        engine = started(tiny_base_folder, task)
        own = {
            1: work(tmp_path / str(numbers), 1, **{"sude.weight": 1.0, "train.rank": 2}),
            2: work(tmp_path / str(numbers), 2, **{"train.rank": 8, "train.learning_rate": 1e-2}),
        }
        found = await asyncio.gather(
            *(engine.rung(own[number], 2, 4, SHOTS, SAMPLING) for number in numbers)
        )
        await engine.close()
        return {number: pngs for number, (pngs, _) in zip(numbers, found, strict=True)}

    together = asyncio.run(run([1, 2]))
    assert together[1] != together[2]
    alone = {number: asyncio.run(run([number]))[number] for number in (1, 2)}
    assert _difference(together, alone) < 4, "packed as alone, but for rounding"
