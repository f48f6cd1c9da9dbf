"""Files behind a path or any `pyarrow.fs` URI, with writes that are whole or not there."""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from dreamfleet.errors import BadInputError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


Result = TypeVar("Result")
# What pyarrow says of requests that may well succeed a moment later.
TRANSIENT = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|THROTTLING|REQUEST_TIMEOUT"
    r"|curlCode|[Tt]imed? ?out|reset by peer|HTTP status 5\d\d"
)
RETRY_AFTER_S = (0.5, 2.0, 8.0)
OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})  # folders there are but parts of names


def is_uri(location: str) -> bool:
    """True for `scheme://…`; a plain path (also a Windows one) is none."""
    return "://" in location


def suffix_of(location: str) -> str:
    """The lower-case suffix of a path or URI, `.csv`."""
    path = location.partition("?")[0] if is_uri(location) else location.replace("\\", "/")
    return PurePosixPath(path).suffix.lower()


@dataclass(frozen=True)
class Entry:
    """One file or folder directly inside a folder."""

    name: str
    bytes: int
    modified: float  # seconds since 1970


@dataclass(frozen=True)
class Folder:
    """A folder in some storage. Names inside it are relative, with forward slashes.

    A URI may end in `?endpoint_override=…&scheme=http`, as `pyarrow.fs` takes it. Secrets in it are
    refused: it is written into settings, reports and records.
    """

    location: str
    # A child shares its top's connection: to open one takes several requests.
    _top: Folder | None = field(default=None, repr=False, compare=False)
    _inside: str = field(default="", repr=False, compare=False)

    def __post_init__(self) -> None:
        if not is_uri(self.location):
            object.__setattr__(self, "location", os.path.abspath(os.path.expanduser(self.location)))
        elif "@" in urlsplit(self.location).netloc:
            shown = self.location.partition("@")[2]
            raise BadInputError(
                f"storage …@{shown}: credentials in a URI would be written into settings and "
                "records; give them by the environment, e.g. AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )

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

    @property
    def name(self) -> str:
        """The last part of the location."""
        return posixpath.basename(self.location.partition("?")[0].rstrip("/"))

    @property
    def parent(self) -> Folder:
        place, mark, options = self.location.partition("?")
        return Folder(posixpath.dirname(place.rstrip("/")) + mark + options)

    def child(self, name: str) -> Folder:
        if not is_uri(self.location):
            return Folder(os.path.join(self.location, name))
        place, mark, options = self.location.partition("?")
        location = posixpath.join(place, name) + mark + options
        return Folder(location, self._top or self, posixpath.join(self._inside, name))

    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError when there is none."""
        if self.local is not None:
            return (self.local / name).read_bytes()
        filesystem, root = self._remote

        def read() -> bytes:
            with filesystem.open_input_stream(posixpath.join(root, name)) as stream:
                return bytes(stream.read())

        return _patiently(read)

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole: on local disks through a synced temporary file and a rename, in
        object stores by one put.
        """
        if self.local is not None:
            write_whole(self.local / name, data)
            return
        filesystem, root = self._remote
        target = posixpath.join(root, name)
        if filesystem.type_name not in OBJECT_STORES:
            filesystem.create_dir(posixpath.dirname(target), recursive=True)

        def write() -> None:
            with filesystem.open_output_stream(target) as stream:
                stream.write(data)

        _patiently(write)

    def names(self) -> list[str]:
        """Names of files and folders directly inside, sorted; empty when the folder does not
        exist.
        """
        return [entry.name for entry in self.entries()]

    def entries(self) -> list[Entry]:
        """Files and folders directly inside, sorted by name; empty when the folder does not
        exist.
        """
        if self.local is not None:
            return _local_entries(self.local)
        from pyarrow.fs import FileSelector

        filesystem, root = self._remote
        selector = FileSelector(root, allow_not_found=True)
        infos = _patiently(lambda: filesystem.get_file_info(selector))
        found = [
            Entry(info.base_name, info.size or 0, info.mtime.timestamp() if info.mtime else 0.0)
            for info in infos
        ]
        return sorted(found, key=lambda entry: entry.name)

    def files(self) -> list[str]:
        """Names of all files at any depth, sorted."""
        if self.local is not None:
            paths = [path for path in self.local.rglob("*") if path.is_file()]
            return sorted(path.relative_to(self.local).as_posix() for path in paths)
        from pyarrow.fs import FileSelector, FileType

        filesystem, root = self._remote
        selector = FileSelector(root, allow_not_found=True, recursive=True)
        infos = _patiently(lambda: filesystem.get_file_info(selector))
        return sorted(
            posixpath.relpath(info.path, root) for info in infos if info.type == FileType.File
        )

    def exists(self, name: str) -> bool:
        if self.local is not None:
            return (self.local / name).exists()
        from pyarrow.fs import FileType

        filesystem, root = self._remote
        info = _patiently(lambda: filesystem.get_file_info(posixpath.join(root, name)))
        return bool(info.type != FileType.NotFound)

    def delete(self, name: str) -> None:
        """Delete a file if it is there."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
            return
        filesystem, root = self._remote
        if self.exists(name):
            with contextlib.suppress(FileNotFoundError):  # a lost answer may have been a yes
                _patiently(lambda: filesystem.delete_file(posixpath.join(root, name)))

    def delete_folder(self, name: str) -> None:
        """Delete a folder below this one with all it holds, if it is there."""
        if self.local is not None:
            import shutil

            shutil.rmtree(self.local / name, ignore_errors=True)
            return
        filesystem, root = self._remote
        if self.exists(name):
            with contextlib.suppress(FileNotFoundError):
                _patiently(lambda: filesystem.delete_dir(posixpath.join(root, name)))

    def touch(self, name: str) -> None:
        """Make a file the most recently used one, where the storage can tell."""
        if self.local is not None:
            with contextlib.suppress(OSError):
                os.utime(self.local / name)

    @functools.cached_property
    def _remote(self) -> tuple[FileSystem, str]:
        if self._top is not None:
            filesystem, root = self._top._remote
            return filesystem, posixpath.join(root, self._inside)
        from pyarrow.fs import FileSystem

        try:
            filesystem, root = FileSystem.from_uri(self.location)
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"storage {self.location}: not a usable URI ({error}); "
                "expected a path or e.g. s3://bucket/folder, gs://…, hdfs://…"
            ) from error
        return filesystem, root


def _patiently(action: Callable[[], Result]) -> Result:
    """`action`, again after a while when the network or the store had no time for it: hours of
    training must not end by one lost request.
    """
    for wait_s in RETRY_AFTER_S:
        try:
            return action()
        except OSError as error:
            if isinstance(error, FileNotFoundError) or not TRANSIENT.search(str(error)):
                raise
            time.sleep(wait_s)
    return action()


def file_at(location: str) -> tuple[Folder, str]:
    """The folder and the name of the file at a path or URI."""
    whole = Folder(location)
    return whole.parent, whole.name


@contextlib.contextmanager
def local_copy(location: str | Path) -> Iterator[Path]:
    """A path itself, or what lies at a URI (a file, or a run's results without its checkpoints)
    as a local copy for the time of the block.
    """
    if not is_uri(str(location)):
        yield Path(location).expanduser()
        return
    place = Folder(str(location))
    names = [name for name in place.files() if not name.startswith("checkpoints/")]
    for name in names:  # in a bucket any text is a name
        if posixpath.isabs(name) or ".." in name.split("/"):
            raise BadInputError(f"{location}: holds {name!r}, which leads out of its folder")
    with tempfile.TemporaryDirectory(prefix="dreamfleet-") as temporary:
        target = Path(temporary) / (place.name or "copy")
        for name in names:
            write_whole(target / name, place.read(name))
        if not names and place.parent.exists(place.name):
            write_whole(target, place.parent.read(place.name))
        yield target


def _local_entries(path: Path) -> list[Entry]:
    found = []
    for name in sorted(os.listdir(path)) if path.is_dir() else []:
        with contextlib.suppress(OSError):  # another process deleted it
            status = (path / name).lstat()
            found.append(Entry(name, status.st_size, status.st_mtime))
    return found


def write_whole(path: Path, data: bytes) -> Path:
    """Write a local file whole, its folder too: a kill leaves the former one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
