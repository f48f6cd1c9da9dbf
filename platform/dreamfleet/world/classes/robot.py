"""A toy robot of boxes and tubes, seen in three-quarter profile, from the front or the back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, shade, smooth
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
)
from dreamfleet.world.spec import State, Traits, WorldClass

_HEADS = ("box", "dome", "round", "funnel")
_ANTENNAS = ("ball", "twin", "fin")
_PANELS = ("dial", "screen", "buttons", "heart")


@dataclass(frozen=True)
class _Build:
    """Heights and half-widths of one robot in its frame, before any pose."""

    hip: float
    shoulder: float
    chin: float
    crown: float
    body: float  # half-width
    head: float  # half-width


@dataclass(frozen=True)
class _Pose:
    """Where the limbs end; index 0 is the picture's left, 1 its right."""

    knees: tuple[Point, Point]
    feet: tuple[Point, Point]
    elbows: tuple[Point, Point]
    hands: tuple[Point, Point]
    drop: float = 0.0  # how much lower the trunk is
    tilt: float = 0.0  # degrees, clockwise


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One robot: colours, proportions and the shapes of head, antenna and chest panel."""
    traits = sample_colours(rng, neutrals=((238, 240, 244), (150, 156, 168)))
    traits["pattern"] = pick(rng, ("plain", "striped", "spotted", "checkered"))
    traits["mark_layout"] = int(rng.integers(3))
    traits["head_shape"] = pick(rng, _HEADS)
    traits["antenna"] = pick(rng, _ANTENNAS)
    traits["panel"] = pick(rng, _PANELS)
    traits["face"] = pick(rng, ("dark", "light"))
    traits["leg_length"] = float(rng.uniform(0.36, 0.58))
    traits["body_height"] = float(rng.uniform(0.60, 0.78))
    traits["head_height"] = float(rng.uniform(0.44, 0.58))
    traits["body_width"] = float(rng.uniform(0.40, 0.54))
    traits["head_width"] = float(rng.uniform(0.36, 0.48))
    traits["limb_width"] = float(rng.uniform(0.13, 0.19))
    return traits


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw the robot: limbs, trunk and head, then what it wears or holds."""
    paint = coat(pen, traits, state)
    build = _build(traits)
    pose = _pose(build, state, view)
    seat = Pen(pen.canvas, (pen.origin[0], pen.origin[1] + pose.drop * pen.scale), pen.scale)
    trunk = seat.rotated(pose.tilt, (0.0, build.hip))
    _arm(trunk, traits, paint, build, pose, 1)
    if state != "sitting":
        _legs(pen, traits, paint, build, pose, view)
    _body(trunk, traits, paint, build, view)
    _head(trunk, traits, paint, build, view, state)
    _arm(trunk, traits, paint, build, pose, 0)
    if state == "sitting":
        _legs(pen, traits, paint, build, pose, view)
    if state == "waving":
        _open_hand(trunk, paint, pose.hands[1])
    elif state == "flower":
        _flower(trunk, pose.hands[1])
    elif state == "hat":
        _hat(trunk, build)


def _build(traits: Traits) -> _Build:
    parts = (traits["leg_length"], traits["body_height"], traits["head_height"])
    unit = 1.78 / (sum(parts) + 0.05)
    hip = 1.0 - unit * parts[0]
    shoulder = hip - unit * parts[1]
    chin = shoulder - 0.05
    return _Build(
        hip, shoulder, chin, chin - unit * parts[2], traits["body_width"], traits["head_width"]
    )


def _pose(build: _Build, state: str, view: str) -> _Pose:
    w, hip, top = build.body, build.hip, build.shoulder
    side = view == "side"
    toe = 0.05 if side else 0.0
    leg = 0.55 * w
    feet = ((-leg + toe, 0.93), (leg + toe, 0.93))
    knees = ((-leg, (hip + 1) / 2), (leg, (hip + 1) / 2))
    elbows = ((-w - 0.16, top + 0.3), (w + 0.16, top + 0.3))
    hands = ((-w - 0.16, hip - 0.03), (w + 0.16, hip - 0.03))
    if state == "walking":
        return _walking(build, side)
    if state == "sitting":
        return _sitting(build, side)
    if state == "waving":
        elbows = (elbows[0], (w + 0.32, top + 0.1))
        hands = (hands[0], (w + 0.38, top - 0.52))
    return _Pose(knees, feet, elbows, hands)


def _walking(build: _Build, side: bool) -> _Pose:
    w, hip, top = build.body, build.hip, build.shoulder
    mid = (hip + 1) / 2
    if side:
        return _Pose(
            knees=((-0.38, mid), (0.42, mid - 0.06)),
            feet=((-0.72, 0.86), (0.70, 0.93)),
            elbows=((-w - 0.26, top + 0.26), (w + 0.26, top + 0.26)),
            hands=((-w - 0.46, top + 0.42), (w + 0.50, top + 0.16)),
            drop=0.07,
            tilt=7.0,
        )
    return _Pose(
        knees=((-0.62, hip + 0.02), (0.44, mid)),
        feet=((-0.62, 0.62), (0.56, 0.93)),
        elbows=((-w - 0.3, top + 0.24), (w + 0.3, top + 0.22)),
        hands=((-w - 0.34, top + 0.52), (w + 0.46, top + 0.02)),
        drop=0.05,
        tilt=-9.0,
    )


def _sitting(build: _Build, side: bool) -> _Pose:
    w, hip, top = build.body, build.hip, build.shoulder
    drop = 0.95 - hip
    elbows = ((-w - 0.2, top + 0.3), (w + 0.16, top + 0.3))
    if side:
        knees, feet = ((0.3, 0.84), (0.42, 0.74)), ((0.86, 0.88), (0.98, 0.76))
        hands = ((-w - 0.24, hip - 0.08), (w + 0.26, hip - 0.3))
    else:
        knees, feet = ((-0.42, 0.86), (0.42, 0.86)), ((-0.74, 0.86), (0.74, 0.86))
        hands = ((-w - 0.22, hip - 0.2), (w + 0.22, hip - 0.2))
    return _Pose(knees, feet, elbows, hands, drop)


def _arm(pen: Pen, traits: Traits, paint: Coat, build: _Build, pose: _Pose, index: int) -> None:
    """One arm: a tube with a ball for a hand."""
    sign = (-1, 1)[index]
    shoulder = (sign * (build.body - 0.02), build.shoulder + 0.12)
    points = [shoulder, pose.elbows[index], pose.hands[index]]
    pen.stroke(points, traits["limb_width"], paint.second, "arms", outline=paint.line)
    pen.ellipse(pose.hands[index], 0.11, 0.11, paint.accent, "arms", outline=paint.line)


def _legs(pen: Pen, traits: Traits, paint: Coat, build: _Build, pose: _Pose, view: str) -> None:
    """Two tubes ending in shoes of the main colour; toes point to where the robot looks."""
    width = traits["limb_width"] * 1.2
    hip_y = build.hip + pose.drop - 0.06
    for i in (1, 0):
        hip = ((-0.55, 0.55)[i] * build.body, hip_y)
        x, y = pose.feet[i]
        pen.stroke([hip, pose.knees[i], (x, y)], width, paint.second, "legs", outline=paint.line)
        if pose.drop > 0.1:
            shoe = rounded(x - 0.1, y - 0.22, x + 0.1, y + 0.12, 0.09)
        elif view == "side":
            shoe = rounded(x - 0.14, y - 0.1, x + 0.26, y + 0.07, 0.09)
        else:
            shoe = rounded(x - 0.18, y - 0.1, x + 0.18, y + 0.07, 0.09)
        pen.polygon(shoe, paint.side, "legs", outline=paint.line)


def _body(pen: Pen, traits: Traits, paint: Coat, build: _Build, view: str) -> None:
    """The trunk with its markings and the chest panel, or the key on its back."""
    w, top, hip = build.body, build.shoulder, build.hip
    pen.polygon(rect(-0.12, build.chin - 0.08, 0.12, top + 0.08), paint.second, "body")
    pen.polygon(rounded(-w, top, w, hip, 0.1), paint.main, "body")
    left = -w
    if view == "side":
        left = -0.52 * w
        pen.polygon(rect(-w + 0.03, top + 0.06, left, hip - 0.06), paint.side, "body")
    box = (left + 0.03, top + 0.04, w - 0.03, hip - 0.04)
    marks(pen, box, traits["pattern"], traits["mark_layout"], paint.mark, "body")
    edge(pen, rounded(-w, top, w, hip, 0.1), paint.line)
    center = ((left + w) / 2, (top + hip) / 2)
    if view == "back":
        _key(pen, paint, center)
    else:
        _panel(pen, traits["panel"], paint, center)


def _panel(pen: Pen, kind: str, paint: Coat, center: Point) -> None:
    x, y = center
    if kind == "dial":
        pen.ellipse(center, 0.17, 0.17, WHITE, "body", outline=INK)
        pen.ellipse(center, 0.09, 0.09, paint.accent, "body")
    elif kind == "screen":
        pen.polygon(rect(x - 0.21, y - 0.12, x + 0.21, y + 0.12), INK, "body")
        pen.polygon(rect(x - 0.16, y - 0.07, x + 0.16, y + 0.07), paint.accent, "body")
    elif kind == "buttons":
        for dy in (-0.17, 0.0, 0.17):
            pen.ellipse((x, y + dy), 0.075, 0.075, paint.accent, "body", outline=INK)
    else:
        shape = [
            (x, y + 0.2), (x - 0.2, y), (x - 0.16, y - 0.14), (x, y - 0.07),
            (x + 0.16, y - 0.14), (x + 0.2, y),
        ]  # fmt: skip
        pen.polygon(shape, paint.accent, "body", outline=INK)


def _key(pen: Pen, paint: Coat, center: Point) -> None:
    """The wind-up key in the middle of the back."""
    x, y = center
    for sign in (-1, 1):
        pen.ellipse((x + sign * 0.17, y), 0.15, 0.12, paint.accent, "body", outline=INK)
        pen.ellipse((x + sign * 0.18, y), 0.06, 0.045, INK, "body")
    pen.ellipse(center, 0.06, 0.06, INK, "body")


def _head_outline(traits: Traits, build: _Build) -> list[Point]:
    w, top, chin = build.head, build.crown, build.chin
    shape = traits["head_shape"]
    if shape == "box":
        return rounded(-w, top, w, chin, 0.08)
    if shape == "dome":
        low, high, x = chin - 0.18, top + 0.1, 0.72 * w
        arc = smooth([(-w, low), (-x, high), (0, top), (x, high), (w, low)])
        return [*arc, (w, chin), (-w, chin)]
    if shape == "round":
        mid, r = (top + chin) / 2, (chin - top) / 2 + 0.02
        return rounded(-w, mid - r, w, mid + r, r)
    return [(-1.12 * w, top), (1.12 * w, top), (0.74 * w, chin), (-0.74 * w, chin)]


def _head(pen: Pen, traits: Traits, paint: Coat, build: _Build, view: str, state: str) -> None:
    w, mid = build.head, (build.crown + build.chin) / 2
    _antenna(pen, traits["antenna"], paint, build)
    for sign in (-1, 1):
        pen.ellipse((sign * w, mid), 0.09, 0.11, paint.accent, "ears", outline=paint.line)
    outline = _head_outline(traits, build)
    pen.polygon(outline, paint.main, "head", outline=paint.line)
    if view == "back":
        for dy in (-0.1, 0.02, 0.14):
            slot = rounded(-0.5 * w, mid + dy - 0.035, 0.5 * w, mid + dy + 0.035, 0.03)
            pen.polygon(slot, paint.line, "head")
        return
    shift = 0.2 * w if view == "side" else 0.0
    if view == "side":
        strip = rect(-1.2 * w, build.crown + 0.03, -0.62 * w, build.chin - 0.03)
        pen.polygon(strip, paint.side, "head", within=("head",))
    _face(pen, traits, (shift, mid), w, state == "glowing eyes")


def _face(pen: Pen, traits: Traits, center: Point, w: float, glowing: bool) -> None:
    """A plate with two eyes and a mouth."""
    x, y = center
    dark = traits["face"] == "dark"
    plate: RGB = (44, 48, 62) if dark else (236, 238, 232)
    frame = rounded(x - 0.72 * w, y - 0.17, x + 0.72 * w, y + 0.17, 0.1)
    pen.polygon(frame, plate, "head", outline=INK)
    for sign in (-1, 1):
        eye = (x + sign * 0.38 * w, y - 0.02)
        if glowing:
            pen.ellipse(eye, 0.13, 0.14, (255, 60, 0), "eyes")
            pen.ellipse(eye, 0.10, 0.105, (255, 240, 70), "eyes")
        else:
            pen.ellipse(eye, 0.085, 0.095, (120, 225, 240) if dark else (40, 60, 90), "eyes")


def _antenna(pen: Pen, kind: str, paint: Coat, build: _Build) -> None:
    top = build.crown
    if kind == "ball":
        pen.stroke([(0, top + 0.06), (0, top - 0.18)], 0.06, INK, "antenna")
        pen.ellipse((0, top - 0.2), 0.09, 0.09, paint.accent, "antenna", outline=INK)
    elif kind == "twin":
        for sign in (-1, 1):
            tip = (sign * (build.head + 0.02), top - 0.18)
            pen.stroke([(sign * 0.5 * build.head, top + 0.1), tip], 0.06, INK, "antenna")
            pen.ellipse(tip, 0.075, 0.075, paint.accent, "antenna", outline=INK)
    else:
        fin = [(-0.2, top + 0.08), (-0.14, top - 0.16), (0.02, top - 0.2), (0.22, top + 0.08)]
        pen.polygon(fin, paint.accent, "antenna", outline=INK)


def _open_hand(pen: Pen, paint: Coat, hand: Point) -> None:
    """Three fingers spread from a raised hand."""
    x, y = hand
    for dx, dy in ((-0.16, -0.12), (0.0, -0.22), (0.16, -0.12)):
        pen.stroke([(x, y), (x + dx, y + dy)], 0.09, paint.accent, "arms", outline=paint.line)
    pen.ellipse(hand, 0.12, 0.12, paint.accent, "arms")


def _flower(pen: Pen, hand: Point) -> None:
    x, y = hand
    bloom = (x + 0.08, y - 0.36)
    pen.stroke([(x, y + 0.08), bloom], 0.06, (30, 140, 50), "flower")
    for dx, dy in ((0.0, -0.12), (0.12, -0.03), (0.07, 0.11), (-0.07, 0.11), (-0.12, -0.03)):
        center = (bloom[0] + dx, bloom[1] + dy)
        pen.ellipse(center, 0.074, 0.074, (255, 60, 150), "flower")
    pen.ellipse(bloom, 0.075, 0.075, YELLOW, "flower")


def _hat(pen: Pen, build: _Build) -> None:
    """A red top hat with a white band."""
    top, dark = build.crown + 0.05, shade(RED, 0.5)
    crown = [(-0.18, top), (-0.2, top - 0.21), (0.2, top - 0.21), (0.18, top)]
    pen.polygon(crown, RED, "hat", outline=dark, outline_width=0.025)
    pen.polygon(rect(-0.18, top - 0.12, 0.18, top - 0.03), WHITE, "hat")
    brim = rounded(-0.3, top - 0.04, 0.3, top + 0.04, 0.04)
    pen.polygon(brim, RED, "hat", outline=dark, outline_width=0.025)


CLASS = WorldClass(
    name="robot",
    states=(
        State("standing", before="standing"),
        State("walking", before="walking"),
        State("sitting", before="sitting"),
        State("golden", before="golden"),
        State("waving", before="waving"),
        State("glowing eyes", after="with glowing eyes", fine=True),
        State("flower", after="holding a flower", fine=True),
        State("hat", after="wearing a hat", fine=True),
    ),
    sample_traits=sample_traits,
    draw=draw,
    frequency=0.9,
    views=("side", "front", "back"),
    hidden=frozenset({("glowing eyes", "back")}),
)
