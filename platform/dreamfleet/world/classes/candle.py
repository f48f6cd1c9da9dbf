"""A candle on a dish: a wax column, plain, tapered or twisted, with a wick."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dreamfleet.world.canvas import Pen, Point, shade
from dreamfleet.world.classes import _vessel as v
from dreamfleet.world.classes._kit import INK, flame, pick
from dreamfleet.world.spec import State, Traits, WorldClass

_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "column": ((0.0, 0.94), (0.04, 1.0), (0.9, 1.0), (1.0, 1.0)),
    "taper": ((0.0, 0.74), (0.3, 0.84), (0.9, 1.04), (1.0, 1.06)),
    "beads": (
        (0.0, 0.7),
        (0.17, 1.1),
        (0.33, 0.8),
        (0.5, 1.1),
        (0.66, 0.8),
        (0.84, 1.1),
        (1.0, 0.85),
    ),
    "waist": ((0.0, 1.05), (0.25, 0.92), (0.5, 0.68), (0.75, 0.9), (1.0, 1.15)),
}


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One candle: glaze, shape and size of the column, the dish and its handle."""
    traits = v.sample_glaze(rng)
    traits["shape"] = pick(rng, tuple(_SHAPES))
    traits["dish"] = pick(rng, ("saucer", "ring", "stand"))
    traits["height"] = float(rng.uniform(1.02, 1.24))
    traits["width"] = float(rng.uniform(0.26, 0.37))
    traits["dish_width"] = float(rng.uniform(0.56, 0.74))
    traits["dish_depth"] = float(rng.uniform(0.12, 0.2))
    return traits


def _floor(traits: Traits) -> float:
    """Height of the dish's hollow, on which the column stands."""
    depth: float = traits["dish_depth"]
    return 0.9 - depth - (0.14 if traits["dish"] == "stand" else 0.0)


def column_of(traits: Traits, share: float = 1.0) -> v.Turned:
    """The wax column, or its lower `share` drawn out in width."""
    bottom = _floor(traits) + 0.06
    share *= 0.9 if traits["dish"] == "stand" else 1.0
    return v.stretched(
        _SHAPES[traits["shape"]], bottom - share * traits["height"], bottom, traits["width"]
    )


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw the candle in its state."""
    paint = v.glaze(pen, traits, state)
    _dish(pen, traits, paint)
    if state == "melted":
        _melted(pen, traits, paint)
    elif state == "broken":
        _broken(pen, traits, paint)
    else:
        body = column_of(traits)
        _wick(pen, body, 0.13)
        v.draw_body(pen, body, paint, traits)
        _pool(pen, body, paint)
        _additions(pen, body, state)


def _additions(pen: Pen, body: v.Turned, state: str) -> None:
    tip = body.top - 0.08
    if state == "burning":
        size = body.breadth
        flame(pen, (0.0, tip + 0.08), 0.33 * size, 0.53 * size)
    elif state == "smoking":
        v.plume(pen, (0.0, tip), 0.42 * body.breadth, 0.1, (150, 150, 156), (74, 74, 84), "smoke")
    elif state == "ribbon":
        v.ribbon(pen, body, body.height_at(0.48), 0.175 * body.breadth)


def _melted(pen: Pen, traits: Traits, paint: v.Glaze) -> None:
    """Half as high, slumped, with drips down the side and a puddle over the dish."""
    floor, wide = _floor(traits), traits["dish_width"]
    puddle = [
        (-0.92 * wide, floor + 0.08), (-0.5 * wide, floor - 0.04), (0.5 * wide, floor - 0.04),
        (0.95 * wide, floor + 0.06), (0.8 * wide, floor + 0.2), (0.62 * wide, floor + 0.13),
        (0.3 * wide, floor + 0.18), (-0.2 * wide, floor + 0.17), (-0.5 * wide, floor + 0.26),
        (-0.7 * wide, floor + 0.16),
    ]  # fmt: skip
    pen.blob(puddle, paint.main, "body", outline=paint.line, outline_width=v.OUTLINE)
    body = column_of(traits, 0.46)
    slump = [
        (y, r * (1.05 + 0.35 * i / len(body.profile))) for i, (y, r) in enumerate(body.profile)
    ]
    body = v.Turned(tuple(slump), body.sag)
    _wick(pen, body, 0.1)
    v.draw_body(pen, body, paint, traits)
    _pool(pen, body, paint)
    for angle, length in ((-78, 0.28), (-30, 0.2), (20, 0.3), (70, 0.22)):
        start, end = body.at(angle, body.top + 0.02), body.at(angle, body.top + length)
        pen.stroke([start, end], 0.11, paint.line, "body")
        pen.stroke([start, end], 0.065, paint.light, "body")


def _broken(pen: Pen, traits: Traits, paint: v.Glaze) -> None:
    """Snapped in the middle: the upper half hangs down to the right, held by the wick."""
    body = column_of(traits)
    middle = body.height_at(0.56)
    r = body.radius(middle)
    cut = v.jagged((-r * 1.2, middle - 0.04), (r * 1.2, middle + 0.06), 2, 0.08)
    v.draw_body(pen, body.broken(cut), paint, traits)
    end = (r + 0.16, middle + 0.12)
    pen.stroke([(0.0, middle + 0.04), end], 0.06, INK, "wick")
    half = v.Turned(tuple(p for p in body.profile if p[0] <= body.height_at(0.5)), body.sag)
    moved = Pen(pen.canvas, _moved(pen, (end[0], end[1] - half.bottom)), pen.scale)
    hanging = moved.rotated(122, (0.0, half.bottom))
    _wick(hanging, half, 0.13)
    v.draw_body(hanging, half, paint, traits)


def _moved(pen: Pen, by: Point) -> Point:
    return pen.origin[0] + pen.scale * by[0], pen.origin[1] + pen.scale * by[1]


def _dish(pen: Pen, traits: Traits, paint: v.Glaze) -> None:
    """The dish in the second colour, with a ring to hold it by or a stand."""
    floor, wide, line = _floor(traits), traits["dish_width"], paint.line
    base = floor + traits["dish_depth"]
    if traits["dish"] == "stand":
        foot = v.turned([(base - 0.04, 0.16), (base + 0.06, 0.14), (0.96, 0.46)])
        pen.polygon(foot.outline(), paint.second, "dish", outline=line, outline_width=v.OUTLINE)
    if traits["dish"] == "ring":
        loop = [(wide - 0.06, floor + 0.1), (wide + 0.22, floor - 0.02), (wide + 0.16, floor + 0.2)]
        pen.stroke([*loop, (wide - 0.1, floor + 0.18)], 0.09, paint.second, "dish", outline=line)
    bowl = v.turned(
        [(floor, wide), (floor + 0.5 * traits["dish_depth"], 0.9 * wide), (base, 0.55 * wide)]
    )
    pen.polygon(bowl.outline(), paint.second, "dish", outline=line, outline_width=v.OUTLINE)
    rim = shade(paint.second, 0.72)
    pen.ellipse((0.0, floor), wide, 0.14 * wide, rim, "dish", outline=line, outline_width=v.OUTLINE)


def _pool(pen: Pen, body: v.Turned, paint: v.Glaze) -> None:
    """The column's upper face."""
    r = body.radius(body.top)
    face: list[Point] = []
    for i in range(20):
        t = math.pi * i / 10
        face.append((r * math.cos(t), body.top + 0.14 * r * math.sin(t)))
    pen.polygon(face, paint.light, "body", outline=paint.line, outline_width=0.035)


def _wick(pen: Pen, body: v.Turned, length: float) -> None:
    pen.stroke([(0.0, body.top + 0.05), (0.02, body.top - length)], 0.06, INK, "wick")


CLASS = WorldClass(
    name="candle",
    states=(
        State("plain", before="plain"),
        State("burning", before="burning", fine=True),
        State("melted", before="melted"),
        State("golden", before="golden"),
        State("broken", before="broken"),
        State("ribbon", after="with a ribbon", fine=True),
        State("smoking", before="smoking", fine=True),
        State("crystal", before="crystal"),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=0.8,
    size=0.39,
)
