"""A run's records on disk, in order, with a mark at how far they have been sent.

    <spool>/<run key>-<random>/
        run.json        where the run belongs: uri, experiment, key, MLflow's id once known
        ops.jsonl       one record a line, only ever appended to
        sent            bytes of ops.jsonl that MLflow has
        files/          pictures, artifacts and adapters that records point to
        rejected.jsonl  records that MLflow refused, with its reason
        .lock           held for as long as a process writes or sends the journal

A process that is killed leaves its journal unlocked, and another one sends it. A record may be sent
twice when the kill comes between sending and marking; the records are such that this changes
nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dreamfleet.tracking.base import RunHandle

Record = dict[str, Any]
HEADER, RECORDS, SENT, FILES, REJECTED, LOCK = (
    "run.json", "ops.jsonl", "sent", "files", "rejected.jsonl", ".lock",
)  # fmt: skip
PRIVATE = 0o700
ROWS_PER_RECORD = 900  # MLflow takes 1000 in one call
ROWS_AGE_S = 5.0
# Larger files that cannot be linked are read from where they lie when they are sent, instead of
# being copied.
COPY_LIMIT_BYTES = 512 * 2**20


class Journal:
    """One process's records of one run. Safe to use from several threads."""

    def __init__(
        self, folder: Path, handle: RunHandle, lock: FileLock, begun: int | None = None
    ) -> None:
        self.folder, self.handle = folder, handle
        self.results: dict[str, str] = {}  # record id -> what MLflow answered
        self.aliases: dict[str, str] = {}  # registered version -> its alias
        self.closed = False
        self.lost = 0  # records that could not be written
        self._lock = lock
        self._guard = threading.RLock()
        self._rows: list[list[Any]] = []  # metrics not yet written
        self._rows_since = 0.0
        self._begun = time.time_ns() if begun is None else begun
        self._sent = _read_number(folder / SENT)
        self._size = _whole_lines(folder / RECORDS)

    @classmethod
    def begin(cls, spool: Path, handle: RunHandle) -> Journal:
        """A new, locked journal; OSError when the spool cannot be written."""
        folder = spool / f"{handle.key}-{secrets.token_hex(4)}"
        # Its owner's alone, whoever made the spool: run.json holds the address, maybe a password.
        spool.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
        folder.mkdir(mode=PRIVATE)
        (folder / FILES).mkdir()
        journal = cls(folder, handle, _take_lock(folder))
        journal._write_header()
        return journal

    @classmethod
    def adopt(cls, folder: Path) -> Journal | None:
        """The journal that another process left in `folder`; None when in use or not whole."""
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            names = ("uri", "experiment", "key", "run_id")
            handle = RunHandle(*(header[name] for name in names))
            lock = _take_lock(folder)
        except (OSError, ValueError, KeyError, TypeError, Timeout):
            return None
        return cls(folder, handle, lock, header.get("begun"))

    # Writing

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; a full disk loses it, and is counted, but never raises."""
        with self._guard:
            self._write_rows()
            self._write(record)

    def add_metrics(self, metrics: Mapping[str, float], step: int, time_ms: int) -> None:
        """Figures of a step; kept in memory until `flush`, or until there are many."""
        with self._guard:
            self._rows_since = self._rows_since if self._rows else time.monotonic()
            self._rows += [[name, float(value), time_ms, step] for name, value in metrics.items()]
            if len(self._rows) >= ROWS_PER_RECORD:
                self._write_rows()

    def flush(self, min_age_s: float = 0.0) -> None:
        """Write the metrics that are only in memory, if the oldest is at least `min_age_s` old."""
        with self._guard:
            if time.monotonic() - self._rows_since >= min_age_s:
                self._write_rows()

    def keep_bytes(self, data: bytes, name: str) -> str:
        """Store a file with the journal; returns its name there, or "" when it could not be
        written.
        """
        target = self._new_place() / name
        return self._kept(lambda: target.write_bytes(data), target)

    def keep_path(self, source: Path, entries: list[str] | None = None) -> str:
        """Store a file or folder (or some `entries` of it) as it is now: linked where possible,
        else copied.

        Returns its name with the journal, its absolute path when it is too large to be copied, or
        "".
        """
        source = source.absolute()
        target = self._new_place() / source.name
        try:
            if _bytes_of(source, entries) > COPY_LIMIT_BYTES and not _linkable(source, self.folder):
                return str(source)
        except OSError:
            self.lost += 1
            return ""
        return self._kept(lambda: _keep_tree(source, target, entries), target)

    def close(self) -> None:
        """No more records will come."""
        self.flush()
        self.closed = True

    # Sending

    @property
    def pending_bytes(self) -> int:
        """Bytes of records that MLflow does not have yet."""
        with self._guard:
            return self._size - self._sent

    @property
    def is_sent(self) -> bool:
        with self._guard:
            return not self._rows and self._size <= self._sent

    def next_records(self, limit: int = 20) -> list[tuple[Record, int]]:
        """Up to `limit` unsent records, each with the mark to set once it is sent."""
        with self._guard:
            if self._size <= self._sent:
                return []
            found: list[tuple[Record, int]] = []
            with (self.folder / RECORDS).open("rb") as file:
                file.seek(self._sent)
                mark = self._sent
                while len(found) < limit and mark < self._size:
                    line = file.readline()
                    mark += len(line)
                    found.append((_parse(line), mark))
            return found

    def mark_sent(self, mark: int) -> None:
        """MLflow has everything up to `mark`."""
        with self._guard:
            self._sent = mark
            _write_whole(self.folder / SENT, str(mark))

    def set_run_id(self, run_id: str) -> None:
        with self._guard:
            handle = self.handle
            self.handle = RunHandle(handle.uri, handle.experiment, handle.key, run_id)
            self._write_header()

    def reject(self, record: Mapping[str, Any], reason: str) -> None:
        """Put a record aside that MLflow will never take."""
        line = json.dumps({"reason": reason, "record": dict(record)})
        with self._guard, (self.folder / REJECTED).open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def path_of(self, name: str) -> Path:
        """Where a kept file lies."""
        return Path(name) if os.path.isabs(name) else self.folder / FILES / name

    def release(self) -> None:
        """Let others send the rest; a journal that is sent is deleted, unless records of it were
        rejected.
        """
        with self._guard:
            done = self.is_sent and not (self.folder / REJECTED).exists()
            if done:
                shutil.rmtree(self.folder, ignore_errors=True)
            elif self.is_sent:
                shutil.rmtree(self.folder / FILES, ignore_errors=True)
            self._lock.release(force=True)

    # Inside

    def _write_rows(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            self._write({"op": "metrics", "rows": rows})

    def _write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(dict(record), default=str).encode() + b"\n"
        try:
            with (self.folder / RECORDS).open("r+b" if self._size else "wb") as file:
                file.seek(self._size)  # over what an earlier, failed write may have left
                file.truncate()
                file.write(line)
        except OSError:
            self.lost += 1
        else:
            self._size += len(line)

    def _write_header(self) -> None:
        _write_whole(self.folder / HEADER, json.dumps({**vars(self.handle), "begun": self._begun}))

    def _new_place(self) -> Path:
        return self.folder / FILES / secrets.token_hex(6)

    def _kept(self, write: Callable[[], object], target: Path) -> str:
        try:
            target.parent.mkdir(parents=True)
            write()
        except OSError:
            self.lost += 1
            return ""
        return target.relative_to(self.folder / FILES).as_posix()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def left_behind(spool: Path) -> list[Path]:
    """Journals in the spool, the oldest first: a run's first process begins it."""
    if not spool.is_dir():
        return []
    found = []
    for entry in spool.iterdir():
        try:
            header = json.loads((entry / HEADER).read_text(encoding="utf-8"))
            found.append((int(header["begun"]), entry))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [entry for _, entry in sorted(found)]


def has_unsent(folder: Path) -> bool:
    """Whether a journal holds records that MLflow does not have."""
    return _whole_lines(folder / RECORDS) > _read_number(folder / SENT)


def _take_lock(folder: Path) -> FileLock:
    # Not thread-local: one thread begins a journal, another one releases it.
    lock = FileLock(folder / LOCK, timeout=0, thread_local=False)
    lock.acquire()
    return lock


def _parse(line: bytes) -> Record:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {"op": "unreadable"}


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def _whole_lines(path: Path) -> int:
    """Bytes up to the last line end: a killed writer may have left half a line."""
    try:
        return path.read_bytes().rfind(b"\n") + 1
    except OSError:
        return 0


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _keep_tree(source: Path, target: Path, entries: list[str] | None) -> None:
    if source.is_dir():
        target.mkdir()
        for name in sorted(entries if entries is not None else os.listdir(source)):
            if (source / name).exists():
                _keep_tree(source / name, target / name, None)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _bytes_of(source: Path, entries: list[str] | None) -> int:
    if source.is_file():
        return source.stat().st_size
    names = entries if entries is not None else os.listdir(source)
    return sum(_bytes_of(source / name, None) for name in names if (source / name).exists())


def _linkable(source: Path, folder: Path) -> bool:
    return source.stat().st_dev == folder.stat().st_dev
