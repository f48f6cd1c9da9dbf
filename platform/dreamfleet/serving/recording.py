"""Each deployment as an MLflow run: its settings, the versions it serves, and how it goes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from dreamfleet.config import TrackingConfig
from dreamfleet.serving.settings import ServeSettings

EVERY_S = 15.0
ANSWER_S = 10.0
END_S = 4.0  # in all
PRIVATE = {"keys_file", "registry"}  # settings that are not recorded: places, passwords
KEPT = (
    "requests_success",
    "requests_refused",
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


def recorder(
    settings: ServeSettings, tracking_uri: str | None, notify: Callable[[str], None]
) -> Callable[[Any], Callable[[], None]]:
    """For `serve_foreground`: begins the run when the service is ready, ends it with it."""

    def begin(handle: Any) -> Callable[[], None]:
        record = Recorder(handle, settings, tracking_uri, notify)
        record.start()
        return record.end

    return begin


def record_deployment(
    content: Mapping[str, Any],
    tracking_uri: str | None,
    place: str,
    notify: Callable[[str], None],
) -> None:
    """A run for what was handed to a cluster: settings and place. How it goes there is for
    Prometheus, which scrapes the cluster.
    """
    from dreamfleet.tracking import open_tracker

    settings = content["applications"][0].get("args") or {}
    tracker = open_tracker(TrackingConfig(uri=tracking_uri), notify=notify)
    run = tracker.start_run(
        f"deploy {datetime.now(UTC):%Y-%m-%d %H:%M}",
        params={key: value for key, value in settings.items() if key not in PRIVATE},
        tags={"dreamfleet.kind": "deployment", "dreamfleet.head": place},
    )
    run.finish("FINISHED")
    tracker.close()


class Recorder:
    """A thread that writes figures down now and then.

    Args:
        handle: of the ingress.
        settings: of the application; they become the run's parameters.
        tracking_uri: None: the default store.
        notify: where a line goes when MLflow is down.
    """

    def __init__(
        self,
        handle: Any,
        settings: ServeSettings,
        tracking_uri: str | None,
        notify: Callable[[str], None],
    ) -> None:
        from dreamfleet.tracking import open_tracker

        self._handle = handle
        self._tracker = open_tracker(TrackingConfig(uri=tracking_uri), notify=notify)
        name = f"serve {datetime.now(UTC):%Y-%m-%d %H:%M}"
        tags = {"dreamfleet.kind": "deployment", **self._versions()}
        self.run = self._tracker.start_run(
            name, params=settings.model_dump(mode="json", exclude=PRIVATE), tags=tags
        )
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
        while not self._ending.wait(EVERY_S):
            self._note()
        self._note()

    def _note(self) -> None:
        with contextlib.suppress(Exception):  # a busy or ending service is asked again later
            figures = self._handle.snapshot.remote().result(timeout_s=ANSWER_S)
            self._step += 1
            known = {name: figures[name] for name in KEPT if name in figures}
            self.run.log_metrics(known, self._step)
            if self._wanted:
                for prompt, picture in self._handle.take_samples.remote().result(
                    timeout_s=ANSWER_S
                ):
                    self.run.log_grid([(prompt, picture)], "served", self._step)

    def _versions(self) -> dict[str, str]:
        """Versions as tags, as links where they are registered; many adapters are counted only."""
        with contextlib.suppress(Exception):
            found = self._handle.versions.remote().result(timeout_s=ANSWER_S)
            tags = {"dreamfleet.adapters": str(len(found))}
            for name, about in list(found.items())[:100]:
                tags[f"dreamfleet.serves.{name}"] = about["registered"] or about["version"]
            return tags
        return {}
