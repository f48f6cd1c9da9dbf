"""What a deployment's run says, and what happens where it cannot begin."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from dreamfleet import launch
from dreamfleet.config import RunConfig, TrackingConfig
from dreamfleet.errors import BadInputError
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.serving import recording
from dreamfleet.serving.recording import GONE, Here, Recorder
from dreamfleet.serving.sampled import Sampled
from dreamfleet.serving.settings import ServeSettings
from dreamfleet.tracking import NullRun, NullTracker

URI = "postgresql://me:secret@host/mlflow"
SETTINGS = ServeSettings(adapters="x")


class Service:
    """Serves `adapters`: versions by name."""

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.figures: dict[str, float] = {}

    def snapshot(self) -> dict[str, float]:
        return self.figures

    def take_samples(self) -> list[tuple[str, bytes]]:
        return []

    def versions(self) -> dict[str, dict[str, str]]:
        return {name: {"version": own, "registered": ""} for name, own in self.adapters.items()}


class Noted(NullRun):
    """Keeps what it is told, each call of its own."""

    def __init__(self) -> None:
        self.tags: list[Mapping[str, Any]] = []
        self.metrics: list[Mapping[str, float]] = []

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self.tags.append(tags)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics.append(metrics)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def told(service: Service) -> tuple[Recorder, Noted]:
    recorder = Recorder(service, SETTINGS, TrackingConfig(enabled=False), print)
    run = recorder.run = Noted()
    return recorder, run


def test_tags_follow_what_is_served(service: Service, told: tuple[Recorder, Noted]) -> None:
    recorder, run = told
    count, ada, bo = "dreamfleet.adapters", "dreamfleet.serves.ada", "dreamfleet.serves.bo"
    for adapters in ({"ada": "1"}, {"ada": "1"}, {"ada": "2", "bo": "1"}, {"bo": "1"}):
        service.adapters = adapters
        recorder._note()
    assert run.tags == [{count: "1", ada: "1"}, {count: "2", ada: "2", bo: "1"},
                        {count: "1", ada: GONE}]  # fmt: skip


def test_of_very_many_adapters_those_tagged_once_stay_right(
    service: Service, told: tuple[Recorder, Noted]
) -> None:
    recorder, run = told
    service.adapters = {f"b{index:03}": "1" for index in range(200)}
    recorder._note()
    assert len(run.tags[0]) == recording.TAGGED + 1
    service.adapters = {"a": "1"} | dict.fromkeys(service.adapters, "2")
    recorder._note()
    assert "b100" not in str(run.tags) and run.tags[1]["dreamfleet.serves.b099"] == "2"


def test_versions_wait_for_the_base() -> None:
    """Before it is known every adapter seems usable."""
    service: Any = SimpleNamespace(about=None, versions=lambda: {"ada": {}})
    loop: Any = None
    here = Here(service, loop)
    with pytest.raises(LookupError):
        here.versions()
    service.about = "known"
    assert here.versions() == {"ada": {}}


def test_requests_of_every_outcome_are_recorded(
    service: Service, told: tuple[Recorder, Noted]
) -> None:
    recorder, run = told
    outcomes = ("success", "refused", "invalid", "failed", "cancelled", "retried")
    service.figures = {f"requests_{outcome}": 1.0 for outcome in outcomes}
    recorder._note()
    assert run.metrics == [service.figures]


@pytest.mark.parametrize("a_minute", [0, 4, 100])
def test_as_many_pictures_are_kept_as_were_asked_for(
    a_minute: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken by the recorder's pace, for a minute."""
    clock = [0.0]
    monkeypatch.setattr("dreamfleet.serving.sampled.time.monotonic", lambda: clock[0])
    sampled, taken = Sampled(a_minute), 0
    for _ in range(int(60 / recording.EVERY_S)):
        for _ in range(int(recording.EVERY_S * 50)):
            sampled.offer("a dog", b"png")
            clock[0] += 0.02
        taken += len(sampled.take())
    assert 0.9 * a_minute <= taken <= a_minute


def test_a_launch_is_recorded_in_its_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[TrackingConfig] = []

    def opening(config: TrackingConfig, **_: object) -> NullTracker:
        opened.append(config)
        return NullTracker()

    monkeypatch.setattr("dreamfleet.tracking.open_tracker", opening)
    config = RunConfig.model_validate({"tracking": {"experiment": "team", "uri": URI}})
    (begin,) = launch._recorders(config, SETTINGS, SilentProgress())
    begin(None)()
    assert [(own.uri, own.experiment) for own in opened] == [(URI, "team")]


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
