"""The synthetic world: drawn subjects in states, scenes, views and styles, with ground truth."""

from dreamfleet.world.captions import RARE_TOKENS, caption, prompt, vocabulary_words
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.draw import draw_dataset
from dreamfleet.world.render import identity_traits, render
from dreamfleet.world.sampling import training_example, training_spec
from dreamfleet.world.scenes import SCENES, Scene
from dreamfleet.world.sheet import contact_sheet, write_sheet
from dreamfleet.world.spec import STATE_SHARES, ImageSpec, Rendered, State, WorldClass
from dreamfleet.world.splits import Subject, benchmark_photo, identity_seed, subjects
from dreamfleet.world.styles import STYLES, Style

__all__ = [
    "CLASSES",
    "RARE_TOKENS",
    "SCENES",
    "STATE_SHARES",
    "STYLES",
    "ImageSpec",
    "Rendered",
    "Scene",
    "State",
    "Style",
    "Subject",
    "WorldClass",
    "benchmark_photo",
    "caption",
    "contact_sheet",
    "draw_dataset",
    "identity_seed",
    "identity_traits",
    "prompt",
    "render",
    "subjects",
    "training_example",
    "training_spec",
    "vocabulary_words",
    "write_sheet",
]
