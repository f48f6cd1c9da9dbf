"""Pictures that were asked for by address: files with names that nobody can guess, for a while."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from pathlib import Path

from dreamfleet.serving.orders import PictureFormat

NAME = re.compile(r"[0-9a-f]{32}\.(png|jpeg|webp)")
KEPT_S = 3600.0
PRUNE_EVERY_S = 5.0  # there may be many files


class Shelf:
    """A folder of pictures, bounded in time and bytes.

    Args:
        folder: made when the first picture comes.
        max_bytes: the oldest go first.
    """

    def __init__(self, folder: Path, max_bytes: int = 256 * 2**20) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._pruned = float("-inf")

    def put(self, picture: bytes, output_format: PictureFormat) -> str:
        """Keep a picture; returns its name."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if time.monotonic() - self._pruned >= PRUNE_EVERY_S:
            self._pruned = time.monotonic()
            self.prune()
        name = f"{secrets.token_hex(16)}.{output_format}"
        part = self.folder / f".{name}.tmp"
        part.write_bytes(picture)
        part.replace(self.folder / name)
        return name

    def get(self, name: str) -> bytes | None:
        """A picture by its name; None for one that is not, or no longer, here."""
        path = self.folder / name
        try:
            if not NAME.fullmatch(name) or time.time() - path.stat().st_mtime > KEPT_S:
                return None
            return path.read_bytes()
        except OSError:
            return None

    def prune(self) -> None:
        """Delete what is too old or too much."""
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                with contextlib.suppress(OSError):
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
        total = 0
        for modified, size, path in sorted(found, reverse=True):
            total += size
            if total > self.max_bytes or time.time() - modified > KEPT_S:
                path.unlink(missing_ok=True)
