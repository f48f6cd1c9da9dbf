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
    loading: asyncio.Future[None] | None = None
    loaded: bool = False
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
        self._going: set[asyncio.Future[None]] = set()
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
            held = self._held[ref.key] = _Held(ref)
            held.loading = asyncio.ensure_future(self._fetch(held))
            held.loading.add_done_callback(_noted)
        else:
            self.hits += 1
            self._held.move_to_end(ref.key)
        held.users += 1
        try:
            # Shielded: one who goes away must not end what others wait for.
            assert held.loading is not None
            await asyncio.shield(held.loading)
            yield
        finally:
            held.users -= 1
            await self._shrink()

    async def _fetch(self, held: _Held) -> None:
        """Load and count, even when all who asked have gone away."""
        try:
            held.bytes = await self._load(held.ref)
        except BaseException:
            del self._held[held.ref.key]
            raise
        held.loaded = True
        await self._shrink()

    async def _shrink(self) -> None:
        """Let go of idle ones. What is begun is ended, even if the caller is cancelled."""
        while self.bytes > self.budget_bytes:
            idle = [own for own in self._held.values() if not own.users and own.loaded]
            if not idle:
                break
            del self._held[idle[0].ref.key]
            self.evictions += 1
            going = asyncio.ensure_future(self._unload(idle[0].ref))
            self._going.add(going)
            going.add_done_callback(self._going.discard)
            going.add_done_callback(_noted)
        if self._going:
            await asyncio.shield(asyncio.gather(*self._going, return_exceptions=True))


def _noted(task: asyncio.Future[None]) -> None:
    """Those who wait for it are told of an error; it may be that nobody does."""
    if not task.cancelled():
        task.exception()
