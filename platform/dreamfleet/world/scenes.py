"""Ten places. What tells a place lies at the sides and the top: the subject covers the middle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

from dreamfleet.world.canvas import RGB, Canvas, Point, shade, smooth
from dreamfleet.world.palette import hsv


@dataclass(frozen=True)
class Scene:
    """A place: `draw_background` returns the height (fraction of the picture) of the ground."""

    name: str
    phrase: str
    draw_background: Callable[[Canvas, np.random.Generator], float]
    draw_foreground: Callable[[Canvas, np.random.Generator], None] | None = None


class Brush:
    """Draws in fractions of the picture, maybe mirrored; a covering brush hides the subject."""

    def __init__(self, canvas: Canvas, mirrored: bool = False, covers: bool = False) -> None:
        self.canvas = canvas
        self.side = canvas.side_px
        self.mirrored = mirrored
        self._draw = ImageDraw.Draw(canvas.image)
        self._labels = ImageDraw.Draw(canvas.labels) if covers else None

    def _at(self, point: Point) -> Point:
        x = 1.0 - point[0] if self.mirrored else point[0]
        return x * self.side, point[1] * self.side

    def poly(self, points: Sequence[Point], color: RGB) -> None:
        """Fill a polygon."""
        pixels = [self._at(point) for point in points]
        self._draw.polygon(pixels, fill=color)
        if self._labels is not None:
            self._labels.polygon(pixels, fill=0)

    def oval(self, x: float, y: float, radius_x: float, radius_y: float, color: RGB) -> None:
        """Fill an upright ellipse."""
        cx, cy = self._at((x, y))
        rx, ry = radius_x * self.side, radius_y * self.side
        box = (cx - rx, cy - ry, cx + rx, cy + ry)
        self._draw.ellipse(box, fill=color)
        if self._labels is not None:
            self._labels.ellipse(box, fill=0)

    def rect(self, x0: float, y0: float, x1: float, y1: float, color: RGB) -> None:
        """Fill a rectangle."""
        (ax, ay), (bx, by) = self._at((x0, y0)), self._at((x1, y1))
        box = (min(ax, bx), ay, max(ax, bx), by)
        self._draw.rectangle(box, fill=color)
        if self._labels is not None:
            self._labels.rectangle(box, fill=0)

    def line(self, points: Sequence[Point], width: float, color: RGB) -> None:
        """Draw a line of constant width."""
        pixels = [self._at(point) for point in points]
        width_px = max(1, round(width * self.side))
        self._draw.line(pixels, fill=color, width=width_px, joint="curve")
        if self._labels is not None:
            self._labels.line(pixels, fill=0, width=width_px, joint="curve")

    def gradient(self, y0: float, y1: float, top: RGB, bottom: RGB) -> None:
        """Fill a band over the whole width, from `top` to `bottom`."""
        strip = Image.new("RGB", (1, 2), top)
        strip.putpixel((0, 1), bottom)
        ay, by = round(y0 * self.side), round(y1 * self.side)
        band = strip.resize((self.side, by - ay), Image.Resampling.BILINEAR)
        self.canvas.image.paste(band, (0, ay))

    def leaf(self, base: Point, length: float, width: float, angle_deg: float, color: RGB) -> None:
        """A pointed leaf growing from `base`; 0 degrees is to the right, 90 down."""
        angle = math.radians(angle_deg)
        cos, sin = math.cos(angle), math.sin(angle)
        outline = []
        for along, across in _LEAF_OUTLINE:
            dx, dy = along * length, across * width
            outline.append((base[0] + cos * dx - sin * dy, base[1] + sin * dx + cos * dy))
        self.poly(outline, color)
        tip = (base[0] + cos * length * 0.9, base[1] + sin * length * 0.9)
        self.line([base, tip], 0.012, shade(color, 1.35))


_LEAF_OUTLINE = (
    (0.0, 0.0), (0.15, 0.28), (0.4, 0.5), (0.7, 0.38), (1.0, 0.0),
    (0.7, -0.38), (0.4, -0.5), (0.15, -0.28),
)  # fmt: skip


def _vary(rng: np.random.Generator, hue: float, saturation: float, value: float) -> RGB:
    """A colour near the given one."""
    return hsv(
        hue + float(rng.uniform(-0.02, 0.02)),
        float(np.clip(saturation + rng.uniform(-0.07, 0.07), 0, 1)),
        float(np.clip(value + rng.uniform(-0.05, 0.05), 0, 1)),
    )


def _coin(rng: np.random.Generator) -> bool:
    return bool(rng.random() < 0.5)


# -- plain -----------------------------------------------------------------------------------------


def _plain(canvas: Canvas, rng: np.random.Generator) -> float:
    hue, saturation = float(rng.random()), float(rng.uniform(0.05, 0.28))
    brush = Brush(canvas)
    edge = float(rng.uniform(0.66, 0.74))
    brush.gradient(0, edge, hsv(hue, saturation, 0.97), hsv(hue, saturation, 0.90))
    brush.gradient(edge, 1, hsv(hue, saturation + 0.05, 0.76), hsv(hue, saturation, 0.88))
    return 0.90


# -- snow ------------------------------------------------------------------------------------------


def _snow(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas)
    horizon = float(rng.uniform(0.52, 0.58))
    brush.gradient(0, horizon, _vary(rng, 0.60, 0.38, 0.68), _vary(rng, 0.58, 0.18, 0.86))
    brush.gradient(horizon, 1, (226, 235, 248), (252, 253, 255))
    brush.oval(float(rng.uniform(0.1, 0.9)), horizon + 0.03, 0.5, 0.07, (232, 240, 250))
    for side in (0.0, 1.0):
        for _ in range(2):
            x = abs(side - float(rng.uniform(0.0, 0.2)))
            _fir(brush, x, horizon + float(rng.uniform(0.08, 0.14)), float(rng.uniform(0.4, 0.56)))
    for x, y in rng.random((34, 2)):
        radius = 0.009 + 0.006 * ((x * 7) % 1)
        brush.oval(float(x), float(y) * 0.8, radius, radius, (255, 255, 255))
    return 0.90


def _fir(brush: Brush, x: float, base_y: float, height: float) -> None:
    brush.rect(x - 0.015, base_y - 0.08, x + 0.015, base_y, (80, 56, 40))
    for tier in range(3):
        top = base_y - height + tier * height * 0.24
        width, depth = height * (0.16 + 0.06 * tier), height * 0.4
        brush.poly([(x, top), (x - width, top + depth), (x + width, top + depth)], (38, 92, 78))
        cap, drop = width * 0.55, depth * 0.52
        snow = [(x, top), (x - cap, top + drop), (x, top + drop * 0.75), (x + cap, top + drop)]
        brush.poly(snow, (250, 252, 255))


def _snow_heap(canvas: Canvas, rng: np.random.Generator) -> None:
    brush = Brush(canvas, covers=True)
    x = float(rng.uniform(0.25, 0.75))
    brush.oval(x, 0.965, 0.30, 0.070, (214, 226, 244))
    brush.oval(x, 0.985, 0.31, 0.075, (253, 254, 255))


# -- beach -----------------------------------------------------------------------------------------


def _beach(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas, mirrored=_coin(rng))
    sea, shore = float(rng.uniform(0.34, 0.40)), float(rng.uniform(0.56, 0.62))
    brush.gradient(0, sea, _vary(rng, 0.54, 0.45, 0.95), _vary(rng, 0.53, 0.16, 0.98))
    brush.oval(float(rng.uniform(0.78, 0.88)), 0.13, 0.085, 0.085, (255, 222, 60))
    brush.gradient(sea, shore, _vary(rng, 0.58, 0.88, 0.66), _vary(rng, 0.51, 0.62, 0.82))
    brush.gradient(shore, 1, (246, 222, 158), (232, 196, 120))
    phase = float(rng.random())
    foam = [(i / 10, shore + 0.014 * math.sin(i * 1.9 + 6 * phase)) for i in range(11)]
    brush.line(foam, 0.026, (255, 255, 255))
    _palm(brush, float(rng.uniform(0.02, 0.10)), float(rng.uniform(0.20, 0.27)))
    return 0.90


def _palm(brush: Brush, foot_x: float, crown_y: float) -> None:
    crown_x = foot_x + 0.09
    middle = (foot_x + 0.02, (0.74 + crown_y) / 2)
    trunk = smooth([(foot_x, 0.74), middle, (crown_x, crown_y)])
    brush.line(trunk, 0.042, (134, 92, 50))
    for angle in (-165, -120, -70, -20, 25, 150):
        color = (44, 140, 62) if angle % 2 else (30, 116, 52)
        brush.leaf((crown_x, crown_y), 0.21, 0.085, angle, color)


def _starfish(canvas: Canvas, rng: np.random.Generator) -> None:
    brush = Brush(canvas, covers=True)
    x, y = abs(float(rng.integers(2)) - float(rng.uniform(0.07, 0.14))), 0.93
    star = []
    for i in range(10):
        radius, angle = (0.055, 0.022)[i % 2], i * math.pi / 5 + 0.3
        star.append((x + radius * math.cos(angle), y + 0.75 * radius * math.sin(angle)))
    brush.poly(star, _vary(rng, 0.03, 0.75, 0.92))


# -- jungle ----------------------------------------------------------------------------------------


def _jungle(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas, mirrored=_coin(rng))
    brush.gradient(0, 0.72, _vary(rng, 0.33, 0.68, 0.44), _vary(rng, 0.28, 0.55, 0.60))
    brush.gradient(0.72, 1, (58, 82, 34), (84, 92, 40))
    for x in rng.uniform(0.2, 0.8, 5):
        brush.oval(float(x), float(rng.uniform(0.05, 0.5)), 0.10, 0.07, _vary(rng, 0.27, 0.6, 0.66))
    for x in (0.03, 0.24, 0.80, 0.95):
        x += float(rng.uniform(-0.03, 0.03))
        brush.rect(x - 0.028, 0, x + 0.028, float(rng.uniform(0.74, 0.80)), (66, 48, 32))
    for x in rng.uniform(0.3, 0.75, 2):
        brush.line([(float(x), 0), (float(x) + 0.03, 0.2)], 0.016, (28, 66, 28))
    for side, angle in ((0.0, 20.0), (1.0, 160.0)):
        for y in (0.0, 0.22, 0.46, 0.68):
            turn = angle + float(rng.uniform(-28, 28))
            color = _vary(rng, 0.36, 0.78, 0.44 + 0.22 * float(rng.random()))
            start = (side, y + float(rng.uniform(-0.05, 0.05)))
            brush.leaf(start, float(rng.uniform(0.24, 0.34)), 0.15, turn, color)
    for x in (0.2, 0.42, 0.62, 0.84):
        color = _vary(rng, 0.31, 0.8, 0.56)
        brush.leaf((x, -0.04), 0.24, 0.13, 90 + float(rng.uniform(-35, 35)), color)
    return 0.90


def _jungle_leaves(canvas: Canvas, rng: np.random.Generator) -> None:
    brush = Brush(canvas, covers=True)
    for x, angle in ((0.0, -30), (0.06, -72), (1.0, -150), (0.94, -108)):
        turn = angle + float(rng.uniform(-12, 12))
        brush.leaf((x, 1.03), 0.25, 0.12, turn, _vary(rng, 0.34, 0.82, 0.52))


# -- Eiffel Tower ----------------------------------------------------------------------------------


def _eiffel(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas, mirrored=_coin(rng))
    horizon = float(rng.uniform(0.66, 0.70))
    brush.gradient(0, horizon, _vary(rng, 0.62, 0.24, 0.93), _vary(rng, 0.07, 0.20, 0.99))
    for x in np.linspace(0.0, 1.0, 10):
        height = float(rng.uniform(0.03, 0.06))
        brush.oval(float(x), horizon, 0.09, height, _vary(rng, 0.30, 0.50, 0.45))
    _tower(brush, float(rng.uniform(0.16, 0.21)), horizon + 0.02, float(rng.uniform(0.01, 0.05)))
    brush.gradient(horizon, 1, (222, 212, 182), (206, 194, 160))
    lawn = _vary(rng, 0.27, 0.52, 0.68)
    brush.poly([(0, horizon + 0.02), (0.30, horizon + 0.02), (0.06, 1), (0, 1)], lawn)
    brush.poly([(1, horizon + 0.02), (0.70, horizon + 0.02), (0.94, 1), (1, 1)], lawn)
    return 0.90


def _tower(brush: Brush, x: float, base_y: float, top_y: float) -> None:
    color, height = (98, 74, 58), base_y - top_y

    def half_width(t: float) -> float:
        return 0.165 * math.exp(-3.9 * t) + 0.004

    def at(t: float, share: float) -> Point:
        return x + share * half_width(t), base_y - t * height

    heights = [0.0, 0.06, 0.12, 0.18, 0.25, 0.33]
    for sign in (-1.0, 1.0):
        outer = [at(t, sign) for t in heights]
        inner = [at(t, sign * min(0.45, 0.62 * (1 - 2.0 * t))) for t in reversed(heights)]
        brush.poly([*outer, *inner], color)
    upper = [0.32, 0.4, 0.5, 0.62, 0.78, 1.0]
    brush.poly([at(t, -1.0) for t in upper] + [at(t, 1.0) for t in reversed(upper)], color)
    for t, reach in ((0.17, 1.35), (0.34, 1.6), (0.80, 2.2)):
        (left, y), (right, _) = at(t, -reach), at(t, reach)
        brush.rect(left, y - 0.012, right, y + 0.014, shade(color, 0.75))
    arch = [at(t, share) for share, t in ((-0.5, 0.02), (-0.3, 0.12), (0.3, 0.12), (0.5, 0.02))]
    brush.line(smooth(arch), 0.016, color)


# -- cobblestone -----------------------------------------------------------------------------------


def _cobblestone(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas, mirrored=_coin(rng))
    left, hue = float(rng.uniform(-0.12, 0.0)), float(rng.uniform(0.0, 0.12))
    while left < 1.0:
        width = float(rng.uniform(0.26, 0.34))
        _old_house(brush, left, width, hsv(hue, float(rng.uniform(0.35, 0.6)), 0.80))
        left, hue = left + width, (hue + 0.05) % 0.15
    brush.rect(0, 0.43, 1, 1, (62, 58, 60))
    y, row = 0.425, 0
    while y < 1.0:
        height = 0.045 + 0.085 * (y - 0.42)
        _stones(brush, rng, y, height, row % 2)
        y, row = y + height, row + 1
    return 0.90


def _old_house(brush: Brush, left: float, width: float, color: RGB) -> None:
    brush.rect(left, 0, left + width, 0.43, color)
    brush.rect(left, 0, left + 0.014, 0.43, shade(color, 0.6))
    for x in (left + 0.3 * width, left + 0.72 * width):
        brush.rect(x - 0.06, 0.09, x + 0.06, 0.25, (52, 96, 92))
        brush.rect(x - 0.032, 0.08, x + 0.032, 0.26, (248, 240, 220))
        brush.rect(x - 0.022, 0.09, x + 0.022, 0.25, (58, 62, 84))
    brush.rect(left + 0.18 * width, 0.30, left + 0.42 * width, 0.43, (94, 52, 36))


def _stones(brush: Brush, rng: np.random.Generator, y: float, height: float, odd: int) -> None:
    pitch = height * 1.55
    count = math.ceil(1.0 / pitch) + 2
    for i, (tone, tint) in enumerate(rng.random((count, 2))):
        grey = round(118 + 66 * tone)
        color = (grey, round(grey - 2 - 6 * tint), round(grey - 6 + 12 * tint))
        x = (i - 0.5 * odd) * pitch
        brush.oval(x, y + height / 2, pitch * 0.45, height * 0.44, color)


# -- wooden floor ----------------------------------------------------------------------------------


def _wooden_floor(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas, mirrored=_coin(rng))
    wall_hue = float(rng.choice([0.12, 0.30, 0.45, 0.56, 0.92]))
    wall = hsv(wall_hue, float(rng.uniform(0.1, 0.22)), 0.86)
    brush.gradient(0, 0.5, shade(wall, 1.1), wall)
    _wall_picture(brush, rng)
    _window(brush, float(rng.uniform(0.76, 0.82)))
    brush.rect(0, 0.48, 1, 0.53, (250, 248, 240))
    hue, x, tone = float(rng.uniform(0.055, 0.085)), -0.95, 0
    brush.rect(0, 0.53, 1, 1, hsv(hue, 0.66, 0.40))
    while x < 1.9:
        width = 0.21
        color = hsv(hue, 0.62, 0.66 + 0.07 * (tone % 3) + float(rng.uniform(-0.03, 0.03)))
        far = [0.5 + (edge - 0.5) * 0.40 for edge in (x + width - 0.012, x)]
        brush.poly([(x, 1), (x + width - 0.022, 1), (far[0], 0.53), (far[1], 0.53)], color)
        x, tone = x + width, tone + 2 + int(rng.integers(2))
    return 0.90


def _wall_picture(brush: Brush, rng: np.random.Generator) -> None:
    x, y = float(rng.uniform(0.13, 0.2)), 0.18
    brush.rect(x - 0.11, y - 0.12, x + 0.11, y + 0.12, (92, 60, 34))
    brush.rect(x - 0.085, y - 0.095, x + 0.085, y + 0.095, (246, 238, 222))
    brush.oval(x, y, 0.05, 0.055, _vary(rng, float(rng.random()), 0.6, 0.75))


def _window(brush: Brush, x: float) -> None:
    brush.rect(x - 0.14, 0.03, x + 0.14, 0.40, (252, 252, 250))
    for pane in (x - 0.125, x + 0.01):
        brush.rect(pane, 0.05, pane + 0.115, 0.20, (150, 208, 246))
        brush.rect(pane, 0.22, pane + 0.115, 0.38, (186, 226, 248))


# -- city ------------------------------------------------------------------------------------------


def _city(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas, mirrored=_coin(rng))
    brush.gradient(0, 0.70, _vary(rng, 0.68, 0.55, 0.52), _vary(rng, 0.05, 0.50, 0.98))
    left = float(rng.uniform(-0.08, 0.0))
    while left < 1.0:
        width = float(rng.uniform(0.14, 0.20))
        middle = 1.0 - min(1.0, abs(left + width / 2 - 0.5) / 0.45)
        top = 0.04 + 0.30 * middle + float(rng.uniform(0.0, 0.14))
        _high_rise(brush, rng, left, top, width - 0.012)
        left += width
    brush.rect(0, 0.70, 1, 0.75, (172, 170, 176))
    brush.gradient(0.75, 1, (84, 84, 94), (100, 100, 110))
    for x in np.arange(float(rng.uniform(-0.2, 0.0)), 1.0, 0.3):
        brush.rect(float(x), 0.945, float(x) + 0.16, 0.97, (250, 226, 120))
    return 0.90


def _high_rise(
    brush: Brush, rng: np.random.Generator, left: float, top: float, width: float
) -> None:
    color = _vary(rng, 0.62, 0.32, float(rng.uniform(0.26, 0.44)))
    brush.rect(left, top, left + width, 0.70, color)
    columns = 3
    pitch = width / columns
    lit = rng.random((columns, 9)) < 0.72
    for row in range(9):
        y = top + 0.03 + row * 0.07
        if y > 0.62:
            break
        for column in range(columns):
            x = left + (column + 0.24) * pitch
            pane = (255, 222, 110) if lit[column, row] else shade(color, 0.7)
            brush.rect(x, y, x + 0.55 * pitch, y + 0.038, pane)


# -- mountain --------------------------------------------------------------------------------------


def _mountain(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas, mirrored=_coin(rng))
    brush.gradient(0, 0.64, _vary(rng, 0.585, 0.72, 0.88), _vary(rng, 0.56, 0.25, 0.97))
    rock = _vary(rng, 0.66, 0.24, 0.50)
    _peak(brush, 0.52, float(rng.uniform(0.26, 0.34)), 0.42, shade(rock, 1.25))
    _peak(brush, float(rng.uniform(0.80, 0.90)), float(rng.uniform(0.12, 0.2)), 0.40, rock)
    _peak(brush, float(rng.uniform(0.10, 0.20)), float(rng.uniform(0.02, 0.1)), 0.44, rock)
    brush.gradient(0.64, 1, _vary(rng, 0.27, 0.62, 0.72), _vary(rng, 0.30, 0.68, 0.55))
    flower = hsv(float(rng.choice([0.0, 0.12, 0.88])), 0.25, 1.0)
    for x, y in rng.random((14, 2)):
        brush.oval(float(x), 0.70 + 0.28 * float(y), 0.011, 0.011, flower)
    return 0.90


def _peak(brush: Brush, x: float, top: float, half_width: float, color: RGB) -> None:
    base = 0.66

    def at(share: float, down: float) -> Point:
        return x + share * half_width * down, top + (base - top) * down

    brush.poly([at(0, 0), at(-1, 1), at(1, 1)], color)
    brush.poly([at(0, 0), at(0.12, 1), at(1, 1)], shade(color, 0.72))
    snow = [at(0, 0), at(-1, 0.36), at(-0.5, 0.30), at(-0.1, 0.44), at(0.4, 0.29), at(1, 0.38)]
    brush.poly(snow, (250, 252, 255))
    brush.poly([at(0, 0), at(0.05, 0.36), at(0.4, 0.29), at(1, 0.38)], (206, 218, 238))


# -- sunflowers ------------------------------------------------------------------------------------


def _sunflowers(canvas: Canvas, rng: np.random.Generator) -> float:
    brush = Brush(canvas)
    horizon = float(rng.uniform(0.26, 0.34))
    brush.gradient(0, horizon, _vary(rng, 0.56, 0.50, 0.92), _vary(rng, 0.54, 0.18, 0.98))
    brush.gradient(horizon, 1, (92, 146, 48), (48, 98, 30))
    for row in range(5):
        y, size = horizon + 0.02 + 0.085 * row, 0.028 + 0.009 * row
        count = 11 - row
        for i, jitter in enumerate(rng.uniform(-0.3, 0.3, (count, 2))):
            x = (i + 0.5 * (row % 2) + float(jitter[0])) / (count - 1)
            brush.oval(x, y + float(jitter[1]) * 0.05, size, size * 0.92, (246, 194, 20))
            brush.oval(x, y + float(jitter[1]) * 0.05, size * 0.45, size * 0.42, (92, 52, 20))
    for x in (0.08, 0.92):
        _sunflower(brush, x + float(rng.uniform(-0.04, 0.05)), float(rng.uniform(0.24, 0.40)), 0.12)
    return 0.91


def _sunflower(brush: Brush, x: float, y: float, radius: float) -> None:
    brush.line([(x, y), (x, 1.0)], 0.026, (50, 112, 36))
    brush.leaf((x, y + 0.30), 0.13, 0.07, -25 if x < 0.5 else -155, (66, 138, 46))
    petals = []
    for i in range(24):
        reach, angle = radius * (1.0, 0.72)[i % 2], i * math.pi / 12
        petals.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    brush.poly(petals, (255, 208, 24))
    brush.oval(x, y, radius * 0.46, radius * 0.46, (88, 48, 18))


def _front_sunflowers(canvas: Canvas, rng: np.random.Generator) -> None:
    brush = Brush(canvas, covers=True)
    for x in (0.05, 0.95):
        x += float(rng.uniform(-0.04, 0.04))
        _sunflower(brush, x, float(rng.uniform(0.80, 0.88)), 0.10)


_ALL = (
    Scene("plain", "on a plain background", _plain),
    Scene("snow", "in the snow", _snow, _snow_heap),
    Scene("beach", "on the beach", _beach, _starfish),
    Scene("jungle", "in the jungle", _jungle, _jungle_leaves),
    Scene("eiffel_tower", "with the Eiffel Tower in the background", _eiffel),
    Scene("cobblestone", "on a cobblestone street", _cobblestone),
    Scene("wooden_floor", "on a wooden floor", _wooden_floor),
    Scene("city", "with a city in the background", _city),
    Scene("mountain", "with a mountain in the background", _mountain),
    Scene("sunflowers", "in a field of sunflowers", _sunflowers, _front_sunflowers),
)

SCENES: Mapping[str, Scene] = MappingProxyType({scene.name: scene for scene in _ALL})
