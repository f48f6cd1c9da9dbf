"""Small pictures of subjects, and their reports, out of adapters' folders."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import yaml

SIDE = 160  # pixels
QUALITY = 85
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MAX_REPORT_BYTES = 64 * 2**20
MAX_PICTURE_BYTES = 50 * 2**20
LOOKED_AT = 20


def thumbnail_of(location: str) -> bytes | None:
    """A WebP picture of at most `SIDE` pixels a side: of the subject's photos where they are still
    at hand, else of the adapter's samples; None where there is neither.
    """
    from PIL import Image, ImageOps

    for path in _candidates(Path(location)):
        try:
            if path.stat().st_size > MAX_PICTURE_BYTES:
                continue
            with Image.open(path) as opened:
                opened.draft("RGB", (4 * SIDE, 4 * SIDE))
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except Exception:  # whatever a file can be
            continue
        side = min(picture.size)
        small = side <= SIDE // 2
        picture = ImageOps.fit(
            picture, (SIDE, SIDE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        )
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=QUALITY)
        return buffer.getvalue()
    return None


def has_thumbnail(location: str) -> bool:
    """Whether there probably is one; asked for each of many adapters, so nothing is read."""
    folder = Path(location)
    return (folder / "samples").is_dir() or (folder / "config.yaml").is_file()


def has_report(location: str) -> bool:
    """Whether there is a report."""
    return (Path(location) / "report.html").is_file()


def report_of(location: str) -> str | None:
    """The report's page."""
    path = Path(location) / "report.html"
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _candidates(folder: Path) -> Iterator[Path]:
    samples = folder / "samples"
    return itertools.chain(_photos(folder), _pictures(samples))


def _photos(folder: Path) -> Iterator[Path]:
    """The photos that the adapter's settings name, where they lie on this machine."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        named = [Path(str(entry)).expanduser() for entry in settings["subject"]["images"]]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return
    if len(named) == 1 or all(path.suffix.lower() in PICTURES for path in named):
        for path in named[:LOOKED_AT]:
            yield from _pictures(path) if path.is_dir() else _pictures(path.parent, path.name)


def _pictures(folder: Path, name: str = "") -> Iterator[Path]:
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    except OSError:
        return
    yield from itertools.islice(
        (path for path in found if not name or path.name == name), LOOKED_AT
    )
