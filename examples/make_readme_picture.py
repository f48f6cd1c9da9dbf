"""Lay photos and samples of a finished run side by side: the picture in the README.

    python examples/make_readme_picture.py PHOTOS RUN TARGET
    python examples/make_readme_picture.py examples/subjects/dog-biscuit runs/demo demo.webp

Top row: the photos. Below: the same prompts and seeds, first the bare base, then the adapter.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

CELL_PX = 128
COLUMNS = 7


def row(paths: list[Path]) -> list[Image.Image]:
    """Pictures at the cell's size; small ones are enlarged without smoothing."""
    images = [Image.open(path).convert("RGB") for path in paths[:COLUMNS]]
    return [image.resize((CELL_PX, CELL_PX), Image.Resampling.NEAREST) for image in images]


def main(photos: Path, run: Path, target: Path) -> None:
    first = sorted((run / "samples").glob("*_1.png"))
    bare = [run / "samples" / "without_adapter" / path.name for path in first]
    rows = [row(sorted(photos.glob("*.png"))), row(bare), row(first)]
    sheet = Image.new("RGB", (COLUMNS * CELL_PX, len(rows) * CELL_PX), "white")
    for y, images in enumerate(rows):
        for x, image in enumerate(images):
            sheet.paste(image, (x * CELL_PX, y * CELL_PX))
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, optimize=True)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
