"""The words of the world: what a class, a state and a picture are.

A picture is a pure function of an `ImageSpec`; `render.render` returns it with its ground truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from dreamfleet.world.canvas import Pen

Traits = Mapping[str, Any]

# Shares of a class's eight states, the neutral one first: long-tailed, as in photo collections.
STATE_SHARES = (0.30, 0.18, 0.13, 0.11, 0.09, 0.08, 0.06, 0.05)


@dataclass(frozen=True)
class State:
    """One attribute of a class; `before` and `after` wrap the noun, e.g. dog "wearing a hat"."""

    name: str
    before: str = ""
    after: str = ""
    fine: bool = False  # changes less than 10 % of the subject's pixels, at least 4x4 px at 64 px

    def phrase(self, noun: str) -> str:
        return " ".join(word for word in (self.before, noun, self.after) if word)


@dataclass(frozen=True)
class WorldClass:
    """A kind of subject and how it is drawn.

    `sample_traits(rng)` gives an identity's private traits. Keys every class has: "colour" (RGB of
    its main colour), "colour_name" and "pattern" (the two that captions may name); all others (at
    least four) have no word. `draw(pen, traits, state, view, prop)` draws into the pen's frame:
    about x, y in [-1, 1], y = 1 the ground.
    """

    name: str  # the class word, e.g. "dog"
    states: tuple[State, ...]  # eight, in order of STATE_SHARES; the first is the neutral one
    sample_traits: Callable[[np.random.Generator], dict[str, Any]]
    draw: Callable[[Pen, Traits, str, str, bool], None]
    frequency: float  # relative share in the training world (long-tailed)
    views: tuple[str, ...] = ("side",)
    prop: str = ""  # an object that sometimes lies in or beside it and is never captioned
    size: float = 0.36  # half-height of the subject's frame as a fraction of the picture
    live: bool = False
    hidden: frozenset[tuple[str, str]] = frozenset()  # (state, view) pairs that cannot be seen

    def state(self, name: str) -> State:
        return next(state for state in self.states if state.name == name)


@dataclass(frozen=True)
class ImageSpec:
    """All that decides a picture."""

    class_name: str
    identity_seed: int
    state: str
    scene: str
    view: str = "side"
    style: str = "photo"
    prop: bool = False
    layout_seed: int = 0  # placement of the subject and details of the scene


@dataclass
class Rendered:
    """A picture and its ground truth."""

    spec: ImageSpec
    image: Image.Image  # RGB
    part_masks: dict[str, np.ndarray] = field(default_factory=dict)  # bool [size, size]
    traits: Traits = field(default_factory=dict)

    @property
    def subject_mask(self) -> np.ndarray:
        """Bool [size, size]: where any part of the subject (not its prop) is visible."""
        size = self.image.size[0]
        masks = [mask for part, mask in self.part_masks.items() if part != "prop"]
        return np.any(masks, axis=0) if masks else np.zeros((size, size), dtype=bool)
