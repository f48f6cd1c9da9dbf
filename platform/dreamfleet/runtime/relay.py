"""Events from workers to the driver, and the driver's wish to stop back to them.

A small actor holds the events until the driver takes them: `ray.train.report` is a barrier and
throttled, and its callbacks run in another process, so it cannot carry one loss per step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PUSH_EVERY_S = 0.2
DRIVER_POLL_S = 0.25


class _RelayActor:
    """Lives in its own process without CPU of its own."""

    def __init__(self) -> None:
        self._events: list[Any] = []
        self._stop = False

    def push(self, events: list[Any]) -> bool:
        """Keep `events` for the driver; True when workers shall stop."""
        self._events.extend(events)
        return self._stop

    def take(self) -> list[Any]:
        """All events since the last call."""
        events, self._events = self._events, []
        return events

    def request_stop(self) -> None:
        self._stop = True


def start_relay() -> Any:
    """A new relay actor; it ends with this driver."""
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_RelayActor).remote()


def hand_over(actor: Any, on_event: Callable[[Any], None]) -> bool:
    """Give all waiting events to `on_event`, in this thread; a lost relay costs figures, never the
    run. True where there were any.
    """
    import ray

    try:
        events = ray.get(actor.take.remote(), timeout=10.0)
    except ray.exceptions.RayError:
        return False
    for event in events:
        on_event(event)
    return bool(events)


class RelayClient:
    """The worker's end: never blocks a training step, and a lost relay never fails one."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._waiting: list[Any] = []
        self._in_flight: Any = None
        self._last = 0.0
        self._stop = False

    def send(self, event: Any) -> None:
        """Queue `event` and push the queue now and then."""
        self._waiting.append(event)
        if time.monotonic() - self._last >= PUSH_EVERY_S:
            self._push(block=False)

    def should_stop(self) -> bool:
        """True once the driver has asked to stop (seen within about half a second)."""
        return self._stop

    def flush(self) -> None:
        """Wait until the driver can see everything."""
        self._push(block=True)
        self._push(block=True)

    def _push(self, block: bool) -> None:
        import ray

        self._last = time.monotonic()
        if self._in_flight is not None:
            ready, _ = ray.wait([self._in_flight], timeout=10.0 if block else 0)
            if not ready:
                return
            self._stop = self._result() or self._stop
        if self._waiting or not block:
            events, self._waiting = self._waiting, []
            self._in_flight = self._actor.push.remote(events)

    def _result(self) -> bool:
        import ray

        reference, self._in_flight = self._in_flight, None
        try:
            return bool(ray.get(reference))
        except ray.exceptions.RayError:
            return False  # the driver is told less, the training goes on
