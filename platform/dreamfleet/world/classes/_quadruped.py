"""The silhouette dog, cat and fox share: body, legs, poses and what their heads wear or hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, shade, smooth
from dreamfleet.world.palette import colour_name, hsv
from dreamfleet.world.spec import State, Traits, WorldClass

STATES = (
    State("standing", before="standing"),
    State("sitting", before="sitting"),
    State("running", before="running"),
    State("sleeping", before="sleeping"),
    State("hat", after="wearing a hat", fine=True),
    State("open mouth", after="with an open mouth", fine=True),
    State("jumping", before="jumping"),
    State("ball", after="holding a ball", fine=True),
)
VIEWS = ("side", "front", "back")
HIDDEN = frozenset({("open mouth", "back"), ("ball", "back")})

NOSE = (28, 22, 26)
WHITE = (250, 248, 244)
HAT_RED = (226, 24, 34)
MOUTH_RED = (196, 14, 30)
TONGUE = (255, 120, 150)


@dataclass(frozen=True)
class Face:
    """What a head does."""

    asleep: bool = False
    open_mouth: bool = False


Tails = tuple[float, float, float]
Option = TypeVar("Option")
HeadDrawer = Callable[[Pen, Traits, Face], None]


@dataclass(frozen=True)
class Species:
    """What tells dog, cat and fox apart."""

    heads: Mapping[str, HeadDrawer]  # per view; in a frame of the head's radius
    tail: Callable[[Pen, Traits], None]  # grows from (0, 0) along +x, about one unit long
    mouths: Mapping[str, Point]  # where it opens, per view, in the head's frame
    crown: Point = (0.0, -0.78)  # where a hat sits in side view
    tail_angles: Tails = (222.0, 200.0, 192.0)  # standing, sitting, running


@dataclass(frozen=True)
class Pose:
    """A side view: where everything is. Legs run from the body to the paw."""

    body: Point
    angle: float
    head: Point
    head_angle: float
    tail_angle: float
    near: tuple[Sequence[Point], ...]
    far: tuple[Sequence[Point], ...]
    haunch: Point | None = None


# -- traits ----------------------------------------------------------------------------------------


def luminance(color: RGB) -> float:
    """How bright a colour looks, 0 to 255."""
    return 0.30 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def contrasting(rng: np.random.Generator, color: RGB, choices: Sequence[RGB]) -> RGB:
    """One of `choices` that stands out from `color`."""
    apart = [c for c in choices if abs(luminance(c) - luminance(color)) > 75]
    options = apart or [max(choices, key=lambda c: abs(luminance(c) - luminance(color)))]
    return options[int(rng.integers(len(options)))]


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def pick(rng: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[int(rng.integers(len(options)))]


MARKING_COLOURS: tuple[RGB, ...] = (
    WHITE, (34, 28, 34), (92, 48, 24), (246, 214, 150), (70, 76, 92),
)  # fmt: skip
COLLAR_COLOURS: tuple[RGB, ...] = (
    (232, 36, 44), (36, 96, 236), (250, 206, 30), (30, 176, 84), (196, 60, 214), (24, 200, 220),
)  # fmt: skip


def fur_colour(rng: np.random.Generator, fancy_share: float) -> RGB:
    """Mostly a natural coat; with `fancy_share` any hue at all."""
    if rng.random() < fancy_share:
        return hsv(uniform(rng, 0, 1), uniform(rng, 0.5, 0.75), uniform(rng, 0.7, 0.95))
    kind = pick(rng, ("ginger", "gold", "brown", "brown", "black", "white", "grey"))
    if kind in ("ginger", "gold", "brown"):
        hue, value = {"ginger": (0.065, 0.94), "gold": (0.125, 0.93), "brown": (0.06, 0.52)}[kind]
        hue, value = hue + uniform(rng, -0.02, 0.02), value + uniform(rng, -0.07, 0.06)
        return hsv(hue, uniform(rng, 0.58, 0.78), value)
    value = {"black": 0.17, "white": 0.95, "grey": 0.58}[kind] + uniform(rng, -0.04, 0.04)
    return hsv(uniform(rng, 0, 1), uniform(rng, 0.03, 0.13), value)


def base_traits(
    rng: np.random.Generator, color: RGB, patterns: Sequence[str], shares: Sequence[float]
) -> dict[str, Any]:
    """The traits of every quadruped; `pattern` is drawn by `shares`."""
    second = contrasting(rng, color, MARKING_COLOURS)
    return {
        "colour": color,
        "colour_name": colour_name(color),
        "pattern": patterns[int(rng.choice(len(patterns), p=shares))],
        "second": second,
        "length": uniform(rng, 0.42, 0.55),
        "depth": uniform(rng, 0.22, 0.30),
        "leg": uniform(rng, 0.46, 0.64),
        "leg_width": uniform(rng, 0.13, 0.20),
        "neck": uniform(rng, 0.06, 0.18),
        "head": uniform(rng, 0.31, 0.365),
        "socks": uniform(rng, 0.3, 0.62) if rng.random() < 0.45 else 0.0,
        "belly": bool(rng.random() < 0.4),
        "collar": pick(rng, COLLAR_COLOURS),
        "layout": tuple(float(x) for x in rng.uniform(0, 1, 12)),
        "eye": pick(rng, ((255, 214, 40), (120, 220, 70), (90, 200, 255), (255, 255, 255))),
    }


def ink(traits: Traits) -> RGB:
    """The outline: darker than the coat, lighter than a black one."""
    color: RGB = traits["colour"]
    return shade(color, 0.42) if luminance(color) > 62 else (104, 104, 118)


# -- shapes ----------------------------------------------------------------------------------------


def oval(center: Point, radius_x: float, radius_y: float) -> list[Point]:
    """An upright ellipse as a polygon."""
    turns = [math.pi * i / 8 for i in range(16)]
    x, y = center
    return [(x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in turns]


def eye(pen: Pen, at: Point, radius: float, traits: Traits, asleep: bool) -> None:
    """An open eye with its iris, or a closed lid."""
    x, y = at
    if asleep:
        arc = [(x - radius, y - 0.05), (x, y + 0.15), (x + radius, y - 0.05)]
        pen.stroke(arc, 0.34, WHITE, "eye")  # seen on any coat
        pen.stroke(arc, 0.17, NOSE, "eye")
        return
    pen.ellipse(at, radius, radius * 1.1, traits["eye"], "eye", outline=NOSE, outline_width=0.07)
    pen.ellipse((x + 0.03, y), radius * 0.62, radius * 0.8, NOSE, "eye")


def collar(pen: Pen, traits: Traits, view: str) -> None:
    """A band between head and neck, in the head's frame."""
    if traits.get("collar") is None:
        return
    arc = [(-0.62, 0.86), (0.0, 1.10), (0.62, 0.86)]
    if view == "side":
        arc = [(-0.92, 0.52), (-0.45, 0.98), (0.28, 1.08)]
    pen.stroke(arc, 0.30, shade(traits["collar"], 0.6), "collar")
    pen.stroke(arc, 0.22, traits["collar"], "collar")


def stripes(places: Sequence[float], half_depth: float, width: float) -> list[list[Point]]:
    """Upright wedges from the back down, at the given x."""
    d = half_depth
    return [[(x - width, -1.2 * d), (x + width, -1.2 * d), (x + 0.02, 0.35 * d)] for x in places]


def body_marks(traits: Traits, half_length: float, half_depth: float) -> list[list[Point]]:
    """The coat's pattern over a body of the given size; the layout is the identity's own."""
    spots, size_l, size_d = traits["layout"], half_length, half_depth
    pattern = traits["pattern"]
    if pattern == "spotted":
        marks = []
        for i in range(5):
            x = (-0.78 + 0.38 * i + 0.14 * (spots[i] - 0.5)) * size_l
            y = (-0.45 if (i + (spots[11] > 0.5)) % 2 else 0.30) * size_d
            radius = 0.075 + 0.035 * spots[6 + i]
            marks.append(oval((x, y), radius, radius))
        return marks
    if pattern == "patched":
        first, second = -0.75 + 0.5 * spots[0], 0.35 + 0.4 * spots[1]
        return [
            oval((first * size_l, -0.5 * size_d), 0.22 + 0.08 * spots[2], 0.20),
            oval((second * size_l, 0.3 * size_d), 0.13 + 0.08 * spots[3], 0.18),
        ]
    if pattern == "saddled":
        left, right = -0.85 + 0.3 * spots[0], 0.45 + 0.4 * spots[1]
        low = (0.0 + 0.35 * spots[2]) * size_d
        top = -1.4 * size_d
        middle = (left + right) / 2 * size_l
        return [smooth([(left * size_l, top), (middle, low), (right * size_l, top)], closed=True)]
    if pattern == "striped":
        places = [(-0.72 + 0.36 * i + 0.1 * spots[0]) * size_l for i in range(5)]
        return stripes(places, size_d, 0.045 + 0.03 * spots[1])
    return []


def _body(pen: Pen, traits: Traits, half_length: float, half_depth: float) -> None:
    """The trunk, seen from the side, about (0, 0), facing +x."""
    n, d = half_length, half_depth
    outline = [
        (-n, -0.25 * d), (-0.75 * n, -0.95 * d), (0.0, -0.88 * d), (0.7 * n, -d),
        (n, -0.2 * d), (0.75 * n, 0.9 * d), (0.0, 0.78 * d), (-0.7 * n, 0.75 * d), (
            -0.98 * n, 0.4 * d,
        ),
    ]  # fmt: skip
    pen.blob(outline, traits["colour"], "body", ink(traits))
    _coat(pen, traits, n, d, [(0.0, 0.95 * d), (0.85 * n, 0.5 * d)])


def _coat(
    pen: Pen, traits: Traits, half_length: float, half_depth: float, under: Sequence[Point]
) -> None:
    """Belly and pattern on a body drawn before; `under` are the places of the light underside."""
    d = half_depth
    if traits["belly"]:
        paint = traits.get("belly_colour", traits["second"])
        pen.markings([oval(at, 0.62 * half_length, 0.45 * d) for at in under], paint, ["body"])
    marks = body_marks(traits, half_length, half_depth)
    if marks:
        pen.markings(marks, traits["second"], ["body"])


def leg(pen: Pen, points: Sequence[Point], traits: Traits, far: bool = False) -> None:
    """A leg with its sock and paw."""
    paint = shade(traits["colour"], 0.72) if far else traits["colour"]
    width = traits["leg_width"]
    pen.stroke(points, width, paint, "legs", ink(traits))
    (ax, ay), (bx, by) = points[-2], points[-1]
    length = math.hypot(bx - ax, by - ay) or 1.0
    ux, uy = (bx - ax) / length, (by - ay) / length
    if traits["socks"]:
        reach = min(length, traits["socks"] * traits["leg"])
        sock = traits.get("sock_colour", traits["second"])
        paint = shade(sock, 0.8) if far else sock
        pen.stroke([(bx - ux * reach, by - uy * reach), (bx, by)], width, paint, "legs")
    pen.ellipse((bx + 0.04, by), 0.62 * width, 0.42 * width, paint, "legs")


# -- side view -------------------------------------------------------------------------------------


def _turned(pose_body: Point, angle_deg: float, point: Point) -> Point:
    a = math.radians(angle_deg)
    x = pose_body[0] + math.cos(a) * point[0] - math.sin(a) * point[1]
    return x, pose_body[1] + math.sin(a) * point[0] + math.cos(a) * point[1]


def _standing(t: Traits, tails: Tails) -> Pose:
    n, d = t["length"], t["depth"]
    cx, cy = -0.23, 1 - t["leg"] - 0.75 * d
    hip, foot = cy + 0.3 * d, 1 - 0.45 * t["leg_width"]
    front, hind = cx + 0.66 * n, cx - 0.72 * n
    return Pose(
        body=(cx, cy), angle=0.0, head_angle=0.0, tail_angle=tails[0],
        head=(cx + n + 0.10, cy - 0.5 * d - t["neck"] - 0.62 * t["head"]),
        near=(
            [(front, hip), (front, foot)],
            [(hind, hip), (hind - 0.03, (hip + foot) / 2), (hind, foot)],
        ),
        far=(
            [(front + 0.16, hip), (front + 0.17, foot - 0.03)],
            [(hind + 0.2, hip), (hind + 0.22, foot - 0.03)],
        ),
    )  # fmt: skip


def _sitting(t: Traits, tails: Tails) -> Pose:
    n, d = t["length"], t["depth"]
    angle = -54.0
    body = (-0.22, 1 - 0.74 * n - 0.45 * d)
    shoulder = _turned(body, angle, (0.62 * n, 0.45 * d))
    far_shoulder = _turned(body, angle, (0.75 * n, 0.5 * d))
    top = _turned(body, angle, (0.95 * n, 0.0))
    foot = 1 - 0.45 * t["leg_width"]
    return Pose(
        body=body, angle=angle, head_angle=0.0, tail_angle=tails[1],
        head=(top[0] + 0.12, top[1] - 0.8 * t["neck"] - 0.55 * t["head"]),
        near=([shoulder, (shoulder[0] + 0.05, foot)],),
        far=([far_shoulder, (far_shoulder[0] + 0.13, foot - 0.03)],),
        haunch=(body[0] - 0.10, 1 - 0.27),
    )  # fmt: skip


def _running(t: Traits, tails: Tails) -> Pose:
    n, d, reach = t["length"], t["depth"], t["leg"]
    cx, cy = -0.20, 1 - 0.95 * reach - 0.75 * d
    hip = cy + 0.35 * d
    front, hind = cx + 0.7 * n, cx - 0.75 * n
    return Pose(
        body=(cx, cy), angle=-5.0, head_angle=4.0, tail_angle=tails[2],
        head=(cx + n + 0.14, cy - 0.4 * d - 0.5 * t["neck"] - 0.45 * t["head"]),
        near=(
            [
                (front, hip), (front + 0.30 * reach, hip + 0.42 * reach),
                (front + 0.86 * reach, hip + 0.50 * reach),
            ],
            [
                (hind, hip), (hind - 0.22 * reach, hip + 0.45 * reach),
                (hind - 0.78 * reach, hip + 0.62 * reach),
            ],
        ),
        far=(
            [
                (front, hip), (front - 0.02, hip + 0.45 * reach),
                (front - 0.42 * reach, hip + 0.72 * reach),
            ],
            [
                (hind, hip), (hind + 0.30 * reach, hip + 0.40 * reach),
                (hind + 0.62 * reach, hip + 0.74 * reach),
            ],
        ),
    )  # fmt: skip


def _jumping(t: Traits, tails: Tails) -> Pose:
    n, d, reach = t["length"], t["depth"], t["leg"]
    angle, body = -36.0, (-0.13, 0.02)

    def limb(*points: Point) -> list[Point]:
        return [_turned(body, angle, point) for point in points]

    top = _turned(body, angle, (n, -0.2 * d))
    front, hind = 0.68 * n, -0.75 * n
    return Pose(
        body=body, angle=angle, head_angle=-14.0, tail_angle=tails[0],
        head=(top[0] + 0.12, top[1] - 0.4 * t["neck"] - 0.35 * t["head"]),
        near=(
            limb(
                (front, 0.4 * d), (front + 0.25 * reach, d + 0.25 * reach),
                (front + 0.75 * reach, d + 0.42 * reach),
            ),
            limb(
                (hind, 0.3 * d), (hind - 0.25 * reach, d + 0.1 * reach),
                (hind - 0.85 * reach, d + 0.22 * reach),
            ),
        ),
        far=(
            limb(
                (front, 0.4 * d), (front + 0.1 * reach, d + 0.4 * reach),
                (front + 0.45 * reach, d + 0.68 * reach),
            ),
            limb(
                (hind, 0.3 * d), (hind - 0.1 * reach, d + 0.3 * reach),
                (hind - 0.62 * reach, d + 0.50 * reach),
            ),
        ),
    )  # fmt: skip


_POSES: Mapping[str, Callable[[Traits, Tails], Pose]] = {
    "sitting": _sitting,
    "running": _running,
    "jumping": _jumping,
}


def _draw_side(pen: Pen, traits: Traits, state: str, species: Species) -> None:
    pose = _POSES.get(state, _standing)(traits, species.tail_angles)
    n, d = traits["length"], traits["depth"]
    for points in pose.far:
        leg(pen, points, traits, far=True)
    tail_root = _turned(pose.body, pose.angle, (-0.92 * n, -0.35 * d))
    species.tail(pen.attached(tail_root, traits["tail_size"], pose.tail_angle), traits)
    for points in pose.near:
        leg(pen, points, traits)
    shoulder = _turned(pose.body, pose.angle, (0.68 * n, -0.1 * d))
    pen.stroke([shoulder, pose.head], 1.15 * traits["head"], traits["colour"], "body", ink(traits))
    _body(pen.attached(pose.body, 1.0, pose.angle), traits, n, d)
    if pose.haunch is not None:
        _haunch(pen, traits, pose.haunch)
    head = pen.attached(pose.head, traits["head"], pose.head_angle)
    collar(head, traits, "side")
    _head(head, traits, state, "side", species)


def _haunch(pen: Pen, traits: Traits, at: Point) -> None:
    """The folded hind leg of a sitting or lying animal."""
    x, y = at
    foot = traits.get("sock_colour", traits["second"]) if traits["socks"] else traits["colour"]
    pen.ellipse((x + 0.22, 0.93), 0.17, 0.075, foot, "legs", outline=ink(traits))
    pen.ellipse(at, 0.25, 0.26, traits["colour"], "legs", outline=ink(traits))
    if traits["pattern"] == "spotted":
        pen.ellipse((x - 0.05, y - 0.04), 0.085, 0.085, traits["second"], "legs")
    if traits["pattern"] == "striped":
        shapes = stripes([x - 0.12, x + 0.02], 0.2, 0.04)
        for shape in shapes:
            pen.polygon([(px, py + y) for px, py in shape], traits["second"], "legs")


def _draw_side_asleep(pen: Pen, traits: Traits, species: Species) -> None:
    """Curled up on the ground, the head on the paws, the tail around the front."""
    n, d = 0.50 + 0.5 * traits["length"], 0.20 + 0.55 * traits["depth"]
    center = (-0.10, 1 - d)
    lying = pen.attached(center)
    lying.ellipse((0.0, 0.0), n, d, traits["colour"], "body", outline=ink(traits))
    _coat(lying, traits, 0.9 * n, 0.9 * d, [(0.3 * n, 0.95 * d)])
    _haunch(pen, traits, (-0.42, 1 - 0.28))
    leg(pen, [(0.25, 0.90), (0.62, 0.92)], traits)
    head_at = (0.38, 1 - 0.12 - 0.72 * traits["head"])
    head = pen.attached(head_at, traits["head"], 8.0)
    collar(head, traits, "side")
    _head(head, traits, "sleeping", "side", species)
    _tail_around(pen, traits, (-0.78, 0.88), species)


def _tail_around(pen: Pen, traits: Traits, root: Point, species: Species) -> None:
    """The tail of a sleeper, along the ground; flipped so that its curl rises."""
    flipped = pen.attached(root, 0.95 * traits["tail_size"]).rotated(176.0, squash_x=-1.0)
    species.tail(flipped, traits)


# -- front and back --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Upright:
    """A pose seen from the front or the back; the right legs, mirrored for the left."""

    body: Point
    radii: Point
    head: Point
    fore: Sequence[Point]
    rear: Sequence[Point]


def _upright_pose(t: Traits, state: str) -> _Upright:
    head, d, w = t["head"], t["depth"], t["leg_width"]
    rx = 0.09 + 0.95 * d
    x, foot = 0.62 * rx, 1 - 0.45 * w
    if state == "sitting":
        body = 1 - 0.48
        return _Upright(
            (0.0, body), (rx + 0.10, 0.48), (0.0, body - 0.42 - 0.5 * head),
            [(0.8 * x, body), (0.7 * x, foot)], [(rx + 0.06, 0.84), (rx + 0.14, 0.93)],
        )  # fmt: skip
    if state == "sleeping":
        ry = 0.16 + 0.5 * d
        return _Upright(
            (0.0, 1 - ry), (0.62 + 0.5 * d, ry), (0.0, 1 - 0.10 - 0.85 * head),
            [(0.2, 0.92), (0.42, 0.93)], [(0.6, 0.92), (0.7, 0.93)],
        )  # fmt: skip
    if state == "jumping":
        body = 0.10
        return _Upright(
            (0.0, body), (rx, 0.34), (0.0, body - 0.28 - t["neck"] - 0.5 * head),
            [(0.8 * rx, body - 0.12), (rx + 0.24, body - 0.26), (rx + 0.44, body - 0.42)],
            [(0.7 * rx, body + 0.2), (rx + 0.10, body + 0.42), (rx + 0.2, body + 0.62)],
        )  # fmt: skip
    body = 1 - t["leg"] - 0.75 * d
    top = body - 0.75 * d - t["neck"] - 0.55 * head
    if state == "running":
        low = body + 0.08
        return _Upright(
            (0.0, low), (rx, d + 0.02), (0.0, top + 0.14),
            [(x, low), (x + 0.26, low + 0.26), (x + 0.14, low + 0.50)],
            [(x, low), (x + 0.40, low + 0.16), (x + 0.60, low + 0.42)],
        )  # fmt: skip
    return _Upright(
        (0.0, body), (rx, d + 0.03), (0.0, top),
        [(x, body), (x, foot)], [(x + 0.16, body + 0.1), (x + 0.17, foot - 0.04)],
    )  # fmt: skip


def _pair(pen: Pen, points: Sequence[Point], traits: Traits, far: bool) -> None:
    for sign in (-1, 1):
        leg(pen, [(sign * x, y) for x, y in points], traits, far)


def _torso(pen: Pen, traits: Traits, pose: _Upright, chest: bool) -> None:
    trunk = pen.attached(pose.body)
    rx, ry = pose.radii
    trunk.ellipse((0.0, 0.0), rx, ry, traits["colour"], "body", outline=ink(traits))
    _coat(trunk, traits, 0.95 * rx, 0.95 * ry, [(0.0, 0.45 * ry)] if chest else [])


def _draw_front(pen: Pen, traits: Traits, state: str, species: Species) -> None:
    pose = _upright_pose(traits, state)
    (bx, by), (rx, ry) = pose.body, pose.radii
    tail = pen.attached((bx - 0.6 * rx, by - 0.1 * ry), 0.9 * traits["tail_size"], 222.0)
    species.tail(tail, traits)
    _pair(pen, pose.rear, traits, far=state != "sitting")
    neck = [(0.0, by - 0.3 * ry), pose.head]
    pen.stroke(neck, 1.2 * traits["head"], traits["colour"], "body", ink(traits))
    _torso(pen, traits, pose, chest=True)
    _pair(pen, pose.fore, traits, far=False)
    head = pen.attached(pose.head, 1.08 * traits["head"])
    collar(head, traits, "front")
    _head(head, traits, state, "front", species)


def _draw_back(pen: Pen, traits: Traits, state: str, species: Species) -> None:
    pose = _upright_pose(traits, state)
    (bx, by), (rx, ry) = pose.body, pose.radii
    head_at = pose.head
    if state == "sleeping":
        head_at = (0.30, by - 0.75 * ry)
    _pair(pen, pose.fore, traits, far=True)
    neck = [(head_at[0], by - 0.3 * ry), head_at]
    pen.stroke(neck, 1.2 * traits["head"], traits["colour"], "body", ink(traits))
    head = pen.attached(head_at, 1.08 * traits["head"])
    _head(head, traits, state, "back", species)
    collar(head, traits, "back")
    _pair(pen, pose.rear, traits, far=False)
    _torso(pen, traits, pose, chest=False)
    if state == "sleeping":
        _tail_around(pen, traits, (-0.75 * rx, by + 0.7 * ry), species)
        return
    root = (bx - 0.2 * rx, by + 0.3 * ry)
    species.tail(pen.attached(root, 0.92 * traits["tail_size"], 206.0), traits)


# -- what a head wears and holds -------------------------------------------------------------------


def _head(pen: Pen, traits: Traits, state: str, view: str, species: Species) -> None:
    face = Face(asleep=state == "sleeping", open_mouth=state == "open mouth")
    species.heads[view](pen, traits, face)
    if view != "back":
        mouth = species.mouths[view]
        if state == "open mouth":
            _open_mouth(pen, mouth, 1.0 if view == "side" else 0.9)
        if state == "ball":
            _ball(pen, mouth, 0.52 if view == "side" else 0.455)
    if state == "hat":
        side = view == "side"  # seen from the side there is more animal for the hat's share of it
        hat(pen, species.crown if side else (0.0, -0.82), 0.88 if side else 0.75)


def hat(pen: Pen, crown: Point, size: float = 1.0) -> None:
    """A red hat with a white band, its brim's middle on `crown`."""
    x, y = crown
    s = size
    dark = (120, 8, 16)
    crown_shape = [
        (x - 0.5 * s, y), (x - 0.42 * s, y - 0.86 * s), (x + 0.42 * s, y - 0.86 * s),
        (x + 0.5 * s, y),
    ]  # fmt: skip
    pen.polygon(crown_shape, HAT_RED, "hat", dark, 0.07)
    band = [
        (x - 0.5 * s, y), (x - 0.46 * s, y - 0.28 * s), (x + 0.46 * s, y - 0.28 * s),
        (x + 0.5 * s, y),
    ]  # fmt: skip
    pen.polygon(band, (255, 255, 255), "hat")
    pen.ellipse(
        (x, y + 0.04 * s), 0.86 * s, 0.17 * s, HAT_RED, "hat", outline=dark, outline_width=0.07
    )


def _open_mouth(pen: Pen, at: Point, size: float) -> None:
    mouth = pen.attached(at, size)
    dark = (70, 0, 8)
    mouth.ellipse((0.0, 0.18), 0.48, 0.49, MOUTH_RED, "mouth", outline=dark, outline_width=0.08)
    mouth.ellipse((0.02, 0.46), 0.27, 0.36, TONGUE, "mouth")
    teeth = [(-0.3, -0.2), (0.3, -0.2), (0.24, -0.04), (-0.24, -0.04)]
    mouth.polygon(teeth, WHITE, "mouth")


def _ball(pen: Pen, at: Point, radius: float) -> None:
    ball = pen.attached((at[0] + 0.06, at[1] + 0.24), radius)
    ball.ellipse(
        (0.0, 0.0), 1.0, 1.0, (20, 84, 255), "ball", outline=(6, 24, 110), outline_width=0.15
    )
    band = [(-0.92, -0.15), (0.92, -0.4), (0.92, 0.15), (-0.92, 0.4)]
    ball.polygon(band, (255, 226, 20), "ball")


# -- a class ---------------------------------------------------------------------------------------


def quadruped_class(
    name: str,
    species: Species,
    sample_traits: Callable[[np.random.Generator], dict[str, Any]],
    frequency: float,
) -> WorldClass:
    """A class of the family: the poses are shared, heads and tails are the species'."""

    def draw(pen: Pen, traits: Traits, state: str, view: str, prop: bool) -> None:
        if view == "front":
            _draw_front(pen, traits, state, species)
        elif view == "back":
            _draw_back(pen, traits, state, species)
        elif state == "sleeping":
            _draw_side_asleep(pen, traits, species)
        else:
            _draw_side(pen, traits, state, species)

    return WorldClass(
        name=name,
        states=STATES,
        sample_traits=sample_traits,
        draw=draw,
        frequency=frequency,
        views=VIEWS,
        live=True,
        hidden=HIDDEN,
    )
