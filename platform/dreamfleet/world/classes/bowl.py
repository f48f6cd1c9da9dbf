"""A bowl seen slightly from above, sometimes full of berries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, shade
from dreamfleet.world.classes import _vessel as v
from dreamfleet.world.classes._kit import pick
from dreamfleet.world.spec import State, Traits, WorldClass

_TILT = 0.3  # height of the rim's ellipse per width: how far from above it is seen
_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "round": ((0.0, 1.0), (0.3, 0.97), (0.6, 0.86), (0.85, 0.62), (1.0, 0.4)),
    "cone": ((0.0, 1.0), (0.35, 0.78), (0.7, 0.55), (1.0, 0.36)),
    "flared": ((0.0, 1.0), (0.16, 0.8), (0.45, 0.72), (0.75, 0.66), (1.0, 0.46)),
    "pot": ((0.0, 0.9), (0.3, 1.0), (0.65, 1.0), (0.88, 0.84), (1.0, 0.6)),
}


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One bowl: glaze, shape and depth, foot, ears and the colour inside."""
    traits = v.sample_glaze(rng)
    traits["shape"] = pick(rng, tuple(_SHAPES))
    traits["foot"] = pick(rng, ("flat", "ring", "pedestal"))
    traits["ears"] = pick(rng, ("none", "none", "round", "knobs"))
    traits["lining"] = pick(rng, ("second", "accent", "main"))
    traits["depth"] = float(rng.uniform(0.62, 0.92))
    traits["width"] = float(rng.uniform(0.76, 0.92))
    traits["rim"] = float(rng.uniform(0.06, 0.13))
    return traits


def body_of(traits: Traits) -> v.Turned:
    """The bowl's outer wall without its foot."""
    foot = {"flat": 0.0, "ring": 0.08, "pedestal": 0.24}[traits["foot"]]
    bottom = 0.88 - foot
    wide = traits["width"] * (0.88 if traits["ears"] != "none" else 1.0)
    return v.stretched(_SHAPES[traits["shape"]], bottom - traits["depth"], bottom, wide, _TILT)


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw the bowl in its state."""
    paint = v.glaze(pen, traits, state)
    body = body_of(traits)
    _foot(pen, body, traits, paint)
    if state == "broken":
        _broken(pen, body, traits, paint, prop)
        return
    _ears(pen, body, traits, paint)
    v.draw_body(pen, body, paint, traits)
    _rim(pen, body, traits, paint)
    if prop:
        _berries(pen, body)
    if state == "spoon":
        _spoon(pen, body, prop)
    elif state == "cracked":
        v.cracks(pen, body, traits["colour"], (0.04, 0.92), 0.7, 0.062)
    elif state == "ribbon":
        v.ribbon(pen, body, body.height_at(0.42), 0.185 * body.breadth)


def _lining(traits: Traits, paint: v.Glaze) -> RGB:
    if paint.main != traits["colour"]:
        return paint.inside
    color: RGB = {"second": paint.second, "accent": paint.accent, "main": traits["colour"]}[
        traits["lining"]
    ]
    return shade(color, 0.62)


def _rim(pen: Pen, body: v.Turned, traits: Traits, paint: v.Glaze) -> None:
    """The rim in light glaze and, inside it, the lining."""
    r, inner = body.radius(body.top), body.radius(body.top) - traits["rim"]
    middle, line = (0.0, body.top), paint.line
    pen.ellipse(middle, r, _TILT * r, paint.light, "body", outline=line, outline_width=v.OUTLINE)
    pen.ellipse(
        middle,
        inner,
        _TILT * inner,
        _lining(traits, paint),
        "inside",
        outline=line,
        outline_width=0.03,
    )


def _broken(pen: Pen, body: v.Turned, traits: Traits, paint: v.Glaze, prop: bool) -> None:
    """The right half has burst: a jagged edge, the lining bare, shards on the ground."""
    r = body.radius(body.top)
    cut = [(-r * 1.1, body.top - 0.02), (-0.6 * r, body.top + 0.24), (-0.38 * r, body.top + 0.12)]
    cut += v.jagged((-0.15 * r, body.height_at(0.42)), (r * 1.1, body.height_at(0.86)), 3, 0.1)
    far = [(-r, body.top), (-0.7 * r, body.top - 0.18), (-0.3 * r, body.top - 0.24)]
    far += [(-0.1 * r, body.top + 0.05), (0.15 * r, body.top - 0.02), (0.3 * r, body.top + 0.3)]
    far += [(0.62 * r, body.height_at(0.5)), (0.9 * r, body.height_at(0.9))]
    hull = [*far, (0.2 * r, body.bottom), (-0.4 * r, body.bottom), (-0.8 * r, body.height_at(0.5))]
    lining = _lining(traits, paint)
    pen.polygon(hull, lining, "inside", outline=paint.line, outline_width=v.OUTLINE)
    if prop:
        _berries(pen, body, 0.4)
    v.draw_body(pen, body.broken(cut), paint, traits)
    v.shards(pen, ((0.84, 0.2, 10), (0.52, 0.17, 75), (-0.84, 0.13, 200), (0.7, 0.12, 140)), paint)


def _foot(pen: Pen, body: v.Turned, traits: Traits, paint: v.Glaze) -> None:
    r = body.radius(body.bottom)
    if traits["foot"] == "flat":
        return
    wide = r * (1.0 if traits["foot"] == "ring" else 1.3)
    foot = v.turned([(body.bottom, r * 0.8), (body.bottom + 0.06, r * 0.7), (0.94, wide)])
    pen.polygon(foot.outline(), paint.second, "foot", outline=paint.line, outline_width=v.OUTLINE)


def _ears(pen: Pen, body: v.Turned, traits: Traits, paint: v.Glaze) -> None:
    y, line = body.height_at(0.2), paint.line
    r = body.radius(y)
    for side in (-1, 1):
        if traits["ears"] == "knobs":
            pen.ellipse(
                (side * (r + 0.04), y), 0.13, 0.1, paint.second, "handle", 0, line, v.OUTLINE
            )
        elif traits["ears"] == "round":
            out = side * (r + 0.17)
            loop = [(side * (r - 0.05), y - 0.12), (out, y - 0.08), (out, y + 0.14)]
            pen.stroke(
                [*loop, (side * (r - 0.08), y + 0.2)], 0.08, paint.main, "handle", outline=line
            )


def _berries(pen: Pen, body: v.Turned, share: float = 1.0) -> None:
    """A heap of red and blue berries, the same for every bowl."""
    r = 0.8 * body.radius(body.top) * share
    left = -0.75 * r if share < 1.0 else 0.0
    size = 0.125
    rows = ((7, 1.0, 0.0), (6, 0.8, -0.1), (4, 0.52, -0.22), (2, 0.2, -0.33))
    for row, (count, reach, lift) in enumerate(rows):
        for i in range(count):
            t = 2 * i / (count - 1) - 1
            y = body.top + lift + 0.13 * (1 - t * t) * (1 if row == 0 else 0.5)
            color = ((206, 20, 44), (46, 62, 178))[(i + row) % 2]
            dark = shade(color, 0.45)
            center = (left + t * reach * r, y)
            pen.ellipse(center, size, size, color, "prop", outline=dark, outline_width=0.03)


def _spoon(pen: Pen, body: v.Turned, full: bool) -> None:
    """A big metal spoon that stands in the bowl, its scoop up."""
    steel, dark = (214, 220, 228), (62, 68, 82)
    foot: Point = (0.1, body.top + (0.0 if full else 0.12))
    angle = math.radians(52)
    reach = 0.52 * body.breadth
    tip = (foot[0] + reach * math.cos(angle), foot[1] - reach * math.sin(angle))
    pen.stroke([foot, tip], 0.06, steel, "spoon", outline=dark)
    pen.ellipse(tip, 0.15, 0.095, steel, "spoon", -52, dark, 0.04)
    pen.ellipse(tip, 0.08, 0.045, (150, 158, 172), "spoon", -52)


CLASS = WorldClass(
    name="bowl",
    states=(
        State("plain", before="plain"),
        State("golden", before="golden"),
        State("wooden", before="wooden"),
        State("broken", before="broken"),
        State("crystal", before="crystal"),
        State("cracked", before="cracked", fine=True),
        State("ribbon", after="with a ribbon", fine=True),
        State("spoon", after="with a spoon", fine=True),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=0.7,
    prop="berries",
    size=0.4,
)
