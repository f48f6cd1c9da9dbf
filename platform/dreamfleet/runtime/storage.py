"""Files behind a path or any `pyarrow.fs` URI, with writes that are whole or not there."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreamfleet.errors import BadInputError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def is_uri(location: str) -> bool:
    """True for `scheme://…`; a plain path (also a Windows one) is none."""
    return "://" in location


@dataclass(frozen=True)
class Folder:
    """A folder in some storage. Names inside it are relative, with forward slashes."""

    location: str

    def __post_init__(self) -> None:
        if not is_uri(self.location):
            object.__setattr__(self, "location", os.path.abspath(os.path.expanduser(self.location)))

    @property
    def local(self) -> Path | None:
        """The folder as a path, where it is one."""
        if not is_uri(self.location):
            return Path(self.location)
        return (
            Path(self.location.removeprefix("file://"))
            if self.location.startswith("file://")
            else None
        )

    def child(self, name: str) -> Folder:
        return Folder(posixpath.join(self.location, name))

    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError when there is none."""
        if self.local is not None:
            return (self.local / name).read_bytes()
        filesystem, root = self._remote()
        with filesystem.open_input_stream(posixpath.join(root, name)) as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole: on local disks through a synced temporary file and a rename, in
        object stores by one put.
        """
        if self.local is not None:
            _write_local(self.local / name, data)
            return
        filesystem, root = self._remote()
        target = posixpath.join(root, name)
        filesystem.create_dir(posixpath.dirname(target), recursive=True)
        with filesystem.open_output_stream(target) as stream:
            stream.write(data)

    def names(self) -> list[str]:
        """Names of files and folders directly inside, sorted; empty when the folder does not
        exist.
        """
        if self.local is not None:
            return sorted(os.listdir(self.local)) if self.local.is_dir() else []
        from pyarrow.fs import FileSelector

        filesystem, root = self._remote()
        infos = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def exists(self, name: str) -> bool:
        if self.local is not None:
            return (self.local / name).exists()
        from pyarrow.fs import FileType

        filesystem, root = self._remote()
        return bool(filesystem.get_file_info(posixpath.join(root, name)).type != FileType.NotFound)

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
            return
        filesystem, root = self._remote()
        if self.exists(name):
            filesystem.delete_file(posixpath.join(root, name))

    def delete_folder(self, name: str) -> None:
        """Delete a folder below this one with all it holds, if it is there."""
        if self.local is not None:
            import shutil

            shutil.rmtree(self.local / name, ignore_errors=True)
            return
        filesystem, root = self._remote()
        if self.exists(name):
            filesystem.delete_dir(posixpath.join(root, name))

    def upload(self, source: Path) -> list[str]:
        """Copy every file below the local folder `source` into this one; returns the names."""
        names = [
            path.relative_to(source).as_posix()
            for path in sorted(source.rglob("*"))
            if path.is_file()
        ]
        for name in names:
            self.write(name, (source / name).read_bytes())
        return names

    def download(self, names: list[str], target: Path) -> None:
        """Copy the files `names` of this folder below the local folder `target`."""
        for name in names:
            _write_local(target / name, self.read(name))

    def _remote(self) -> tuple[FileSystem, str]:
        from pyarrow.fs import FileSystem

        try:
            filesystem, root = FileSystem.from_uri(self.location)
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"storage {self.location}: not a usable URI ({error}); "
                "expected a path or e.g. s3://bucket/folder, gs://…, hdfs://…"
            ) from error
        return filesystem, root


def _write_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
