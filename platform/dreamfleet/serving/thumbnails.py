"""Small pictures of subjects, and their reports, out of adapters' folders."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from dreamfleet.serving.orders import RegistryFiles

SIDE = 160  # pixels
QUALITY = 85
REPORT = "report.html"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
MAX_REPORT_BYTES = 64 * 2**20
MAX_PICTURE_BYTES = 50 * 2**20
LOOKED_AT = 20


def thumbnail_of(location: str, *, photos: bool = True) -> bytes | None:
    """A WebP picture of at most `SIDE` pixels a side: of the subject's photos where they are still
    at hand, else of the adapter's samples; None where there is neither.

    Args:
        photos: whether the paths in its settings are this machine's; those of somebody else's
            adapter could name any picture here.
    """
    from PIL import Image, ImageOps

    for path in _candidates(Path(location), photos):
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


def has_thumbnail(location: str, *, photos: bool = True) -> bool:
    """Whether there probably is one; asked for each of many adapters, so nothing is read."""
    # os.path says False where pathlib would raise, of a folder that may not be read.
    settings = f"{location}/config.yaml"
    return os.path.isdir(f"{location}/samples") or (photos and os.path.isfile(settings))


def has_report(location: str, origin: RegistryFiles | None = None) -> bool:
    """Whether there is a report; of a registered version its run probably has one."""
    return os.path.isfile(f"{location}/{REPORT}") or (origin is not None and origin.run_id != "")


def report_of(location: str, origin: RegistryFiles | None = None) -> str | None:
    """The report's page; that of a registered version is fetched from its run when it is first
    asked for, because it is written after the version (blocks).

    Raises:
        BadInputError: MLflow cannot be asked for it now.
    """
    path = Path(location) / REPORT
    if not path.is_file() and origin is not None and origin.run_id:
        from dreamfleet.tracking.registry import fetch_artifact

        fetch_artifact(origin.uri, origin.run_id, REPORT, path.parent)
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _candidates(folder: Path, photos: bool) -> Iterator[Path]:
    return itertools.chain(_photos(folder) if photos else (), _pictures(folder / "samples"))


def _photos(folder: Path) -> Iterator[Path]:
    """The photos that the adapter's settings name, where they lie on this machine."""
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        named = [Path(str(entry)).expanduser() for entry in settings["subject"]["images"]]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, yaml.YAMLError):
        return  # RuntimeError: ~somebody without a home; or nested too deeply
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
