"""How the finals' trainings are carried out: some at once, and none holds up an interrupted end."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pytest

from dreamfleet.tuning.finals import Contender, decided, run_all
from tests.unit.tuning.test_study import reading


def test_results_come_in_order_and_no_more_than_allowed_run_at_once() -> None:
    both, told = threading.Barrier(2), list[int]()
    running, most, guard = 0, 0, threading.Lock()

    def run(number: int) -> int:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        both.wait(60)  # never alone
        with guard:
            running -= 1
        return -number

    assert run_all(range(6), run, 2, told.append) == [0, -1, -2, -3, -4, -5]
    assert told == [1, 2, 3, 4, 5, 6] and most == 2
    assert run_all([], run, 2, told.append) == []


def test_what_goes_wrong_is_raised() -> None:
    def run(number: int) -> None:
        raise OSError(f"disk {number} full")

    with pytest.raises(OSError, match="disk 0 full"):
        run_all(range(3), run, 1, lambda done: None)


def test_an_interrupt_waits_for_nobody() -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals arrive in the main thread")
    still = threading.Event()
    threads: list[threading.Thread] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def run(number: int) -> None:
        threads.append(threading.current_thread())
        os.kill(os.getpid(), signal.SIGUSR1)
        still.wait(60)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_all(range(3), run, 1, lambda done: None)
        (left,) = threads
        assert left.is_alive() and left.daemon, "the program's end does not wait for it"
        still.set()
        left.join(60)
        assert len(threads) == 1, "nothing more is begun"
    finally:
        still.set()
        signal.signal(signal.SIGUSR1, before)


def test_the_host_wins_a_tie() -> None:
    host, other = Contender(0, {}, 40, True), Contender(5, {}, 40, False)

    def winner(alignment: float) -> Contender:
        found = {(0, 1): reading(40, 0.5), (5, 1): reading(40, alignment)}
        return decided(found, [other, host], 0.03).winner.contender

    assert winner(0.5) == host and winner(0.51) == other
