"""Where a subject's photos lie: folders, zips, lists of files, URIs. Nothing is decoded here.

Everything that can be refused without looking into a picture is refused here, on the driver, before
Ray starts.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dreamfleet.data.archives import read_member, zip_names
from dreamfleet.data.captions import captions_of
from dreamfleet.data.photos import IMAGE_SUFFIXES, MAX_FILE_BYTES, UNSUPPORTED_SUFFIXES
from dreamfleet.errors import SubjectSetError
from dreamfleet.runtime.storage import Folder, file_at, is_uri

MAX_TEXT_BYTES = 4 * 2**20
NOT_TEXT = "its name is not UTF-8; rename it"
JUNK = frozenset({"thumbs.db", "desktop.ini", ".ds_store", "__macosx", ".ipynb_checkpoints"})


@dataclass(frozen=True)
class PhotoSource:
    """One file that should be a photo."""

    name: str  # for people: relative to what the user gave
    location: str  # path, URI or zip
    member: str | None = None  # the file inside the zip
    caption: str | None = None

    def read(self) -> bytes:
        """The file's bytes, at most one more than `MAX_FILE_BYTES`; SubjectSetError with the reason
        when unreadable.
        """
        try:
            if self.member is not None:
                return read_member(self.location, self.member, MAX_FILE_BYTES)
            if is_uri(self.location):
                folder, name = file_at(self.location)
                return folder.read(name)
            with open(self.location, "rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise SubjectSetError(f"cannot be read ({error.strerror or error})") from error


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    name: str
    reason: str


@dataclass
class FoundPhotos:
    """What lies in one place."""

    location: str
    display_name: str
    photos: list[PhotoSource] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def find_photos(
    entries: Sequence[str], *, max_photos: int, limited_by: str = "data.max_photos"
) -> FoundPhotos:
    """The photos of one subject.

    Args:
        entries: one folder, one zip or one URI of a folder; or picture files.
        max_photos: further photos (in order of their names) are skipped.
        limited_by: the key that says so.

    Raises:
        SubjectSetError: the place is missing, unreadable, unsafe or holds no picture file.
    """
    for entry in entries:
        if not _is_text(entry):
            raise SubjectSetError(f"photos {_readable(entry)}: {NOT_TEXT}")
    entries = [as_path(entry) for entry in entries]
    for entry in entries:
        if is_uri(entry) and (len(entries) > 1 or is_picture_name(entry) or _is_zip(entry)):
            raise SubjectSetError(
                f"photo {entry}: at a URI a folder of photos is read; give one, or files here"
            )
    if len(entries) == 1 and is_uri(entries[0]):
        found = _find_in_uri(entries[0])
    elif len(entries) == 1 and not is_picture_name(entries[0]):
        path = Path(entries[0])
        found = _find_in_zip(path) if _is_zip(entries[0]) else _find_in_folder(path)
    else:
        found = _find_files(entries)
    if len(found.photos) > max_photos:
        for extra in found.photos[max_photos:]:
            found.skipped.append(
                Skipped(extra.name, f"more than {max_photos} photos ({limited_by})")
            )
        del found.photos[max_photos:]
    if not found.photos:
        raise SubjectSetError(_nothing_found(found))
    return found


def as_path(entry: str) -> str:
    """A path with its home filled in, that of a `file://` URI too: what is refused of paths is
    refused of it. Other URIs stay.
    """
    if is_uri(entry) and (local := Folder(entry).local) is not None:
        return str(local)
    return entry if is_uri(entry) else os.path.expanduser(entry)


def _is_zip(name: str) -> bool:
    return PurePosixPath(name.partition("?")[0]).suffix.lower() == ".zip"


def _is_text(name: str) -> bool:
    """Whether a name can be written into settings, reports and records."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _readable(name: str) -> str:
    return name.encode(errors="replace").decode()


def is_picture_name(name: str) -> bool:
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    return suffix in IMAGE_SUFFIXES or suffix in UNSUPPORTED_SUFFIXES


def _nothing_found(found: FoundPhotos) -> str:
    expected = f"expected pictures ({', '.join(sorted(IMAGE_SUFFIXES))}) directly inside"
    if found.skipped:
        listed = "; ".join(f"{item.name}: {item.reason}" for item in found.skipped[:5])
        more = f" and {len(found.skipped) - 5} more" if len(found.skipped) > 5 else ""
        return f"no photo in {found.location}: {expected}; skipped {listed}{more}"
    state = "it is missing or empty" if is_uri(found.location) else "it is empty"
    return f"no photo in {found.location}: {state}; {expected}"


# ---- folders and files


def _find_in_folder(path: Path) -> FoundPhotos:
    if not path.exists():
        raise SubjectSetError(
            f"photos {path}: no such folder or file; give a folder of photos, a zip or "
            "picture files"
        )
    if not path.is_dir():
        raise SubjectSetError(f"photos {path}: neither a folder, nor a zip, nor a picture file")
    found = FoundPhotos(str(path.absolute()), path.absolute().name)
    try:
        listing = sorted(os.listdir(path))
    except OSError as error:
        raise SubjectSetError(
            f"photos {path}: the folder cannot be read ({error.strerror}); check its permissions"
        ) from error
    names = [name for name in listing if _is_text(name)]
    found.skipped += [Skipped(_readable(name), NOT_TEXT) for name in listing if name not in names]
    captions = captions_of(names, lambda name: _read_text(path, name), found.warnings)
    listed = [name for name in captions.paths if _inside(path, name, found)]
    root = path.resolve()
    for name in [*names, *(name for name in listed if name not in names)]:
        reason = _why_not(name, captions.files) or _unsafe(path / name, root)
        if reason is None:
            found.photos.append(
                PhotoSource(name, str((path / name).absolute()), None, captions.texts.get(name))
            )
        else:
            found.skipped.append(Skipped(name, reason))
    if not found.photos:
        _suggest_subfolders(path, names)
    return found


def _inside(path: Path, name: str, found: FoundPhotos) -> bool:
    """A name in metadata.jsonl may point into the folder's subfolders, and nowhere else."""
    parts = PurePosixPath(name)
    unsafe = parts.is_absolute() or ".." in parts.parts or not _is_text(name)
    if unsafe or not (path / name).exists():
        found.warnings.append(f"metadata.jsonl names {name!r}, which is not a file in {path}")
        return False
    return True


def _suggest_subfolders(path: Path, names: Iterable[str]) -> None:
    subfolders = [name for name in names if (path / name).is_dir() and not _is_junk(name)]
    if any(is_picture_name(inner) for name in subfolders[:50] for inner in _names_in(path / name)):
        raise SubjectSetError(
            f"photos {path}: no photo directly inside, but its subfolders hold some; "
            f"one subject is one folder: give {path / subfolders[0]} (or several: {path}/*)"
        )


def _names_in(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _find_files(entries: Sequence[str]) -> FoundPhotos:
    first = Path(entries[0]).absolute()
    found = FoundPhotos(str(first.parent), first.parent.name if len(entries) > 1 else first.stem)
    for entry in entries:
        path = Path(entry)
        if not os.path.lexists(path):
            raise SubjectSetError(f"photo {entry}: no such file")
        if path.is_dir() or not is_picture_name(entry):
            raise SubjectSetError(
                f"photos: {entry} stands among picture files; give folders, or files, not both"
            )
        reason = _why_not(path.name, frozenset()) or _unsafe(path, None)
        sidecar = f"{path.stem}.txt"
        names = [path.name] + ([sidecar] if (path.parent / sidecar).is_file() else [])
        captions = captions_of(names, functools.partial(_read_text, path.parent), found.warnings)
        if reason is None:
            found.photos.append(
                PhotoSource(entry, str(path.absolute()), None, captions.texts.get(path.name))
            )
        else:
            found.skipped.append(Skipped(entry, reason))
    return found


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in JUNK


def _why_not(name: str, caption_files: frozenset[str]) -> str | None:
    """Why a file of this name is no photo, or None."""
    if name in caption_files:
        return "caption file"
    if any(_is_junk(part) for part in PurePosixPath(name).parts):
        return "system or hidden file"
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in UNSUPPORTED_SUFFIXES:
        return f"{suffix} is not supported; convert it to JPEG or PNG"
    return None if suffix in IMAGE_SUFFIXES else "not a picture"


def _unsafe(path: Path, root: Path | None) -> str | None:
    """Why a file must not be opened, or None. Links out of the folder, devices and pipes could read
    anything or hang.
    """
    try:
        if root is not None and not path.resolve().is_relative_to(root):  # by itself or its folder
            return "a link that leads out of the folder"
        status = path.stat()
    except RuntimeError:
        return "a link to itself"
    except OSError as error:
        return "a dangling link" if path.is_symlink() else f"cannot be read ({error.strerror})"
    if not stat.S_ISREG(status.st_mode):
        return "not an ordinary file (folder, device, pipe or socket)"
    if not os.access(path, os.R_OK):
        return "no permission to read it"
    return _wrong_size(status.st_size)


def _wrong_size(size: int) -> str | None:
    if size == 0:
        return "empty file (0 bytes)"
    if size > MAX_FILE_BYTES:
        return f"{size / 2**20:.0f} MiB; at most {MAX_FILE_BYTES // 2**20} MiB are read"
    return None


def _read_text(folder: Path, name: str) -> bytes:
    path = folder / name
    if _unsafe(path, folder.resolve()) is not None:
        return b""
    with path.open("rb") as file:
        return file.read(MAX_TEXT_BYTES)


# ---- zips and URIs


def _find_in_zip(path: Path) -> FoundPhotos:
    if not path.is_file():
        raise SubjectSetError(f"photos {path}: no such zip")
    found = FoundPhotos(str(path.absolute()), path.stem)
    names = zip_names(path)
    captions = captions_of(
        names,
        lambda name: read_member(str(path), name, MAX_TEXT_BYTES)[:MAX_TEXT_BYTES],
        found.warnings,
    )
    for name in names:
        reason = _why_not(name, captions.files)
        if reason is None:
            found.photos.append(
                PhotoSource(name, str(path.absolute()), name, captions.texts.get(name))
            )
        else:
            found.skipped.append(Skipped(name, reason))
    return found


def _find_in_uri(uri: str) -> FoundPhotos:
    folder = Folder(uri)
    found = FoundPhotos(folder.location, folder.name)
    try:
        sizes = {entry.name: entry.bytes for entry in folder.entries()}
    except OSError as error:
        raise SubjectSetError(
            f"photos {uri}: cannot be listed ({error}); check the URI and its credentials"
        ) from error
    names = list(sizes)
    captions = captions_of(
        [name for name in names if sizes[name] <= MAX_TEXT_BYTES or is_picture_name(name)],
        folder.read,
        found.warnings,
    )
    for name in names:
        reason = _why_not(name, captions.files) or _wrong_size(sizes[name])
        if reason is None:
            found.photos.append(
                PhotoSource(name, folder.child(name).location, None, captions.texts.get(name))
            )
        else:
            found.skipped.append(Skipped(name, reason))
    return found
