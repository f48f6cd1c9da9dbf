"""Photos that judges compare pictures with: checked, upright, encoded once for all actors."""

from __future__ import annotations

from collections.abc import Sequence

from dreamfleet.config import DataConfig
from dreamfleet.data.photos import read_photo, shrink, to_png
from dreamfleet.data.sources import find_photos
from dreamfleet.errors import SubjectSetError

LONGEST_NEEDED_PX = 1024  # no backbone looks at more than 384; larger photos are reduced to this


def reference_photos(entries: Sequence[str], data: DataConfig) -> tuple[bytes, ...]:
    """PNGs of a subject's photos, whole and upright, in the order of their names.

    Files that training would skip are skipped here as well.

    Args:
        entries: as `subject.images`: a folder, zip, URI or files.
        data: its limits hold.

    Raises:
        SubjectSetError: no photo can be read.
    """
    found = find_photos(list(entries), max_photos=data.max_photos)
    pngs, reasons = [], []
    for source in found.photos:
        try:
            image = read_photo(source.read(), max_pixels=data.max_pixels, resolution=32).image
        except SubjectSetError as error:
            reasons.append(f"{source.name}: {error}")
            continue
        large = min(image.size) > LONGEST_NEEDED_PX
        pngs.append(to_png(shrink(image, LONGEST_NEEDED_PX) if large else image))
    if not pngs:
        raise SubjectSetError(
            f"photos {', '.join(entries)}: none can be read ({'; '.join(reasons[:3])}); name the "
            "photos that the adapter was trained on"
        )
    return tuple(pngs)
