"""Following a fit: wherever Ctrl-C strikes, the workers are asked to stop, and it is a Ctrl-C."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from dreamfleet.training import fit as fitting


class _Trainer:
    """Trains until the relay asks it to stop: then it has saved, and ends."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def fit(self) -> None:
        assert self.asked.wait(300)


class _Relay:
    """What `follow` uses of the relay actor: `request_stop.remote`."""

    def __init__(self, trainer: _Trainer) -> None:
        self.request_stop = self
        self.remote = trainer.asked.set


def _interrupt_at_line(number: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises at the `number`th line run after the fit has been started."""
    seen = 0
    started = False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen, started
        started = started or frame.f_code.co_name == "hand_over"
        if started and event == "line":
            seen += 1
            if seen == number:
                raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("number", range(1, 25))
def test_an_interrupt_anywhere_asks_the_workers_to_stop(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "DRIVER_POLL_S", 0.01)

    def hand_over(relay: Any, on_event: Callable[[Any], None]) -> bool:
        on_event("an event")
        return True

    monkeypatch.setattr(fitting, "hand_over", hand_over)
    trainer = _Trainer()
    fit = fitting.Fit(trainer)
    before = sys.gettrace()
    sys.settrace(_interrupt_at_line(number))
    try:
        with pytest.raises(KeyboardInterrupt):
            fitting.follow(fit, _Relay(trainer), lambda event: None)
    finally:
        sys.settrace(before)
    assert fit.ended.is_set()
