"""A little wooden kennel: its gable with the door to the right, the side wall to the left."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Paint, Pen, Point
from dreamfleet.world.classes._kit import (
    INK,
    RED,
    WHITE,
    Coat,
    coat,
    edge,
    flag,
    flame,
    marks,
    pick,
    rect,
    rounded,
    sample_colours,
    star,
)
from dreamfleet.world.spec import State, Traits, WorldClass

_DARK: RGB = (30, 22, 26)
_SNOW: RGB = (250, 252, 255)
_SNOW_SHADE: RGB = (188, 210, 236)
_PLANK: RGB = (170, 118, 66)
_GROUND = 0.98


@dataclass(frozen=True)
class _Build:
    """Corners of one kennel in its frame."""

    left: float  # of the side wall
    corner: float  # between side wall and gable
    right: float
    eaves: float
    ridge: float

    @property
    def middle(self) -> float:
        """Centre line of the gable."""
        return (self.corner + self.right) / 2

    @property
    def depth(self) -> float:
        """How long the side wall looks."""
        return self.corner - self.left


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One kennel: colours, proportions, the cut of door, roof and window, the sign on the gable."""
    traits = sample_colours(rng, neutrals=((188, 134, 84), (246, 242, 232), (140, 92, 56)))
    traits["pattern"] = pick(rng, ("plain", "striped", "spotted", "checkered"))
    traits["mark_layout"] = int(rng.integers(3))
    traits["door"] = pick(rng, ("arch", "round", "square"))
    traits["window"] = pick(rng, ("none", "round", "square"))
    traits["sign"] = pick(rng, ("none", "bone", "star", "dot"))
    traits["roof_slats"] = int(rng.integers(0, 4))
    traits["gable_width"] = float(rng.uniform(1.02, 1.28))
    traits["depth"] = float(rng.uniform(0.46, 0.66))
    traits["pitch"] = float(rng.uniform(0.52, 0.84))
    traits["eaves"] = float(rng.uniform(-0.02, 0.16))
    return traits


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw walls, door and roof, then what the state adds."""
    paint = coat(pen, traits, state)
    build = _build(traits)
    if state == "flag":
        flag(pen, (build.middle - 0.3, build.ridge + 0.04), 0.5, 0.46, 0.32)
    _walls(pen, traits, paint, build)
    _door(pen, traits, paint, build, state)
    _window_and_sign(pen, traits, paint, build)
    if state == "broken":
        _broken_roof(pen, traits, paint, build)
        _planks(pen)
    else:
        _roof(pen, traits, paint, build)
    if state == "snowy":
        _snow(pen, build)
    elif state == "burning":
        _fire(pen, build)
    elif state == "lamp":
        _lamp(pen, build)
    elif state == "wreath":
        _wreath(pen, paint, build)


def _build(traits: Traits) -> _Build:
    gable, depth = traits["gable_width"], traits["depth"]
    left = -(gable + depth) / 2
    eaves = traits["eaves"]
    return _Build(left, left + depth, left + depth + gable, eaves, eaves - traits["pitch"])


def _walls(pen: Pen, traits: Traits, paint: Coat, build: _Build) -> None:
    side = rect(build.left, build.eaves - 0.02, build.corner, _GROUND)
    gable = [(build.corner, build.eaves), (build.middle, build.ridge), (build.right, build.eaves),
             (build.right, _GROUND), (build.corner, _GROUND)]  # fmt: skip
    pen.polygon(side, paint.side, "walls")
    pen.polygon(gable, paint.main, "walls")
    box = (build.corner + 0.03, build.eaves + 0.04, build.right - 0.03, _GROUND - 0.04)
    marks(pen, box, traits["pattern"], traits["mark_layout"], paint.mark, "walls")
    if traits["pattern"] == "striped":
        box = (build.left + 0.03, box[1], build.corner - 0.03, box[3])
        marks(pen, box, "striped", traits["mark_layout"], paint.mark, "walls")
    edge(pen, side, paint.line, 0.04)
    edge(pen, gable, paint.line, 0.04)


def _door(pen: Pen, traits: Traits, paint: Coat, build: _Build, state: str) -> None:
    """The dark opening with its frame in the accent colour."""
    x, half = build.middle, 0.26
    top = build.eaves + 0.18
    for grow, color in ((0.075, paint.accent), (0.0, _DARK)):
        w = half + grow
        if traits["door"] == "round":
            mid = (top + _GROUND) / 2
            shape = rounded(x - w - 0.04, top - grow, x + w + 0.04, 2 * mid - top - 0.1 + grow, 0.5)
        elif traits["door"] == "square":
            shape = rect(x - w, top - grow, x + w, _GROUND)
        else:
            arch = rounded(x - w, top - grow, x + w, _GROUND + w, w)
            shape = [(px, min(py, _GROUND)) for px, py in arch]
        pen.polygon(shape, color, "door")
    if state == "burning":
        flame(pen, (x, _GROUND - 0.02), 0.46, 0.56)


def _window_and_sign(pen: Pen, traits: Traits, paint: Coat, build: _Build) -> None:
    center = ((build.left + build.corner) / 2, (build.eaves + _GROUND) / 2 - 0.04)
    if traits["window"] == "round":
        pen.ellipse(center, 0.15, 0.16, (170, 220, 240), "windows", outline=INK, outline_width=0.05)
    elif traits["window"] == "square":
        x, y = center
        pane = rect(x - 0.15, y - 0.15, x + 0.15, y + 0.15)
        pen.polygon(pane, (170, 220, 240), "windows", outline=INK, outline_width=0.05)
    x, y = build.middle, build.eaves - 0.12
    if traits["sign"] == "bone":
        pen.stroke([(x - 0.12, y), (x + 0.12, y)], 0.09, WHITE, "sign")
        for sign in (-1, 1):
            for dy in (-0.05, 0.05):
                pen.ellipse((x + sign * 0.14, y + dy), 0.06, 0.06, WHITE, "sign")
    elif traits["sign"] == "star":
        pen.polygon(star((x, y), 0.17), paint.accent, "sign", outline=INK, outline_width=0.02)
    elif traits["sign"] == "dot":
        pen.ellipse((x, y), 0.11, 0.11, paint.accent, "sign", outline=INK, outline_width=0.03)


def _roof_plane(build: _Build) -> list[Point]:
    """The roof half over the side wall, overhanging at the eaves."""
    low = build.eaves + 0.06
    return [
        (build.middle, build.ridge), (build.middle - build.depth - 0.04, build.ridge),
        (build.left - 0.12, low), (build.corner - 0.08, low),
    ]  # fmt: skip


def _roof(pen: Pen, traits: Traits, paint: Coat, build: _Build) -> None:
    plane = _roof_plane(build)
    color: Paint = paint.second if isinstance(paint.main, tuple) else paint.main
    pen.polygon(plane, color, "roof")
    (x0, top), (x1, _), (x2, low), (x3, _) = plane
    count = traits["roof_slats"]
    for i in range(1, count + 1):
        share = i / (count + 1)
        y = top + share * (low - top)
        ends = [(x1 + share * (x2 - x1), y), (x0 + share * (x3 - x0), y)]
        pen.stroke(ends, 0.035, paint.line, "roof")
    edge(pen, plane, paint.line, 0.05)
    _barge(pen, paint, build, color, (-1, 1))


def _barge(pen: Pen, paint: Coat, build: _Build, color: Paint, signs: tuple[int, ...]) -> None:
    """The roof's edge over the gable, left (-1) and right (1)."""
    for sign in signs:
        half = build.right - build.middle + 0.1
        slope = (build.eaves - build.ridge) / (build.right - build.middle)
        foot = (build.middle + sign * half, build.ridge + slope * half)
        board = [(build.middle, build.ridge - 0.12), (foot[0] + sign * 0.03, foot[1] - 0.07),
                 (foot[0], foot[1] + 0.06), (build.middle, build.ridge + 0.08)]  # fmt: skip
        pen.polygon(board, color, "roof", outline=paint.line, outline_width=0.04)


def _broken_roof(pen: Pen, traits: Traits, paint: Coat, build: _Build) -> None:
    """A ragged rest of the roof; the rafters show, and the dark inside."""
    plane = _roof_plane(build)
    (x0, top), (x1, _), (x2, low), (x3, _) = plane
    hollow = [
        (build.left, build.eaves), (build.corner, build.eaves),
        (build.corner + 0.05, low - 0.14), (build.left + 0.1, low - 0.2),
    ]  # fmt: skip
    pen.polygon(hollow, _DARK, "roof", outline=paint.line, outline_width=0.04)
    for share in (0.2, 0.62):
        foot = (x2 + share * (x3 - x2), low - 0.08)
        tip = (foot[0] + 0.5 * (x1 - x2), low + (0.62 - 0.2 * share) * (top - low))
        pen.stroke([foot, tip], 0.07, _PLANK, "roof", outline=paint.line)
    y = (top + low) / 2
    rest = [
        (x0, top), (x0 - 0.24, top), (x0 - 0.16, top + 0.16), (x0 - 0.38, y),
        (x0 - 0.26, y + 0.06), (x0 - 0.42, y + 0.2), (x3 + 0.02, low),
    ]  # fmt: skip
    pen.polygon(rest, paint.second, "roof", outline=paint.line, outline_width=0.04)
    _barge(pen, paint, build, paint.second, (-1,))
    half = 0.45 * (build.right - build.middle)
    slope = (build.eaves - build.ridge) / (build.right - build.middle)
    x, y = build.middle, build.ridge + slope * half
    bite = [
        (x - 0.02, build.ridge - 0.1), (x + half, y - 0.1), (x + 0.9 * half, y + 0.1),
        (x + 0.5 * half, y + 0.04), (x + 0.3 * half, y + 0.2), (x, build.ridge + 0.16),
    ]  # fmt: skip
    pen.polygon(bite, _DARK, "roof")


def _planks(pen: Pen) -> None:
    """Boards that fell to the ground."""
    for start, end in (
        ((-1.02, 0.98), (-0.42, 0.78)),
        ((-0.86, 0.76), (-0.5, 1.06)),
        ((0.42, 1.06), (1.04, 0.9)),
    ):
        pen.stroke([start, end], 0.12, _PLANK, "planks", outline=INK)


def _snow(pen: Pen, build: _Build) -> None:
    """A thick blanket on the roof with icicles, and drifts around the walls."""
    plane = _roof_plane(build)
    (x0, top), (x1, _), (x2, low), (x3, _) = plane
    blanket = [(x0 + 0.04, top - 0.2), (x1 - 0.04, top - 0.16), (x2 - 0.06, low - 0.16),
               (x2 + 0.02, low + 0.1), (x2 + 0.16, low), (x2 + 0.28, low + 0.14),
               (x2 + 0.42, low), (x3 - 0.06, low + 0.08), (x0, top + 0.1)]  # fmt: skip
    pen.blob(blanket, _SNOW, "snow", outline=_SNOW_SHADE, outline_width=0.04)
    half = build.right - build.middle + 0.14
    foot = build.eaves + 0.02
    x = build.middle
    cap = [
        (x - 0.06, top - 0.18), (x + 0.1, top - 0.18), (x + half, foot - 0.1),
        (x + half - 0.02, foot + 0.1), (x + 0.5 * half, (top + foot) / 2 + 0.1), (x, top + 0.1),
    ]  # fmt: skip
    pen.blob(cap, _SNOW, "snow", outline=_SNOW_SHADE, outline_width=0.04)
    door = build.middle
    _drift(pen, build.left - 0.22, door - 0.24, 0.3)
    _drift(pen, door + 0.24, build.right + 0.26, 0.34)
    _drift(pen, door - 0.4, door + 0.5, 0.1)


def _drift(pen: Pen, left: float, right: float, height: float) -> None:
    """A bank of snow on the ground."""
    middle, half, low = (left + right) / 2, (right - left) / 2, _GROUND + 0.08
    bank = []
    for i in range(13):
        t = math.pi * i / 12
        bank.append((middle - half * math.cos(t), low - height * math.sin(t) ** 0.7))
    pen.polygon(bank, _SNOW, "snow", outline=_SNOW_SHADE)


def _fire(pen: Pen, build: _Build) -> None:
    top, x = build.ridge, build.middle
    flame(pen, (build.left + 0.06, build.eaves + 0.02), 0.36, 0.6, -0.06)
    flame(pen, (build.right - 0.1, build.eaves - 0.08), 0.36, 0.56, 0.07)
    flame(pen, (x - build.depth, top + 0.2), 0.44, 0.66, -0.05)
    flame(pen, (x - 0.02, top + 0.16), 0.56, 0.66, 0.04)


def _lamp(pen: Pen, build: _Build) -> None:
    """A lit lantern hung above the door."""
    x, y = build.middle, build.eaves - 0.06
    pen.ellipse((x, y), 0.225, 0.24, (255, 176, 30), "lamp")
    pen.polygon(rounded(x - 0.14, y - 0.15, x + 0.14, y + 0.16, 0.06), INK, "lamp")
    pen.polygon(rounded(x - 0.10, y - 0.10, x + 0.10, y + 0.12, 0.05), (255, 248, 140), "lamp")


def _wreath(pen: Pen, paint: Coat, build: _Build) -> None:
    """A green ring with a red bow above the door."""
    center = (build.middle, build.eaves - 0.09)
    pen.ellipse(center, 0.215, 0.215, (24, 128, 48), "wreath", outline=(8, 60, 22))
    pen.ellipse(center, 0.095, 0.095, paint.main, "wreath")
    x, y = center[0], center[1] + 0.2
    for sign in (-1, 1):
        bow = [(x, y), (x + sign * 0.16, y - 0.09), (x + sign * 0.16, y + 0.09)]
        pen.polygon(bow, RED, "wreath")
    pen.ellipse((x, y), 0.055, 0.055, (140, 8, 20), "wreath")


CLASS = WorldClass(
    name="dog house",
    states=(
        State("plain", before="plain"),
        State("snowy", before="snowy"),
        State("burning", before="burning"),
        State("broken", before="broken"),
        State("golden", before="golden"),
        State("flag", after="with a flag", fine=True),
        State("lamp", after="with a lamp", fine=True),
        State("wreath", after="with a wreath", fine=True),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=0.3,
)
