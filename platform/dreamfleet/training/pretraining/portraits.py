"""Several pictures of each of many training identities, with subject masks.

The identity encoder and the segmenter learn from them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamfleet.errors import ResumeError
from dreamfleet.seeding import numpy_generator
from dreamfleet.training.pretraining.parallel import OrderedMap
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.render import identity_traits, render
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import identity_seed

BLOCK = 500
MOST_NAMES = 8  # of one trait that become numbers
NO_COLOUR = (128, 128, 128)
WITHOUT_MEANING = ("layout", "colour_name")  # where marks lie, and a word for another trait


@dataclass
class Portraits:
    """`identities` of every class, `per_identity` pictures of each.

    Two identities in a row share states and scenes. Row order: class, identity, picture.
    Identities start at `first` in the training split.
    """

    folder: Path
    seed: int
    identities: int
    per_identity: int
    first: int = 0

    @property
    def count(self) -> int:
        return len(CLASSES) * self.identities * self.per_identity

    def spec(self, row: int) -> ImageSpec:
        """State and scene depend on the class, the pair of identities and the picture's number."""
        class_index, rest = divmod(row, self.identities * self.per_identity)
        identity, picture = divmod(rest, self.per_identity)
        world_class = list(CLASSES.values())[class_index]
        shared = numpy_generator("portraits", self.seed, class_index, identity // 2, picture)
        own = numpy_generator("portrait layout", self.seed, row)
        state = world_class.states[int(shared.integers(8))].name
        views = [v for v in world_class.views if (state, v) not in world_class.hidden]
        turned = shared.random() < 0.1 and len(views) > 1
        return ImageSpec(
            class_name=world_class.name,
            identity_seed=self._identity(identity),
            state=state,
            scene=list(SCENES)[int(shared.integers(len(SCENES)))],
            view=str(shared.choice(views[1:])) if turned else "side",
            prop=bool(world_class.prop) and bool(own.random() < 0.3),
            layout_seed=int(own.integers(2**31)),
        )

    @cached_property
    def traits(self) -> tuple[Tensor, Tensor]:
        """What the renderer knows of every identity, as numbers.

        Float [classes, identities, D] of zero mean and unit deviation over a class's identities,
        and [classes, D]: 1 where a class has that number. A colour is three numbers, a name one.
        """
        columns = [
            _columns([identity_traits(name, self._identity(i)) for i in range(self.identities)])
            for name in CLASSES
        ]
        width = max(len(of_class) for of_class in columns)
        values = torch.zeros(len(columns), self.identities, width)
        known = torch.zeros(len(columns), width)
        for at, of_class in enumerate(columns):
            values[at, :, : len(of_class)] = torch.tensor(np.array(of_class)).T.float()
            known[at, : len(of_class)] = 1.0
        return values, known

    def place(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Class and identity numbers of `rows`."""
        class_index, rest = np.divmod(rows, self.identities * self.per_identity)
        return torch.from_numpy(class_index), torch.from_numpy(rest // self.per_identity)

    def _identity(self, number: int) -> int:
        return identity_seed("train", self.first + number)

    def draw_rows(self, rows: range) -> tuple[np.ndarray, np.ndarray]:
        """uint8 pictures [n, 64, 64, 3] and masks [n, 64, 64] of `rows`."""
        pictures = [render(self.spec(row)) for row in rows]
        images = np.stack([np.asarray(picture.image) for picture in pictures])
        return images, np.stack([picture.subject_mask for picture in pictures]).astype(np.uint8)

    def draw(
        self,
        progress: Callable[[int, int], None] | None = None,
        map_blocks: OrderedMap = map,
    ) -> None:
        """Draw what is missing; `map_blocks` may draw blocks in other processes.

        Raises:
            ResumeError: the folder holds portraits of another number or choice of identities.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / "progress.json"
        asked = {"identities": self.identities, "each": self.per_identity, "first": self.first}
        known = json.loads(marker.read_text()) if marker.exists() else {"done": 0}
        done = known.pop("done")
        if known and known != asked:
            raise ResumeError(
                f"{self.folder}: holds portraits of {known}, and these are {asked}; give another "
                "--work-dir, or delete it"
            )
        images = self._open("images.npy", (self.count, 64, 64, 3), done)
        masks = self._open("masks.npy", (self.count, 64, 64), done)
        blocks = [range(i, min(i + BLOCK, self.count)) for i in range(done, self.count, BLOCK)]
        for new_images, new_masks in map_blocks(self.draw_rows, blocks):
            stop = done + len(new_images)
            images[done:stop], masks[done:stop] = new_images, new_masks
            images.flush()
            masks.flush()
            done = stop
            partial = marker.with_suffix(".partial")
            partial.write_text(json.dumps({"done": done, **asked}), encoding="utf-8")
            partial.replace(marker)
            if progress is not None:
                progress(done, self.count)

    def _open(self, name: str, shape: tuple[int, ...], done: int) -> np.memmap:
        mode = "r+" if done else "w+"
        return np.lib.format.open_memmap(
            self.folder / name, mode=mode, dtype=np.uint8, shape=None if done else shape
        )

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 [count, 64, 64, 3]."""
        return np.load(self.folder / "images.npy", mmap_mode="r")

    @cached_property
    def masks(self) -> np.ndarray:
        """uint8 [count, 64, 64], 1 where the subject is."""
        return np.load(self.folder / "masks.npy", mmap_mode="r")

    def pixels_and_masks(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Float [B, 3, 64, 64] in [-1, 1] and [B, 1, 64, 64] in {0, 1}, on the CPU."""
        images = torch.from_numpy(np.stack([self.images[row] for row in rows]))
        masks = torch.from_numpy(np.stack([self.masks[row] for row in rows]))
        return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0), masks[:, None].float()


def _columns(traits: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """Standardised columns of one class's traits; those that never vary are left out."""
    found: list[np.ndarray] = []
    for key in traits[0]:
        if key not in WITHOUT_MEANING:
            found += _as_numbers([of_one[key] for of_one in traits])
    columns = [np.asarray(column, dtype=np.float64) for column in found]
    return [(c - c.mean()) / c.std() for c in columns if c.std() > 1e-6]


def _as_numbers(values: list[Any]) -> list[Any]:
    if all(isinstance(value, bool | int | float) for value in values):
        return [values]
    if any(isinstance(value, tuple) for value in values):  # a colour, or none
        colours = [value or NO_COLOUR for value in values]
        return [[c[k] for c in colours] for k in range(3)] + [[v is None for v in values]]
    names = sorted({str(value) for value in values})[:MOST_NAMES]
    return [[str(value) == name for value in values] for name in names]
