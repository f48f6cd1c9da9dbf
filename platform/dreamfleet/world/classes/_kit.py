"""What man-made subjects share: colour draws, coats of paint, markings, flames, flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ImageDraw

from dreamfleet.world.canvas import RGB, Paint, Pen, Point, shade, smooth
from dreamfleet.world.palette import colour_name, hsv, material_texture
from dreamfleet.world.spec import Traits

Box = tuple[float, float, float, float]  # x0, y0, x1, y1

INK: RGB = (38, 32, 44)
WHITE: RGB = (250, 250, 246)
RED: RGB = (228, 26, 38)
YELLOW: RGB = (255, 222, 40)

# Hue ranges in degrees, one per colour word; gold-like hues are left to the golden state.
_HUE_BANDS = ((-12, 14), (20, 36), (54, 66), (80, 155), (180, 250), (260, 296), (304, 336))

# Per material: second tone, tone of the markings in relief, outline.
_RELIEFS: dict[str, tuple[RGB, RGB, RGB]] = {
    "golden": ((206, 150, 30), (128, 80, 4), (84, 50, 0)),
    "metal": ((166, 172, 182), (92, 98, 112), (48, 52, 62)),
    "wooden": ((128, 78, 38), (78, 44, 18), (52, 28, 10)),
}


@dataclass(frozen=True)
class Coat:
    """The paints of one subject in one state; only `main` may be a material."""

    main: Paint
    side: RGB  # the main colour on a face turned away from the light
    second: RGB
    mark: RGB
    accent: RGB
    line: RGB


def coat(pen: Pen, traits: Traits, state: str) -> Coat:
    """The identity's own colours, or a material with its markings in relief."""
    if state not in _RELIEFS:
        main, second = traits["colour"], traits["second"]
        line = shade(main, 0.38) if sum(main) > 150 else (96, 96, 104)
        return Coat(main, shade(main, 0.68), second, second, traits["accent"], line)
    second, mark, line = _RELIEFS[state]
    texture = material_texture(pen.canvas, state, traits["colour"])
    return Coat(texture, shade(second, 0.8), second, mark, traits["accent"], line)


def sample_colours(rng: np.random.Generator, neutrals: Sequence[RGB] = ()) -> dict[str, Any]:
    """Main, second and accent colour, far apart; the main one is sometimes one of `neutrals`."""
    band = int(rng.integers(len(_HUE_BANDS)))
    low, high = _HUE_BANDS[band]
    hue = float(rng.uniform(low, high)) / 360
    dimmest = 0.92 if band == 1 else 0.72  # a dim orange would look wooden
    main = hsv(hue, float(rng.uniform(0.72, 0.98)), float(rng.uniform(dimmest, 0.98)))
    neutral = rng.random() < 0.05 * len(neutrals)
    if neutral:
        main = neutrals[int(rng.integers(len(neutrals)))]
    way = 1 if rng.random() < 0.5 else -1
    second_hue = hue + way * float(rng.uniform(0.22, 0.42))
    tones = (
        hsv(second_hue, float(rng.uniform(0.6, 0.95)), float(rng.uniform(0.85, 1.0))),
        hsv(second_hue, float(rng.uniform(0.6, 0.9)), float(rng.uniform(0.28, 0.45))),
        (250, 244, 226),
    )
    second = tones[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    if sum(second) > 680 and sum(main) > 600:
        second = tones[1]
    elif sum(second) < 330 and sum(main) < 300:
        second = tones[0]
    accent_hue = hue - way * float(rng.uniform(0.22, 0.42))
    accent = hsv(accent_hue, 0.85, float(rng.uniform(0.85, 1.0)))
    return {
        "colour": main,
        "colour_name": colour_name(main),
        "second": second,
        "accent": accent,
    }


def pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of `options`."""
    return options[int(rng.integers(len(options)))]


def rect(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    """Corners of a box."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def rounded(x0: float, y0: float, x1: float, y1: float, radius: float) -> list[Point]:
    """A box with round corners."""
    r = min(radius, (x1 - x0) / 2, (y1 - y0) / 2)
    left, right, top, low = x0 + r, x1 - r, y0 + r, y1 - r
    corners = ((right, top, -90), (right, low, 0), (left, low, 90), (left, top, 180))
    points = []
    for x, y, start in corners:
        for step in range(5):
            t = math.radians(start + 22.5 * step)
            points.append((x + r * math.cos(t), y + r * math.sin(t)))
    return points


def edge(pen: Pen, points: Sequence[Point], color: RGB, width: float = 0.03) -> None:
    """A closed line without a filling, over markings that touch the rim."""
    pixels = [pen.to_canvas(point) for point in points]
    draw = ImageDraw.Draw(pen.canvas.image)
    width_px = max(1, round(pen.length_px(width)))
    draw.line([*pixels, pixels[0], pixels[1]], fill=color, width=width_px, joint="curve")


def star(center: Point, radius: float, points: int = 5, inner: float = 0.42) -> list[Point]:
    """A star standing on two of its points."""
    corners = []
    for i in range(2 * points):
        r = radius if i % 2 == 0 else radius * inner
        t = math.pi * i / points - math.pi / 2
        corners.append((center[0] + r * math.cos(t), center[1] + r * math.sin(t)))
    return corners


def marks(
    pen: Pen,
    box: Box,
    pattern: str,
    layout: int,
    color: RGB,
    part: str,
    within: Sequence[str] | None = None,
) -> None:
    """A pattern inside `box`; `layout` (0, 1, 2) is the identity's own way of setting it."""
    if pattern == "striped":
        _stripes(pen, box, layout, color, part, within)
    elif pattern == "spotted":
        _spots(pen, box, layout, color, part, within)
    elif pattern == "checkered":
        _checks(pen, box, layout, color, part, within)


def _stripes(
    pen: Pen, box: Box, layout: int, color: RGB, part: str, within: Sequence[str] | None
) -> None:
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    bars = (
        (rect(x0, y0 + 0.12 * h, x1, y0 + 0.36 * h), rect(x0, y0 + 0.62 * h, x1, y0 + 0.86 * h)),
        tuple(rect(x0 + s * w, y0, x0 + (s + 0.16) * w, y1) for s in (0.08, 0.42, 0.76)),
        (rect(x0, y0 + 0.4 * h, x1, y0 + 0.85 * h),),
    )[layout]
    for bar in bars:
        pen.polygon(bar, color, part, within=within)


def _spots(
    pen: Pen, box: Box, layout: int, color: RGB, part: str, within: Sequence[str] | None
) -> None:
    x0, y0, x1, y1 = box
    places = (
        ((0.22, 0.28), (0.76, 0.3), (0.3, 0.76), (0.8, 0.74)),
        ((0.15, 0.2), (0.5, 0.22), (0.85, 0.2), (0.15, 0.8), (0.5, 0.78), (0.85, 0.8)),
        ((0.16, 0.62), (0.5, 0.62), (0.84, 0.62)),
    )[layout]
    share = (0.14, 0.11, 0.15)[layout]
    radius = share * min(1.5 * (y1 - y0), x1 - x0, 0.9)
    for u, v in places:
        center = (x0 + u * (x1 - x0), y0 + v * (y1 - y0))
        pen.ellipse(center, radius, radius, color, part, within=within)


def _checks(
    pen: Pen, box: Box, layout: int, color: RGB, part: str, within: Sequence[str] | None
) -> None:
    x0, y0, x1, y1 = box
    columns = 4 if x1 - x0 < 1.2 else 7
    low, high = ((0.25, 0.75), (0.0, 1.0), (0.5, 1.0))[layout]
    w, h = (x1 - x0) / columns, (y1 - y0) * (high - low) / 2
    top = y0 + low * (y1 - y0)
    for i in range(columns):
        y = top + (i % 2) * h
        pen.polygon(rect(x0 + i * w, y, x0 + (i + 1) * w, y + h), color, part, within=within)


def flame(pen: Pen, base: Point, width: float, height: float, lean: float = 0.0) -> None:
    """One tongue of fire standing on `base`: red, orange and yellow inside one another."""
    layers = (((214, 34, 12), 1.0), ((255, 128, 0), 0.74), ((255, 232, 64), 0.44))
    for color, size in layers:
        w, h = width * size / 2, height * size
        x, y = base
        outline = [
            (x - 0.75 * w, y), (x - w, y - 0.3 * h), (x - 0.5 * w + 0.4 * lean, y - 0.62 * h),
            (x + lean, y - h), (x + 0.5 * w + 0.4 * lean, y - 0.55 * h), (x + w, y - 0.28 * h),
            (x + 0.75 * w, y),
        ]  # fmt: skip
        pen.polygon(smooth(outline), color, "flames")


def flag(pen: Pen, foot: Point, height: float, width: float, cloth: float) -> None:
    """A red flag with a white bar on a pole; `cloth` is its height."""
    x, y = foot
    top = y - height
    pen.stroke([foot, (x, top)], 0.05, INK, "flag")
    end = x + width
    notch = (end - 0.05, top + cloth / 2)
    wave = [(x, top), (end, top + 0.05), notch, (end, top + cloth), (x, top + cloth)]
    pen.polygon(wave, RED, "flag", outline=(120, 6, 16), outline_width=0.025)
    pen.polygon(rect(x, top + 0.38 * cloth, end - 0.06, top + 0.66 * cloth), WHITE, "flag")
