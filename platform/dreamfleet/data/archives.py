"""Zips from strangers: what is inside is listed and read in place, never unpacked to disk."""

from __future__ import annotations

import lzma
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from dreamfleet.errors import SubjectSetError

MAX_ENTRIES = 10_000
MAX_TOTAL_BYTES = 4 * 2**30
MAX_RATIO = 200  # photos hardly compress; only a bomb does, or an empty canvas
RATIO_FROM_BYTES = 4 * 2**20
ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"})


def zip_names(path: Path) -> list[str]:
    """The names of the files in a zip, sorted.

    Raises:
        SubjectSetError: not a zip, or one with unsafe names, links, encryption, archives inside, or
            a bomb's ratio.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
        raise SubjectSetError(f"zip {path}: cannot be read ({error})") from error
    if len(entries) > MAX_ENTRIES:
        raise SubjectSetError(f"zip {path}: {len(entries)} entries; at most {MAX_ENTRIES} are read")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise SubjectSetError(
            f"zip {path}: {total / 2**30:.1f} GiB unpacked; at most {MAX_TOTAL_BYTES // 2**30} GiB"
        )
    for entry in entries:
        reason = _refusal(entry)
        if reason is not None:
            raise SubjectSetError(
                f"zip {path}: entry {entry.filename!r} {reason}; nothing of it was read"
            )
    names = sorted(entry.filename for entry in entries if not entry.is_dir())
    if len(set(names)) < len(names):
        raise SubjectSetError(f"zip {path}: the same name twice; make the zip again")
    return names


def _refusal(entry: zipfile.ZipInfo) -> str | None:
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or "\\" in entry.orig_filename or entry.filename[1:2] == ":":
        return "has an absolute name"
    if ".." in name.parts:
        return "points out of the zip"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if name.suffix.lower() in ARCHIVES:
        return "is an archive inside the archive"
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > MAX_RATIO * max(
        entry.compress_size, 1
    ):
        ratio = entry.file_size // max(entry.compress_size, 1)
        return f"unpacks to {ratio} times its size, as a zip bomb does"
    return None


def read_member(path: str, name: str, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a file in a zip, whatever its header claims; SubjectSetError
    when it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return file.read(limit + 1)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        KeyError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise SubjectSetError(f"damaged in its zip ({error})") from error
