"""The training world: which picture number `index` of seed `seed` is."""

from __future__ import annotations

import numpy as np

from dreamfleet.seeding import numpy_generator
from dreamfleet.world.captions import caption
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.render import render
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import STATE_SHARES, ImageSpec, Rendered, WorldClass
from dreamfleet.world.splits import TRAIN_IDENTITIES, identity_seed
from dreamfleet.world.styles import STYLES

PLAIN_SCENE_SHARE = 0.10
VIEW_SHARES = {"side": 0.70, "front": 0.15, "back": 0.15}
PHOTO_SHARE = 0.80
PROP_SHARE = 0.30


def training_spec(seed: int, index: int) -> ImageSpec:
    """What picture `index` of the training world `seed` shows."""
    rng = numpy_generator("training spec", seed, index)
    world_class = _sample_class(rng)
    state = world_class.states[int(rng.choice(len(STATE_SHARES), p=STATE_SHARES))].name
    return ImageSpec(
        class_name=world_class.name,
        identity_seed=identity_seed("train", int(rng.integers(TRAIN_IDENTITIES))),
        state=state,
        scene=_sample_scene(rng),
        view=_sample_view(world_class, state, rng),
        style=_sample_style(rng),
        prop=bool(rng.random() < PROP_SHARE) and bool(world_class.prop),
        layout_seed=int(rng.integers(2**31)),
    )


def training_example(seed: int, index: int, size_px: int = 64) -> tuple[Rendered, str]:
    """Picture `index` of the training world with its caption."""
    rendered = render(training_spec(seed, index), size_px)
    rng = numpy_generator("training caption", seed, index)
    return rendered, caption(rendered.spec, rendered.traits, rng)


def _sample_class(rng: np.random.Generator) -> WorldClass:
    classes = list(CLASSES.values())
    shares = np.array([world_class.frequency for world_class in classes])
    return classes[int(rng.choice(len(classes), p=shares / shares.sum()))]


def _sample_scene(rng: np.random.Generator) -> str:
    if rng.random() < PLAIN_SCENE_SHARE:
        return "plain"
    return str(rng.choice([name for name in SCENES if name != "plain"]))


def _sample_view(world_class: WorldClass, state: str, rng: np.random.Generator) -> str:
    views = [v for v in world_class.views if (state, v) not in world_class.hidden]
    if len(views) == 1:
        return views[0]
    shares = np.array([VIEW_SHARES[view] for view in views])
    return str(rng.choice(views, p=shares / shares.sum()))


def _sample_style(rng: np.random.Generator) -> str:
    if rng.random() < PHOTO_SHARE:
        return "photo"
    return str(rng.choice([name for name in STYLES if name != "photo"]))
