"""Locks between processes on one host; they go with their process, so a killed run leaves none
behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from dreamfleet.errors import BadInputError, first_line


@contextlib.contextmanager
def exclusive_run(folder: Path) -> Iterator[None]:
    """Hold `folder` for one run; BadInputError when another run holds it, or it cannot be made."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"output folder {folder}: cannot be made ({error.strerror}); give another --output-dir"
        ) from error
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise BadInputError(
            f"output folder {folder}: another run is writing here; wait for it, stop it, or "
            "give another --output-dir"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: storage without locks
        raise BadInputError(
            f"output folder {folder}: cannot be written and locked ({first_line(error)}); give "
            "another --output-dir"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def shared_work(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it, say so once by `on_wait` and
    wait.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
