"""The engine actor's own behaviour, without Ray around it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreamfleet.config import RunConfig
from dreamfleet.engine.packed_sampling import ImageRequest
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import BadInputError, BaseModelError
from dreamfleet.runtime.engine_actor import EngineActor, EngineSource
from tests.tiny_jobs import tiny_spec

pytestmark = pytest.mark.heavy

REQUEST = ImageRequest("a photo of sks dog", 7, num_inference_steps=3, guidance_scale=2.0)
LONG = replace(REQUEST, num_inference_steps=500)


async def _idle(engine: EngineActor) -> None:
    while (await engine.metrics())["drawing"]:
        await asyncio.sleep(0.02)


def test_trains_draws_and_stops_for_who_goes_away(tiny_base_folder: Path, tmp_path: Path) -> None:
    async def use(engine: EngineActor) -> None:
        assert await engine.ping()
        assert await engine.add_job("ada", tiny_spec(tiny_base_folder)) == 0
        trained, picture = await asyncio.gather(engine.run_until("ada", 2), engine.draw(REQUEST))
        assert trained is not None and trained.step == 2 and picture.size == (64, 64)
        (path,) = await engine.export_job("ada", str(tmp_path))
        await engine.keep_job_as_adapter("ada", "own")
        await engine.add_adapter("file", path)
        state = await engine.job_state("ada")
        await engine.release("ada")
        assert await engine.add_job("bo", tiny_spec(tiny_base_folder), state) == 2
        for name in ("own", "file"):
            request = replace(REQUEST, adapters=((name, 1.0),))
            events = [event async for event in engine.draw_steps(request)]
            assert events[:3] == [(1, 3), (2, 3), (3, 3)] and isinstance(events[3], Image.Image)
        await engine.remove_adapter("own")
        stream = engine.draw_steps(LONG)
        assert await anext(stream) == (1, 500)
        await stream.aclose()  # type: ignore[attr-defined]
        await _idle(engine)
        call = asyncio.create_task(engine.draw(LONG))
        while not (await engine.metrics())["drawing"]:
            await asyncio.sleep(0.02)
        call.cancel()
        await _idle(engine)
        assert (await engine.metrics())["images_total"] == 3
        with pytest.raises(BadInputError, match="'own': not loaded"):
            await engine.draw(replace(REQUEST, adapters=(("own", 1.0),)))
        await engine.close()

    asyncio.run(use(EngineActor(EngineSource(str(tiny_base_folder), "cpu"), EngineSettings(3))))


def test_a_base_that_cannot_be_loaded_is_the_answer_to_every_call() -> None:
    config = RunConfig.model_validate({"base_model": "no/such-base"})
    source = EngineSource.of(config, "cpu")
    assert source == EngineSource("no/such-base", "cpu", "no", safety_checker=True)
    fast = EngineSource.of(RunConfig.model_validate({"train": {"allow_tf32": True}}), "cpu")
    assert fast.allow_tf32 and not source.allow_tf32

    async def use(engine: EngineActor) -> None:
        for _ in range(2):
            with pytest.raises(BaseModelError):
                await engine.ping()
        await engine.close()

    asyncio.run(use(EngineActor(source, EngineSettings())))


def test_tf32_is_put_into_effect(tiny_base_folder: Path) -> None:
    places: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        source = EngineSource(str(tiny_base_folder), "cpu", allow_tf32=True)
        EngineActor(source, EngineSettings())._build().close()
        assert all(place.allow_tf32 for place in places)
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
