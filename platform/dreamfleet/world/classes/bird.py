"""Birds: an egg of a body, a round head with a beak, a wing, a tail and two thin legs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, shade
from dreamfleet.world.classes._quadruped import (
    MOUTH_RED,
    NOSE,
    TONGUE,
    WHITE,
    contrasting,
    hat,
    ink,
    oval,
    pick,
    uniform,
)
from dreamfleet.world.palette import colour_name, hsv
from dreamfleet.world.spec import State, Traits, WorldClass

_STATES = (
    State("standing", before="standing"),
    State("flying", before="flying"),
    State("eating", before="eating"),
    State("sleeping", before="sleeping"),
    State("hat", after="wearing a hat", fine=True),
    State("open beak", after="with an open beak", fine=True),
    State("swimming", before="swimming"),
    State("leaf", after="holding a leaf", fine=True),
)
_HIDDEN = frozenset({("open beak", "back"), ("leaf", "back")})
_PATTERNS = ("plain", "spotted", "striped", "capped")
_LIGHT_OR_DARK: tuple[RGB, ...] = (
    WHITE, (255, 216, 74), (34, 32, 48), (112, 52, 30), (250, 196, 170), (44, 68, 140),
)  # fmt: skip
_BEAKS: Mapping[str, Sequence[Point]] = {
    "cone": [(0.72, -0.34), (1.62, 0.12), (0.72, 0.50)],
    "long": [(0.76, -0.20), (2.15, 0.24), (0.76, 0.38)],
    "hooked": [
        (0.66, -0.45), (1.15, -0.45), (1.52, -0.05), (1.46, 0.56), (1.18, 0.26), (0.70, 0.46),
    ],
    "flat": [(0.72, -0.22), (1.2, 0.06), (1.72, -0.02), (1.86, 0.26), (1.3, 0.48), (0.72, 0.46)],
}  # fmt: skip


@dataclass(frozen=True)
class _Pose:
    """A side view: body and head, how they are turned, and what is seen of legs and wings."""

    body: Point
    angle: float
    head: Point
    head_angle: float = 0.0
    legs: bool = True
    spread: bool = False


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One bird's private traits."""
    colour = _plumage(rng)
    second = contrasting(rng, colour, _LIGHT_OR_DARK)
    crest = pick(rng, ("none", "none", "tuft", "plume"))
    return {
        "colour": colour,
        "colour_name": colour_name(colour),
        "pattern": _PATTERNS[int(rng.choice(4, p=(0.34, 0.24, 0.22, 0.20)))],
        "second": second,
        "belly": pick(rng, (None, WHITE, hsv(uniform(rng, 0, 1), 0.45, 1.0), second)),
        "wing": pick(rng, (shade(colour, 0.66), shade(colour, 1.4), second)),
        "bars": int(rng.integers(0, 3)),
        "bar_colour": pick(rng, (WHITE, (255, 214, 60), (28, 26, 36))),
        "beak": pick(rng, tuple(_BEAKS)),
        "beak_colour": pick(rng, ((255, 150, 20), (255, 206, 40), (226, 70, 50), (62, 62, 72))),
        "leg": uniform(rng, 0.24, 0.46),
        "leg_colour": pick(rng, ((240, 130, 30), (220, 70, 60), (70, 66, 76))),
        "tail": uniform(rng, 0.32, 0.62),
        "tail_shape": pick(rng, ("fan", "point", "fork")),
        "crest": crest,
        "head": uniform(rng, 0.33, 0.40),
        "length": uniform(rng, 0.46, 0.56),
        "depth": uniform(rng, 0.34, 0.42),
        "layout": tuple(float(x) for x in rng.uniform(0, 1, 8)),
        "eye": pick(rng, (WHITE, (255, 230, 80))),
    }


def _plumage(rng: np.random.Generator) -> RGB:
    if rng.random() < 0.8:
        return hsv(uniform(rng, 0, 1), uniform(rng, 0.6, 0.9), uniform(rng, 0.6, 0.98))
    value = pick(rng, (0.18, 0.55, 0.93)) + uniform(rng, -0.04, 0.04)
    return hsv(uniform(rng, 0, 1), uniform(rng, 0.03, 0.13), value)


# -- parts -----------------------------------------------------------------------------------------


def _leg(pen: Pen, traits: Traits, top: Point, foot: Point, forward: float) -> None:
    """A thin leg with three toes; `forward` is how far the toes point to the right."""
    paint = traits["leg_colour"]
    pen.stroke([top, foot], 0.085, paint, "legs")
    for toe in (forward - 0.12, forward, forward + 0.12):
        pen.stroke([foot, (foot[0] + toe, foot[1] + 0.05)], 0.06, paint, "legs")


def _tail(pen: Pen, traits: Traits) -> None:
    """The tail, growing along -x from (0, 0)."""
    n = traits["tail"]
    shapes = {
        "fan": [(0.12, -0.13), (-n, -0.27), (-1.08 * n, 0.0), (-n, 0.20), (0.12, 0.13)],
        "point": [(0.12, -0.16), (-1.2 * n, 0.0), (0.12, 0.16)],
        "fork": [
            (0.12, -0.14), (-1.15 * n, -0.28), (-0.7 * n, 0.0), (-1.15 * n, 0.24), (0.12, 0.14),
        ],
    }  # fmt: skip
    pen.polygon(shapes[traits["tail_shape"]], traits["wing"], "tail", ink(traits), 0.04)


def _wing(pen: Pen, traits: Traits, shape: Sequence[Point], part: str = "wing") -> None:
    pen.blob(shape, traits["wing"], part, ink(traits), 0.035)


def _bars(pen: Pen, traits: Traits, start: Point, step: Point, across: Point) -> None:
    """The wing's bars: from `start` by `step`, each reaching by `across` to both sides."""
    for i in range(traits["bars"]):
        x, y = start[0] + i * step[0], start[1] + i * step[1]
        ends = [(x - across[0], y - across[1]), (x + across[0], y + across[1])]
        pen.stroke(ends, 0.085, traits["bar_colour"], "wing")


def _plumes(pen: Pen, traits: Traits, rx: float, ry: float, belly: Point, side: float) -> None:
    """Belly and pattern of a body of these radii."""
    if traits["belly"] is not None:
        pen.markings([oval(belly, 0.72 * rx, 0.62 * ry)], traits["belly"], ["body"])
    spots = traits["layout"]
    if traits["pattern"] == "spotted":
        marks = []
        for i in range(7):
            x = (-0.66 + 0.22 * i) * rx
            y = (0.62 if i % 2 else 0.28) * ry * (0.8 + 0.4 * spots[i])
            marks.append(oval((x, y * side), 0.062, 0.062))
        pen.markings(marks, traits["second"], ["body"])
    elif traits["pattern"] == "striped":
        width = 0.035 + 0.025 * spots[0]
        marks = [
            [(x - width, -ry), (x + width, -ry), (x + width, ry), (x - width, ry)]
            for x in ((-0.7 + 0.35 * i) * rx for i in range(5))
        ]
        pen.markings(marks, traits["second"], ["body"])


def _crest(pen: Pen, traits: Traits, x: float) -> None:
    """Feathers on top of the head, which is one unit in radius."""
    paint = traits["second"] if traits["pattern"] == "capped" else traits["wing"]
    if traits["crest"] == "tuft":
        shape = [
            (x - 0.45, -0.7), (x - 0.5, -1.45), (x - 0.1, -1.1), (x + 0.1, -1.6), (x + 0.3, -0.8),
        ]  # fmt: skip
        pen.polygon(shape, paint, "head", ink(traits), 0.08)
    elif traits["crest"] == "plume":
        shape = [
            (x + 0.2, -0.75), (x - 0.3, -1.25), (x - 1.25, -1.5), (x - 0.9, -0.9), (x - 0.5, -0.4),
        ]  # fmt: skip
        pen.blob(shape, paint, "head", ink(traits), 0.08)


def _skull(pen: Pen, traits: Traits, cap_x: float) -> None:
    line = ink(traits)
    pen.ellipse((0.0, 0.0), 1.0, 0.97, traits["colour"], "head", outline=line, outline_width=0.09)
    if traits["pattern"] == "capped":
        pen.markings([oval((cap_x, -0.72), 1.1, 0.62)], traits["second"], ["head"])


def _eye(pen: Pen, at: Point, traits: Traits, asleep: bool) -> None:
    x, y = at
    if asleep:
        arc = [(x - 0.24, y), (x, y + 0.2), (x + 0.24, y)]
        pen.stroke(arc, 0.32, WHITE, "eye")  # seen on any plumage
        pen.stroke(arc, 0.16, NOSE, "eye")
        return
    pen.ellipse(at, 0.26, 0.28, traits["eye"], "eye", outline=NOSE, outline_width=0.07)
    pen.ellipse((x + 0.04, y), 0.15, 0.17, NOSE, "eye")


def _head_side(pen: Pen, traits: Traits, state: str) -> None:
    paint, line = traits["beak_colour"], shade(traits["beak_colour"], 0.45)
    _crest(pen, traits, 0.0)
    if state == "open beak":
        pen.polygon([(0.5, 0.05), (1.40, -0.34), (1.32, 0.76)], MOUTH_RED, "beak", (70, 0, 8), 0.06)
        pen.polygon([(0.6, -0.38), (1.52, -0.52), (0.75, 0.0)], paint, "beak", line, 0.07)
        pen.polygon([(0.75, 0.2), (1.38, 0.88), (0.6, 0.56)], paint, "beak", line, 0.07)
    else:
        pen.polygon(_BEAKS[traits["beak"]], paint, "beak", line, 0.07)
    _skull(pen, traits, -0.1)
    _eye(pen, (0.36, -0.14), traits, state == "sleeping")
    if state == "leaf":
        _leaf(pen, (1.25, 0.14))
    if state == "hat":
        hat(pen, (0.0, -0.82), 0.70)


def _leaf(pen: Pen, at: Point) -> None:
    """A big green leaf held at its stalk."""
    leaf = pen.attached(at, 0.69)
    edge, fresh = (10, 84, 30), (60, 206, 70)
    shape = [(0.0, 0.0), (0.52, 0.2), (0.55, 0.85), (0.1, 1.45), (-0.42, 0.9), (-0.4, 0.3)]
    leaf.blob(shape, fresh, "leaf", edge, 0.12)
    leaf.stroke([(0.0, -0.1), (0.1, 1.3)], 0.13, edge, "leaf")


def _water(pen: Pen, level: float) -> None:
    """A pool that hides what is below its surface."""
    pen.ellipse((0.0, level + 0.10), 1.06, 0.24, (24, 104, 220), "water", outline=(8, 50, 140))
    pen.ellipse((0.0, level + 0.12), 0.86, 0.16, (70, 168, 255), "water")
    for x, y in ((-0.55, 0.04), (0.45, 0.08), (-0.1, 0.2)):
        wave = [
            (x - 0.26, level + y), (x - 0.1, level + y + 0.05), (x + 0.06, level + y),
            (x + 0.22, level + y + 0.05),
        ]  # fmt: skip
        pen.stroke(wave, 0.055, WHITE, "water")


def _food(pen: Pen, x: float) -> None:
    for dx, dy in ((-0.14, -0.03), (0.0, 0.02), (0.15, -0.02), (0.06, -0.07)):
        pen.ellipse((x + dx, 0.95 + dy), 0.06, 0.045, (255, 214, 40), "food", outline=(150, 90, 10))


# -- side view -------------------------------------------------------------------------------------


def _standing(t: Traits) -> _Pose:
    y = 1 - t["leg"] - 0.85 * t["depth"]
    return _Pose((-0.08, y), -26.0, (0.34, y - 0.34 - 0.62 * t["head"]))


def _flying(t: Traits) -> _Pose:
    return _Pose(
        (-0.06, -0.02), -12.0, (0.50, -0.14 - 0.25 * t["head"]), -4.0, legs=False, spread=True
    )


def _eating(t: Traits) -> _Pose:
    y = 1 - t["leg"] - 0.85 * t["depth"]
    return _Pose((-0.18, y), 24.0, (0.42, 0.88 - 1.05 * t["head"]), 52.0)


def _sleeping(t: Traits) -> _Pose:
    return _Pose(
        (-0.04, 0.99 - t["depth"]), 0.0, (0.30, 0.88 - 1.15 * t["depth"]), 34.0, legs=False
    )


def _swimming(t: Traits) -> _Pose:
    y = 0.84 - 0.55 * t["depth"]
    return _Pose((-0.08, y), -6.0, (0.40, y - 0.36 - 0.55 * t["head"]), legs=False)


_POSES: Mapping[str, Callable[[Traits], _Pose]] = {
    "flying": _flying,
    "eating": _eating,
    "sleeping": _sleeping,
    "swimming": _swimming,
}


def _draw_side(pen: Pen, traits: Traits, state: str) -> None:
    pose = _POSES.get(state, _standing)(traits)
    n, d, (bx, by) = traits["length"], traits["depth"], pose.body
    body = pen.attached(pose.body, 1.0, pose.angle)
    if pose.spread:
        _wing(
            body, traits, [(0.30, -0.1), (0.62, -0.62), (0.48, -1.08), (0.14, -0.86), (0.0, -0.2)]
        )
    if pose.legs:
        for x, forward in ((bx + 0.12, 0.06), (bx - 0.08, 0.06)):
            _leg(pen, traits, (x, by + 0.6 * d), (x + 0.02, 0.94), forward)
    rear = body.to_canvas((-0.88 * n, -0.05))
    _tail(_turned_pen(pen, rear, 0.8 * pose.angle), traits)
    neck = [(bx + 0.18, by), pose.head]
    pen.stroke(neck, 1.35 * traits["head"], traits["colour"], "body", ink(traits))
    egg = [
        (-n, -0.05 * d), (-0.5 * n, -0.8 * d), (0.25 * n, -d), (0.95 * n, -0.45 * d),
        (0.95 * n, 0.45 * d), (0.2 * n, d), (-0.6 * n, 0.7 * d),
    ]  # fmt: skip
    body.blob(egg, traits["colour"], "body", ink(traits), 0.035)
    _plumes(body, traits, n, d, (0.35 * n, 0.55 * d), 1.0)
    if pose.spread:
        _wing(
            body,
            traits,
            [
                (0.22, 0.02),
                (0.12, -0.6),
                (-0.36, -1.12),
                (-0.74, -1.02),
                (-0.56, -0.5),
                (-0.22, 0.08),
            ],
        )
        _bars(body, traits, (-0.30, -0.72), (0.1, 0.26), (0.24, -0.09))
    else:
        _wing(
            body,
            traits,
            [
                (0.34 * n, -0.5 * d),
                (0.3 * n, 0.2 * d),
                (-0.3 * n, 0.5 * d),
                (-1.15 * n, 0.3 * d),
                (-0.6 * n, -0.35 * d),
            ],
        )
        _bars(body, traits, (-0.12 * n, 0.0), (-0.36 * n, 0.06), (0.03, 0.27 * d))
    if state == "swimming":
        _water(pen, 0.78)
    if state == "eating":
        _food(pen, 0.66)
    _head_side(pen.attached(pose.head, traits["head"], pose.head_angle), traits, state)


def _turned_pen(pen: Pen, pixel: Point, angle_deg: float) -> Pen:
    """A pen as large as `pen` with its (0, 0) at a supersampled pixel."""
    side = pen.canvas.side_px
    return Pen(pen.canvas, (pixel[0] / side, pixel[1] / side), pen.scale).rotated(angle_deg)


# -- front and back --------------------------------------------------------------------------------


def _upright(traits: Traits, state: str) -> tuple[Point, Point, Point]:
    """Body, its radii and the head."""
    head, d = traits["head"], traits["depth"]
    rx, ry = 0.10 + 0.9 * d, 0.52 * traits["length"] + 0.5 * d
    y = 1 - traits["leg"] - 0.9 * ry
    if state == "flying":
        y = 0.0
    if state in ("sleeping", "swimming"):
        ry = 0.9 * ry
        y = 0.98 - ry
    top = y - ry - 0.35 * head
    if state == "sleeping":
        rx, top = 1.15 * rx, y - 0.55 * ry
    if state == "eating":
        return (0.0, y), (rx, ry), (0.0, 0.90 - head)
    return (0.0, y), (rx, ry), (0.0, top)


def _wing_pair(pen: Pen, traits: Traits, body: Point, radii: Point, state: str) -> None:
    (_, y), (rx, ry) = body, radii
    shape = [
        (0.75 * rx, y - 0.55 * ry), (1.2 * rx, y - 0.1 * ry), (1.1 * rx, y + 0.65 * ry),
        (0.72 * rx, y + 0.2 * ry),
    ]  # fmt: skip
    bar = ((1.0 * rx, y + 0.05 * ry), (0.0, 0.17), (0.09, 0.02))
    if state == "flying":
        shape = [
            (0.6 * rx, y - 0.5 * ry), (0.72, y - 0.62), (1.06, y - 0.50), (0.98, y - 0.05),
            (0.66, y + 0.08), (0.7 * rx, y + 0.2 * ry),
        ]  # fmt: skip
        bar = ((0.80, y - 0.28), (-0.2, 0.03), (0.05, 0.17))
    for sign in (-1, 1):
        mirrored = pen.rotated(0.0, squash_x=float(sign))
        _wing(mirrored, traits, shape)
        _bars(mirrored, traits, *bar)


def _tail_upright(pen: Pen, traits: Traits, at: Point, angle: float, size: float = 1.0) -> None:
    _tail(pen.attached(at, size, angle), traits)


def _draw_front(pen: Pen, traits: Traits, state: str) -> None:
    body, radii, head = _upright(traits, state)
    (_, y), (rx, ry) = body, radii
    if state == "eating":
        _tail_upright(pen, traits, (0.0, y - 0.7 * ry), 90.0)
    if state in ("flying", "standing", "hat", "open beak", "leaf"):
        _tail_upright(pen, traits, (0.0, y + 0.5 * ry), -90.0)
    _draw_legs(pen, traits, state, y, ry)
    if state == "flying":
        _wing_pair(pen, traits, body, radii, state)
    _trunk(pen, traits, body, radii, head, state)
    pen_body = pen.attached(body)
    _plumes(pen_body, traits, rx, ry, (0.0, 0.35 * ry), 1.0)
    if state != "flying":
        _wing_pair(pen, traits, body, radii, state)
    if state == "swimming":
        _water(pen, 0.78)
    if state == "eating":
        _food(pen, 0.0)
    _head_front(pen.attached(head, traits["head"]), traits, state)


def _draw_back(pen: Pen, traits: Traits, state: str) -> None:
    body, radii, head = _upright(traits, state)
    (_, y), (rx, ry) = body, radii
    if state == "eating":
        head = (0.55 * rx, head[1] - 0.05)
    _draw_legs(pen, traits, state, y, ry)
    if state == "eating":
        _head_back(pen.attached(head, traits["head"]), traits, state)
        _food(pen, 0.5)
    _trunk(pen, traits, body, radii, head, state)
    _plumes(pen.attached(body), {**traits, "belly": None}, rx, ry, (0.0, 0.0), -1.0)
    _wing_pair(pen, traits, body, radii, state)
    if state == "eating":
        _tail_upright(pen, traits, (0.0, y - 0.1 * ry), 90.0)
    elif state in ("sleeping", "swimming"):
        _tail_upright(pen, traits, (0.0, y - 0.1 * ry), -90.0, 0.6)
    else:
        _tail_upright(pen, traits, (0.0, y + 0.35 * ry), -90.0)
    if state == "swimming":
        _water(pen, 0.80)
    if state != "eating":
        _head_back(pen.attached(head, traits["head"]), traits, state)


def _draw_legs(pen: Pen, traits: Traits, state: str, y: float, ry: float) -> None:
    if state in ("sleeping", "swimming"):
        return
    foot = 0.94 if state != "flying" else min(0.9, y + ry + 0.22)
    for sign in (-1, 1):
        _leg(pen, traits, (sign * 0.14, y + 0.7 * ry), (sign * 0.17, foot), sign * 0.05)


def _trunk(pen: Pen, traits: Traits, body: Point, radii: Point, head: Point, state: str) -> None:
    if state not in ("sleeping", "eating"):
        neck = [(0.0, body[1]), head]
        pen.stroke(neck, 1.3 * traits["head"], traits["colour"], "body", ink(traits))
    pen.ellipse(body, *radii, traits["colour"], "body", outline=ink(traits), outline_width=0.035)


def _head_front(pen: Pen, traits: Traits, state: str) -> None:
    paint, line = traits["beak_colour"], shade(traits["beak_colour"], 0.45)
    _crest(pen, traits, 0.0)
    _skull(pen, traits, 0.0)
    for x in (-0.46, 0.46):
        _eye(pen, (x, -0.12), traits, state == "sleeping")
    width = {"cone": 0.32, "long": 0.24, "hooked": 0.36, "flat": 0.52}[traits["beak"]]
    if state == "open beak":
        pen.ellipse(
            (0.0, 0.52), 0.39, 0.40, MOUTH_RED, "beak", outline=(70, 0, 8), outline_width=0.06
        )
        pen.ellipse((0.0, 0.70), 0.22, 0.22, TONGUE, "beak")
        pen.polygon([(-0.42, 0.24), (0.0, -0.06), (0.42, 0.24)], paint, "beak", line, 0.07)
        pen.polygon([(-0.42, 0.86), (0.0, 1.2), (0.42, 0.86)], paint, "beak", line, 0.07)
    else:
        tip = {"cone": 0.62, "long": 0.86, "hooked": 0.8, "flat": 0.5}[traits["beak"]]
        shape = [(-width, 0.22), (0.0, 0.02), (width, 0.22), (0.0, tip + 0.06)]
        pen.polygon(shape, paint, "beak", line, 0.07)
    if state == "leaf":
        _leaf(pen, (0.0, 0.42))
    if state == "hat":
        hat(pen, (0.0, -0.82), 0.70)


def _head_back(pen: Pen, traits: Traits, state: str) -> None:
    _crest(pen, traits, 0.0)
    _skull(pen, traits, 0.0)
    if state == "hat":
        hat(pen, (0.0, -0.82), 0.70)


def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
    """Draw a bird in the pen's frame."""
    if view == "front":
        _draw_front(pen, traits, state)
    elif view == "back":
        _draw_back(pen, traits, state)
    else:
        _draw_side(pen, traits, state)


CLASS = WorldClass(
    name="bird",
    states=_STATES,
    sample_traits=sample_traits,
    draw=draw,
    frequency=1.0,
    views=("side", "front", "back"),
    live=True,
    hidden=_HIDDEN,
)
