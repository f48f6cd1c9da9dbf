"""The frozen pretrained teacher of all jobs: one batch without gradient, equal questions once.

A prediction depends on nothing that training changes, so it is kept: trials of one subject see the
same samples, and noise is counter-based, so those of future steps are known and can be asked in
larger, cheaper batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dreamfleet.bases import Base
from dreamfleet.methods import Query
from dreamfleet.methods.dreambooth.text import TextCache

MIB = 2**20
BLOCK_ROWS = 16  # rows from which on a larger batch is hardly cheaper a row


class TeacherCache:
    """Predictions by key, least recently used out first.

    Args:
        max_bytes: bound of what is held in memory.
        folder: kept there too, for other processes and later runs; None: in memory only.
        max_disk_bytes: bound of the folder; the files that were used least recently go first. Of
            several processes each may go beyond it by a twentieth before it notices.
    """

    def __init__(
        self,
        max_bytes: int = 256 * MIB,
        folder: str | Path | None = None,
        max_disk_bytes: int = 4096 * MIB,
    ) -> None:
        self.max_bytes, self.max_disk_bytes = max_bytes, max_disk_bytes
        self.folder = None if folder is None else Path(folder)
        self.bytes, self.hits, self.misses = 0, 0, 0
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._disk_bytes: int | None = None  # of the folder, when last looked at, and own since
        self._written = 0  # bytes since then

    def get(self, key: str) -> Tensor | None:
        """[C, h, w], or None."""
        value = self._held.get(key)
        if value is None:
            value = self._read(key)
            if value is not None:
                self._hold(key, value)
        else:
            self._held.move_to_end(key)
        self.hits, self.misses = self.hits + (value is not None), self.misses + (value is None)
        return value

    def put(self, key: str, value: Tensor) -> None:
        """Keep [C, h, w]."""
        self._hold(key, value.detach().clone())
        if self.folder is not None:
            try:
                self._write(self.folder, key, value)
            except OSError:  # a full or read-only disk costs the cache, not the run
                self.folder = None

    def _hold(self, key: str, value: Tensor) -> None:
        if key in self._held:
            self.bytes -= _bytes(self._held.pop(key))
        self._held[key] = value
        self.bytes += _bytes(value)
        while self.bytes > self.max_bytes and len(self._held) > 1:
            self.bytes -= _bytes(self._held.popitem(last=False)[1])

    def _path(self, folder: Path, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return folder / name[:2] / f"{name[2:]}.safetensors"

    def _read(self, key: str) -> Tensor | None:
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            value = load_file(path)["prediction"]
        except (OSError, SafetensorError, KeyError):
            return None  # not there, or not whole: computed again
        with contextlib.suppress(OSError):  # somebody else's folder may be read only
            os.utime(path)  # used now
        return value

    def _write(self, folder: Path, key: str, value: Tensor) -> None:
        path = self._path(folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        # Not `save_file`, whose errors are no OSErrors, and which leaves files of its own behind.
        part.write_bytes(save({"prediction": value.detach().cpu().contiguous()}))
        part.replace(path)
        size = path.stat().st_size
        self._written += size
        if self._disk_bytes is None or self._written > self.max_disk_bytes / 20:
            self._disk_bytes, self._written = sum(size for _, size, _ in _files(folder)), 0
        else:
            self._disk_bytes += size
        if self._disk_bytes > self.max_disk_bytes:
            self._prune(folder)

    def _prune(self, folder: Path) -> None:
        """Down to nine tenths of the bound, so that it is seldom needed."""
        files = sorted(_files(folder))
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= 0.9 * self.max_disk_bytes:
                break
            with contextlib.suppress(OSError):  # another process was quicker
                path.unlink()
            total -= size
        self._disk_bytes, self._written = total, 0


class FrozenTeacher:
    """Answers the questions of all jobs of an engine.

    Args:
        base: the engine's; bare while it is asked.
        texts: embeddings of the frozen text encoder.
        cache: where answers are kept.
        max_rows: rows of one forward.
    """

    def __init__(self, base: Base, texts: TextCache, cache: TeacherCache, max_rows: int) -> None:
        self.base, self.texts, self.cache, self.max_rows = base, texts, cache, max_rows
        schedule = base.schedule
        digest = hashlib.sha256(schedule.alphas_cumprod.numpy().tobytes())
        digest.update(schedule.prediction_type.encode())
        device = base.device.type + (" tf32" if torch.backends.cuda.matmul.allow_tf32 else "")
        parts = (base.unet_hash, base.text_encoder_hash, str(base.dtype), device)
        self._model = "|".join((*parts, digest.hexdigest()))
        self._token_ids: dict[str, str] = {}
        self.forwards = 0

    def answers(
        self, queries: Sequence[Query], ahead: Callable[[int], Sequence[Query]] | None = None
    ) -> list[Tensor]:
        """One output [B, C, h, w] per query.

        Args:
            ahead: given the number of rows that must be computed now, queries of future steps to
                compute along; their answers are kept for then.
        """
        found: dict[str, Tensor] = {}
        wanted = [self._keys(query) for query in queries]
        missing = self._missing(queries, wanted, found)
        if missing and ahead is not None and len(missing) < BLOCK_ROWS:
            future = [query for query in ahead(len(missing)) if query.keys]
            keys = [self._keys(query) for query in future]
            missing |= self._missing(future, keys, found)
        rows = list(missing.items())
        for start in range(0, len(rows), self.max_rows):
            self._compute(rows[start : start + self.max_rows], found)
        return [torch.stack([found[key] for key in keys]) for keys in wanted]

    def _missing(
        self, queries: Sequence[Query], keys: Sequence[Sequence[str]], found: dict[str, Tensor]
    ) -> dict[str, tuple[Query, int]]:
        """Rows that nobody has answered, by key; answers that are there go to `found`."""
        missing: dict[str, tuple[Query, int]] = {}
        for query, names in zip(queries, keys, strict=True):
            for row, name in enumerate(names):
                if name in found or name in missing:
                    continue
                answer = self.cache.get(name) if query.keys else None
                if answer is None:
                    missing[name] = (query, row)
                else:
                    found[name] = answer.to(self.base.device)
        return missing

    def _compute(
        self, rows: Sequence[tuple[str, tuple[Query, int]]], found: dict[str, Tensor]
    ) -> None:
        by_shape: dict[torch.Size, list[tuple[str, tuple[Query, int]]]] = {}
        for row in rows:
            by_shape.setdefault(row[1][0].x_t.shape[1:], []).append(row)
        for part in by_shape.values():
            x_t = torch.stack([query.x_t[row] for _, (query, row) in part])  # [R, C, h, w]
            t = torch.stack([query.t[row] for _, (query, row) in part])  # [R]
            texts = self.texts.encode([query.prompts[row] for _, (query, row) in part])
            with torch.no_grad():
                outputs = self.base.predict(x_t, t, texts)
            self.forwards += 1
            for (name, (query, _)), output in zip(part, outputs, strict=True):
                found[name] = output
                if query.keys:
                    self.cache.put(name, output)

    def _keys(self, query: Query) -> list[str]:
        if not query.keys:  # nothing is known of them: each is its own
            return [f"{id(query)}:{row}" for row in range(len(query))]
        pairs = zip(query.keys, query.prompts, strict=True)
        return [f"{self._model}|{key}|{self._tokens(prompt)}" for key, prompt in pairs]

    def _tokens(self, prompt: str) -> str:
        if prompt not in self._token_ids:
            ids = self.base.tokenizer(prompt).input_ids
            self._token_ids[prompt] = ",".join(map(str, ids))
        return self._token_ids[prompt]


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(time, size, path) of all kept predictions, and of what a kill left half written."""
    found = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return found
