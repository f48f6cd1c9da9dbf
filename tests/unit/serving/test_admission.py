"""The fair queue: order, bounds, and nothing lost when callers go away."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from dreamfleet.serving.admission import FairQueue
from dreamfleet.serving.problems import ApiProblem


class Callers:
    """Requests that hold their places until they are let go."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.order: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    def ask(self, name: str, key: str, cost: int = 1) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()

        async def request() -> None:
            async with self.queue.place(key, cost):
                self.order.append(name)
                await self._ends[name].wait()

        return asyncio.ensure_future(request())

    def end(self, name: str) -> None:
        self._ends[name].set()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_key_with_many_requests_does_not_hold_up_another() -> None:
    async def story() -> list[str]:
        callers = Callers(FairQueue(capacity=1, max_waiting=100, max_per_key=100))
        tasks = [callers.ask(f"many{i}", "many") for i in range(5)]
        await settle()
        tasks += [callers.ask(f"few{i}", "few") for i in range(2)]
        await settle()
        while len(callers.order) < 7:
            callers.end(callers.order[-1])
            await settle()
        callers.end(callers.order[-1])
        await asyncio.gather(*tasks)
        return callers.order

    order = asyncio.run(story())
    assert order[0] == "many0", "it was there first"
    assert order.index("few0") <= 2 and order.index("few1") <= 4


def test_pictures_count_and_a_large_request_is_not_overtaken() -> None:
    async def story() -> tuple[list[str], int]:
        queue = FairQueue(capacity=4, max_waiting=100, max_per_key=100)
        callers = Callers(queue)
        tasks = [callers.ask("three", "a", 3)]
        await settle()
        tasks.append(callers.ask("large", "b", 4))
        await settle()
        tasks.append(callers.ask("small", "a", 1))
        await settle()
        before = list(callers.order)
        assert queue.running == 3 and queue.waiting == 5
        callers.end("three")
        await settle()
        callers.end("large")
        callers.end("small")
        await asyncio.gather(*tasks)
        return before, queue.running + queue.waiting

    before, left = asyncio.run(story())
    assert before == ["three"] and left == 0


def test_more_than_it_holds_is_refused_at_once() -> None:
    async def story() -> list[ApiProblem]:
        queue = FairQueue(capacity=1, max_waiting=2, max_per_key=2)
        callers = Callers(queue)
        tasks = [callers.ask(name, name) for name in ("a", "b", "c")]
        await settle()
        refused = []
        for key, cost in (("d", 1), ("a", 2)):
            with pytest.raises(ApiProblem) as error:
                async with queue.place(key, cost):
                    pass
            refused.append(error.value)
        assert queue.refused == 2
        for name in ("a", "b", "c"):
            callers.end(name)
        await asyncio.gather(*tasks)
        return refused

    refused = asyncio.run(story())
    assert [problem.status for problem in refused] == [429, 429]
    assert all(int(problem.headers()["Retry-After"]) >= 1 for problem in refused)
    assert "this key" in refused[1].message


def test_one_larger_than_the_capacity_is_drawn_alone() -> None:
    async def story() -> None:
        queue = FairQueue(capacity=2, max_waiting=0, max_per_key=10)
        async with queue.place("a", 5):
            assert queue.running == 5

    asyncio.run(story())


@pytest.mark.parametrize("seed", range(5))
def test_callers_that_go_away_leave_nothing_behind(seed: int) -> None:
    """Cancelled at random moments, waiting or drawing: the sums are zero at the end."""

    async def story() -> dict[str, Any]:
        choose = random.Random(seed)
        queue = FairQueue(capacity=3, max_waiting=50, max_per_key=50)

        async def request(key: str, cost: int) -> None:
            async with queue.place(key, cost):
                assert 0 < queue.running <= 3
                await asyncio.sleep(choose.random() / 200)

        tasks = []
        for _ in range(60):
            task = asyncio.ensure_future(request(choose.choice("abc"), choose.randint(1, 3)))
            tasks.append(task)
            if choose.random() < 0.5:
                await asyncio.sleep(choose.random() / 300)
            if choose.random() < 0.4:
                choose.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return {"running": queue.running, "waiting": queue.waiting, "lines": len(queue._lines)}

    left = asyncio.run(story())
    assert left["running"] == left["waiting"] == 0 and left["lines"] <= 3


def test_a_larger_capacity_lets_those_who_wait_through() -> None:
    async def story() -> list[str]:
        callers = Callers(FairQueue(capacity=1, max_waiting=10, max_per_key=10))
        tasks = [callers.ask(name, name) for name in ("a", "b")]
        await settle()
        callers.queue.resize(2)
        await settle()
        order = list(callers.order)
        for name in ("a", "b"):
            callers.end(name)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(story()) == ["a", "b"]
