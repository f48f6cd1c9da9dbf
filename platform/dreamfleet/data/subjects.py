"""Whom a command is for: one subject or many, each with its own photos, class word and id."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dreamfleet.config import RunConfig
from dreamfleet.data.names import unique_ids
from dreamfleet.data.sources import FoundPhotos, as_path, find_photos, is_picture_name
from dreamfleet.errors import BadInputError, SubjectSetError
from dreamfleet.runtime.storage import Folder, file_at, is_uri, suffix_of

LIST_SUFFIXES = frozenset({".csv", ".yaml", ".yml"})
LIST_KEYS = ("images", "class_word", "id", "token", "instance_prompt", "class_prompt")


@dataclass(frozen=True)
class SubjectRequest:
    """One subject as asked for."""

    id: str
    display_name: str
    config: RunConfig  # with this subject's own values; `subject.images` absolute
    found: FoundPhotos | None
    error: str | None = None  # why there is nothing to work with (many subjects: the others go on)

    @property
    def prompt(self) -> str:
        return fill_prompt(self.config.subject.instance_prompt, self.config)


def fill_prompt(template: str, config: RunConfig) -> str:
    """Replace {token} and {class}; other braces stay as they are."""
    return template.replace("{token}", config.subject.token).replace(
        "{class}", config.subject.class_word
    )


def requested_subjects(config: RunConfig) -> list[SubjectRequest]:
    """All subjects that `config.subject.images` names: a folder, zip, file list, URI, several of
    them, or CSV/YAML lists.

    Raises:
        SubjectSetError: nothing given, or (one subject) its photos cannot be used.
        BadInputError: the class word is missing.
    """
    rows = _rows(config)
    displays, locations = [], []
    found: list[FoundPhotos | SubjectSetError] = []
    for row in rows:
        try:
            photos = find_photos(row["images"], max_photos=config.data.max_photos)
            found.append(photos)
            displays.append(str(row.get("id") or photos.display_name))
        except SubjectSetError as error:
            if len(rows) == 1:
                raise
            found.append(error)
            displays.append(str(row.get("id") or Path(row["images"][0]).stem or "subject"))
        locations.append("\n".join(row["images"]))
    ids = unique_ids(displays, locations)
    return [
        _request(config, row, identity, display, result)
        for row, identity, display, result in zip(rows, ids, displays, found, strict=True)
    ]


def _request(
    config: RunConfig,
    row: Mapping[str, Any],
    identity: str,
    display: str,
    result: FoundPhotos | SubjectSetError,
) -> SubjectRequest:
    values = {key: row[key] for key in LIST_KEYS if row.get(key) and key != "id"}
    subject = config.subject.model_copy(
        update={**values, "id": identity, "images": _absolute(row["images"])}
    )
    if not subject.class_word.strip():
        raise BadInputError(
            f"subject {display!r}: the class word is missing; say what it is, e.g. "
            "--class-word dog "
            "(subject.class_word, or the column class_word of a list)"
        )
    own = config.model_copy(deep=True, update={"subject": subject})
    if isinstance(result, SubjectSetError):
        return SubjectRequest(identity, display, own, None, str(result))
    return SubjectRequest(identity, display, own, result)


def _absolute(entries: Sequence[str]) -> list[str]:
    paths = [as_path(entry) for entry in entries]
    return [path if is_uri(path) else str(Path(path).absolute()) for path in paths]


def _rows(config: RunConfig) -> list[dict[str, Any]]:
    entries = config.subject.images
    if not entries:
        raise SubjectSetError(
            "no photos given; name a folder of photos, a zip, picture files, or a CSV or YAML list"
        )
    if not all(entry.strip() for entry in entries):  # would be the present folder
        raise SubjectSetError(
            "photos: one of the names is empty (an unset variable?); name a folder of photos, or "
            "'.' for the present one"
        )
    entries = [as_path(entry) for entry in entries]
    lists = [entry for entry in entries if suffix_of(entry) in LIST_SUFFIXES]
    files = [entry for entry in entries if is_picture_name(entry) and not is_uri(entry)]
    if config.subject.id and (lists or (len(entries) > 1 and not files)):
        raise BadInputError(
            f"subject.id = {config.subject.id!r} with several subjects: ids must differ; leave it "
            "out, or give a CSV or YAML list with a column id"
        )
    if lists:
        rows = [row for entry in lists for row in read_subject_list(entry)]
        return rows + [{"images": [entry]} for entry in entries if entry not in lists]
    if len(files) == len(entries):
        return [{"images": list(entries), "id": config.subject.id}]
    if files:
        other = next(entry for entry in entries if entry not in files)
        raise SubjectSetError(
            f"photos: {files[0]} and {other}: give folders (one per subject), or picture files "
            "(captions beside them are found), not both"
        )
    if len(entries) > 1:
        return [{"images": [entry]} for entry in entries]
    return [{"images": list(entries), "id": config.subject.id}]


def read_subject_list(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a CSV (with a header) or YAML list of subjects, at a path or URI; relative photo
    paths count from the list's folder.

    Raises:
        SubjectSetError: naming the list and the row.
    """
    try:
        folder, name = file_at(str(path))
        text = folder.read(name).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SubjectSetError(f"subject list {path}: cannot be read ({error})") from error
    rows = _csv_rows(path, text) if suffix_of(str(path)) == ".csv" else _yaml_rows(path, text)
    if not rows:
        raise SubjectSetError(
            f"subject list {path}: no subject in it; expected the columns {', '.join(LIST_KEYS)}"
        )
    return [_checked_row(path, number, row) for number, row in enumerate(rows, start=1)]


def _below(folder: Folder, item: str) -> str:
    if folder.local is not None:
        return str(folder.local / as_path(item))
    return folder.child(item).location


def _csv_rows(path: str | Path, text: str) -> list[dict[Any, Any]]:
    rows = csv.DictReader(io.StringIO(text, newline=None), skipinitialspace=True)
    try:
        return [row for row in rows if any(row.values())]
    except csv.Error as error:
        raise SubjectSetError(f"subject list {path}: not valid CSV: {error}") from error


def _yaml_rows(path: str | Path, text: str) -> list[Any]:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SubjectSetError(f"subject list {path}: not valid YAML: {error}") from error
    rows = loaded.get("subjects") if isinstance(loaded, dict) else loaded
    if not isinstance(rows, list):
        raise SubjectSetError(
            f"subject list {path}: expected a list of subjects, or a key `subjects` with one"
        )
    return rows


def _checked_row(path: str | Path, number: int, row: Any) -> dict[str, Any]:
    where = f"subject list {path}, subject {number}"
    if not isinstance(row, dict):
        raise SubjectSetError(f"{where}: expected keys and values, got {type(row).__name__}")
    if None in row:  # where CSV's reader puts them
        raise SubjectSetError(
            f"{where}: more cells than the header has columns; put a value with commas in quotes"
        )
    unknown = [key for key in row if key not in LIST_KEYS]
    if unknown:
        raise SubjectSetError(
            f"{where}: unknown key {unknown[0]!r}; accepted are {', '.join(LIST_KEYS)}"
        )
    images = row.get("images")
    listed = [images] if isinstance(images, str) else images
    if (
        not isinstance(listed, list)
        or not listed
        or not all(isinstance(item, str) and item for item in listed)
    ):
        raise SubjectSetError(f"{where}: the key images must name a folder, a zip or picture files")
    folder, _ = file_at(str(path))
    anchored = [item if is_uri(item) else _below(folder, item) for item in listed]
    texts = {
        key: str(row[key])
        for key in LIST_KEYS
        if key != "images" and row.get(key) not in (None, "")
    }
    return {"images": anchored, **texts}
