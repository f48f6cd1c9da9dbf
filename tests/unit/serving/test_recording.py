"""A service that records itself: what happens where that cannot begin."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dreamfleet.errors import BadInputError
from dreamfleet.serving import recording
from dreamfleet.serving.settings import ServeSettings

URI = "postgresql://me:secret@host/mlflow"


def test_a_record_that_cannot_begin_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served: list[str] = []

    def broken(*given: Any) -> None:
        raise BadInputError(f"{URI}: nothing is there")

    async def story() -> None:
        service: Any = None
        settings = ServeSettings(adapters="x", tracking_uri=URI)
        async with recording.recorded(service, settings):
            served.append("a picture")

    monkeypatch.setattr(recording, "Recorder", broken)
    asyncio.run(story())
    assert served and "not recorded" in caplog.text and "secret" not in caplog.text
