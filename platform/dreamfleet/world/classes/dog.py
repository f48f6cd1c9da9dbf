"""Dogs: long muzzles, hanging or pricked ears, most of them with a collar."""

from __future__ import annotations

from typing import Any

import numpy as np

from dreamfleet.world.canvas import RGB, Pen, Point, shade
from dreamfleet.world.classes._quadruped import (
    NOSE,
    Face,
    Species,
    base_traits,
    eye,
    fur_colour,
    ink,
    oval,
    pick,
    quadruped_class,
    uniform,
)
from dreamfleet.world.spec import Traits

_PATTERNS = ("plain", "spotted", "patched", "saddled")


def sample_traits(rng: np.random.Generator) -> dict[str, Any]:
    """One dog's private traits."""
    colour = fur_colour(rng, 0.3)
    traits = base_traits(rng, colour, _PATTERNS, (0.34, 0.24, 0.22, 0.20))
    if rng.random() < 0.3:
        traits["collar"] = None
    ears = (shade(colour, 0.55), shade(colour, 0.75), traits["second"])
    traits |= {
        "ear": pick(rng, ("floppy", "floppy", "pricked", "folded")),
        "ear_size": uniform(rng, 0.8, 1.2),
        "ear_colour": pick(rng, ears),
        "muzzle": uniform(rng, 0.72, 1.05),
        "muzzle_colour": pick(rng, (colour, shade(colour, 1.45), traits["second"])),
        "tail": pick(rng, ("thin", "bushy", "curled")),
        "tail_size": uniform(rng, 0.38, 0.52),
    }
    return traits


def _ear_side(pen: Pen, traits: Traits, paint: RGB) -> None:
    s, line = traits["ear_size"], ink(traits)
    shapes: dict[str, list[Point]] = {
        "floppy": [
            (-0.25, -0.78), (0.05, -0.45), (-0.12, 0.5 * s), (-0.5, 0.85 * s), (-0.85, 0.4 * s),
            (-0.7, -0.4),
        ],
        "pricked": [
            (-0.62, -0.55), (-0.6, -1.1 * s - 0.3), (-0.45, -1.2 * s - 0.35), (0.0, -0.85),
            (-0.1, -0.5),
        ],
        "folded": [
            (-0.55, -0.6), (-0.75, -1.25 * s), (-0.15, -1.25 * s), (0.28, -0.6 * s), (0.02, -0.45),
            (-0.15, -0.7),
        ],
    }  # fmt: skip
    pen.blob(shapes[traits["ear"]], paint, "ear", line, 0.09)


def _patch(traits: Traits) -> bool:
    return traits["pattern"] in ("patched", "spotted")


def _head_side(pen: Pen, traits: Traits, face: Face) -> None:
    line, reach = ink(traits), traits["muzzle"]
    if traits["ear"] != "floppy":
        _ear_side(pen.attached((0.42, 0.02), 0.95), traits, shade(traits["ear_colour"], 0.7))
    pen.ellipse((0.0, 0.0), 1.0, 0.94, traits["colour"], "head", outline=line, outline_width=0.09)
    if _patch(traits):
        pen.markings([oval((0.32, -0.2), 0.46, 0.5)], traits["second"], ["head"])
    tip = 0.78 + reach * 0.8
    snout = [
        (0.45, -0.12), (0.8, -0.12), (tip, -0.04), (tip + 0.1, 0.3), (tip - 0.1, 0.58), (0.6, 0.7),
        (0.25, 0.5),
    ]  # fmt: skip
    pen.blob(snout, traits["muzzle_colour"], "muzzle", line, 0.09)
    pen.ellipse((tip - 0.02, 0.04), 0.22, 0.2, NOSE, "muzzle")
    if not face.open_mouth:
        pen.stroke([(0.75, 0.5), (tip - 0.2, 0.42)], 0.09, NOSE, "muzzle")
    eye(pen, (0.38, -0.22), 0.2, traits, face.asleep)
    _ear_side(pen, traits, traits["ear_colour"])


def _ears_up(pen: Pen, traits: Traits) -> None:
    """Both ears from the front or the back."""
    s, line = traits["ear_size"], ink(traits)
    shapes: dict[str, list[Point]] = {
        "floppy": [
            (0.55, -0.8), (1.05, -0.55), (1.35, 0.2 * s), (1.15, 0.75 * s), (0.85, 0.5 * s),
            (0.75, -0.2),
        ],
        "pricked": [
            (0.15, -0.8), (0.55, -1.2 * s - 0.3), (0.75, -1.2 * s - 0.3), (0.95, -0.5), (0.6, -0.4),
        ],
        "folded": [
            (0.3, -0.75), (0.5, -1.15 * s), (1.0, -1.2 * s), (1.4, -0.55), (1.2, -0.45),
            (0.85, -0.65),
        ],
    }  # fmt: skip
    for sign in (-1, 1):
        shape = [(sign * x, y) for x, y in shapes[traits["ear"]]]
        pen.blob(shape, traits["ear_colour"], "ear", line, 0.09)


def _head_front(pen: Pen, traits: Traits, face: Face) -> None:
    line = ink(traits)
    pen.ellipse((0.0, 0.0), 0.98, 0.95, traits["colour"], "head", outline=line, outline_width=0.09)
    if _patch(traits):
        pen.markings([oval((-0.4, -0.2), 0.42, 0.5)], traits["second"], ["head"])
    _ears_up(pen, traits)
    width = 0.42 + 0.16 * traits["muzzle"]
    pen.ellipse(
        (0.0, 0.42),
        width,
        0.46,
        traits["muzzle_colour"],
        "muzzle",
        outline=line,
        outline_width=0.07,
    )
    pen.ellipse((0.0, 0.2), 0.27, 0.18, NOSE, "muzzle")
    if not face.open_mouth:
        pen.stroke([(0.0, 0.35), (0.0, 0.6)], 0.08, NOSE, "muzzle")
    for x in (-0.42, 0.42):
        eye(pen, (x, -0.2), 0.2, traits, face.asleep)


def _head_back(pen: Pen, traits: Traits, face: Face) -> None:
    pen.ellipse(
        (0.0, 0.0), 0.98, 0.95, traits["colour"], "head", outline=ink(traits), outline_width=0.09
    )
    _ears_up(pen, traits)


def _tail(pen: Pen, traits: Traits) -> None:
    line, colour = ink(traits), traits["colour"]
    if traits["tail"] == "bushy":
        pen.blob(
            [(0.0, -0.12), (0.5, -0.34), (1.15, 0.0), (0.5, 0.3), (0.0, 0.14)],
            colour,
            "tail",
            line,
            0.06,
        )
        return
    curve = [(0.0, 0.0), (0.5, 0.08), (1.1, 0.3)]
    if traits["tail"] == "curled":
        curve = [(0.0, 0.0), (0.55, 0.0), (0.95, 0.3), (0.8, 0.7), (0.45, 0.62)]
    pen.stroke(curve, 0.26, line, "tail")
    pen.stroke(curve, 0.18, colour, "tail")


SPECIES = Species(
    heads={"side": _head_side, "front": _head_front, "back": _head_back},
    tail=_tail,
    mouths={"side": (1.12, 0.52), "front": (0.0, 0.56)},
    crown=(0.1, -0.72),
)
CLASS = quadruped_class("dog", SPECIES, sample_traits, frequency=1.6)
