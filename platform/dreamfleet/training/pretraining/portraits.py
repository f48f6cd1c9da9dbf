"""Several pictures of each of many training identities, with subject masks: for the identity encoder and segmenter."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dreamfleet.seeding import numpy_generator
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.render import render
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import identity_seed

BLOCK = 500


@dataclass
class Portraits:
    """`identities` of every class, `per_identity` pictures of each; two identities in a row share states and scenes.

    Row order: class, identity, picture. Identities start at `first` in the training split.
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
        """State and scene depend on the class and the picture's number within a pair of identities."""
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
            identity_seed=identity_seed("train", self.first + identity),
            state=state,
            scene=list(SCENES)[int(shared.integers(len(SCENES)))],
            view=str(shared.choice(views[1:])) if turned else "side",
            prop=bool(world_class.prop) and bool(own.random() < 0.3),
            layout_seed=int(own.integers(2**31)),
        )

    def draw(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Draw what is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / "progress.json"
        done = json.loads(marker.read_text())["done"] if marker.exists() else 0
        images = self._open("images.npy", (self.count, 64, 64, 3), done)
        masks = self._open("masks.npy", (self.count, 64, 64), done)
        while done < self.count:
            stop = min(done + BLOCK, self.count)
            for row in range(done, stop):
                picture = render(self.spec(row))
                images[row], masks[row] = np.asarray(picture.image), picture.subject_mask
            images.flush()
            masks.flush()
            done = stop
            marker.write_text(json.dumps({"done": done}))
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
        """Float [B, 3, 64, 64] in [-1, 1] and [B, 1, 64, 64] in {0, 1}."""
        images = torch.from_numpy(np.stack([self.images[row] for row in rows]))
        masks = torch.from_numpy(np.stack([self.masks[row] for row in rows]))
        return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0), masks[:, None].float()
