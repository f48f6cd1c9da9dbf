"""Adapters in host memory: loaded once however many ask, counted while in use, bounded in bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from dreamfleet.serving.orders import AdapterRef

Load = Callable[[AdapterRef], Awaitable[int]]
Unload = Callable[[AdapterRef], Awaitable[None]]


@dataclass
class _Held:
    ref: AdapterRef
    loading: asyncio.Task[int]
    bytes: int = 0
    users: int = 0


class AdapterCache:
    """Which adapters an engine has; the least recently used idle ones go when memory is short.

    An adapter in use is never let go, so what is in use may exceed the budget; that is bounded by
    the requests that the engine takes at once.

    Args:
        budget_bytes: of host memory.
        load: puts an adapter into the engine; returns its bytes.
        unload: takes it out again.
    """

    def __init__(self, budget_bytes: int, load: Load, unload: Unload) -> None:
        self.budget_bytes = budget_bytes
        self._load, self._unload = load, unload
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self.hits = self.misses = self.evictions = 0

    @property
    def bytes(self) -> int:
        """In host memory now."""
        return sum(held.bytes for held in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    @property
    def in_use(self) -> int:
        """Adapters that somebody holds."""
        return sum(held.users > 0 for held in self._held.values())

    @contextlib.asynccontextmanager
    async def hold(self, refs: list[AdapterRef]) -> AsyncIterator[None]:
        """Have the adapters loaded while inside.

        Raises:
            BadInputError: one cannot be used (as `read_lora_slot`); it is tried anew next time.
        """
        async with contextlib.AsyncExitStack() as stack:
            for ref in refs:
                await stack.enter_async_context(self._hold(ref))
            yield

    async def prefetch(self, ref: AdapterRef) -> None:
        """Load an adapter that will be wanted soon, if that pushes out nobody in use."""
        with contextlib.suppress(Exception):  # whoever wants it will be told
            async with self._hold(ref):
                pass

    @contextlib.asynccontextmanager
    async def _hold(self, ref: AdapterRef) -> AsyncIterator[None]:
        held = self._held.get(ref.key)
        if held is None:
            self.misses += 1
            held = _Held(ref, asyncio.ensure_future(self._load(ref)))
            self._held[ref.key] = held
        else:
            self.hits += 1
            self._held.move_to_end(ref.key)
        held.users += 1
        try:
            # Shielded: one who goes away must not end what others wait for.
            held.bytes = await asyncio.shield(held.loading)
            yield
        finally:
            held.users -= 1
            if _failed(held.loading) and self._held.get(ref.key) is held:
                del self._held[ref.key]
            await self._shrink()

    async def _shrink(self) -> None:
        while self.bytes > self.budget_bytes:
            idle = [own for own in self._held.values() if not own.users and own.loading.done()]
            if not idle:
                return
            del self._held[idle[0].ref.key]
            self.evictions += 1
            await self._unload(idle[0].ref)


def _failed(task: asyncio.Task[int]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
