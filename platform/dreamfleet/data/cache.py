"""The bounded cache, below DREAMFLEET_HOME or at any URI: one parquet file per entry, named by a
hash of everything it depends on.

A changed photo, base, prompt or sampler is another key, so an entry is never stale, only unused.
Files are written whole and carry page checksums: a damaged entry is a miss.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamfleet.config import dreamfleet_home
from dreamfleet.errors import DreamfleetError
from dreamfleet.runtime.storage import Entry, Folder

KINDS = ("photos", "prior_sets")
TEACHER = "teacher"  # predictions of frozen teachers, which engines write


@dataclass(frozen=True)
class CacheUse:
    """How much one kind of entry takes."""

    kind: str
    entries: int
    bytes: int


@dataclass(frozen=True)
class Cache:
    """A cache folder; the least recently used entries go when it is larger than `max_bytes` (in an
    object store, which cannot tell when an entry was read, those that were written first).
    """

    root: Path | str  # or a URI
    max_bytes: int

    @functools.cached_property  # to open a connection takes several requests
    def folder(self) -> Folder:
        return Folder(str(self.root))

    def lock_path(self, kind: str, key: str) -> Path:
        """Locks are files of this host; two hosts that make one entry at once both make it."""
        place = self.folder.local or default_root()
        return place / "locks" / f"{kind}-{key}.lock"

    def get(self, kind: str, key: str) -> list[dict[str, Any]] | None:
        """The rows of an entry, or None when it is missing or damaged."""
        import pyarrow
        import pyarrow.parquet as parquet

        place = self.folder.child(kind)
        try:
            rows: list[dict[str, Any]] = parquet.read_table(
                io.BytesIO(place.read(_file(key))),
                page_checksum_verification=True,
                partitioning=None,
            ).to_pylist()
        except (OSError, pyarrow.ArrowException):
            return None
        place.touch(_file(key))
        return rows

    def has(self, kind: str, key: str) -> bool:
        return self.folder.child(kind).exists(_file(key))

    def put(self, kind: str, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write an entry whole; of two writers of one key the last wins, and both wrote the
        same.

        Raises DreamfleetError when the place cannot be written.
        """
        import pyarrow
        import pyarrow.parquet as parquet

        buffer = io.BytesIO()
        table = pyarrow.Table.from_pylist([dict(row) for row in rows])
        parquet.write_table(table, buffer, write_page_checksum=True, compression="zstd")
        try:
            self.folder.child(kind).write(_file(key), buffer.getvalue())
        except OSError as error:
            raise DreamfleetError(
                f"cache {self.root}: cannot be written ({error}); free space, or name another "
                "place by --cache-path or DREAMFLEET_HOME"
            ) from error

    def prune(self) -> int:
        """Delete the least recently used entries until the cache fits its bound; returns how many
        went.
        """
        entries = sorted(self._entries(), key=lambda found: found[1].modified)
        total = sum(entry.bytes for _, entry in entries)
        removed = 0
        for kind, entry in entries:
            if total <= self.max_bytes:
                break
            self.folder.child(kind).delete(entry.name)
            total -= entry.bytes
            removed += 1
        return removed

    def info(self) -> list[CacheUse]:
        """Entries and bytes of each kind."""
        entries = self._entries()
        sizes = {kind: [own.bytes for found, own in entries if found == kind] for kind in KINDS}
        sizes[TEACHER] = [path.stat().st_size for path in self._predictions()]
        return [CacheUse(kind, len(own), sum(own)) for kind, own in sizes.items()]

    def clear(self) -> int:
        """Delete every entry; returns the bytes freed."""
        freed = 0
        for kind, entry in self._entries():
            self.folder.child(kind).delete(entry.name)
            freed += entry.bytes
        for path in self._predictions():
            freed += path.stat().st_size
            path.unlink()
        return freed

    @property
    def teacher_folder(self) -> Path:
        """Where engines keep the frozen teacher's predictions: always on a disk of their own
        machine, since each is a file of some KB. `data.teacher_cache_gib` bounds it.
        """
        return (self.folder.local or default_root()) / TEACHER

    def _predictions(self) -> list[Path]:
        return sorted(self.teacher_folder.glob("*/*.safetensors"))

    def _entries(self) -> list[tuple[str, Entry]]:
        return [
            (kind, entry)
            for kind in KINDS
            for entry in self.folder.child(kind).entries()
            if entry.name.endswith(".parquet")
        ]


def _file(key: str) -> str:
    return f"{key}.parquet"


def default_root() -> Path:
    """The cache folder below DREAMFLEET_HOME."""
    return dreamfleet_home() / "cache"


def open_cache(place: str | None = None, max_gib: float = 10.0) -> Cache:
    """The cache at `place`, a folder or URI; default: below DREAMFLEET_HOME."""
    return Cache(place or default_root(), int(max_gib * 2**30))


def cache_key(**parts: Any) -> str:
    """SHA-256 of the JSON of `parts`."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
