"""Drawing with a record of what was drawn where: Pillow at 4x, reduced at the end.

Coordinates are fractions of the picture: x to the right, y down, (0, 0) top left, (1, 1) bottom
right. A `Pen` draws in a subject's own frame, placed on the canvas by scale and offset. Every shape
names the part it belongs to; the label image keeps, per pixel, the part that is visible there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Texture:
    """A paint that varies over the picture: an RGB image of its size, and how opaque it is."""

    image: Image.Image  # RGB, canvas size
    opacity: float = 1.0


Paint = RGB | Texture


@dataclass
class Canvas:
    """The picture being drawn: `image` (RGB) and `labels` (L, the visible part; 0: background)."""

    size_px: int  # of the finished picture
    image: Image.Image = field(init=False)
    labels: Image.Image = field(init=False)
    part_names: list[str] = field(default_factory=lambda: ["background"])

    def __post_init__(self) -> None:
        side = self.size_px * SUPERSAMPLING
        self.image = Image.new("RGB", (side, side), (200, 200, 200))
        self.labels = Image.new("L", (side, side), 0)

    @property
    def side_px(self) -> int:
        """Side of the supersampled canvas in pixels."""
        return self.size_px * SUPERSAMPLING

    def label_of(self, part: str) -> int:
        if part not in self.part_names:
            self.part_names.append(part)
        return self.part_names.index(part)

    def reduced(self) -> Image.Image:
        """The finished picture, box-filtered to `size_px`."""
        return self.image.reduce(SUPERSAMPLING)

    def part_masks(self) -> dict[str, np.ndarray]:
        """Per part a bool array [size_px, size_px]: at least half of the pixel shows that part."""
        labels = np.asarray(self.labels)
        s = SUPERSAMPLING
        masks = {}
        for index, name in enumerate(self.part_names[1:], start=1):
            share = (labels == index).reshape(self.size_px, s, self.size_px, s).mean(axis=(1, 3))
            masks[name] = share >= 0.5
        return masks


class Pen:
    """Draws shapes in a frame of its own: local (0, 0) lands on `origin`, one local unit is `scale`
    of the picture.

    For subjects: local x and y run over about [-1, 1], y down, and y = 1 is the ground the subject
    stands on.
    """

    def __init__(self, canvas: Canvas, origin: Point = (0.0, 0.0), scale: float = 1.0) -> None:
        self.canvas = canvas
        self.origin = origin
        self.scale = scale
        self._stack: list[tuple[Point, float, float]] = []
        self._pivot: Point = (0.0, 0.0)
        self._angle = 0.0
        self._squash = 1.0

    # -- placement
    def rotated(self, angle_deg: float, pivot: Point = (0.0, 0.0), squash_x: float = 1.0) -> Pen:
        """A pen that draws turned clockwise by `angle_deg` about local `pivot`, narrowed in x."""
        pen = Pen(self.canvas, self.origin, self.scale)
        pen._parent = self  # type: ignore[attr-defined]
        pen._pivot, pen._angle, pen._squash = pivot, math.radians(angle_deg), squash_x
        return pen

    def attached(self, at: Point, scale: float = 1.0, angle_deg: float = 0.0) -> Pen:
        """A pen with its (0, 0) at this pen's `at`, its unit `scale` of this one's, turned."""
        x, y = self.to_canvas(at)
        side = self.canvas.side_px
        pen = Pen(self.canvas, (x / side, y / side), self.scale * scale)
        return pen.rotated(angle_deg) if angle_deg else pen

    def _to_parent(self, point: Point) -> Point:
        dx, dy = (point[0] - self._pivot[0]) * self._squash, point[1] - self._pivot[1]
        cos, sin = math.cos(self._angle), math.sin(self._angle)
        return self._pivot[0] + cos * dx - sin * dy, self._pivot[1] + sin * dx + cos * dy

    def to_canvas(self, point: Point) -> Point:
        """Local coordinates to supersampled pixels."""
        pen: Pen = self
        while (parent := getattr(pen, "_parent", None)) is not None:
            point = pen._to_parent(point)
            pen = parent
        side = self.canvas.side_px
        return (
            (self.origin[0] + point[0] * self.scale) * side,
            (self.origin[1] + point[1] * self.scale) * side,
        )

    def length_px(self, length: float) -> float:
        """A local length in supersampled pixels."""
        return length * self.scale * self.canvas.side_px

    # -- shapes
    def polygon(
        self,
        points: Sequence[Point],
        paint: Paint,
        part: str,
        outline: RGB | None = None,
        outline_width: float = 0.03,
        within: Sequence[str] | None = None,
    ) -> None:
        """Fill a polygon; `within` keeps it (a marking) inside the named parts already visible."""
        pixels = [self.to_canvas(p) for p in points]
        self._fill(pixels, paint, part, within)
        if outline is not None:
            width = max(1, round(self.length_px(outline_width)))
            draw = ImageDraw.Draw(self.canvas.image)
            draw.line([*pixels, pixels[0], pixels[1]], fill=outline, width=width, joint="curve")

    def ellipse(
        self,
        center: Point,
        radius_x: float,
        radius_y: float,
        paint: Paint,
        part: str,
        angle_deg: float = 0.0,
        outline: RGB | None = None,
        outline_width: float = 0.03,
        within: Sequence[str] | None = None,
    ) -> None:
        """Fill an ellipse turned clockwise by `angle_deg`."""
        a = math.radians(angle_deg)
        points = []
        for i in range(28):
            t = 2 * math.pi * i / 28
            x, y = radius_x * math.cos(t), radius_y * math.sin(t)
            dx, dy = x * math.cos(a) - y * math.sin(a), x * math.sin(a) + y * math.cos(a)
            points.append((center[0] + dx, center[1] + dy))
        self.polygon(points, paint, part, outline, outline_width, within)

    def blob(
        self,
        points: Sequence[Point],
        paint: Paint,
        part: str,
        outline: RGB | None = None,
        outline_width: float = 0.03,
        within: Sequence[str] | None = None,
    ) -> None:
        """Fill a smooth closed curve through `points` (Catmull-Rom)."""
        self.polygon(smooth(points, closed=True), paint, part, outline, outline_width, within)

    def stroke(
        self,
        points: Sequence[Point],
        width: float,
        paint: Paint,
        part: str,
        outline: RGB | None = None,
    ) -> None:
        """A smooth open curve of constant `width` with round ends (legs, tails, handles)."""
        curve = [self.to_canvas(p) for p in (smooth(points) if len(points) > 2 else points)]
        width_px = max(1.0, self.length_px(width))
        if outline is not None:
            self._stroke(curve, width_px + 2 * self.length_px(0.03), outline, part)
        self._stroke(curve, width_px, paint, part)

    def markings(
        self, shapes: Sequence[Sequence[Point]], paint: RGB, within: Sequence[str]
    ) -> None:
        """Fill polygons in one go, only where the named parts are visible; their labels stay."""
        mask = Image.new("L", self.canvas.image.size, 0)
        draw = ImageDraw.Draw(mask)
        for shape in shapes:
            draw.polygon([self.to_canvas(point) for point in shape], fill=255)
        allowed = {self.canvas.label_of(name) for name in within}
        keep = self.canvas.labels.point([255 if i in allowed else 0 for i in range(256)])
        self.canvas.image.paste(paint, mask=ImageChops.darker(mask, keep))

    # -- internals
    def _stroke(self, pixels: Sequence[Point], width_px: float, paint: Paint, part: str) -> None:
        mask = Image.new("L", self.canvas.image.size, 0) if isinstance(paint, Texture) else None
        label = self.canvas.label_of(part)
        targets: list[tuple[ImageDraw.ImageDraw, int | RGB]] = [
            (ImageDraw.Draw(self.canvas.labels), label)
        ]
        if mask is not None:
            targets.append((ImageDraw.Draw(mask), 255))
        else:
            assert not isinstance(paint, Texture)
            targets.append((ImageDraw.Draw(self.canvas.image), paint))
        r = width_px / 2
        for draw, value in targets:
            draw.line(list(pixels), fill=value, width=round(width_px), joint="curve")
            for x, y in (pixels[0], pixels[-1]):
                draw.ellipse((x - r, y - r, x + r, y + r), fill=value)
        if mask is not None:
            assert isinstance(paint, Texture)
            self._paste(paint, mask)

    def _fill(
        self, pixels: Sequence[Point], paint: Paint, part: str, within: Sequence[str] | None
    ) -> None:
        label = self.canvas.label_of(part)
        if within is None and not isinstance(paint, Texture):
            ImageDraw.Draw(self.canvas.image).polygon(list(pixels), fill=paint)
            ImageDraw.Draw(self.canvas.labels).polygon(list(pixels), fill=label)
            return
        mask = Image.new("L", self.canvas.image.size, 0)
        ImageDraw.Draw(mask).polygon(list(pixels), fill=255)
        if within is not None:
            allowed = {self.canvas.label_of(name) for name in within}
            keep = self.canvas.labels.point([255 if i in allowed else 0 for i in range(256)])
            mask = Image.composite(mask, Image.new("L", mask.size, 0), keep)
        else:
            # Here only: a marking keeps the label of the part that it lies on.
            self.canvas.labels.paste(label, mask=mask)
        if isinstance(paint, Texture):
            self._paste(paint, mask)
        else:
            self.canvas.image.paste(paint, mask=mask)

    def _paste(self, texture: Texture, mask: Image.Image) -> None:
        if texture.opacity < 1.0:
            mask = mask.point([round(i * texture.opacity) for i in range(256)])
        self.canvas.image.paste(texture.image, mask=mask)


def smooth(points: Sequence[Point], closed: bool = False, steps: int = 6) -> list[Point]:
    """A Catmull-Rom curve through `points`."""
    p = np.asarray(points, dtype=float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[:, None]
    out = []
    for i in range(len(p) - 3):
        a, b, c, d = p[i : i + 4]
        quadratic, cubic = 2 * a - 5 * b + 4 * c - d, 3 * b - a - 3 * c + d
        out.append(0.5 * (2 * b + (c - a) * t + quadratic * t**2 + cubic * t**3))
    curve = [(float(x), float(y)) for x, y in np.concatenate(out)]
    return curve if closed else [*curve, (float(p[-1][0]), float(p[-1][1]))]


def shade(color: RGB, factor: float) -> RGB:
    """Darker (< 1) or lighter (> 1, towards white) than `color`."""
    if factor <= 1.0:
        r, g, b = (round(c * factor) for c in color)
    else:
        r, g, b = (round(c + (255 - c) * (factor - 1.0)) for c in color)
    return r, g, b
