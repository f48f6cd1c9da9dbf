"""The engine as a Ray actor: training and drawing at once, and a consumer that goes away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.engine.packed_sampling import ImageRequest
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import BadInputError
from dreamfleet.runtime.engine_actor import EngineActor, EngineSource, start_engine
from tests.tiny_jobs import tiny_spec

pytestmark = pytest.mark.usefixtures("ray_running")

REQUEST = ImageRequest("a photo of sks dog", 7, num_inference_steps=3, guidance_scale=2.0)
LONG = ImageRequest("a cat", 8, num_inference_steps=500, guidance_scale=2.0)


def test_the_actor_trains_and_draws(tiny_base: Path) -> None:
    import ray

    source = EngineSource(str(tiny_base), "cpu")
    settings = EngineSettings(max_slots=3)
    engine = start_engine(EngineActor, source, settings, name="engine-test", num_cpus=0)
    try:
        asyncio.run(_use(engine, tiny_base))
    finally:
        ray.kill(engine)


async def _use(engine: Any, tiny_base: Path) -> None:
    assert await engine.ping.remote()
    assert await engine.add_job.remote("ada", tiny_spec(tiny_base)) == 0
    trained, picture = await asyncio.gather(
        engine.run_until.remote("ada", 3), engine.draw.remote(REQUEST)
    )
    assert trained.step == 3 and picture.size == (64, 64)
    assert (await engine.run_until.remote("ada", 3)).step == 3, "asking again does no harm"
    await engine.keep_job_as_adapter.remote("ada", "ada")
    own = ImageRequest(**{**REQUEST.__dict__, "adapters": (("ada", 1.0),)})
    events = [
        await event
        async for event in engine.draw_steps.options(num_returns="streaming").remote(own)
    ]
    assert events[:3] == [(1, 3), (2, 3), (3, 3)] and events[3].size == (64, 64)
    state = await engine.job_state.remote("ada")
    await engine.release.remote("ada")
    assert await engine.add_job.remote("bo", tiny_spec(tiny_base), state) == 3
    with pytest.raises(BadInputError, match="'ada': not in this engine"):
        await engine.run_until.remote("ada", 4)
    import ray

    call = engine.draw.remote(LONG)
    while not (await engine.metrics.remote())["drawing"]:
        await asyncio.sleep(0.05)
    ray.cancel(call)
    while (await engine.metrics.remote())["drawing"]:
        await asyncio.sleep(0.05)
    figures = await engine.metrics.remote()
    assert figures["jobs"] == 1 and figures["images_total"] == 2
