"""Foxes: sharp muzzles, big ears, white cheeks, dark socks, a huge tail with a white tip."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.world.canvas import Pen, Point, shade
from dreamfleet.world.classes._quadruped import (
    NOSE,
    WHITE,
    Face,
    Species,
    base_traits,
    eye,
    ink,
    luminance,
    pick,
    quadruped_class,
    uniform,
)
from dreamfleet.world.palette import hsv
from dreamfleet.world.spec import Traits

_PATTERNS = ("plain", "saddled", "striped", "spotted")
_DARK = (38, 26, 28)


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One fox's private traits; the coat stays between orange, red-brown, grey and black."""
    kind = pick(rng, ("orange", "orange", "red", "grey", "black"))
    hue, saturation, value = {
        "orange": (0.062, 0.86, 0.95),
        "red": (0.025, 0.78, 0.68),
        "grey": (0.60, 0.12, 0.58),
        "black": (0.70, 0.14, 0.20),
    }[kind]
    colour = hsv(hue + uniform(rng, -0.018, 0.018), saturation, value + uniform(rng, -0.05, 0.05))
    traits = base_traits(rng, colour, _PATTERNS, (0.37, 0.24, 0.20, 0.19))
    light = pick(rng, (WHITE, WHITE, (255, 226, 170)))
    dark = _DARK if luminance(colour) > 70 else (196, 116, 60)
    traits |= {
        "collar": None,
        "depth": uniform(rng, 0.19, 0.25),
        "leg_width": uniform(rng, 0.12, 0.16),
        "belly": bool(rng.random() < 0.75),
        "belly_colour": light,
        "light": light,
        "socks": uniform(rng, 0.42, 0.8),
        "sock_colour": dark,
        "ear_size": uniform(rng, 0.85, 1.3),
        "ear_tip": pick(rng, (dark, light, colour)),
        "muzzle": uniform(rng, 0.85, 1.15),
        "cheek": uniform(rng, 0.7, 1.2),
        "tail_size": uniform(rng, 0.50, 0.60),
        "tail_width": uniform(rng, 0.30, 0.44),
        "tail_tip": uniform(rng, 0.3, 0.55),
    }
    return traits


def _ear(pen: Pen, traits: Traits, x: float, lean: float, far: bool = False) -> None:
    tall = 1.3 + 0.6 * traits["ear_size"]
    paint = shade(traits["colour"], 0.72) if far else traits["colour"]
    left, right, top = (x - 0.42, -0.45), (x + 0.42, -0.45), (x + lean, -tall)
    pen.polygon([left, top, right], paint, "ear", ink(traits), 0.09)
    share = 0.55
    tip = [_between(left, top, share), top, _between(right, top, share)]
    pen.polygon(tip, traits["ear_tip"], "ear")


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _head_side(pen: Pen, traits: Traits, face: Face) -> None:
    line, tip, low = ink(traits), 1.05 + 0.75 * traits["muzzle"], traits["cheek"]
    _ear(pen, traits, 0.42, 0.06, far=True)
    skull = [
        (-0.9, 0.1), (-0.6, -0.7), (0.1, -0.88), (0.6, -0.5), (tip, 0.22), (tip - 0.1, 0.42),
        (0.5, 0.72), (-0.3, 0.85),
    ]  # fmt: skip
    pen.blob(skull, traits["colour"], "head", line, 0.09)
    cheek = [
        (-0.75 * low, 0.30), (-0.1, 0.28), (0.55, 0.10), (tip, 0.26), (tip - 0.1, 0.42),
        (0.5, 0.72), (-0.4, 1.0),
    ]  # fmt: skip
    pen.blob(cheek, traits["light"], "muzzle", line, 0.05)
    pen.ellipse((tip, 0.24), 0.19, 0.18, NOSE, "muzzle")
    eye(pen, (0.34, -0.16), 0.19, traits, face.asleep)
    _ear(pen, traits, -0.34, -0.06)


def _head_front(pen: Pen, traits: Traits, face: Face) -> None:
    line, low = ink(traits), traits["cheek"]
    for sign in (-1, 1):
        _ear(pen, traits, sign * 0.6, sign * 0.14)
    face_shape = [
        (0.0, -0.78), (0.62, -0.62), (1.2, 0.22), (0.62, 0.62), (0.0, 1.06), (-0.62, 0.62),
        (-1.2, 0.22), (-0.62, -0.62),
    ]  # fmt: skip
    pen.polygon(face_shape, traits["colour"], "head", line, 0.09)
    for sign in (-1, 1):
        cheek = [
            (0.0, 0.25), (sign * 0.35 * low, 0.12), (sign * 1.15, 0.24), (sign * 0.6, 0.6),
            (0.0, 1.0),
        ]  # fmt: skip
        pen.polygon(cheek, traits["light"], "muzzle")
    pen.ellipse((0.0, 0.82), 0.22, 0.18, NOSE, "muzzle")
    for x in (-0.42, 0.42):
        eye(pen, (x, -0.12), 0.19, traits, face.asleep)


def _head_back(pen: Pen, traits: Traits, face: Face) -> None:
    for sign in (-1, 1):
        _ear(pen, traits, sign * 0.6, sign * 0.14)
    shape = [
        (0.0, -0.78), (0.62, -0.62), (1.2, 0.25), (0.5, 0.85), (-0.5, 0.85), (-1.2, 0.25),
        (-0.62, -0.62),
    ]  # fmt: skip
    pen.polygon(shape, traits["colour"], "head", ink(traits), 0.09)


def _tail(pen: Pen, traits: Traits) -> None:
    w, cut = traits["tail_width"], 1.35 - traits["tail_tip"]
    shape = [
        (0.0, -0.12), (0.45, -0.7 * w), (0.95, -w + 0.05), (1.42, 0.1), (1.0, w), (0.45, 0.75 * w),
        (0.0, 0.12),
    ]  # fmt: skip
    pen.blob(shape, traits["colour"], "tail", ink(traits), 0.05)
    tip: list[Point] = [
        (cut, -2 * w), (1.6, -2 * w), (1.6, 2 * w), (cut, 2 * w),
        (cut - 0.14, 0.5 * w), (cut + 0.1, 0.0), (cut - 0.14, -0.5 * w),
    ]  # fmt: skip
    pen.markings([tip], traits["light"], ["tail"])


SPECIES = Species(
    heads={"side": _head_side, "front": _head_front, "back": _head_back},
    tail=_tail,
    mouths={"side": (0.95, 0.6), "front": (0.0, 0.72)},
    crown=(0.08, -0.72),
    tail_angles=(228.0, 212.0, 222.0),
)
CLASS = quadruped_class("fox", SPECIES, sample_traits, frequency=0.35)
