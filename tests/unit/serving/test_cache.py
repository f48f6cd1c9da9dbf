"""Adapters in host memory: loaded once, never let go while in use, bounded in bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from dreamfleet.errors import AdapterFileError
from dreamfleet.serving.cache import AdapterCache
from dreamfleet.serving.orders import AdapterRef

BYTES = 10
PATIENCE_S = 60.0


def ref(name: str) -> AdapterRef:
    return AdapterRef(name, name, f"/adapters/{name}")


async def until(reached: Callable[[], bool]) -> None:
    """Let the others go on until it is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


class Store:
    """An engine that only keeps names."""

    def __init__(self, budget: int) -> None:
        self.here: set[str] = set()
        self.loads: list[str] = []
        self.broken = {"broken"}
        self.cache = AdapterCache(budget, self._load, self._unload)

    async def _load(self, own: AdapterRef) -> int:
        self.loads.append(own.key)
        await asyncio.sleep(0.001)
        if own.key in self.broken:
            raise AdapterFileError(f"{own.location}: damaged")
        self.here.add(own.key)
        return BYTES

    async def _unload(self, own: AdapterRef) -> None:
        self.here.discard(own.key)


def test_many_who_want_one_adapter_load_it_once() -> None:
    async def story() -> Store:
        store = Store(100)

        async def use() -> None:
            async with store.cache.hold([ref("a")]):
                assert store.here == {"a"}

        await asyncio.gather(*(use() for _ in range(8)))
        return store

    store = asyncio.run(story())
    assert store.loads == ["a"] and store.cache.hits == 7 and store.cache.in_use == 0


def test_idle_ones_go_oldest_first_and_those_in_use_stay() -> None:
    async def story() -> Store:
        store = Store(2 * BYTES)
        async with store.cache.hold([ref("a")]):
            for name in ("b", "c", "d"):
                async with store.cache.hold([ref(name)]):
                    assert "a" in store.here and name in store.here
            assert store.here == {"a", "d"}
            async with store.cache.hold([ref("e"), ref("f")]):  # more than the budget, all in use
                assert {"a", "e", "f"} <= store.here and store.cache.bytes == 3 * BYTES
        assert store.cache.bytes <= 2 * BYTES
        return store

    store = asyncio.run(story())
    assert store.cache.evictions == len(store.loads) - len(store.here) > 0


def test_a_damaged_one_fails_alone_and_is_tried_again() -> None:
    async def story() -> Store:
        store = Store(100)
        with pytest.raises(AdapterFileError, match="damaged"):
            async with store.cache.hold([ref("a"), ref("broken")]):
                raise AssertionError("it was let in")
        assert store.cache.in_use == 0 and len(store.cache) == 1
        store.broken.clear()
        async with store.cache.hold([ref("broken")]):
            pass
        return store

    assert asyncio.run(story()).loads == ["a", "broken", "broken"]


def test_one_who_goes_away_while_it_loads_does_not_end_it_for_others() -> None:
    async def story() -> Store:
        store = Store(100)

        async def use() -> None:
            async with store.cache.hold([ref("a")]):
                pass

        first, second = asyncio.ensure_future(use()), asyncio.ensure_future(use())
        await asyncio.sleep(0)
        first.cancel()
        await second
        return store

    store = asyncio.run(story())
    assert store.loads == ["a"] and store.here == {"a"} and store.cache.in_use == 0


def test_prefetch_is_silent() -> None:
    async def story() -> Store:
        store = Store(100)
        await store.cache.prefetch(ref("a"))
        await store.cache.prefetch(ref("broken"))
        return store

    assert asyncio.run(story()).here == {"a"}


def test_when_all_go_away_while_it_loads_it_is_counted_all_the_same() -> None:
    async def story() -> Store:
        store = Store(BYTES)

        async def use(name: str) -> None:
            async with store.cache.hold([ref(name)]):
                pass

        for name in ("a", "b", "broken"):
            users = [asyncio.ensure_future(use(name)) for _ in range(3)]
            await asyncio.sleep(0)
            for user in users:
                user.cancel()
            await asyncio.gather(*users, return_exceptions=True)
        await until(lambda: len(store.loads) == 3 and len(store.cache) == len(store.here) == 1)
        return store

    store = asyncio.run(story())
    assert store.cache.in_use == 0 and store.cache.evictions == 1
    assert len(store.here) == len(store.cache) == 1 and store.cache.bytes == BYTES


def test_one_who_goes_away_while_another_is_let_go_does_not_keep_it() -> None:
    async def story() -> Store:
        store = Store(0)
        unloading = asyncio.Event()

        async def slowly(own: AdapterRef) -> None:
            unloading.set()
            await asyncio.sleep(0.01)
            store.here.discard(own.key)

        store.cache._unload = slowly
        user = asyncio.ensure_future(store.cache.prefetch(ref("a")))
        await unloading.wait()
        user.cancel()
        await asyncio.gather(user, return_exceptions=True)
        await until(lambda: not store.here)
        return store

    assert asyncio.run(story()).here == set()
