"""A small toy-like car: from the side (driving to the right), from the front, from the back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, smooth
from dreamfleet.world.classes._kit import (
    INK,
    WHITE,
    YELLOW,
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
)
from dreamfleet.world.spec import State, Traits, WorldClass

_CABINS = ("sedan", "hatchback", "van", "beetle", "pickup")
_GLASS: RGB = (176, 222, 240)
_SILL = 0.78  # lower edge of the body
_TYRE: RGB = (34, 34, 40)
_WOODEN_TYRE: RGB = (96, 54, 24)

# Cabin corners as shares of the half-length: rear foot, rear top, front top, front foot.
_PILLARS = {
    "sedan": (-0.66, -0.42, 0.16, 0.46),
    "hatchback": (-0.90, -0.80, 0.10, 0.44),
    "van": (-0.95, -0.93, 0.46, 0.70),
    "beetle": (-0.90, -0.45, 0.08, 0.48),
    "pickup": (-0.24, -0.20, 0.22, 0.46),
}


@dataclass(frozen=True)
class _Build:
    """Heights and half-lengths of one car in its frame."""

    length: float  # half
    width: float  # half, seen from the front
    belt: float  # where the windows begin
    roof: float
    wheel: float  # radius


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One car: colours, proportions, the shape of its cabin, its hubs and its lamps."""
    traits = sample_colours(rng, neutrals=((240, 240, 242), (52, 54, 62)))
    traits["pattern"] = pick(rng, ("plain", "striped", "spotted", "checkered"))
    traits["mark_layout"] = int(rng.integers(3))
    traits["cabin"] = pick(rng, _CABINS)
    traits["two_tone"] = bool(rng.random() < 0.5)
    traits["hub"] = pick(rng, ("disc", "spokes", "ring"))
    traits["lamp"] = pick(rng, ("round", "square"))
    traits["length"] = float(rng.uniform(0.94, 1.08))
    traits["cabin_height"] = float(rng.uniform(0.50, 0.68))
    traits["wheel_size"] = float(rng.uniform(0.23, 0.32))
    traits["belt"] = float(rng.uniform(0.08, 0.2))
    return traits


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw the car, then what burns or stands on it."""
    paint = coat(pen, traits, state)
    tall = 0.1 if traits["cabin"] == "van" else 0.0
    belt = traits["belt"]
    build = _Build(
        length=traits["length"],
        width=0.79 + 0.1 * (traits["length"] - 0.94),
        belt=belt,
        roof=belt - traits["cabin_height"] - tall,
        wheel=traits["wheel_size"],
    )
    if view == "side":
        _draw_side(pen, traits, paint, build, state)
    else:
        _draw_end(pen, traits, paint, build, state, view)
    _extras(pen, traits, build, state, view)


def _draw_side(pen: Pen, traits: Traits, paint: Coat, build: _Build, state: str) -> None:
    if state == "flag":
        flag(pen, _flag_foot(traits, build, "side"), 0.52, 0.40, 0.27)
    if state == "open hood":
        _raised_hood(pen, paint, traits, build)
    _cabin(pen, traits, paint, build, state)
    _flank(pen, traits, paint, build, state)
    for x in (-0.58, 0.60):
        wooden = state == "wooden"
        _wheel(pen, traits, paint, build.wheel, x * build.length, wooden)
    _lamps(pen, traits, build, state)


def _cabin(pen: Pen, traits: Traits, paint: Coat, build: _Build, state: str) -> None:
    """Roof, pillars and windows."""
    outline = _cabin_outline(traits["cabin"], build)
    color = paint.second if traits["two_tone"] else paint.main
    pen.polygon(outline, color, "roof", outline=paint.line, outline_width=0.04)
    glass: RGB = (255, 150, 40) if state == "burning" else _GLASS
    rear, rear_top, front_top, front = (x * build.length for x in _PILLARS[traits["cabin"]])
    high, low = build.roof + 0.1, build.belt - 0.02
    split = (rear_top + front_top) / 2 + 0.04
    if traits["cabin"] == "pickup":
        split = rear_top
    rear_in = rear_top + (0.18 if traits["cabin"] == "beetle" else 0.1)
    front_in = front_top - 0.04
    if split > rear_in + 0.05:
        window = [(rear_in, high), (split - 0.04, high), (split - 0.04, low), (rear + 0.16, low)]
        pen.polygon(window, glass, "windows", outline=INK, outline_width=0.025)
    window = [(split + 0.05, high), (front_in, high), (front - 0.14, low), (split + 0.05, low)]
    pen.polygon(window, glass, "windows", outline=INK, outline_width=0.025)


def _cabin_outline(kind: str, build: _Build) -> list[Point]:
    rear, rear_top, front_top, front = (x * build.length for x in _PILLARS[kind])
    belt = build.belt + 0.04
    if kind == "beetle":
        high = build.roof
        arc = [
            (rear, belt), (-0.76 * build.length, high + 0.2), (rear_top, high + 0.01),
            (front_top, high + 0.03), (0.32 * build.length, high + 0.26), (front, belt),
        ]  # fmt: skip
        return smooth(arc)
    return [(rear, belt), (rear_top, build.roof), (front_top, build.roof), (front, belt)]


def _flank(pen: Pen, traits: Traits, paint: Coat, build: _Build, state: str) -> None:
    """The long lower body with its markings, bumpers and, with the hood open, the engine."""
    half, belt = build.length, build.belt
    nose = belt + 0.09
    body = [
        (-half, belt + 0.12), (-0.95 * half, belt), (0.46 * half, belt), (0.9 * half, nose),
        (half, nose + 0.12), (half, _SILL - 0.05), (0.95 * half, _SILL), (-0.95 * half, _SILL),
        (-half, _SILL - 0.05),
    ]  # fmt: skip
    if state == "open hood":
        body[2:4] = [(0.44 * half, belt), (0.46 * half, belt + 0.24), (0.9 * half, belt + 0.24)]
        block = rect(0.52 * half, belt + 0.02, 0.88 * half, belt + 0.3)
        pen.polygon(block, (150, 156, 168), "engine", outline=INK)
        valve = rect(0.60 * half, belt - 0.04, 0.76 * half, belt + 0.1)
        pen.polygon(valve, (220, 50, 40), "engine")
    pen.polygon(body, paint.main, "body")
    box = (-0.92 * half, belt + 0.1, 0.42 * half, _SILL - 0.1)
    if traits["pattern"] == "spotted":
        box = (-0.38 * half, belt + 0.04, 0.36 * half, _SILL - 0.03)
    elif traits["pattern"] == "striped" and traits["mark_layout"] != 1:
        box = (-0.97 * half, belt + 0.14, 0.97 * half, _SILL - 0.02)
    marks(pen, box, traits["pattern"], traits["mark_layout"], paint.mark, "body")
    gap = [(-0.06 * half, belt + 0.08), (-0.06 * half, _SILL - 0.08)]
    pen.stroke(gap, 0.03, paint.line, "body")
    edge(pen, body, paint.line, 0.045)
    for sign in (-1, 1):
        x = sign * (half - 0.02)
        bumper = rounded(x - 0.1, _SILL - 0.15, x + 0.1, _SILL - 0.01, 0.06)
        pen.polygon(bumper, paint.accent, "body", outline=paint.line)


def _wheel(pen: Pen, traits: Traits, paint: Coat, r: float, x: float, wooden: bool) -> None:
    tyre = _WOODEN_TYRE if wooden else _TYRE
    center = (x, 1.0 - r)
    pen.ellipse(center, r + 0.05, r + 0.05, paint.line, "body", within=("body",))
    pen.ellipse(center, r, r, tyre, "wheels")
    if traits["hub"] == "ring":
        pen.ellipse(center, 0.68 * r, 0.68 * r, paint.accent, "wheels")
        pen.ellipse(center, 0.36 * r, 0.36 * r, tyre, "wheels")
        return
    pen.ellipse(center, 0.6 * r, 0.6 * r, paint.accent, "wheels")
    if traits["hub"] == "spokes":
        for dx, dy in ((0.6 * r, 0.0), (0.0, 0.6 * r)):
            spoke = [(x - dx, center[1] - dy), (x + dx, center[1] + dy)]
            pen.stroke(spoke, 0.05, tyre, "wheels")


def _lamps(pen: Pen, traits: Traits, build: _Build, state: str) -> None:
    """Headlight at the right, tail light at the left."""
    half, y = build.length, build.belt + 0.3
    if state == "lights on":
        pen.ellipse((half - 0.06, y), 0.155, 0.155, (255, 186, 20), "lights")
        pen.ellipse((half - 0.06, y), 0.13, 0.13, (255, 250, 150), "lights")
        pen.ellipse((-half + 0.04, y), 0.13, 0.13, (255, 120, 90), "lights")
        pen.ellipse((-half + 0.04, y), 0.09, 0.09, (255, 20, 20), "lights")
        return
    pen.ellipse((half - 0.08, y), 0.085, 0.1, (214, 218, 206), "lights", outline=INK)
    pen.polygon(rect(-half, y - 0.09, -half + 0.09, y + 0.07), (128, 20, 28), "lights", outline=INK)


def _raised_hood(pen: Pen, paint: Coat, traits: Traits, build: _Build) -> None:
    """The hood, hinged below the windscreen and thrown up, its dark inside to the front."""
    half, belt = build.length, build.belt
    x = _PILLARS[traits["cabin"]][3] * half - 0.02
    y = belt + 0.08
    panel = [(x, y), (x + 0.22, y - 0.78), (x + 0.42, y - 0.70), (x + 0.24, y)]
    pen.polygon(panel, paint.main, "hood", outline=paint.line, outline_width=0.045)
    under = [(x + 0.14, y), (x + 0.31, y - 0.70), (x + 0.40, y - 0.67), (x + 0.24, y)]
    pen.polygon(under, INK, "hood")
    pen.stroke([(0.88 * half, belt + 0.2), (x + 0.34, y - 0.4)], 0.04, INK, "hood")


def _draw_end(pen: Pen, traits: Traits, paint: Coat, build: _Build, state: str, view: str) -> None:
    """The car from the front or the back: wheels, cabin, body, then lamps."""
    w, belt, roof = build.width, build.belt, build.roof
    if state == "flag":
        flag(pen, _flag_foot(traits, build, view), 0.52, 0.40, 0.27)
    for sign in (-1, 1):
        tyre = rounded(sign * (w - 0.17) - 0.14, 0.5, sign * (w - 0.17) + 0.14, 1.0, 0.06)
        pen.polygon(tyre, _WOODEN_TYRE if state == "wooden" else _TYRE, "wheels")
    top = w - (0.12 if traits["cabin"] == "van" else 0.24)
    cabin = [(-w + 0.08, belt + 0.05), (-top, roof), (top, roof), (w - 0.08, belt + 0.05)]
    if traits["cabin"] == "beetle":
        cabin = smooth([(-w + 0.04, belt + 0.05), (-top, roof + 0.12), (0.0, roof - 0.02),
                        (top, roof + 0.12), (w - 0.04, belt + 0.05)])  # fmt: skip
    color = paint.second if traits["two_tone"] else paint.main
    pen.polygon(cabin, color, "roof", outline=paint.line, outline_width=0.04)
    glass: RGB = (255, 150, 40) if state == "burning" else _GLASS
    inset = 0.1 if view == "front" else 0.2
    pane = [(-top + inset - 0.06, roof + 0.11), (top - inset + 0.06, roof + 0.11),
            (w - inset - 0.06, belt - 0.02), (-w + inset + 0.06, belt - 0.02)]  # fmt: skip
    pen.polygon(pane, glass, "windows", outline=INK, outline_width=0.025)
    body = rounded(-w, belt, w, _SILL, 0.14)
    pen.polygon(body, paint.main, "body")
    box = (-w + 0.08, belt + 0.03, w - 0.08, _SILL - 0.2)
    marks(pen, box, traits["pattern"], traits["mark_layout"], paint.mark, "body")
    edge(pen, body, paint.line, 0.045)
    bumper = rounded(-w - 0.03, _SILL - 0.16, w + 0.03, _SILL, 0.07)
    pen.polygon(bumper, paint.accent, "body", outline=paint.line)
    middle = (belt + _SILL) / 2 - 0.04
    if view == "front":
        _front_face(pen, traits, paint, build, state, middle)
    else:
        _back_face(pen, build, state, middle)


def _front_face(pen: Pen, traits: Traits, paint: Coat, build: _Build, state: str, y: float) -> None:
    w = build.width
    pen.polygon(rounded(-0.3, y - 0.11, 0.3, y + 0.11, 0.06), INK, "body")
    for x in (-0.18, 0.0, 0.18):
        pen.polygon(rect(x - 0.03, y - 0.08, x + 0.03, y + 0.08), (176, 182, 190), "body")
    for sign in (-1, 1):
        lamp = (sign * (w - 0.22), y)
        if state == "lights on":
            pen.ellipse(lamp, 0.145, 0.145, (255, 186, 20), "lights")
            pen.ellipse(lamp, 0.105, 0.105, (255, 250, 150), "lights")
        elif traits["lamp"] == "round":
            pen.ellipse(lamp, 0.12, 0.12, (214, 218, 206), "lights", outline=INK)
        else:
            pane = rect(lamp[0] - 0.12, y - 0.09, lamp[0] + 0.12, y + 0.09)
            pen.polygon(pane, (214, 218, 206), "lights", outline=INK)
    if state == "open hood":
        _front_hood(pen, paint, build, y)


def _front_hood(pen: Pen, paint: Coat, build: _Build, y: float) -> None:
    """The hood seen from below in front of the windscreen, and the engine under it."""
    w, belt = build.width, build.belt
    panel = [(-w + 0.06, belt + 0.02), (-w + 0.16, build.roof - 0.12),
             (w - 0.16, build.roof - 0.12), (w - 0.06, belt + 0.02)]  # fmt: skip
    pen.polygon(panel, paint.main, "hood", outline=paint.line, outline_width=0.05)
    inner = rect(-w + 0.32, build.roof + 0.04, w - 0.32, belt - 0.14)
    pen.polygon(inner, INK, "hood")
    pen.polygon(rounded(-w + 0.1, belt - 0.03, w - 0.1, y - 0.1, 0.05), (28, 26, 32), "engine")
    pen.polygon(rect(-0.34, belt, 0.34, y - 0.12), (120, 126, 138), "engine", outline=INK)
    pen.polygon(rect(-0.14, belt - 0.06, 0.14, y - 0.16), (200, 40, 36), "engine", outline=INK)


def _back_face(pen: Pen, build: _Build, state: str, y: float) -> None:
    w = build.width
    pen.polygon(rect(-0.25, y - 0.07, 0.25, y + 0.09), WHITE, "body", outline=INK)
    pen.polygon(rect(-0.17, y - 0.01, 0.17, y + 0.03), INK, "body")
    for sign in (-1, 1):
        x = sign * (w - 0.16)
        if state == "lights on":
            pen.ellipse((x, y), 0.11, 0.135, (255, 150, 120), "lights")
            pen.ellipse((x, y), 0.095, 0.115, (255, 16, 16), "lights")
        else:
            lamp = rect(x - 0.09, y - 0.15, x + 0.09, y + 0.13)
            pen.polygon(lamp, (128, 20, 28), "lights", outline=INK)


def _flag_foot(traits: Traits, build: _Build, view: str) -> Point:
    """At the rear end of the roof, or at its left corner."""
    if view == "side":
        rear = 0.5 * (_PILLARS[traits["cabin"]][0] + _PILLARS[traits["cabin"]][1])
        return (max(rear * build.length, -0.5), build.roof + 0.12)
    return (-0.3, build.roof + 0.12)


def _extras(pen: Pen, traits: Traits, build: _Build, state: str, view: str) -> None:
    """Fire or luggage on top."""
    pillars = _PILLARS[traits["cabin"]]
    left, right = pillars[1] * build.length, pillars[2] * build.length
    if view != "side":
        left, right = -build.width + 0.24, build.width - 0.24
    if state == "burning":
        _fire(pen, build, view, left, right)
    elif state == "luggage":
        _luggage(pen, (left + right) / 2, build.roof)


def _fire(pen: Pen, build: _Build, view: str, left: float, right: float) -> None:
    top, belt = build.roof + 0.06, build.belt + 0.12
    middle = (left + right) / 2
    if view == "side":
        flame(pen, (0.72 * build.length, belt + 0.02), 0.42, 0.62, 0.04)
        flame(pen, (-0.8 * build.length, belt), 0.3, 0.42, -0.05)
    flame(pen, (left + 0.06, top), 0.4, 0.52, -0.08)
    flame(pen, (right - 0.02, top), 0.42, 0.58, 0.07)
    flame(pen, (middle, top + 0.02), 0.56, 0.78, 0.02)


def _luggage(pen: Pen, x: float, roof: float) -> None:
    """A brown suitcase and a smaller blue one, strapped to a rack."""
    big = rounded(x - 0.27, roof - 0.24, x + 0.04, roof, 0.04)
    small = rounded(x + 0.05, roof - 0.18, x + 0.27, roof, 0.04)
    pen.polygon(big, (168, 92, 34), "luggage", outline=INK)
    pen.polygon(small, (40, 110, 220), "luggage", outline=INK)
    pen.polygon(rect(x - 0.16, roof - 0.22, x - 0.08, roof - 0.02), YELLOW, "luggage")


CLASS = WorldClass(
    name="car",
    states=(
        State("parked", before="parked"),
        State("golden", before="golden"),
        State("open hood", after="with an open hood"),
        State("wooden", before="wooden"),
        State("lights on", after="with its lights on", fine=True),
        State("burning", before="burning"),
        State("luggage", after="with luggage on its roof", fine=True),
        State("flag", after="with a flag", fine=True),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=1.1,
    views=("side", "front", "back"),
    hidden=frozenset({("open hood", "back")}),
)
