"""A few served pictures a minute, kept for the deployment's record where its owner asked for it."""

from __future__ import annotations

import time
from collections import deque


class Sampled:
    """The sampled pictures of the last minute, until they are taken.

    Args:
        a_minute: how many are sampled; 0: none.
    """

    def __init__(self, a_minute: int) -> None:
        self._pause_s = 60.0 / a_minute if a_minute else None
        self._next = 0.0
        self._kept: deque[tuple[str, bytes]] = deque(maxlen=a_minute)

    def offer(self, prompt: str, picture: bytes) -> None:
        """A picture that was served; kept if it is time for one."""
        now = time.monotonic()
        if self._pause_s is not None and now >= self._next:
            self._next = now + self._pause_s
            self._kept.append((prompt, picture))

    def take(self) -> list[tuple[str, bytes]]:
        """What was kept since the last time."""
        found = list(self._kept)
        self._kept.clear()
        return found
