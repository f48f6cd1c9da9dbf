"""A `map` over processes: results in order, so what is written from them is the same as without."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from typing import Any, TypeVar

from dreamfleet.runtime.processes import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD_PER_PROCESS = 2

OrderedMap = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@contextlib.contextmanager
def ordered_map(processes: int) -> Iterator[OrderedMap]:
    """The built-in map for one process, else one over a pool of fresh processes.

    The function, its arguments and its results must pickle.
    """
    if processes <= 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_leave_ctrl_c)
    try:
        yield partial(_bounded_map, pool, AHEAD_PER_PROCESS * processes)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _bounded_map(
    pool: ProcessPoolExecutor,
    ahead: int,
    function: Callable[[Item], Result],
    items: Iterable[Item],
) -> Iterator[Result]:
    """At most `ahead` results wait in memory; a single item is not worth a process."""
    todo = list(items)
    if len(todo) <= 1:
        yield from map(function, todo)
        return
    waiting: deque[Future[Result]] = deque()
    for item in todo:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _leave_ctrl_c() -> None:
    """Ctrl-C is for the parent, which finishes what is begun; where that is killed, this ends."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
