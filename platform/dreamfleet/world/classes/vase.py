"""A vase: tall, with a neck, sometimes with ears, sometimes with flowers in it."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, shade
from dreamfleet.world.classes import _vessel as v
from dreamfleet.world.classes._kit import INK, RED, WHITE, pick
from dreamfleet.world.spec import State, Traits, WorldClass

# (share of height, share of width) below the lip; lip and neck have widths of their own.
_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "bottle": ((0.30, 0.0), (0.45, 0.55), (0.68, 1.0), (0.88, 0.86), (1.0, 0.6)),
    "amphora": ((0.16, 0.0), (0.26, 0.8), (0.42, 1.0), (0.72, 0.66), (1.0, 0.36)),
    "urn": ((0.14, 0.0), (0.22, 0.62), (0.5, 1.0), (0.8, 0.8), (1.0, 0.55)),
    "trumpet": ((0.30, 0.2), (0.55, 0.4), (0.72, 0.72), (0.88, 0.8), (1.0, 0.6)),
}


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One vase: glaze, shape of belly and neck, lip, foot and ears."""
    traits = v.sample_glaze(rng)
    traits["shape"] = pick(rng, tuple(_SHAPES))
    traits["ears"] = pick(rng, ("none", "round", "none", "hooks"))
    traits["foot"] = pick(rng, ("flat", "ring", "pedestal"))
    traits["height"] = float(rng.uniform(1.38, 1.64))
    traits["width"] = float(rng.uniform(0.46, 0.66))
    traits["neck"] = float(rng.uniform(0.15, 0.25))
    traits["lip"] = float(rng.uniform(1.25, 1.8))
    return traits


def body_of(traits: Traits) -> v.Turned:
    """The vase's body without its foot."""
    foot = {"flat": 0.0, "ring": 0.06, "pedestal": 0.16}[traits["foot"]]
    top, bottom = 1 - traits["height"], 0.95 - foot
    span = bottom - top
    neck, lip = traits["neck"], traits["neck"] * traits["lip"]
    if traits["shape"] == "trumpet":
        lip = max(lip, 0.36)
    knots = [(top, lip), (top + 0.06 * span, 0.7 * lip + 0.3 * neck)]
    for share, width in _SHAPES[traits["shape"]]:
        knots.append((top + share * span, neck + width * (traits["width"] - neck)))
    return v.turned(knots)


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw the vase in its state."""
    paint = v.glaze(pen, traits, state)
    body = body_of(traits)
    if state == "broken":
        _draw_broken(pen, body, traits, paint, prop)
        return
    _ears(pen, body, traits, paint)
    _foot(pen, body, traits, paint)
    if prop:
        _flowers(pen, body.top)
    v.draw_body(pen, body, paint, traits)
    _mouth(pen, body, paint, prop)
    _additions(pen, body, traits, state)


def _additions(pen: Pen, body: v.Turned, traits: Traits, state: str) -> None:
    if state == "ribbon":
        v.ribbon(pen, body, body.height_at(0.22), 0.145 * body.breadth, 0.03)
    elif state == "cracked":
        v.cracks(pen, body, traits["colour"], (0.22, 0.76), 0.9, 0.05)
    elif state == "sticker":
        x, y = body.at(0, body.height_at(0.56))
        _sticker(pen, (x, y), 0.128 * body.breadth)


def _draw_broken(pen: Pen, body: v.Turned, traits: Traits, paint: v.Glaze, prop: bool) -> None:
    """The lower part with a jagged edge; the neck lies on the ground between shards."""
    _foot(pen, body, traits, paint)
    high, low = body.height_at(0.42), body.height_at(0.72)
    if prop:
        _flowers(pen, high - 0.1)
    v.draw_broken_body(pen, body, v.jagged((-0.7, high), (0.7, low), 4, 0.13), paint, traits)
    lying = pen.rotated(96, (0.0, 0.0))
    neck = v.turned(
        [(-0.92, traits["neck"] * traits["lip"]), (-0.76, traits["neck"]), (-0.62, 0.24)]
    )
    neck = v.Turned(tuple((y, 0.75 * r) for y, r in neck.profile), neck.sag)
    shift = 1.0 - 0.75 * traits["neck"] * traits["lip"]
    shifted = [(x + shift, y) for x, y in neck.outline()]
    lying.polygon(shifted, paint.main, "shard", outline=paint.line, outline_width=v.OUTLINE)
    v.shards(pen, ((-0.78, 0.2, 10), (-0.52, 0.15, 80), (0.5, 0.17, 200)), paint)


def _mouth(pen: Pen, body: v.Turned, paint: v.Glaze, full: bool) -> None:
    """The dark opening seen a little from above; stems cover its far side."""
    r = body.radius(body.top)
    loop = [(r * x, body.top + 0.14 * r * y) for x, y in _ring()]
    if full:
        loop = [(x, max(y, body.top)) for x, y in loop]
    pen.polygon(loop, paint.inside, "body", outline=paint.line, outline_width=0.04)


def _ring() -> list[Point]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return [(float(np.cos(t)), float(np.sin(t))) for t in angles]


def _ears(pen: Pen, body: v.Turned, traits: Traits, paint: v.Glaze) -> None:
    if traits["ears"] == "none":
        return
    top, low = body.height_at(0.14), body.height_at(0.42)
    reach = body.radius(low) + (0.14 if traits["ears"] == "round" else 0.06)
    for side in (-1, 1):
        start, end = (side * body.radius(top) * 0.8, top), (side * body.radius(low) * 0.9, low)
        bend = [(side * reach, top + 0.02), (side * (reach + 0.04), (top + low) / 2)]
        if traits["ears"] == "hooks":
            bend = [(side * (reach + 0.14), top - 0.1)]
        pen.stroke([start, *bend, end], 0.1, paint.main, "handle", outline=paint.line)


def _foot(pen: Pen, body: v.Turned, traits: Traits, paint: v.Glaze) -> None:
    r = body.radius(body.bottom)
    if traits["foot"] == "flat":
        return
    wide = r * (1.05 if traits["foot"] == "ring" else 1.35)
    stem = v.turned([(body.bottom - 0.02, r * 0.7), (body.bottom + 0.05, r * 0.6), (0.96, wide)])
    pen.polygon(stem.outline(), paint.second, "foot", outline=paint.line, outline_width=v.OUTLINE)


def _flowers(pen: Pen, top: float) -> None:
    """Three blossoms and leaves; the same for every vase, so that they tell nothing of it."""
    blossoms: tuple[tuple[float, float, RGB], ...] = (
        (-0.3, top - 0.22, (240, 60, 120)),
        (0.32, top - 0.19, (255, 196, 30)),
        (0.02, top - 0.3, (250, 250, 250)),
    )
    for x, y, _ in blossoms:
        pen.stroke(
            [(0.15 * x, top + 0.05), (0.6 * x, top - 0.12), (x, y)], 0.06, (34, 128, 48), "prop"
        )
    for x, y, color in blossoms:
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            pen.ellipse((x + 0.085 * dx, y + 0.085 * dy), 0.085, 0.085, color, "prop")
        pen.ellipse((x, y), 0.06, 0.06, (200, 110, 10), "prop")


def _sticker(pen: Pen, at: Point, half: float) -> None:
    """A white square with a red heart."""
    x, y = at
    square = [
        (x - half, y - half),
        (x + half, y - half),
        (x + half, y + half),
        (x - half, y + half),
    ]
    pen.polygon(square, WHITE, "sticker", outline=INK, outline_width=0.02)
    h = 0.72 * half
    heart = [
        (x, y + 1.1 * h),
        (x - h, y - 0.05 * h),
        (x - h, y - 0.6 * h),
        (x - 0.5 * h, y - 0.9 * h),
    ]
    heart += [
        (x, y - 0.4 * h),
        (x + 0.5 * h, y - 0.9 * h),
        (x + h, y - 0.6 * h),
        (x + h, y - 0.05 * h),
    ]
    pen.polygon(heart, RED, "sticker", outline=shade(RED, 0.8), outline_width=0.02)


CLASS = WorldClass(
    name="vase",
    states=(
        State("plain", before="plain"),
        State("golden", before="golden"),
        State("crystal", before="crystal"),
        State("broken", before="broken"),
        State("wooden", before="wooden"),
        State("ribbon", after="with a ribbon", fine=True),
        State("cracked", before="cracked", fine=True),
        State("sticker", after="with a sticker", fine=True),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=1.0,
    prop="flowers",
    size=0.39,
)
