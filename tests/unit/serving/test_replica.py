"""An engine replica: orders that join, leave and are previewed; adapters beyond its memory."""

from __future__ import annotations

import asyncio
import io
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamfleet.errors import AdapterFileError, BadInputError
from dreamfleet.serving.orders import AdapterRef, DrawOrder, PictureDone, StepDone

pytestmark = pytest.mark.heavy


def pixels(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)), dtype=np.int16)


def order(adapters: Path, name: str, steps: int, **more: Any) -> DrawOrder:
    ref = AdapterRef(name, f"{name}#1", str(adapters / name))
    return DrawOrder("a dog", (7,), ((ref, 1.0),), num_inference_steps=steps, **more)


def test_a_new_order_takes_part_at_once(engine: Any, adapters: Path) -> None:
    """Its first step comes with the step after the one at work, and its picture long before that
    of an order that began earlier.
    """
    seen: list[tuple[str, int]] = []

    async def follow(name: str, steps: int, began: asyncio.Event) -> None:
        async with aclosing(engine.draw_events(order(adapters, name, steps))) as events:
            async for event in events:
                if isinstance(event, StepDone):
                    seen.append((name, event.step))
                    if event.step == 3:
                        began.set()
                elif not isinstance(event, PictureDone):
                    seen.append((name, 0))

    async def story() -> None:
        await engine.draw_order(order(adapters, "bo", 1))  # its adapter is in memory
        began = asyncio.Event()
        first = asyncio.ensure_future(follow("ada", 40, began))
        await began.wait()
        await follow("bo", 4, asyncio.Event())
        await first

    asyncio.run(story())
    accepted, stepped = seen.index(("bo", 0)), seen.index(("bo", 1))
    assert sum(name == "ada" for name, _ in seen[accepted:stepped]) <= 2
    assert seen.index(("bo", 4)) < seen.index(("ada", 40))


def test_a_consumer_that_goes_away_frees_its_place(engine: Any, adapters: Path) -> None:
    async def story() -> dict[str, float]:
        async with aclosing(engine.draw_events(order(adapters, "ada", 900))) as events:
            async for event in events:
                if isinstance(event, StepDone):
                    break
        for pause_s in (0, 0, 0.001, 0.01, 0.1):  # also while the engine takes the order
            call = asyncio.ensure_future(engine.draw_order(order(adapters, "ada", 900)))
            await asyncio.sleep(pause_s)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        while (stats := await engine.stats())["drawing"] or stats["queue"]:
            await asyncio.sleep(0.01)
        return stats

    assert asyncio.run(story())["cache_in_use"] == 0


def test_more_adapters_than_memory_holds(tiny_base: Path, adapters: Path) -> None:
    """The same pictures as with room for all."""
    from dreamfleet.runtime.engine_actor import EngineSource
    from dreamfleet.serving.replica import EngineReplica

    async def story(cache_bytes: int) -> tuple[list[bytes], dict[str, float]]:
        source = EngineSource(str(tiny_base), "cpu")
        replica = EngineReplica(source, max_slots=2, cache_bytes=cache_bytes, num_threads=1)
        orders = [order(adapters, name, 2) for name in ("ada", "bo", "cy") * 2]
        pictures = await asyncio.gather(*(replica.draw_order(own) for own in orders))
        stats = await replica.stats()
        await replica.close()
        return [own[0] for own in pictures], stats

    roomy, all_kept = asyncio.run(story(2**30))
    tight, few_kept = asyncio.run(story(1))
    assert all_kept["cache_adapters"] == 3 and few_kept["cache_adapters"] == 0
    assert few_kept["cache_evictions_total"] >= 3 and few_kept["cache_bytes"] == 0
    for one, two in zip(roomy, tight, strict=True):
        assert np.abs(pixels(one) - pixels(two)).max() <= 1
    assert np.abs(pixels(roomy[0]) - pixels(roomy[1])).max() > 1


def test_what_cannot_be_drawn_is_refused_before_the_first_event(
    engine: Any, adapters: Path
) -> None:
    gone = AdapterRef("gone", "gone#1", str(adapters / "gone"))
    wrong = DrawOrder("a dog", (7,), ((gone, 1.0),))
    odd = DrawOrder("a dog", (7,), width=63, height=64)

    async def begin(own: DrawOrder) -> None:
        async with aclosing(engine.draw_events(own)) as events:
            await anext(events)

    for own, kind in ((wrong, AdapterFileError), (odd, BadInputError)):
        with pytest.raises(kind):
            asyncio.run(begin(own))
        with pytest.raises(kind):
            asyncio.run(engine.draw_order(own))
