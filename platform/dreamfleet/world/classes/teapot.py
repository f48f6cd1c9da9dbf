"""A teapot with spout, handle and lid, seen from the side, from its spout or from its handle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamfleet.world.canvas import Paint, Pen, Point
from dreamfleet.world.classes import _vessel as v
from dreamfleet.world.classes._kit import pick, star
from dreamfleet.world.spec import State, Traits, WorldClass

_SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "round": ((0.0, 0.37), (0.1, 0.66), (0.42, 1.0), (0.78, 0.86), (1.0, 0.52)),
    "pear": ((0.0, 0.36), (0.2, 0.52), (0.62, 1.0), (0.86, 0.92), (1.0, 0.6)),
    "drum": ((0.0, 0.42), (0.07, 0.84), (0.2, 0.9), (0.9, 0.9), (1.0, 0.8)),
    "bell": ((0.0, 0.37), (0.25, 0.6), (0.7, 0.84), (0.94, 1.0), (1.0, 0.96)),
}
_LIDS: dict[str, float] = {"dome": 0.13, "flat": 0.07, "cone": 0.16}
_STEAM, _STEAM_RIM = (255, 255, 255), (140, 146, 158)


@dataclass(frozen=True)
class _Build:
    """A teapot's body and what hangs on it, in its frame."""

    body: v.Turned
    lip: float  # radius of the opening
    span: float  # height of the body

    def height(self, share: float) -> float:
        """The height `share` of the way down the body."""
        return self.body.height_at(share)


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One teapot: glaze, shapes of body, spout, handle, lid, knob and foot, proportions."""
    traits = v.sample_glaze(rng)
    traits["shape"] = pick(rng, tuple(_SHAPES))
    traits["spout"] = pick(rng, ("curved", "straight", "stubby"))
    traits["handle"] = pick(rng, ("round", "square", "ear"))
    traits["handle_tone"] = pick(rng, ("main", "second", "accent"))
    traits["lid"] = pick(rng, tuple(_LIDS))
    traits["knob"] = pick(rng, ("ball", "cone", "flat"))
    traits["foot"] = pick(rng, ("flat", "ring", "feet"))
    traits["height"] = float(rng.uniform(0.92, 1.25))
    traits["width"] = float(rng.uniform(0.56, 0.66))
    traits["thickness"] = float(rng.uniform(0.09, 0.14))
    return traits


def _build(traits: Traits) -> _Build:
    foot = {"flat": 0.0, "ring": 0.07, "feet": 0.11}[traits["foot"]]
    bottom = 0.94 - foot
    top = bottom - traits["height"]
    body = v.stretched(_SHAPES[traits["shape"]], top, bottom, traits["width"])
    return _Build(body, body.radius(top), traits["height"])


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw the teapot: what lies behind the body, the body, then what lies before it."""
    paint, build = v.glaze(pen, traits, state), _build(traits)
    _foot(pen, build, traits, paint)
    if state == "broken":
        _broken(pen, build, traits, paint, view)
        return
    if state == "steaming" and view == "back":
        _steam(pen, (0.5 * build.lip + 0.16, build.height(0.04)), 0.44)
    if view == "side":
        _side_spout(pen, build, traits, paint)
        _side_handle(pen, build, traits, paint)
    v.draw_body(pen, build.body, paint, traits, {"side": 0.0, "front": 90.0, "back": 270.0}[view])
    tilt = 0.0 if state != "open lid" else (21.0 if view == "side" else 16.0)
    _top(pen, build, traits, paint, tilt)
    if view == "front":
        _front_spout(pen, build, traits, paint)
    elif view == "back":
        _back_handle(pen, build, traits, paint)
    if state == "steaming" and view != "back":
        _steam(pen, _mouth(build, traits, view), 0.52 if view == "side" else 0.4)
    elif state == "ribbon":
        place, size, strip = (0.2, 0.16, 0.03) if view == "side" else (0.12, 0.163, 0.0)
        v.ribbon(pen, build.body, build.height(place), size * build.body.breadth, strip)


def _steam(pen: Pen, foot: Point, height: float) -> None:
    v.plume(pen, foot, height, 0.26 * height, _STEAM, _STEAM_RIM, "steam")


# -- lid and foot ----------------------------------------------------------------------------------


def _top(pen: Pen, build: _Build, traits: Traits, paint: v.Glaze, tilt: float) -> None:
    """The lid on the opening, or raised by `tilt` degrees, pale beneath, over the dark hole."""
    top, lip = build.body.top, build.lip
    if tilt == 0:
        _lid(pen, (0.0, top), lip, traits, paint)
        return
    hole = (20, 12, 18)
    pen.ellipse((0.0, top), lip, 0.2 * lip, hole, "inside", outline=paint.line, outline_width=0.04)
    raised = pen.rotated(-tilt, (-lip, top))
    half, full = _lifted(lip, top, 0.45 * tilt), _lifted(lip, top, tilt)
    pen.polygon([(-lip, top), (lip, top), half], hole, "inside")
    _lid(raised, (0.0, top - 0.02), lip, traits, paint)
    pen.polygon([(-lip, top), half, full], (255, 250, 232), "lid")


def _lifted(lip: float, top: float, tilt: float) -> Point:
    """Where the free end of the lid is when it is raised by `tilt` degrees."""
    a = math.radians(tilt)
    return -lip + 2 * lip * math.cos(a), top - 2 * lip * math.sin(a)


def _lid(pen: Pen, at: Point, lip: float, traits: Traits, paint: v.Glaze) -> None:
    x, y = at
    high = _LIDS[traits["lid"]]
    shoulder = 0.92 if traits["lid"] == "flat" else (0.78 if traits["lid"] == "dome" else 0.52)
    wide = lip * 1.06
    cap: list[Point] = [
        (x - wide, y + 0.02), (x - shoulder * wide, y - 0.6 * high), (x - 0.25 * wide, y - high),
        (x + 0.25 * wide, y - high), (x + shoulder * wide, y - 0.6 * high), (x + wide, y + 0.02),
        (x, y + 0.14 * wide),
    ]  # fmt: skip
    _knob(pen, (x, y - high), traits["knob"], paint)
    pen.polygon(cap, paint.second, "lid", outline=paint.line, outline_width=v.OUTLINE)


def _knob(pen: Pen, at: Point, kind: str, paint: v.Glaze) -> None:
    x, y = at
    if kind == "ball":
        pen.ellipse((x, y - 0.055), 0.085, 0.085, paint.accent, "lid", 0, paint.line, v.OUTLINE)
    elif kind == "cone":
        cone = [(x - 0.085, y + 0.02), (x, y - 0.16), (x + 0.085, y + 0.02)]
        pen.polygon(cone, paint.accent, "lid", outline=paint.line, outline_width=v.OUTLINE)
    else:
        pen.ellipse((x, y - 0.035), 0.135, 0.055, paint.accent, "lid", 0, paint.line, v.OUTLINE)


def _foot(pen: Pen, build: _Build, traits: Traits, paint: v.Glaze) -> None:
    bottom = build.body.bottom
    r = build.body.radius(bottom)
    if traits["foot"] == "ring":
        ring = v.turned([(bottom - 0.02, r * 0.85), (bottom + 0.04, r * 0.85), (0.95, r * 1.05)])
        pen.polygon(
            ring.outline(), paint.second, "foot", outline=paint.line, outline_width=v.OUTLINE
        )
    elif traits["foot"] == "feet":
        for side in (-0.8, 0.0, 0.8):
            center = (side * r, 0.92 + (0.05 if side == 0 else 0.0))
            pen.ellipse(center, 0.1, 0.1, paint.second, "foot", 0, paint.line, v.OUTLINE)


# -- spout and handle ------------------------------------------------------------------------------


def _spout_path(build: _Build, traits: Traits) -> tuple[list[Point], tuple[float, ...]]:
    """Centre line and widths of the spout in side view, from the body to its mouth."""
    low, high = build.height(0.66), build.height(0.12)
    r = build.body.radius(low)
    if traits["spout"] == "straight":
        return [(0.6 * r, low), (0.82 * r + 0.1, build.height(0.45)), (0.97, high)], (
            0.42,
            0.28,
            0.17,
        )
    if traits["spout"] == "stubby":
        middle = build.height(0.4)
        return [(0.6 * r, middle + 0.1), (r, middle), (r + 0.26, build.height(0.2))], (
            0.44,
            0.34,
            0.27,
        )
    path = [
        (0.6 * r, low),
        (r + 0.12, low - 0.04),
        (r + 0.2, build.height(0.36)),
        (0.98, high - 0.04),
    ]
    return path, (0.4, 0.3, 0.2, 0.17)


def _mouth(build: _Build, traits: Traits, view: str) -> Point:
    """Where steam leaves the spout."""
    if view == "side":
        x, y = _spout_path(build, traits)[0][-1]
        return min(x, 0.86), y
    x, y = build.body.at(0, build.height(0.3))
    return x, y


def _side_spout(pen: Pen, build: _Build, traits: Traits, paint: v.Glaze) -> None:
    path, widths = _spout_path(build, traits)
    pen.polygon(
        v.tube(path, widths), paint.main, "spout", outline=paint.line, outline_width=v.OUTLINE
    )
    x, y = path[-1]
    pen.ellipse((x, y), 0.55 * widths[-1], 0.05, paint.accent, "spout", 30, paint.line, 0.035)


def _front_spout(pen: Pen, build: _Build, traits: Traits, paint: v.Glaze) -> None:
    """The spout points at the viewer: a tapering trunk that ends in a wide open mouth."""
    x, low = build.body.at(0, build.height(0.66))
    _, high = build.body.at(0, build.height(0.26))
    wide = {"curved": 0.2, "straight": 0.18, "stubby": 0.25}[traits["spout"]]
    trunk = [(x - 1.15 * wide, low), (x - 0.8 * wide, high), (x + 0.8 * wide, high)]
    trunk += [(x + 1.15 * wide, low), (x + 0.6 * wide, low + 0.14), (x - 0.6 * wide, low + 0.14)]
    pen.polygon(trunk, paint.main, "spout", outline=paint.line, outline_width=v.OUTLINE)
    pen.ellipse((x, high), wide, 0.75 * wide, paint.accent, "spout", 0, paint.line, v.OUTLINE)
    pen.ellipse((x, high), 0.62 * wide, 0.45 * wide, (16, 10, 14), "spout")


def _handle_paint(traits: Traits, paint: v.Glaze) -> Paint:
    tones = {"main": paint.main, "second": paint.second, "accent": paint.accent}
    return tones[traits["handle_tone"]]


def _handle_path(build: _Build, traits: Traits) -> list[Point]:
    """Centre line of the handle in side view, from its upper to its lower end."""
    high, low = build.height(0.2), build.height(0.76)
    start, end = (-0.9 * build.body.radius(high), high), (-0.9 * build.body.radius(low), low)
    far = -0.93
    if traits["handle"] == "square":
        corners = [(far, high - 0.02), (far, high), (far, low - 0.06), (far + 0.02, low - 0.02)]
        return [start, *corners, end]
    if traits["handle"] == "ear":
        return [start, (-0.72, high - 0.26), (far, high - 0.12), (far + 0.06, high + 0.3), end]
    return [start, (-0.8, high - 0.03), (far, (high + low) / 2), (-0.8, low), end]


def _side_handle(pen: Pen, build: _Build, traits: Traits, paint: v.Glaze) -> None:
    path = _handle_path(build, traits)
    pen.stroke(
        path, traits["thickness"], _handle_paint(traits, paint), "handle", outline=paint.line
    )


def _back_handle(
    pen: Pen, build: _Build, traits: Traits, paint: v.Glaze, share: float = 0.2
) -> None:
    """The handle points at the viewer: a long upright bar with its shadow on the body beside it."""
    rise = 0.14 if traits["handle"] == "ear" else 0.0
    x, high = build.body.at(0, build.height(share))
    _, low = build.body.at(0, build.height(0.78))
    wide = traits["thickness"] * 1.9
    bar = [
        (x - wide / 2, high - rise),
        (x + wide / 2, high - rise),
        (x + wide / 2, low),
        (x - wide / 2, low),
    ]
    cast = [(px + 0.13, py + 0.05) for px, py in bar]
    pen.polygon(cast, paint.line, "handle")
    pen.polygon(
        bar, _handle_paint(traits, paint), "handle", outline=paint.line, outline_width=0.055
    )
    for y in (high - rise, low):
        pen.ellipse((x, y), 0.72 * wide, 0.09, paint.light, "handle", 0, paint.line, v.OUTLINE)


# -- damage ----------------------------------------------------------------------------------------


def _broken(pen: Pen, build: _Build, traits: Traits, paint: v.Glaze, view: str) -> None:
    """The top is gone: a jagged edge, lid and shards on the ground, the spout snapped off."""
    if view == "side":
        _side_handle(pen, build, traits, paint)
    cut = _cut(build, view)
    turn = {"side": 0.0, "front": 90.0, "back": 270.0}[view]
    v.draw_broken_body(pen, build.body, cut, paint, traits, turn)
    if view == "front":
        _stump(pen, build, traits, paint)
    elif view == "back":
        _back_handle(pen, build, traits, paint, 0.5)
    lid = pen.rotated(-22, (-0.72, 0.94))
    _lid(lid, (-0.7, 0.96), 0.8 * build.lip, traits, paint)
    if view == "side":
        _snapped_spout(pen, traits, paint)
        v.shards(pen, ((0.36, 0.16, 80), (-0.3, 0.13, 200)), paint)
    else:
        v.shards(pen, ((0.62, 0.2, 10), (0.86, 0.15, 80), (0.4, 0.14, 200)), paint)


def _cut(build: _Build, view: str) -> Sequence[Point]:
    r = 1.1 * max(radius for _, radius in build.body.profile)
    left, right = (0.12, 0.66) if view == "side" else (0.3, 0.5)
    return v.jagged((-r, build.height(left)), (r, build.height(right)), 4, 0.12)


def _stump(pen: Pen, build: _Build, traits: Traits, paint: v.Glaze) -> None:
    """What is left of the spout, seen from the front."""
    x, y = build.body.at(0, build.height(0.7))
    wide = {"curved": 0.2, "straight": 0.18, "stubby": 0.25}[traits["spout"]]
    pen.ellipse((x, y), 1.1 * wide, 0.85 * wide, paint.main, "spout", 0, paint.line, v.OUTLINE)
    pen.polygon(star((x, y), 0.75 * wide, 7, 0.6), (16, 10, 14), "spout")


def _snapped_spout(pen: Pen, traits: Traits, paint: v.Glaze) -> None:
    """The spout lies on the ground to the right."""
    wide = 0.28 if traits["spout"] == "stubby" else 0.2
    path: list[Point] = [(0.5, 0.86), (0.7, 0.9), (0.96, 0.8)]
    loop = v.tube(path, (1.3 * wide, wide, 0.8 * wide))
    pen.polygon(loop, paint.main, "spout", outline=paint.line, outline_width=v.OUTLINE)
    pen.ellipse((0.96, 0.8), 0.06, 0.45 * wide, paint.accent, "spout", -20, paint.line, 0.035)


CLASS = WorldClass(
    name="teapot",
    states=(
        State("plain", before="plain"),
        State("golden", before="golden"),
        State("crystal", before="crystal"),
        State("wooden", before="wooden"),
        State("steaming", before="steaming", fine=True),
        State("open lid", after="with an open lid", fine=True),
        State("broken", before="broken"),
        State("ribbon", after="with a ribbon", fine=True),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=1.2,
    views=("side", "front", "back"),
    size=0.385,
)
