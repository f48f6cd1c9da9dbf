"""Each deployment as an MLflow run: its settings, the versions it serves, and how it goes.

`dreamfleet serve` records from outside, and ends the run when the service has ended; on a cluster
each ingress records itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from dreamfleet.config import TrackingConfig
from dreamfleet.errors import first_line
from dreamfleet.serving.settings import ServeSettings

if TYPE_CHECKING:
    from dreamfleet.serving.service import ImageService

log = logging.getLogger("dreamfleet.serving")

EVERY_S = 15.0
ANSWER_S = 10.0
END_S = 4.0  # in all
GONE = "no longer"  # value of the tag of an adapter that was served; tags cannot be deleted
TAGGED = 100  # adapters; more are counted only
# Settings that are not recorded: places, passwords.
PRIVATE = {"keys_file", "registry", "tracking_uri"}
KEPT = (
    "requests_success",
    "requests_refused",
    "requests_invalid",
    "requests_failed",
    "requests_cancelled",
    "requests_retried",
    "pictures",
    "request_p50_s",
    "request_p95_s",
    "queue_waiting_pictures",
    "engine_sampling_step_s",
    "engine_cache_bytes",
    "engine_cache_hits_total",
    "engine_cache_misses_total",
)


class Watched(Protocol):
    """What is recorded; methods block, and may fail while it is busy."""

    def snapshot(self) -> dict[str, float]:
        """Figures so far."""

    def take_samples(self) -> list[tuple[str, bytes]]:
        """Prompts and pictures that were sampled since the last call."""

    def versions(self) -> dict[str, dict[str, str]]:
        """As `ImageService.versions`."""


class Remote:
    """An ingress, through its handle."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def snapshot(self) -> dict[str, float]:
        return self._handle.snapshot.remote().result(timeout_s=ANSWER_S)

    def take_samples(self) -> list[tuple[str, bytes]]:
        return self._handle.take_samples.remote().result(timeout_s=ANSWER_S)

    def versions(self) -> dict[str, dict[str, str]]:
        return self._handle.versions.remote().result(timeout_s=ANSWER_S)


class Here:
    """The service in this process, from another thread than that of its event loop."""

    def __init__(self, service: ImageService, loop: asyncio.AbstractEventLoop) -> None:
        self._service, self._loop = service, loop

    def snapshot(self) -> dict[str, float]:
        asked = asyncio.run_coroutine_threadsafe(self._service.snapshot(), self._loop)
        return asked.result(ANSWER_S)

    def take_samples(self) -> list[tuple[str, bytes]]:
        return self._service.sampled.take()

    def versions(self) -> dict[str, dict[str, str]]:
        if self._service.about is None:
            raise LookupError("which adapters suit the base is known once an engine has loaded it")
        return self._service.versions()


def recorder(
    settings: ServeSettings, tracking: TrackingConfig, notify: Callable[[str], None]
) -> Callable[[Any], Callable[[], None]]:
    """For `serve_foreground`: begins the run when the service is ready, ends it with it."""

    def begin(handle: Any) -> Callable[[], None]:
        record = Recorder(Remote(handle), settings, tracking, notify)
        record.start()
        return record.end

    return begin


@contextlib.asynccontextmanager
async def recorded(service: ImageService, settings: ServeSettings) -> AsyncIterator[None]:
    """Record the service while inside, where its settings name a place for that."""
    if settings.tracking_uri is None:
        yield
        return
    watched = Here(service, asyncio.get_running_loop())
    try:
        record = await asyncio.to_thread(
            Recorder, watched, settings, TrackingConfig(uri=settings.tracking_uri), log.warning
        )
    except Exception as error:  # pictures matter more than their record
        reason = _without_secrets(error, settings.tracking_uri)
        log.warning("this service is not recorded: %s", reason)
        yield
        return
    record.start()
    try:
        yield
    finally:
        await asyncio.to_thread(record.end)


def record_deployment(
    settings: Mapping[str, Any],
    tracking_uri: str | None,
    place: str,
    notify: Callable[[str], None],
) -> None:
    """A run for what was handed to a cluster: settings and place. How it goes there the service
    records itself, in runs of its own. Where it cannot be recorded that is told, and no error.
    """
    from dreamfleet.tracking import open_tracker, resolve_uri

    try:
        tracker = open_tracker(TrackingConfig(uri=tracking_uri), notify=notify)
        run = tracker.start_run(
            f"deploy {datetime.now(UTC):%Y-%m-%d %H:%M}",
            params={key: value for key, value in settings.items() if key not in PRIVATE},
            tags={"dreamfleet.kind": "deployment", "dreamfleet.head": place},
        )
        run.finish("FINISHED")
        tracker.close()
    except Exception as error:  # it runs there all the same
        uri = resolve_uri(tracking_uri)
        notify(f"warning: this deployment is not recorded: {_without_secrets(error, uri)}")


def _without_secrets(error: Exception, uri: str) -> str:
    from dreamfleet.tracking.base import without_password

    return first_line(error).replace(uri, without_password(uri))


class Recorder:
    """A thread that writes figures down now and then.

    Args:
        watched: whose figures, samples and versions.
        settings: of the application; they become the run's parameters.
        tracking: store and experiment.
        notify: where a line goes when MLflow is down.
    """

    def __init__(
        self,
        watched: Watched,
        settings: ServeSettings,
        tracking: TrackingConfig,
        notify: Callable[[str], None],
    ) -> None:
        from dreamfleet.tracking import open_tracker

        self._watched = watched
        self._tracker = open_tracker(tracking, notify=notify)
        self.run = self._tracker.start_run(
            f"serve {datetime.now(UTC):%Y-%m-%d %H:%M}",
            params=settings.model_dump(mode="json", exclude=PRIVATE),
            tags={"dreamfleet.kind": "deployment"},
        )
        self._tags: dict[str, str] = {}  # of versions, as they were last told
        self._wanted = settings.sample_images
        self._step = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """The last figures, and the end of the run; returns within seconds whatever MLflow does."""
        self._ending.set()
        until = time.monotonic() + END_S
        self._thread.join(END_S / 2)
        self.run.finish("FINISHED", max(0.0, until - time.monotonic()))
        self._tracker.close(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        self._tell_versions()
        while not self._ending.wait(EVERY_S):
            self._note()
        self._note()

    def _note(self) -> None:
        self._tell_versions()
        with contextlib.suppress(Exception):  # a busy or ending service is asked again later
            figures = self._watched.snapshot()
            self._step += 1
            known = {name: figures[name] for name in KEPT if name in figures}
            self.run.log_metrics(known, self._step)
            if self._wanted:
                for prompt, picture in self._watched.take_samples():
                    self.run.log_grid([(prompt, picture)], "served", self._step)

    def _tell_versions(self) -> None:
        """Versions as tags, as links where they are registered; adapters come and go."""
        with contextlib.suppress(Exception):
            serves = {
                f"dreamfleet.serves.{name}": about["registered"] or about["version"]
                for name, about in self._watched.versions().items()
            }
            shown = [*list(serves)[:TAGGED], *self._tags]
            tags = {tag: serves.get(tag, GONE) for tag in shown}
            tags["dreamfleet.adapters"] = str(len(serves))
            if changed := dict(tags.items() - self._tags.items()):
                self.run.set_tags(changed)
            self._tags = tags
