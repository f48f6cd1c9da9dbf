"""An engine replica: orders that join, leave and are previewed; adapters beyond its memory."""

from __future__ import annotations

import asyncio
import io
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamfleet.errors import AdapterFileError, BadInputError, BaseModelError, DreamfleetError
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
        first = asyncio.ensure_future(follow("ada", 500, began))
        await began.wait()
        await follow("bo", 4, asyncio.Event())
        assert not first.done()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        while (await engine.stats())["drawing"]:
            await asyncio.sleep(0.01)

    asyncio.run(story())
    accepted, stepped = seen.index(("bo", 0)), seen.index(("bo", 1))
    assert sum(name == "ada" for name, _ in seen[accepted:stepped]) <= 2
    assert ("bo", 4) in seen


def test_a_consumer_that_goes_away_frees_its_place(engine: Any, adapters: Path) -> None:
    async def story() -> dict[str, float]:
        async with aclosing(engine.draw_events(order(adapters, "ada", 500))) as events:
            async for event in events:
                if isinstance(event, StepDone):
                    break
        for pause_s in (0, 0, 0.001, 0.01, 0.1):  # also while the engine takes the order
            call = asyncio.ensure_future(engine.draw_order(order(adapters, "ada", 500)))
            await asyncio.sleep(pause_s)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        deadline = time.monotonic() + 3000
        while (stats := await engine.stats())["drawing"] or stats["queue"]:
            assert time.monotonic() < deadline, stats
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


def test_no_preview_passes_the_safety_checker_by(engine: Any, adapters: Path) -> None:
    async def previews() -> int:
        own = order(adapters, "ada", 4, previews=2)
        async with aclosing(engine.draw_events(own)) as events:
            return sum([isinstance(e, StepDone) and e.preview is not None async for e in events])

    async def story() -> tuple[int, int]:
        before = await previews()
        base = await engine._ask(lambda e: e.base)
        base.safety_checker = lambda pictures: pictures
        try:
            return before, await previews()
        finally:
            base.safety_checker = None

    assert asyncio.run(story()) == (2, 0)


def test_an_engine_without_its_base_is_unwell(tmp_path: Path, engine: Any) -> None:
    from dreamfleet.runtime.engine_actor import EngineSource
    from dreamfleet.serving.replica import EngineReplica

    async def story() -> None:
        await engine.ping()
        await engine.check_health()
        replica = EngineReplica(EngineSource(str(tmp_path / "gone"), "cpu"))
        with pytest.raises(BaseModelError):
            await replica.about()
        with pytest.raises(DreamfleetError, match="gone"):
            await replica.check_health()
        await replica.close()

    asyncio.run(story())


def test_an_engine_whose_steps_fail_is_unwell() -> None:
    """Until one succeeds; idle turns say nothing."""
    from dreamfleet.engine.loop import EngineLoop

    class Broken:
        broken = True

        def step(self) -> bool:
            if self.broken:
                raise RuntimeError("out of order")
            return True

        def abort(self, error: Exception) -> None:
            """Nobody waits."""

        def close(self) -> None:
            """Nothing is held."""

    own: Any = Broken()
    loop = EngineLoop(lambda: own)
    for _ in range(3):
        assert loop.trouble() == ""
        loop.call(lambda e: None).result(300)
    deadline = time.monotonic() + 300
    while not loop.trouble() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "out of order" in loop.trouble()
    own.broken = False
    loop.call(lambda e: None).result(300)
    while loop.trouble() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loop.trouble() == ""
    loop.close()
