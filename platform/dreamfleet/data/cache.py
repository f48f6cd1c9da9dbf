"""The bounded cache below DREAMFLEET_HOME: one parquet file per entry, named by a hash of
everything it depends on.

A changed photo, base, prompt or sampler is another key, so an entry is never stale, only unused.
Files are written whole (temporary file, then rename) and carry page checksums: a damaged entry is a
miss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamfleet.config import dreamfleet_home

KINDS = ("photos", "prior_sets")


@dataclass(frozen=True)
class CacheUse:
    """How much one kind of entry takes."""

    kind: str
    entries: int
    bytes: int


@dataclass(frozen=True)
class Cache:
    """A cache folder; the least recently used entries go when it is larger than `max_bytes`."""

    root: Path
    max_bytes: int

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / f"{key}.parquet"

    def lock_path(self, kind: str, key: str) -> Path:
        return self.root / "locks" / f"{kind}-{key}.lock"

    def get(self, kind: str, key: str) -> list[dict[str, Any]] | None:
        """The rows of an entry, or None when it is missing or damaged."""
        import pyarrow
        import pyarrow.parquet as parquet

        path = self.path(kind, key)
        try:
            rows: list[dict[str, Any]] = parquet.read_table(
                path, page_checksum_verification=True, partitioning=None
            ).to_pylist()
            os.utime(path)  # now the most recently used
        except (OSError, pyarrow.ArrowException):
            return None
        return rows

    def has(self, kind: str, key: str) -> bool:
        return self.path(kind, key).is_file()

    def put(self, kind: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write an entry whole; of two writers of one key the last wins, and both wrote the
        same.
        """
        import pyarrow
        import pyarrow.parquet as parquet

        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{key}.{os.getpid()}.tmp")
        try:
            table = pyarrow.Table.from_pylist([dict(row) for row in rows])
            parquet.write_table(table, partial, write_page_checksum=True, compression="zstd")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def prune(self) -> int:
        """Delete the least recently used entries until the cache fits its bound; returns how many
        went.
        """
        entries = sorted(self._entries(), key=lambda entry: entry[1])
        total = sum(size for _, _, size in entries)
        removed = 0
        for path, _, size in entries:
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
            removed += 1
        return removed

    def info(self) -> list[CacheUse]:
        """Entries and bytes of each kind."""
        entries = self._entries()
        return [
            CacheUse(kind, len(sizes), sum(sizes))
            for kind in KINDS
            for sizes in [[size for path, _, size in entries if path.parent.name == kind]]
        ]

    def clear(self) -> int:
        """Delete every entry; returns the bytes freed."""
        freed = 0
        for path, _, size in self._entries():
            path.unlink(missing_ok=True)
            freed += size
        return freed

    def _entries(self) -> list[tuple[Path, float, int]]:
        entries = []
        for kind in KINDS:
            for path in (self.root / kind).glob("*.parquet"):
                with contextlib.suppress(OSError):  # another process deleted it
                    status = path.stat()
                    entries.append((path, status.st_mtime, status.st_size))
        return entries


def default_cache(max_gib: float = 10.0) -> Cache:
    """The cache below DREAMFLEET_HOME."""
    return Cache(dreamfleet_home() / "cache", int(max_gib * 2**30))


def cache_key(**parts: Any) -> str:
    """SHA-256 of the JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
