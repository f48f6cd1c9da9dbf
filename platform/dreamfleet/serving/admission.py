"""The bounded queue in front of the engines: fair between keys, counted in pictures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from dreamfleet.serving.problems import busy

SHORTEST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
SMOOTHING = 0.1  # weight of the newest picture in the time that one takes


@dataclass
class _Waiter:
    cost: int
    go: asyncio.Future[None]


@dataclass
class _Line:
    """What one key has here.

    `served` is its virtual time: pictures that it has been given. Who was given least is next; who
    comes back after a pause starts level with the others, so that nobody saves turns up.
    """

    served: float = 0.0
    running: int = 0
    waiting: deque[_Waiter] = field(default_factory=deque)


class FairQueue:
    """Lets requests through to the engines, `capacity` pictures at once.

    Args:
        capacity: pictures in the engines at once; may change (autoscaling).
        max_waiting: pictures that wait in all.
        max_per_key: pictures that one key may have here, running and waiting.
    """

    def __init__(self, capacity: int, max_waiting: int, max_per_key: int) -> None:
        self.capacity, self.max_waiting, self.max_per_key = capacity, max_waiting, max_per_key
        self.running = 0
        self.waiting = 0
        self.refused = 0
        self._lines: dict[str, _Line] = {}
        self._picture_s = 1.0
        self._clock = 0.0  # virtual time of the latest who was let through

    @contextlib.asynccontextmanager
    async def place(self, key: str, cost: int = 1) -> AsyncIterator[None]:
        """Hold room for `cost` pictures while inside; waits for it in turn.

        Raises:
            ApiProblem: 429, at once, when there is no place to wait.
        """
        line = self._enter(key, cost)
        try:
            await self._turn(line, cost)
        except BaseException:
            self._forget(key, line)
            raise
        started = time.monotonic()
        try:
            yield
        finally:
            took = (time.monotonic() - started) / max(1, cost)
            self._picture_s += SMOOTHING * (took - self._picture_s)
            self.running -= cost
            line.running -= cost
            self._forget(key, line)
            self._let_through()

    def would_wait(self, cost: int = 1) -> bool:
        """Whether a request would not get through at once."""
        return self.waiting > 0 or self.running + cost > self.capacity

    def retry_after_s(self) -> float:
        """When a place will probably be free."""
        ahead = (self.running + self.waiting) * self._picture_s / max(1, self.capacity)
        return min(max(ahead, SHORTEST_WAIT_S), LONGEST_WAIT_S)

    def resize(self, capacity: int) -> None:
        """Another number of pictures at once."""
        self.capacity = capacity
        self._let_through()

    def _enter(self, key: str, cost: int) -> _Line:
        line = self._lines.get(key) or _Line(served=self._clock)
        own = line.running + sum(waiter.cost for waiter in line.waiting)
        if own and own + cost > self.max_per_key:
            self.refused += 1
            raise busy(self.retry_after_s(), f"this key has {own} pictures under way")
        must_wait = self.running and (self.waiting or self.running + cost > self.capacity)
        if must_wait and self.waiting + cost > self.max_waiting:
            self.refused += 1
            raise busy(self.retry_after_s())
        if not line.running and not line.waiting:
            line.served = max(line.served, self._clock)
        self._lines[key] = line
        return line

    async def _turn(self, line: _Line, cost: int) -> None:
        waiter = _Waiter(cost, asyncio.get_running_loop().create_future())
        line.waiting.append(waiter)
        self.waiting += cost
        self._let_through()
        try:
            await waiter.go
        except asyncio.CancelledError:
            if waiter in line.waiting:
                line.waiting.remove(waiter)
                self.waiting -= cost
            else:  # let through and cancelled at the same moment
                self.running -= cost
                line.running -= cost
            self._let_through()
            raise

    def _let_through(self) -> None:
        """Those whose turn it is, as far as there is room; a large request is not overtaken."""
        while self.waiting:
            line = min((own for own in self._lines.values() if own.waiting), key=_served)
            cost = line.waiting[0].cost
            if self.running and self.running + cost > self.capacity:
                return
            waiter = line.waiting.popleft()
            self.waiting -= cost
            self.running += cost
            line.running += cost
            self._clock = max(self._clock, line.served)
            line.served += cost
            if not waiter.go.done():
                waiter.go.set_result(None)

    def _forget(self, key: str, line: _Line) -> None:
        """A key with nothing here; those that are a little ahead are remembered for as long."""
        if not line.running and not line.waiting and line.served <= self._clock:
            self._lines.pop(key, None)
        if len(self._lines) > 10_000:  # keys that are ahead of a clock that stands still
            self._lines = {k: own for k, own in self._lines.items() if own.running or own.waiting}


def _served(line: _Line) -> float:
    return line.served
