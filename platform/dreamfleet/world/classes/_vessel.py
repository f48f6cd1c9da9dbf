"""What vessels share: bodies of revolution, glazes, markings, ribbons, cracks, shards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dreamfleet.world.canvas import RGB, Canvas, Paint, Pen, Point, Texture, shade, smooth
from dreamfleet.world.classes._kit import INK, RED, WHITE, pick, sample_colours
from dreamfleet.world.palette import material_texture
from dreamfleet.world.spec import Traits

Loop = list[tuple[float, float]]  # points on a surface: angle in degrees, height

MATERIALS = ("golden", "crystal", "wooden")
PATTERNS = ("plain", "striped", "spotted", "checkered")
OUTLINE = 0.045

# Per material: second tone, markings in relief, outline, the dark inside.
_RELIEFS: dict[str, tuple[RGB, RGB, RGB, RGB]] = {
    "golden": ((236, 180, 40), (170, 104, 4), (88, 52, 0), (96, 58, 4)),
    "crystal": ((186, 230, 248), (92, 168, 214), (44, 104, 150), (120, 184, 214)),
    "wooden": ((122, 72, 34), (72, 40, 16), (50, 26, 10), (54, 30, 14)),
}


@dataclass(frozen=True)
class Glaze:
    """The paints of one vessel in one state; only `main` may be a material."""

    main: Paint
    second: RGB
    mark: RGB
    accent: RGB
    line: RGB
    inside: RGB
    light: RGB  # the glaze where light falls on it
    shine: bool  # gold and crystal glint


@dataclass(frozen=True)
class Turned:
    """A body of revolution seen slightly from above; above the jagged line `cut` it is gone."""

    profile: tuple[tuple[float, float], ...]  # (y, radius) from the top down
    sag: float = 0.14  # how far a ring's front hangs below its ends, per radius
    cut: tuple[Point, ...] = ()

    @property
    def top(self) -> float:
        """Height of the upper rim."""
        return self.profile[0][0]

    @property
    def bottom(self) -> float:
        """Height of the lower edge."""
        return self.profile[-1][0]

    @property
    def breadth(self) -> float:
        """Side of a square as large as the silhouette: what fine additions are measured in."""
        heights, radii = zip(*self.profile, strict=True)
        return float(np.sqrt(np.trapezoid(2 * np.asarray(radii), heights)))

    def height_at(self, share: float) -> float:
        """The height `share` of the way from the top to the bottom."""
        return self.top + share * (self.bottom - self.top)

    def radius(self, y: float) -> float:
        """Radius at height `y`."""
        heights, radii = zip(*self.profile, strict=True)
        return float(np.interp(y, heights, radii))

    def at(self, angle_deg: float, y: float) -> Point:
        """The point of the front surface at `angle_deg` (0 faces the viewer) and height `y`."""
        return self.trace([(angle_deg, y)])[0]

    def trace(self, loop: Sequence[tuple[float, float]]) -> list[Point]:
        """The points of the front surface at (angle, height) pairs, held below the `cut`."""
        angles, y = np.asarray(loop, dtype=float).T
        u = np.radians(np.clip(angles, -90, 90))
        heights, radii = zip(*self.profile, strict=True)
        r = np.interp(y, heights, radii)
        xs, ys = r * np.sin(u), y + self.sag * r * np.cos(u)
        if self.cut:
            cut_x, cut_y = zip(*self.cut, strict=True)
            floor = np.minimum(np.interp(xs, cut_x, cut_y), self.bottom)
            width = np.interp(floor, heights, radii)  # held points stay inside the silhouette
            xs = np.where(ys < floor, np.clip(xs, -width, width), xs)
            ys = np.maximum(ys, floor)
        return list(zip(xs.tolist(), ys.tolist(), strict=True))

    def patch(self, left: float, right: float, top: float, bottom: float) -> list[Point]:
        """The outline of a surface patch between two angles and two heights."""
        return self.trace(patch_loop(left, right, top, bottom, 6 if self.cut else 10))

    def outline(self) -> list[Point]:
        """The outline of the whole front surface."""
        return self.patch(-90, 90, self.top, self.bottom)

    def broken(self, cut: Sequence[Point]) -> Turned:
        """What is left of it below the jagged line `cut` (x ascending)."""
        return replace(self, cut=tuple(cut))


def patch_loop(left: float, right: float, top: float, bottom: float, step: float = 10) -> Loop:
    """A patch as (angle, height) pairs, with enough of them to follow the surface."""
    across = np.linspace(left, right, max(2, round((right - left) / step))).tolist()
    down = np.linspace(top, bottom, max(2, round((bottom - top) / 0.06))).tolist()
    loop = [(u, top) for u in across] + [(right, y) for y in down[1:]]
    return loop + [(u, bottom) for u in across[::-1][1:]] + [(left, y) for y in down[::-1][1:-1]]


def turned(knots: Sequence[tuple[float, float]], sag: float = 0.14) -> Turned:
    """A smooth body through (y, radius) `knots` from the top down."""
    curve = smooth(knots, steps=4)
    heights = np.maximum.accumulate([y for y, _ in curve]).tolist()
    radii = [max(0.02, r) for _, r in curve]
    return Turned(tuple(zip(heights, radii, strict=True)), sag)


def stretched(
    shares: Sequence[tuple[float, float]],
    top: float,
    bottom: float,
    width: float,
    sag: float = 0.14,
) -> Turned:
    """A body from a shape given in shares of height and `width`."""
    return turned([(top + s * (bottom - top), r * width) for s, r in shares], sag)


def sample_glaze(rng: np.random.Generator) -> dict[str, Any]:
    """Colours, pattern, how the marks are set, and the band: traits that every vessel has."""
    traits = sample_colours(rng, neutrals=((246, 244, 238),))
    traits["pattern"] = pick(rng, PATTERNS)
    traits["mark_layout"] = int(rng.integers(3))
    traits["mark_count"] = int(rng.integers(6, 10))
    traits["mark_phase"] = float(rng.uniform(0, 1))
    traits["band_place"] = float(rng.choice((0.0, 0.5, 1.0)))
    traits["band_width"] = float(rng.uniform(0.08, 0.13))
    return traits


def glaze(pen: Pen, traits: Traits, state: str) -> Glaze:
    """The identity's own colours, or a material with markings in relief and the same band."""
    main, accent = traits["colour"], traits["accent"]
    if state not in MATERIALS:
        line = shade(main, 0.36)
        second, inside, light = traits["second"], shade(main, 0.3), shade(main, 1.4)
        return Glaze(main, second, second, accent, line, inside, light, False)
    second, mark, line, inside = _RELIEFS[state]
    texture = _material(pen.canvas, state, main)
    mark = mixed(mark, traits["second"], 0.12)
    light = shade(second, 1.45)
    return Glaze(texture, second, mark, accent, line, inside, light, state != "wooden")


def _material(canvas: Canvas, kind: str, base: RGB) -> Texture:
    """The material, computed at half size for speed; gold is brightened to tell it from wood."""
    small = Canvas(canvas.size_px // 2)
    texture = material_texture(small, kind, base)
    image = texture.image.resize(canvas.image.size, Image.Resampling.NEAREST)
    if kind == "golden":
        image = Image.blend(image, Image.new("RGB", image.size, (255, 208, 44)), 0.42)
    return Texture(image, texture.opacity)


def mixed(a: RGB, b: RGB, share: float) -> RGB:
    """Colour `a` with `share` of `b` in it."""
    red, green, blue = (round(p + (q - p) * share) for p, q in zip(a, b, strict=True))
    return red, green, blue


# -- bodies ----------------------------------------------------------------------------------------


def draw_body(pen: Pen, body: Turned, paint: Glaze, traits: Traits, turn: float = 0.0) -> None:
    """The front of a body with markings, band and light, turned by `turn` degrees."""
    line = shade(paint.line, 0.8) if body.cut else paint.line
    outline = body.outline()
    pen.polygon(outline, paint.main, "body")
    for loop in marks(body, traits, turn):
        pen.polygon(body.trace(loop), paint.mark, "body")
    place = body.height_at(0.2 + 0.6 * traits["band_place"])
    width = traits["band_width"]
    pen.polygon(body.patch(-90, 90, place - width / 2, place + width / 2), paint.accent, "body")
    _light(pen, body)
    edge(pen, outline, line)
    if paint.shine and not body.cut:
        glint(pen, body.at(-42, body.height_at(0.34)), 0.17)


def draw_broken_body(
    pen: Pen, body: Turned, cut: Sequence[Point], paint: Glaze, traits: Traits, turn: float = 0.0
) -> None:
    """What is left of a body: the dark far wall, then the near wall below the jagged `cut`."""
    far = body.broken([(-x * 0.9, y - 0.1) for x, y in reversed(cut)])
    pen.polygon(far.outline(), paint.inside, "body", outline=paint.line, outline_width=OUTLINE)
    draw_body(pen, body.broken(cut), paint, traits, turn)


def jagged(left: Point, right: Point, teeth: int, depth: float) -> list[Point]:
    """A saw-toothed line from `left` to `right`."""
    points = []
    for i in range(2 * teeth + 1):
        t = i / (2 * teeth)
        y = left[1] + t * (right[1] - left[1])
        swing = depth * (0.7 + 0.3 * math.cos(5.0 * i))
        points.append((left[0] + t * (right[0] - left[0]), y + (swing if i % 2 else -swing)))
    return points


def edge(pen: Pen, loop: Sequence[Point], color: RGB, width: float = OUTLINE) -> None:
    """The outline of a shape that is filled already."""
    pixels = [pen.to_canvas(p) for p in loop]
    draw = ImageDraw.Draw(pen.canvas.image)
    draw.line([*pixels, *pixels[:2]], fill=color, width=round(pen.length_px(width)), joint="curve")


def _light(pen: Pen, body: Turned) -> None:
    """A shadow down the right and a highlight down the left; both let the glaze show."""
    size = pen.canvas.image.size
    top, bottom = body.height_at(0.02), body.height_at(0.98)
    dark = Texture(Image.new("RGB", size, (20, 12, 40)), opacity=0.24)
    pen.polygon(body.patch(40, 90, top, bottom), dark, "body")
    light = Texture(Image.new("RGB", size, (255, 255, 255)), opacity=0.45)
    pen.polygon(body.patch(-58, -38, body.height_at(0.14), body.height_at(0.72)), light, "body")


# -- markings --------------------------------------------------------------------------------------


def marks(body: Turned, traits: Traits, turn: float = 0.0) -> list[Loop]:
    """Loops on the surface for the identity's pattern; only those on the visible half."""
    phase = traits["mark_phase"] * 360 + turn
    loops: list[Loop] = []
    if traits["pattern"] == "striped":
        loops = _stripes(body, traits["mark_layout"], traits["mark_count"], phase)
    elif traits["pattern"] == "spotted":
        loops = _spots(body, traits["mark_layout"], traits["mark_count"], phase)
    elif traits["pattern"] == "checkered":
        loops = _checks(body, traits["mark_layout"], traits["mark_count"], phase)
    return loops


def _turned_to(angle: float) -> float:
    return (angle + 180) % 360 - 180


def _stripes(body: Turned, layout: int, count: int, phase: float) -> list[Loop]:
    top, bottom = body.height_at(0.04), body.height_at(0.97)
    if layout == 1:
        rings = 2 if count < 8 else 3
        width = (bottom - top) / (2 * rings + 1)
        tops = [top + (2 * i + 1) * width for i in range(rings)]
        return [patch_loop(-90, 90, y, y + width) for y in tops]
    half, twist = 180 / count * 0.48, (0.0, 0.0, 70.0)[layout]
    loops = []
    for i in range(count):
        center = _turned_to(phase + i * 360 / count)
        if abs(center) < 90 + half + twist:
            slant = twist / (bottom - top)
            box = patch_loop(center - half, center + half, top, bottom)
            loops.append([(u + slant * (y - (top + bottom) / 2), y) for u, y in box])
    return loops


def _spots(body: Turned, layout: int, count: int, phase: float) -> list[Loop]:
    rows: tuple[tuple[float, float], ...] = (
        ((0.3, 0.11), (0.68, 0.11)),
        ((0.5, 0.17),),
        ((0.24, 0.08), (0.5, 0.13), (0.76, 0.08)),
    )[layout]
    around = (count, 6, count)[layout]
    loops = []
    for row, (share, size) in enumerate(rows):
        y = body.height_at(share)
        half = math.degrees(size / max(body.radius(y), 0.2))
        for i in range(around):
            center = _turned_to(phase + (i + 0.5 * (row % 2)) * 360 / around)
            if abs(center) < 90 + 0.6 * half:
                loops.append(_disc(center, y, half, size))
    return loops


def _disc(center: float, y: float, half: float, size: float) -> Loop:
    steps = [2 * math.pi * i / 14 for i in range(14)]
    return [(center + half * math.cos(t), y + size * math.sin(t)) for t in steps]


def _checks(body: Turned, layout: int, count: int, phase: float) -> list[Loop]:
    low, high, rows = ((0.34, 0.72, 2), (0.06, 0.96, 4), (0.55, 0.96, 2))[layout]
    top, step = body.height_at(low), (body.height_at(high) - body.height_at(low)) / rows
    half = 90 / count
    loops = []
    for i in range(2 * count):
        center = _turned_to(phase + i * 180 / count)
        if abs(center) < 90 + half:
            for row in range(i % 2, rows, 2):
                y = top + row * step
                loops.append(patch_loop(center - half, center + half, y, y + step))
    return loops


# -- additions and damage --------------------------------------------------------------------------


def tube(center: Sequence[Point], widths: Sequence[float]) -> list[Point]:
    """The outline of a curve of varying width (spouts, steam); `center` is smoothed."""
    curve = smooth(center)
    at = np.linspace(0, len(widths) - 1, len(curve))
    halves = np.interp(at, range(len(widths)), widths) / 2
    left, right = [], []
    for i, (x, y) in enumerate(curve):
        before, after = curve[max(0, i - 1)], curve[min(len(curve) - 1, i + 1)]
        dx, dy = after[0] - before[0], after[1] - before[1]
        norm = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / norm * float(halves[i]), dx / norm * float(halves[i])
        left.append((x + nx, y + ny))
        right.append((x - nx, y - ny))
    return left + right[::-1]


def plume(
    pen: Pen, foot: Point, height: float, width: float, fill: RGB, rim: RGB, part: str
) -> None:
    """A winding curl of steam or smoke that rises from `foot`."""
    x, y = foot
    sway = 0.8 * width
    center = [
        (x, y),
        (x + 0.7 * sway, y - 0.25 * height),
        (x - 0.5 * sway, y - 0.55 * height),
        (x + 0.8 * sway, y - 0.85 * height),
        (x + 0.2 * sway, y - height),
    ]
    widths = (0.35 * width, 0.8 * width, width, 0.9 * width, 0.3 * width)
    pen.polygon(tube(center, [w + 0.075 for w in widths]), rim, part)
    pen.polygon(tube(center, widths), fill, part)


def ribbon(pen: Pen, body: Turned, y: float, size: float, strip: float = 0.0) -> None:
    """A bright red bow in front of the body at height `y`, tied to a strip of width `strip`."""
    if strip > 0:
        pen.polygon(body.patch(-90, 90, y - strip / 2, y + strip / 2), RED, "ribbon")
    x, y = body.at(0, y)
    pieces: list[list[Point]] = []
    for s in (-1.0, 1.0):
        tail = [(0.0, 0.0), (0.62 * s, 0.8), (0.18 * s, 0.95)]
        loop = [(0.0, 0.16), (0.0, -0.16), (s, -0.52), (s, 0.46)]
        pieces += [[(x + size * u, y + size * v) for u, v in piece] for piece in (tail, loop)]
    for piece in pieces:
        pen.polygon(piece, WHITE, "ribbon", outline=WHITE, outline_width=0.055)
    for piece in pieces:
        pen.polygon(piece, RED, "ribbon")
    pen.ellipse((x, y), 0.2 * size, 0.24 * size, (120, 4, 18), "ribbon")


def cracks(
    pen: Pen, body: Turned, base: RGB, shares: tuple[float, float], reach: float, width: float
) -> None:
    """A forked zig-zag crack between two shares of the height, `reach` times as wide as usual."""
    top, bottom = (body.height_at(share) for share in shares)
    width *= body.breadth
    trunk = [(-10, 0.0), (24, 0.3), (-20, 0.6), (12, 1.0)]
    fork = [(24, 0.3), (52, 0.5)]
    strokes = [(INK, width, 0.0)]
    if 0.3 * base[0] + 0.59 * base[1] + 0.11 * base[2] < 72:  # on dark glaze a pale edge shows it
        strokes = [((255, 255, 255), 0.6 * width, 0.6 * width), (INK, 0.8 * width, 0.0)]
    for color, thick, shift in strokes:
        for branch in (trunk, fork):
            points = [body.at(reach * u, top + t * (bottom - top)) for u, t in branch]
            points = [(x + shift, y) for x, y in points]
            for a, b in pairwise(points):
                pen.stroke([a, b], thick, color, "crack")


def shards(pen: Pen, places: Sequence[tuple[float, float, float]], paint: Glaze) -> None:
    """Pieces on the ground at (x, size, turn in degrees)."""
    for i, (x, size, turn) in enumerate(places):
        corners = ((-1.0, 0.1), (-0.2, -0.9), (0.6, -0.5), (1.0, 0.3), (0.1, 0.6))
        a = math.radians(turn)
        points = [
            (u * math.cos(a) - v * math.sin(a), 0.7 * (u * math.sin(a) + v * math.cos(a)))
            for u, v in corners
        ]
        low = max(v for _, v in points)
        loop = [(x + size * u, 1.02 + size * (v - low)) for u, v in points]
        fill = paint.mark if i % 3 == 2 else paint.main
        pen.polygon(loop, fill, "shard", outline=paint.line, outline_width=0.04)


def glint(pen: Pen, at: Point, size: float) -> None:
    """A four-pointed white sparkle."""
    loop = []
    for i in range(8):
        r = size if i % 2 == 0 else 0.22 * size
        t = math.pi * i / 4
        loop.append((at[0] + r * math.sin(t), at[1] - r * math.cos(t)))
    pen.polygon(loop, (255, 255, 255), "body")
