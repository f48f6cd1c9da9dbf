"""A backpack with flap and pocket: three-quarter (side), straight on (front), straps (back)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, shade
from dreamfleet.world.classes._kit import (
    INK,
    RED,
    WHITE,
    YELLOW,
    Coat,
    coat,
    edge,
    marks,
    pick,
    rect,
    rounded,
    sample_colours,
    star,
)
from dreamfleet.world.spec import State, Traits, WorldClass

_FLAPS = ("straight", "round", "pointed")
_POCKETS = ("box", "round", "twin")
_DARK: RGB = (26, 22, 30)
_GROUND = 0.98


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One backpack: colours, proportions, the cut of flap and pocket, straps and bottom."""
    traits = sample_colours(rng, neutrals=((242, 238, 228), (56, 58, 66), (132, 84, 52)))
    traits["pattern"] = pick(rng, ("plain", "striped", "spotted", "checkered"))
    traits["mark_layout"] = int(rng.integers(3))
    traits["flap"] = pick(rng, _FLAPS)
    traits["pocket"] = pick(rng, _POCKETS)
    traits["bottom"] = float(rng.choice((0.0, 0.2, 0.32)))
    traits["buckles"] = int(rng.integers(1, 3))
    traits["width"] = float(rng.uniform(0.54, 0.74))
    traits["height"] = float(rng.uniform(1.42, 1.66))
    traits["roundness"] = float(rng.uniform(0.14, 0.4))
    return traits


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw the bag, upright or toppled, then what is torn in it or hangs on it."""
    paint = coat(pen, traits, state)
    if state == "lying":
        pen = _toppled(pen, traits)
    width, top = traits["width"], _GROUND - traits["height"]
    if view == "back":
        _draw_back(pen, traits, paint, state, top)
    else:
        _draw_front(pen, traits, paint, state, view, top)
    if state == "torn":
        _hole(pen, (0.30 * width, 0.52))
    elif state == "badge":
        _badge(pen, (0.0 if view == "back" else 0.48 * width, top + 0.30))
    elif state == "keychain":
        _keychain(pen, (width - 0.02, 0.02))


def _toppled(pen: Pen, traits: Traits) -> Pen:
    """A pen that lays what it draws on its right side, back on the ground and in the middle."""
    middle = _GROUND - traits["height"] / 2 - 0.06
    pivot_y = (_GROUND - traits["width"] + middle) / 2
    return pen.rotated(90.0, (middle - pivot_y, pivot_y))


def _draw_front(pen: Pen, traits: Traits, paint: Coat, state: str, view: str, top: float) -> None:
    w: float = traits["width"]
    if view == "side":
        strap = [(-w + 0.1, top + 0.16), (-w - 0.24, top + 0.5), (-w - 0.2, 0.6), (-w + 0.08, 0.86)]
        pen.stroke(strap, 0.11, paint.accent, "straps", outline=paint.line)
    if state == "open":
        _raised_flap(pen, traits, paint, top, paint.side)
    else:
        _handle(pen, paint, top)
    left = _trunk(pen, traits, paint, view, top)
    if state != "open":
        pen.polygon(_flap_outline(traits["flap"], left, w, top), paint.main, "flap")
    box = (left + 0.02, top + 0.06, w - 0.02, _GROUND - traits["bottom"] - 0.04)
    parts = ("body", "flap") if state != "open" else ("body",)
    marks(pen, box, traits["pattern"], traits["mark_layout"], paint.mark, "body", parts)
    edge(pen, rounded(-w, top, w, _GROUND, traits["roundness"]), paint.line, 0.045)
    if state == "open":
        pen.ellipse((0.0, top + 0.1), w - 0.04, 0.17, _DARK, "inside", outline=paint.line)
    else:
        _buckles(pen, traits, paint, left, top)
    _pocket(pen, traits, paint, (left + w) / 2)


def _handle(pen: Pen, paint: Coat, top: float) -> None:
    loop = [(-0.17, top + 0.06), (-0.15, top - 0.14), (0.15, top - 0.14), (0.17, top + 0.06)]
    pen.stroke(loop, 0.08, paint.accent, "handle", outline=paint.line)


def _trunk(pen: Pen, traits: Traits, paint: Coat, view: str, top: float) -> float:
    """The bag itself; returns where its front begins (the rest is the side wall)."""
    w: float = traits["width"]
    outline = rounded(-w, top, w, _GROUND, traits["roundness"])
    pen.polygon(outline, paint.main, "body")
    left = -0.58 * w if view == "side" else -w
    if view == "side":
        pen.polygon(rect(-w, top, left, _GROUND), paint.side, "body", within=("body",))
    if traits["bottom"] > 0:
        low = rect(-w, _GROUND - traits["bottom"], w, _GROUND)
        pen.polygon(low, paint.accent, "body", within=("body",))
    edge(pen, outline, paint.line, 0.045)
    return left


def _flap_outline(kind: str, left: float, right: float, top: float) -> list[Point]:
    x = (left + right) / 2
    low = top + 0.62
    if kind == "straight":
        return [(left, top + 0.1), (left + 0.08, top), (right - 0.08, top), (right, top + 0.1),
                (right, low), (left, low)]  # fmt: skip
    if kind == "pointed":
        return [(left, top + 0.1), (left + 0.08, top), (right - 0.08, top), (right, top + 0.1),
                (right, low - 0.2), (x, low + 0.16), (left, low - 0.2)]  # fmt: skip
    arc = [(left, top + 0.1), (left + 0.08, top), (right - 0.08, top), (right, top + 0.1)]
    for i in range(9):
        t = math.pi * i / 8
        arc.append((x + (right - x) * math.cos(t), low - 0.24 + 0.32 * math.sin(t)))
    return arc


def _buckles(pen: Pen, traits: Traits, paint: Coat, left: float, top: float) -> None:
    """The rim of the closed flap, its straps and buckles."""
    w: float = traits["width"]
    edge(pen, _flap_outline(traits["flap"], left, w, top), paint.line, 0.05)
    middle = (left + w) / 2
    offsets = (0.0,) if traits["buckles"] == 1 else (-0.42 * (w - middle), 0.42 * (w - middle))
    for dx in offsets:
        x = middle + dx
        strap = rect(x - 0.06, top + 0.3, x + 0.06, top + 0.74)
        pen.polygon(strap, paint.accent, "flap", outline=paint.line, outline_width=0.025)
        pen.polygon(rect(x - 0.09, top + 0.6, x + 0.09, top + 0.72), (222, 224, 230), "flap",
                    outline=INK, outline_width=0.025)  # fmt: skip


def _turned_up(kind: str, half: float, top: float) -> list[Point]:
    """The closed flap's outline upside down, hinged at the upper edge of the bag."""
    return [(x, top + 0.14 - 0.92 * (y - top)) for x, y in _flap_outline(kind, -half, half, top)]


def _raised_flap(pen: Pen, traits: Traits, paint: Coat, top: float, lining: RGB) -> None:
    """The flap thrown up behind the opening, its inside to the viewer."""
    w = traits["width"] - 0.06
    turned = _turned_up(traits["flap"], w, top)
    pen.polygon(turned, lining, "flap", outline=paint.line, outline_width=0.05)
    pen.polygon(rect(-0.06, top - 0.44, 0.06, top - 0.16), paint.accent, "flap")


def _pocket(pen: Pen, traits: Traits, paint: Coat, x: float) -> None:
    """The pocket (or two) low on the front, in the second colour, with a light zip."""
    half = 0.72 * (traits["width"] - x)
    y0, y1 = 0.30, 0.84
    if traits["pocket"] == "twin":
        boxes = [(x - half - 0.02, x - 0.03), (x + 0.03, x + half + 0.02)]
    else:
        boxes = [(x - half, x + half)]
    radius = 0.3 if traits["pocket"] == "round" else 0.06
    for left, right in boxes:
        shape = rounded(left, y0, right, y1, radius)
        pen.polygon(shape, paint.second, "pocket", outline=paint.line, outline_width=0.04)
        zip_y = y0 + 0.15
        pen.polygon(rect(left + 0.08, zip_y - 0.025, right - 0.08, zip_y + 0.025), paint.line,
                    "pocket")  # fmt: skip


def _draw_back(pen: Pen, traits: Traits, paint: Coat, state: str, top: float) -> None:
    """The padded back with two shoulder straps; an open flap stands up behind it."""
    w: float = traits["width"]
    if state == "open":
        turned = _turned_up(traits["flap"], w - 0.06, top)
        pen.polygon(turned, paint.main, "flap", outline=paint.line, outline_width=0.05)
    else:
        _handle(pen, paint, top)
    _trunk(pen, traits, paint, "back", top)
    pad = rounded(-0.66 * w, top + 0.12, 0.66 * w, 0.84, 0.16)
    pen.polygon(pad, paint.second, "pad", outline=paint.line, outline_width=0.03)
    for sign in (-1, 1):
        strap = [(sign * 0.34 * w, top + 0.1), (sign * 0.62 * w, top + 0.45),
                 (sign * 0.78 * w, 0.3), (sign * 0.86 * w, 0.86)]  # fmt: skip
        pen.stroke(strap, 0.17, paint.accent, "straps", outline=paint.line)


def _hole(pen: Pen, center: Point) -> None:
    """A ragged tear with white lining around the dark."""
    x, y = center
    rim = (
        (-0.25, -0.1), (-0.12, -0.1), (-0.1, -0.24), (0.04, -0.12), (0.19, -0.2), (0.15, -0.04),
        (0.25, 0.06), (0.1, 0.1), (0.06, 0.23), (-0.06, 0.13), (-0.19, 0.19), (-0.15, 0.04),
    )  # fmt: skip
    tear = [(x + dx, y + dy) for dx, dy in rim]
    pen.polygon(tear, WHITE, "hole", outline=INK, outline_width=0.02)
    pen.polygon([(x + 0.6 * dx, y + 0.6 * dy) for dx, dy in rim], _DARK, "hole")


def _badge(pen: Pen, center: Point) -> None:
    pen.ellipse(center, 0.195, 0.195, WHITE, "badge", outline=INK, outline_width=0.03)
    pen.polygon(star(center, 0.17, inner=0.48), RED, "badge")


def _keychain(pen: Pen, hook: Point) -> None:
    """A big yellow star on a short chain."""
    x, y = hook[0] + 0.12, hook[1]
    pen.stroke([hook, (x, y + 0.2)], 0.05, (90, 94, 104), "keychain")
    body = star((x, y + 0.36), 0.24, inner=0.55)
    pen.polygon(body, YELLOW, "keychain", outline=shade(RED, 0.8), outline_width=0.035)


CLASS = WorldClass(
    name="backpack",
    states=(
        State("closed", before="closed"),
        State("open", before="open"),
        State("golden", before="golden"),
        State("lying", before="lying"),
        State("torn", before="torn", fine=True),
        State("badge", after="with a badge", fine=True),
        State("keychain", after="with a keychain", fine=True),
        State("metal", before="metal"),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=0.8,
    views=("side", "front", "back"),
)
