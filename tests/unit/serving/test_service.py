"""A service without engines: what it answers before it knows its adapters, what it asks engines."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dreamfleet.serving.admission import FairQueue
from dreamfleet.serving.backend import ServeBackend
from dreamfleet.serving.catalogue import Catalogue, Listing
from dreamfleet.serving.figures import Figures
from dreamfleet.serving.orders import BaseAbout
from dreamfleet.serving.service import ImageService


class _Engines:
    async def about(self) -> BaseAbout:
        return BaseAbout("tiny", "0", 64, 8, 2, 3.0)

    async def num_replicas(self) -> int:
        return 1

    async def tell_demand(self, pictures: int) -> None:
        """There are no more."""


def test_a_registry_that_is_down_at_the_start_is_asked_again() -> None:
    """An ingress that takes the place of a lost one must not end itself."""
    down = True

    def read() -> Listing:
        if down:
            raise ConnectionError("refused")
        return Listing({}, {}, {})

    async def story() -> None:
        nonlocal down
        source: Any = SimpleNamespace(read=read)
        engines: Any = _Engines()
        queue = FairQueue(capacity=1, max_waiting=1, max_per_key=1)
        service = ImageService(
            engines,
            lambda base_hash: Catalogue(source, base_hash),
            queue,
            Figures(),
            refresh_s=0.01,
        )
        await service.start()
        assert "adapters cannot be listed" in service.why_not_ready()
        down = False
        while not service.ready:
            await asyncio.sleep(0.01)
        await service.close()

    asyncio.run(asyncio.wait_for(story(), 300))


def test_engines_are_asked_for_figures_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask for /metrics."""
    asked: list[str] = []

    async def answers(return_exceptions: bool) -> list[dict[str, float]]:
        await asyncio.sleep(0)
        return [{"drawing": 1.0}, {"drawing": 2.0}]

    def broadcast(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(results_async=answers)

    async def story() -> None:
        backend = ServeBackend(SimpleNamespace(broadcast=broadcast), "one")
        found = await asyncio.gather(*(backend.stats() for _ in range(5)))
        assert found == [{"drawing": 3.0}] * 5 and asked == ["stats"]
        monkeypatch.setattr("dreamfleet.serving.backend.STATS_FOR_S", 0.0)
        await backend.stats()

    asyncio.run(story())
    assert asked == ["stats", "stats"]
