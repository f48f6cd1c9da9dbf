"""Contact sheets of small pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Rows = Sequence[Sequence[Image.Image]]
CELL_PX, GAP_PX, TEXT_PX = 96, 4, 12


def plain_sheet(rows: Rows, cell_px: int = CELL_PX) -> Image.Image:
    """A grid of pictures, enlarged without smoothing."""
    return labelled_sheet(rows, cell_px=cell_px)


def labelled_sheet(
    rows: Rows,
    *,
    cell_labels: Sequence[Sequence[str]] | None = None,
    row_labels: Sequence[str] | None = None,
    cell_px: int = CELL_PX,
) -> Image.Image:
    """A grid of pictures with a line above each row, or above each picture, where given."""
    step = cell_px + GAP_PX
    top = TEXT_PX * ((row_labels is not None) + (cell_labels is not None))
    columns = max((len(row) for row in rows), default=0)
    size = (columns * step + GAP_PX, len(rows) * (step + top) + GAP_PX)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for i, row in enumerate(rows):
        y = GAP_PX + i * (step + top)
        if row_labels is not None:
            pen.text((GAP_PX, y), row_labels[i], fill=(170, 20, 20), font=font)
        for j, picture in enumerate(row):
            x = GAP_PX + j * step
            if cell_labels is not None:
                pen.text((x, y + top - TEXT_PX), cell_labels[i][j], fill="black", font=font)
            enlarged = picture.resize((cell_px, cell_px), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (x, y + top))
    return sheet


def legible(sheet: Image.Image) -> Image.Image:
    """A sheet at three fifths of its size, at which it can still be read."""
    return sheet.convert("RGB").resize((sheet.width * 3 // 5, sheet.height * 3 // 5))


def save_for_page(sheet: Image.Image, target: Path) -> None:
    """Write a picture of the docs, as WebP: all of theirs together may weigh 2 MB."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, "WEBP", quality=40, method=6)
