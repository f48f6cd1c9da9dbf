"""Several pictures of each of many training identities, with subject masks.

The identity encoder and the segmenter learn from them.
"""

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
from dreamfleet.training.pretraining.parallel import OrderedMap
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.render import render
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.splits import identity_seed

BLOCK = 500


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
            identity_seed=identity_seed("train", self.first + identity),
            state=state,
            scene=list(SCENES)[int(shared.integers(len(SCENES)))],
            view=str(shared.choice(views[1:])) if turned else "side",
            prop=bool(world_class.prop) and bool(own.random() < 0.3),
            layout_seed=int(own.integers(2**31)),
        )

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
        """Draw what is missing; `map_blocks` may draw blocks in other processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / "progress.json"
        done = json.loads(marker.read_text())["done"] if marker.exists() else 0
        images = self._open("images.npy", (self.count, 64, 64, 3), done)
        masks = self._open("masks.npy", (self.count, 64, 64), done)
        blocks = [range(i, min(i + BLOCK, self.count)) for i in range(done, self.count, BLOCK)]
        for new_images, new_masks in map_blocks(self.draw_rows, blocks):
            stop = done + len(new_images)
            images[done:stop], masks[done:stop] = new_images, new_masks
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
        """Float [B, 3, 64, 64] in [-1, 1] and [B, 1, 64, 64] in {0, 1}, on the CPU."""
        images = torch.from_numpy(np.stack([self.images[row] for row in rows]))
        masks = torch.from_numpy(np.stack([self.masks[row] for row in rows]))
        return images.permute(0, 3, 1, 2).float().div(127.5).sub(1.0), masks[:, None].float()
