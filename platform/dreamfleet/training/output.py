"""The output folder of a run: refused when it holds something, unless asked to go on or to begin
again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError, ResumeError
from dreamfleet.runtime.storage import Folder

MARKER = "checkpoints/run.json"
CHECKPOINTS = "checkpoints"
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
    "config.yaml",
    "adapter.json",
    "README.md",
    "report.html",
    "samples",
    CHECKPOINTS,
)


@dataclass(frozen=True)
class OutputFolder:
    """Where one subject's results go."""

    path: Path
    checkpoints: Folder

    @classmethod
    def of(cls, path: Path, storage_path: str | None, subject_id: str) -> OutputFolder:
        """Checkpoints lie in the folder itself, or below the shared storage where one is named."""
        inside = Folder(str(path / CHECKPOINTS))
        return cls(
            path, Folder(storage_path.rstrip("/")).child(subject_id) if storage_path else inside
        )

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a folder that must not be written; changes nothing.

        Raises:
            BadInputError: it holds files, and neither `resume` nor `overwrite` was asked for; or is
                no folder.
            ResumeError: `resume` on a folder that no run of ours has written.
        """
        if self.path.exists() and not self.path.is_dir():
            raise BadInputError(
                f"output folder {self.path}: a file of that name is in the way; give "
                "another --output-dir"
            )
        _check_writable(self.path)
        used = self.is_used()
        if not used:
            return
        if not resume and not overwrite:
            raise BadInputError(
                f"output folder {self.path}: not empty; add --resume to go on, --overwrite "
                "to begin again, "
                "or give another --output-dir"
            )
        if not self.is_ours():
            action = "--resume" if resume else "--overwrite"
            error = ResumeError if resume else BadInputError
            raise error(
                f"output folder {self.path}: {action} works on the folder of an earlier "
                "run, but this one holds "
                "other files; give another --output-dir"
            )

    def is_used(self) -> bool:
        names = (
            []
            if not self.path.is_dir()
            else [name for name in os.listdir(self.path) if name != ".lock"]
        )
        return bool(names) or bool(self.checkpoints.local is None and self.checkpoints.names())

    def is_ours(self) -> bool:
        if (self.path / MARKER).is_file():
            return True
        try:
            return "dreamfleet" in (self.path / "adapter.json").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return not self._local_names() and self.checkpoints.local is None

    def begin(self, *, overwrite: bool, info: dict[str, Any]) -> None:
        """Clear what an earlier run wrote (with `overwrite`) and mark the folder as ours."""
        if overwrite:
            self.clear()
        Folder(str(self.path)).write(MARKER, json.dumps(info, indent=1).encode())

    def update_info(self, values: Mapping[str, Any]) -> None:
        """Lay `values` over what `info` gives."""
        self.write_text(MARKER, json.dumps({**self.info(), **values}, indent=1))

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder, whole."""
        Folder(str(self.path)).write(name, text.encode("utf-8"))

    def clear(self) -> None:
        """Delete what a run writes, and nothing else."""
        for name in WRITTEN:
            target = self.path / name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        if self.checkpoints.local is None:
            for name in self.checkpoints.names():
                self.checkpoints.delete_folder(name)

    def withdraw(self) -> None:
        """Take back `begin` in a folder that was not used before: nothing came of the run."""
        self.clear()
        with contextlib.suppress(OSError):  # not empty: there was something of the user's
            (self.path / ".lock").unlink(missing_ok=True)
            self.path.rmdir()

    def info(self) -> dict[str, Any]:
        """What `begin` was told, or nothing."""
        try:
            return dict(json.loads((self.path / MARKER).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return {}

    def _local_names(self) -> list[str]:
        return (
            [name for name in os.listdir(self.path) if name != ".lock"]
            if self.path.is_dir()
            else []
        )


def _check_writable(path: Path) -> None:
    """The nearest folder that exists must take new files."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise BadInputError(
            f"output folder {path}: {existing} cannot be written; give another --output-dir"
        )
