"""Cats: short faces with whiskers, pointed ears, long curved tails."""

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
    fur_colour,
    ink,
    luminance,
    oval,
    pick,
    quadruped_class,
    uniform,
)
from dreamfleet.world.spec import Traits

_PATTERNS = ("plain", "striped", "patched", "masked")
_PINK = (248, 140, 156)


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One cat's private traits."""
    colour = fur_colour(rng, 0.3)
    traits = base_traits(rng, colour, _PATTERNS, (0.28, 0.32, 0.22, 0.18))
    if rng.random() < 0.5:
        traits["collar"] = None
    light = WHITE if luminance(colour) < 190 else shade(colour, 0.86)
    traits |= {
        "leg_width": uniform(rng, 0.12, 0.16),
        "depth": uniform(rng, 0.20, 0.26),
        "ear_size": uniform(rng, 0.8, 1.25),
        "ear_inner": pick(rng, (_PINK, traits["second"])),
        "muzzle_colour": pick(rng, (light, shade(colour, 1.3), light)),
        "eye": pick(rng, ((255, 222, 30), (110, 230, 60), (80, 196, 255), (255, 150, 30))),
        "tail_size": uniform(rng, 0.50, 0.62),
        "tail_width": uniform(rng, 0.17, 0.30),
        "tail_tip": bool(rng.random() < 0.4),
    }
    return traits


def _ear(pen: Pen, traits: Traits, x: float, lean: float, far: bool = False) -> None:
    """A pointed ear whose middle stands at `x` of the head."""
    tall = 1.25 + 0.42 * traits["ear_size"]
    masked = traits["pattern"] == "masked"
    paint = traits["second"] if masked else traits["colour"]
    paint = shade(paint, 0.72) if far else paint
    pen.polygon(
        [(x - 0.42, -0.5), (x + lean, -tall), (x + 0.42, -0.5)], paint, "ear", ink(traits), 0.09
    )
    if not far:
        inner: list[Point] = [(x - 0.2, -0.72), (x + 0.8 * lean, -tall + 0.32), (x + 0.2, -0.72)]
        pen.polygon(inner, traits["ear_inner"], "ear")


def _face_marks(pen: Pen, traits: Traits, x: float) -> None:
    """The pattern on the head, whose face is centred on `x`."""
    pattern, second = traits["pattern"], traits["second"]
    if pattern == "striped":
        wedges = [
            [(x + s - 0.11, -1.05), (x + s + 0.11, -1.05), (x + 0.7 * s, -0.45)]
            for s in (-0.36, 0.0, 0.36)
        ]
        pen.markings(wedges, second, ["head"])
    elif pattern == "patched":
        pen.markings([oval((x - 0.45, -0.35), 0.55, 0.6)], second, ["head"])
    elif pattern == "masked":
        pen.markings([oval((x, 0.25), 0.68, 0.62)], second, ["head"])


def _whiskers(pen: Pen, traits: Traits, x: float, signs: tuple[int, ...]) -> None:
    paint = WHITE if luminance(traits["colour"]) < 150 else (60, 52, 56)
    for sign in signs:
        for y, drop in ((0.34, -0.08), (0.52, 0.14)):
            pen.stroke([(x + sign * 0.22, y), (x + sign * 0.95, y + drop)], 0.07, paint, "muzzle")


def _head_side(pen: Pen, traits: Traits, face: Face) -> None:
    line = ink(traits)
    _ear(pen, traits, 0.5, 0.1, far=True)
    pen.ellipse((0.05, 0.0), 1.02, 0.92, traits["colour"], "head", outline=line, outline_width=0.09)
    _face_marks(pen, traits, 0.35)
    pen.ellipse(
        (0.82, 0.38),
        0.42,
        0.34,
        traits["muzzle_colour"],
        "muzzle",
        outline=line,
        outline_width=0.06,
    )
    pen.ellipse((1.1, 0.18), 0.16, 0.13, _PINK, "muzzle", outline=NOSE, outline_width=0.05)
    if not face.open_mouth:
        pen.stroke([(0.75, 0.52), (1.05, 0.46)], 0.08, NOSE, "muzzle")
    _whiskers(pen, traits, 0.62, (-1,))
    eye(pen, (0.5, -0.14), 0.24, traits, face.asleep)
    _ear(pen, traits, -0.28, -0.08)


def _head_front(pen: Pen, traits: Traits, face: Face) -> None:
    line = ink(traits)
    for sign in (-1, 1):
        _ear(pen, traits, sign * 0.58, sign * 0.16)
    pen.ellipse((0.0, 0.02), 1.08, 0.9, traits["colour"], "head", outline=line, outline_width=0.09)
    _face_marks(pen, traits, 0.0)
    pen.ellipse((0.0, 0.46), 0.46, 0.32, traits["muzzle_colour"], "muzzle")
    pen.ellipse((0.0, 0.26), 0.17, 0.12, _PINK, "muzzle", outline=NOSE, outline_width=0.05)
    _whiskers(pen, traits, 0.0, (-1, 1))
    for x in (-0.46, 0.46):
        eye(pen, (x, -0.12), 0.24, traits, face.asleep)


def _head_back(pen: Pen, traits: Traits, face: Face) -> None:
    for sign in (-1, 1):
        _ear(pen, traits, sign * 0.58, sign * 0.16, far=True)
    pen.ellipse(
        (0.0, 0.02), 1.08, 0.9, traits["colour"], "head", outline=ink(traits), outline_width=0.09
    )
    if traits["pattern"] in ("striped", "patched"):
        _face_marks(pen, traits, 0.0)


def _tail(pen: Pen, traits: Traits) -> None:
    curve: list[Point] = [
        (0.0, 0.0), (0.4, -0.12), (0.8, 0.0), (1.1, 0.3), (1.35, 0.3), (1.45, 0.08),
    ]  # fmt: skip
    width = traits["tail_width"]
    pen.stroke(curve, width + 0.1, ink(traits), "tail")
    masked = traits["pattern"] == "masked"
    pen.stroke(curve, width, traits["second"] if masked else traits["colour"], "tail")
    if traits["pattern"] == "striped":
        for x, y in ((0.42, -0.12), (0.82, 0.02), (1.12, 0.3)):
            pen.ellipse((x, y), 0.08, width * 0.52, traits["second"], "tail", angle_deg=20)
    if traits["tail_tip"]:
        pen.stroke(curve[-2:], width, traits["second"], "tail")


SPECIES = Species(
    heads={"side": _head_side, "front": _head_front, "back": _head_back},
    tail=_tail,
    mouths={"side": (0.86, 0.6), "front": (0.0, 0.55)},
    crown=(0.1, -0.76),
    tail_angles=(242.0, 226.0, 238.0),
)
CLASS = quadruped_class("cat", SPECIES, sample_traits, frequency=1.3)
