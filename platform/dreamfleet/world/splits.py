"""Who is trained on and who is held out, and the benchmark's subjects and their photos."""

from __future__ import annotations

from dataclasses import dataclass

from dreamfleet.errors import BadInputError
from dreamfleet.seeding import numpy_generator
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.render import lookup
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec

TRAIN_IDENTITIES = 3000  # of each class

_BLOCK = 1_000_000  # identity seeds set aside for each split
_SPLIT_BLOCKS = {"train": 0, "D": 1, "C": 2, "T": 3, "R": 4}

# Development, confirmation, tuning, reserve.
SUBJECT_COUNTS = {"D": 8, "C": 24, "T": 12, "R": 24}

# Animals, crockery and things in turn, so that any first few are already mixed.
SUBJECT_CLASSES = (
    "dog", "teapot", "backpack", "cat", "vase", "robot",
    "bird", "bowl", "car", "fox", "candle", "dog house",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """One held-out individual."""

    class_name: str
    identity_seed: int
    subject_id: str  # e.g. "D03-dog"; folder-safe

    def spec(self, state: str, scene: str, view: str = "side", layout_seed: int = 0) -> ImageSpec:
        """A true picture of this individual: what no photo benchmark can offer."""
        return ImageSpec(
            self.class_name, self.identity_seed, state, scene, view, layout_seed=layout_seed
        )


def identity_seed(split: str, index: int) -> int:
    """The seed of identity `index` of a split; the splits' ranges are disjoint."""
    if not 0 <= index < _BLOCK:
        raise BadInputError(f"identity index {index} of split {split} is not in 0..{_BLOCK - 1}")
    return lookup("split", split, _SPLIT_BLOCKS) * _BLOCK + index


def split_of(seed: int) -> str:
    """The split an identity seed belongs to."""
    return next(name for name, block in _SPLIT_BLOCKS.items() if seed // _BLOCK == block)


def subjects(split: str, count: int | None = None) -> tuple[Subject, ...]:
    """The subjects of a held-out split, balanced over the classes; a larger `count` only adds."""
    total = lookup("split of subjects", split, SUBJECT_COUNTS) if count is None else count
    chosen = []
    for index in range(total):
        name = SUBJECT_CLASSES[index % len(SUBJECT_CLASSES)]
        subject_id = f"{split}{index:02d}-{name.replace(' ', '_')}"
        chosen.append(Subject(name, identity_seed(split, index), subject_id))
    return tuple(chosen)


def benchmark_photo(subject: Subject, index: int = 0) -> ImageSpec:
    """Photo `index` of a subject: never neutral, never plain; the first 7 differ in both."""
    order = numpy_generator("benchmark photos", subject.class_name, subject.identity_seed)
    states = [state.name for state in CLASSES[subject.class_name].states[1:]]
    scenes = [name for name in SCENES if name != "plain"]
    state = order.permutation(states)[index % len(states)]
    scene = order.permutation(scenes)[index % len(scenes)]
    layout = numpy_generator("benchmark layout", subject.identity_seed, index)
    return subject.spec(str(state), str(scene), layout_seed=int(layout.integers(2**31)))
