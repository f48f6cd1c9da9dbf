"""The output folder of a run: refused when it holds something, unless asked to go on or to begin
again. It may lie at a URI: then files are put together in a working folder on this host and
delivered when the subject is done, while checkpoints and the marker are written there at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamfleet.config import RunConfig, dreamfleet_home
from dreamfleet.errors import BadInputError, ResumeError
from dreamfleet.runtime.storage import Folder

MARKER = "checkpoints/run.json"
CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
LOCK = ".lock"
# All that a run writes; --overwrite deletes these and nothing else.
WRITTEN = (
    "pytorch_lora_weights.safetensors",
    "model_index.json",
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
    "safety_checker",
    "feature_extractor",
    CONFIG,
    "adapter.json",
    "README.md",
    "report.html",
    "samples",
    CHECKPOINTS,
    ".retired",  # serving.catalogue.RETIRED: what is trained anew is offered again
)
# The same in shared storage: checkpoints, the finished adapter's copy, Ray Train's own folder.
OF_A_RUN = re.compile(r"step-\d{8}|adapter|ray")


def working_path(place: Folder) -> Path:
    """Where the files of results that belong to `place` are put together on this host: the folder
    itself, or one below DREAMFLEET_HOME for a URI.
    """
    if place.local is not None:
        return place.local
    return dreamfleet_home() / "outbox" / hashlib.sha256(place.location.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class OutputFolder:
    """Where one subject's results go."""

    place: Folder
    path: Path  # on this host; `place` itself, unless that is a URI
    checkpoints: Folder

    @classmethod
    def of(cls, place: Folder, storage_path: str | None, subject_id: str) -> OutputFolder:
        """Checkpoints lie in the folder itself, or below the shared storage where one is named."""
        inside = place.child(CHECKPOINTS)
        return cls(
            place,
            working_path(place),
            Folder(storage_path).child(subject_id) if storage_path else inside,
        )

    @property
    def remote(self) -> bool:
        return self.place.local is None

    @property
    def _shared(self) -> Folder | None:
        """The checkpoints, where they lie outside the folder."""
        inside = self.place.child(CHECKPOINTS).location
        return None if self.checkpoints.location == inside else self.checkpoints

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that must not be written; changes nothing.

        Raises:
            BadInputError: it holds files, and neither `resume` nor `overwrite` was asked for; it is
                no folder; or the storage cannot be reached.
            ResumeError: `resume` on a folder that no run of ours has written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise BadInputError(
                f"output folder {self.path}: a file of that name is in the way; give "
                "another --output-dir"
            )
        _check_writable(self.path)
        if not self._used():
            return
        where, flag = f"output folder {self.place.location}", "--output-dir"
        if self._shared and not self._names():
            where, flag = f"checkpoints at {self._shared.location}", "--storage-path"
        if not resume and not overwrite:
            raise BadInputError(
                f"{where}: not empty; add --resume to go on, --overwrite to begin again, or give "
                f"another {flag}"
            )
        if not self.is_ours():
            action = "--resume" if resume else "--overwrite"
            error = ResumeError if resume else BadInputError
            raise error(
                f"{where}: {action} works on the folder of an earlier run, but this one holds "
                f"other files; give another {flag}"
            )

    def _used(self) -> bool:
        with _named_failure(self.place):
            return self.is_used()

    def is_used(self) -> bool:
        return bool(self._names()) or bool(self._shared and self._shared.names())

    def is_ours(self) -> bool:
        if self.place.exists(MARKER):
            return True
        try:
            return b"dreamfleet" in self.place.read("adapter.json")
        except OSError:
            return not self._names() and self._shared is not None

    def begin(self, *, overwrite: bool, info: dict[str, Any]) -> None:
        """Clear what an earlier run wrote (with `overwrite`) and mark the folder as ours.

        Raises:
            BadInputError: the storage cannot be written.
        """
        with _named_failure(self.place):
            if overwrite:
                self.clear()
            self._write_info(info)

    def update_info(self, values: Mapping[str, Any]) -> None:
        """Lay `values` over what `info` gives."""
        self._write_info({**self.info(), **values})

    def _write_info(self, info: Mapping[str, Any]) -> None:
        self.place.write(MARKER, json.dumps(dict(info), indent=1).encode())

    def complete(self, config: RunConfig) -> RunConfig:
        """`config` as it is written into the folder."""
        return config.model_copy(update={"output_dir": self.place.location})

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder, whole, at once."""
        self.place.write(name, text.encode("utf-8"))
        if self.remote:
            Folder(str(self.path)).write(name, text.encode("utf-8"))

    def deliver(self) -> None:
        """Bring what was put together to where it belongs; nothing to do for a folder."""
        if not self.remote:
            return
        here = Folder(str(self.path))
        for name in here.files():
            if name != LOCK:
                self.place.write(name, here.read(name))
        self._clear_working_path()

    def clear(self) -> None:
        """Delete what a run writes, and nothing else."""
        for name in WRITTEN:
            _remove(self.place, name)
        if self.remote:
            self._clear_working_path()
        if (shared := self._shared) is not None:
            for name in filter(OF_A_RUN.fullmatch, shared.names()):
                shared.delete_folder(name)

    def withdraw(self) -> None:
        """Take back `begin` in a folder that was not used before: nothing came of the run."""
        with contextlib.suppress(OSError):  # storage that failed, or something of the user's
            self.clear()
            (self.path / LOCK).unlink(missing_ok=True)
            self.path.rmdir()

    def info(self) -> dict[str, Any]:
        """What `begin` was told, or nothing."""
        try:
            return dict(json.loads(self.place.read(MARKER)))
        except (OSError, ValueError):
            return {}

    def _names(self) -> list[str]:
        return [name for name in self.place.names() if name != LOCK]

    def _clear_working_path(self) -> None:
        """The lock stays: the run that holds it is still at work."""
        for name in Folder(str(self.path)).names():
            if name != LOCK:
                _remove(Folder(str(self.path)), name)


@contextlib.contextmanager
def _named_failure(place: Folder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInputError(
            f"storage {place.location}: cannot be used ({error}); check the place, and for a URI "
            "its bucket and the credentials in the environment"
        ) from error


def _remove(folder: Folder, name: str) -> None:
    """A file, or a folder with all it holds."""
    if folder.local is None:
        if folder.child(name).names():
            folder.delete_folder(name)
        else:
            folder.delete(name)
        return
    target = folder.local / name
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _check_writable(path: Path) -> None:
    """The nearest folder that exists must take new files."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BadInputError(
            f"output folder {path}: {existing} cannot be written; give another --output-dir"
        )
