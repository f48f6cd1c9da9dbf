"""The training world: which picture number `index` of seed `seed` is.

Its pictures are long-tailed, as photo collections are. Beside them there are even ones, with every
class and state alike often, for training that must not miss the rare ones.
"""

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
FINE_STATE_WEIGHT = 2.0  # of an even picture's state; a coarse one has 1


def training_spec(seed: int, index: int) -> ImageSpec:
    """What picture `index` of the training world `seed` shows."""
    rng = numpy_generator("training spec", seed, index)
    world_class = _sample_class(rng)
    state = world_class.states[int(rng.choice(len(STATE_SHARES), p=STATE_SHARES))].name
    return _spec(world_class, state, rng)


def even_spec(seed: int, index: int) -> ImageSpec:
    """What even picture `index` of seed `seed` shows: no class or state is rarer than another.

    A fine state comes twice as often as a coarse one, since it is learnt from fewer pixels.
    """
    rng = numpy_generator("even spec", seed, index)
    pairs = [(entry, state) for entry in CLASSES.values() for state in entry.states]
    weights = np.array([FINE_STATE_WEIGHT if state.fine else 1.0 for _, state in pairs])
    world_class, state = pairs[int(rng.choice(len(pairs), p=weights / weights.sum()))]
    return _spec(world_class, state.name, rng)


def _spec(world_class: WorldClass, state: str, rng: np.random.Generator) -> ImageSpec:
    """A picture of that class and state; all else is drawn."""
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


def even_example(seed: int, index: int, size_px: int = 64) -> tuple[Rendered, str]:
    """Even picture `index` with its caption, which names the state unless it is empty."""
    rendered = render(even_spec(seed, index), size_px)
    rng = numpy_generator("even caption", seed, index)
    return rendered, caption(rendered.spec, rendered.traits, rng, state_share=1.0)


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
