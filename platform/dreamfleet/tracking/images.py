"""Many pictures as one: a row per prompt, the prompt above it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

CELL_PX, LARGEST_CELL_PX, GAP_PX, LABEL_PX = 128, 512, 6, 20


def png_bytes(image: Image.Image | bytes) -> bytes:
    """The picture as PNG; bytes are taken to be one already."""
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def grid(images: Sequence[tuple[str, Image.Image | bytes]]) -> Image.Image:
    """(prompt, picture) pairs as one picture; pairs of the same prompt share a row.

    Small pictures are enlarged without smoothing, so that their pixels can be judged.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows: dict[str, list[Image.Image]] = {}
    for prompt, picture in images:
        opened = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
        rows.setdefault(prompt, []).append(opened.convert("RGB"))
    largest = max((max(p.size) for row in rows.values() for p in row), default=CELL_PX)
    cell = min(max(CELL_PX, largest), LARGEST_CELL_PX)
    columns = max((len(row) for row in rows.values()), default=1)
    width = GAP_PX + columns * (cell + GAP_PX)
    height = GAP_PX + len(rows) * (LABEL_PX + cell + GAP_PX)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for y, (prompt, row) in enumerate(rows.items()):
        top = GAP_PX + y * (LABEL_PX + cell + GAP_PX)
        pen.text((GAP_PX, top + 1), _fitted(prompt, font, width - 2 * GAP_PX), "#333", font=font)
        for x, picture in enumerate(row):
            place = (GAP_PX + x * (cell + GAP_PX), top + LABEL_PX)
            enlarge = max(picture.size) < cell
            kind = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
            sheet.paste(picture.resize((cell, cell), kind), place)
    return sheet


def _fitted(text: str, font: object, width: int) -> str:
    """The text, shortened until it fits `width` pixels."""
    measure = font.getlength  # type: ignore[attr-defined]
    if measure(text) <= width:
        return text
    while text and measure(text + "…") > width:
        text = text[:-1]
    return text + "…"
