"""Captions: `img.txt` beside `img.jpg`, or a `metadata.jsonl` with `file_name` and `text` in each
line.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from dreamfleet.data.photos import IMAGE_SUFFIXES
from dreamfleet.errors import SubjectSetError

METADATA = "metadata.jsonl"
MAX_CHARACTERS = 1000  # no text encoder here reads even half of it
TEXT_KEYS = ("text", "caption", "prompt")


@dataclass
class Captions:
    """The captions of one place."""

    texts: dict[str, str] = field(default_factory=dict)  # picture name -> caption
    files: frozenset[str] = frozenset()  # the files that captions came from
    paths: tuple[str, ...] = ()  # picture names that only metadata.jsonl gave


def captions_of(
    names: Sequence[str], read: Callable[[str], bytes], warnings: list[str]
) -> Captions:
    """Read the captions of the pictures among `names`; unusable ones are left out with a line in
    `warnings`.
    """
    known = set(names)
    captions = Captions()
    files: set[str] = set()
    for name in names:
        sidecar = str(PurePosixPath(name).with_suffix(".txt"))
        if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and sidecar in known:
            files.add(sidecar)
            text = clean_caption(_decoded(read, sidecar), sidecar, warnings)
            if text is not None:
                captions.texts[name] = text
    for metadata in [name for name in names if PurePosixPath(name).name == METADATA]:
        files.add(metadata)
        captions.paths += tuple(_read_metadata(metadata, read, captions.texts, warnings))
    captions.files = frozenset(files)
    return captions


def clean_caption(text: str | None, origin: str, warnings: list[str]) -> str | None:
    """One line of printable text, or None (said in `warnings`) when there is none."""
    if text is None:
        warnings.append(f"caption {origin}: not UTF-8; the subject's prompt is used instead")
        return None
    plain = "".join(
        " " if unicodedata.category(character).startswith("C") else character for character in text
    )
    plain = " ".join(plain.split())
    if not plain:
        warnings.append(f"caption {origin}: empty; the subject's prompt is used instead")
        return None
    if len(plain) > MAX_CHARACTERS:
        warnings.append(f"caption {origin}: {len(plain)} characters; cut after {MAX_CHARACTERS}")
        plain = plain[:MAX_CHARACTERS].rsplit(" ", 1)[0]
    return plain


def _decoded(read: Callable[[str], bytes], name: str) -> str | None:
    try:
        return read(name).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, SubjectSetError):
        return None


def _read_metadata(
    name: str, read: Callable[[str], bytes], texts: dict[str, str], warnings: list[str]
) -> list[str]:
    """Lay the lines of a metadata file over `texts`; returns the picture names in it."""
    content = _decoded(read, name)
    if content is None:
        warnings.append(f"{name}: not UTF-8; its captions are not used")
        return []
    folder = PurePosixPath(name).parent
    listed = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        entry = _metadata_line(line)
        if entry is None:
            keys = " or ".join(TEXT_KEYS)
            warnings.append(
                f'{name} line {number}: expected {{"file_name": …, "text": …}} ({keys}); skipped'
            )
            continue
        picture = str(folder / entry[0])
        listed.append(picture)
        text = clean_caption(entry[1], f"{name} line {number}", warnings)
        if text is not None:
            texts[picture] = text
    return listed


def _metadata_line(line: str) -> tuple[str, str] | None:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        return None
    text = next((entry[key] for key in TEXT_KEYS if key in entry), None)
    return (entry["file_name"], text) if isinstance(text, str) else None
