"""The engine actor's own behaviour, without Ray around it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from dreamfleet.config import RunConfig
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import BaseModelError
from dreamfleet.runtime.engine_actor import EngineActor, EngineSource

pytestmark = pytest.mark.heavy


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
