"""A Ray Train fit beside the driver's own work: events on the way, Ctrl-C as an orderly end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from dreamfleet.runtime.relay import DRIVER_POLL_S, hand_over
from dreamfleet.runtime.room import Silence

STOP_WITHIN_S = 60.0


class Fit(threading.Thread):
    """`TorchTrainer.fit` in a thread: in the main thread it would take Ctrl-C for itself.

    `ended` is what to look at, not to wait for: a Ctrl-C inside `Thread.join` makes Python 3.11
    take the thread for ended, and one inside `Event.wait` can come out as `RuntimeError: release
    unlocked lock`.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(name="ray-train-fit", daemon=True)
        self._trainer = trainer
        self.ended = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Fit; whatever happens is kept for `returned`."""
        try:
            self._result = self._trainer.fit()
        except BaseException as error:
            self._error = error
        finally:
            self.ended.set()

    def returned(self) -> Any:
        """What rank 0 returned; raises what ended the fit otherwise."""
        if self._error is not None:
            raise self._error
        return self._result.return_value


def follow(
    fit: Fit,
    relay: Any,
    on_event: Callable[[Any], None],
    on_silence: Callable[[], None] = lambda: None,
) -> None:
    """Start `fit` and hand its events to `on_event`, in this thread, until it ends. Where the first
    is long in coming, `on_silence` is called once.

    A KeyboardInterrupt asks the workers to save and end, waits at most STOP_WITHIN_S, and is raised
    again; a second one ends the waiting.
    """
    fit.start()
    silence = Silence(on_silence)
    try:
        while not fit.ended.is_set():
            time.sleep(DRIVER_POLL_S)
            silence.note(hand_over(relay, on_event))
    except KeyboardInterrupt:
        _stop(fit, relay, on_event)
        raise
    hand_over(relay, on_event)


def _stop(fit: Fit, relay: Any, on_event: Callable[[Any], None]) -> None:
    import ray

    with contextlib.suppress(KeyboardInterrupt, ray.exceptions.RayError):
        relay.request_stop.remote()  # not waited for: on a busy machine that alone can take long
        deadline = time.monotonic() + STOP_WITHIN_S
        while not fit.ended.is_set() and time.monotonic() < deadline:
            time.sleep(DRIVER_POLL_S)
            hand_over(relay, on_event)
