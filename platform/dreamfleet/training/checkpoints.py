"""Checkpoints that are whole or do not count.

A checkpoint is a folder `step-00000100/` of files and a `manifest.json` with their SHA-256s,
written last: object stores have no rename, so the manifest is what makes a checkpoint exist. One
without a manifest, or whose files do not match it, is ignored, and the one before it is used. Older
ones are deleted manifest first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dreamfleet.errors import DreamfleetError
from dreamfleet.runtime.storage import Folder

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
NOT_THERE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_STEP = re.compile(r"^step-(\d{8})$")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its files are in memory and match their hashes."""

    name: str
    step: int
    files: dict[str, bytes]
    info: dict[str, Any]  # what the writer wanted to know again, e.g. the run's fingerprint


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one run."""

    folder: Folder

    def save(
        self, step: int, files: Mapping[str, bytes], info: Mapping[str, Any], keep: int
    ) -> str:
        """Write a checkpoint and delete all but the `keep` newest; returns its name.

        Raises:
            DreamfleetError: the storage cannot be written; earlier checkpoints are untouched.
        """
        name = step_name(step)
        self.write(name, files, {**info, "step": step})
        with contextlib.suppress(OSError):  # what cannot be deleted now is tried next time
            self._prune(max(keep, 2))
        return name

    def write(self, name: str, files: Mapping[str, bytes], info: Mapping[str, Any]) -> None:
        """Write `files` as the checked folder `name`."""
        target = self.folder.child(name)
        try:
            target.delete(MANIFEST)  # while its files change, the folder does not count
            for file, content in files.items():
                target.write(file, content)
            target.write(MANIFEST, _manifest(files, info))
        except OSError as error:
            raise DreamfleetError(
                f"checkpoint {target.location}: cannot be written ({error}); "
                "free space or mend the storage, then go on with --resume"
            ) from error

    def read(self, name: str) -> Checkpoint | None:
        """The checked folder `name`, or None when it is missing or not whole.

        Raises:
            DreamfleetError: the storage cannot be read now; to begin anew would write over it.
        """
        source = self.folder.child(name)
        try:
            manifest = json.loads(source.read(MANIFEST))
            files = {file: source.read(file) for file in manifest["files"]}
            if any(
                _sha256(files[file]) != entry["sha256"] for file, entry in manifest["files"].items()
            ):
                return None
            info = dict(manifest["info"])
            return Checkpoint(name, int(info.get("step", -1)), files, info)
        except (*NOT_THERE, ValueError, KeyError, TypeError, AttributeError):
            return None
        except OSError as error:
            raise DreamfleetError(
                f"checkpoint {source.location}: cannot be read ({error}); mend the storage, then "
                "go on with --resume"
            ) from error

    def newest(self) -> Checkpoint | None:
        """The newest whole checkpoint."""
        for name in reversed(self._names()):
            checkpoint = self.read(name)
            if checkpoint is not None:
                return checkpoint
        return None

    def newest_step(self) -> int | None:
        """Step of the newest checkpoint that has a manifest (its files are not checked)."""
        names = [name for name in self._names() if self.folder.child(name).exists(MANIFEST)]
        return int(names[-1].removeprefix("step-")) if names else None

    def _names(self) -> list[str]:
        return sorted(name for name in self.folder.names() if _STEP.match(name))

    def _prune(self, keep: int) -> None:
        """Keep the `keep` newest with a manifest; what lacks one and is older than them was cut
        short: away with it.
        """
        names = self._names()
        whole = [name for name in names if self.folder.child(name).exists(MANIFEST)]
        kept = set(whole[-keep:])
        for name in names:
            if name not in kept and whole and name < whole[-1]:
                self.folder.child(name).delete(MANIFEST)
                self.folder.delete_folder(name)


def step_name(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def _manifest(files: Mapping[str, bytes], info: Mapping[str, Any]) -> bytes:
    entries = {
        name: {"sha256": _sha256(content), "bytes": len(content)} for name, content in files.items()
    }
    document = {"schema_version": SCHEMA_VERSION, "info": dict(info), "files": entries}
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def json_lines(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Records as JSON lines (numbers keep all their digits)."""
    return "".join(json.dumps(dict(record)) + "\n" for record in records).encode()


def read_json_lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.decode().splitlines() if line]
