"""Processes of a pool."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """In a child process: end when its parent does. One whose parent was killed would go on, and
    the next command wait for it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent's end", daemon=True).start()
