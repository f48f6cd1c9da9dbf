"""The drawn training world on disk, and its captions, drawn anew for every pass."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dreamfleet.seeding import numpy_generator
from dreamfleet.world.captions import STATE_SHARE, caption
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.draw import DETAIL, VIEWS
from dreamfleet.world.render import identity_traits
from dreamfleet.world.sampling import even_spec, training_spec
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec
from dreamfleet.world.styles import STYLES


@dataclass
class Corpus:
    """`count` pictures of training world `seed`: pixels in `folder`, all else from the seed.

    The last `num_even` of them have all states alike often, named in each caption that is not
    empty; of a batch they are half. What "a photo of a dog" shows is still learnt from the others
    alone.
    """

    folder: Path
    seed: int
    count: int
    num_even: int = 0

    @property
    def num_natural(self) -> int:
        """Of the pictures with the world's own shares, which come first."""
        return self.count - self.num_even

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 [count, 64, 64, 3], memory-mapped."""
        return np.load(self.folder / "images.npy", mmap_mode="r")

    @cached_property
    def specs(self) -> list[ImageSpec]:
        return [
            (training_spec if index < self.num_natural else even_spec)(self.seed, index)
            for index in range(self.count)
        ]

    def batch(self, seed: int, stage: str, step: int, batch_size: int) -> np.ndarray:
        """Which pictures a stage sees at `step`; see `batch_indices`."""
        first = batch_size - (batch_size // 2 if self.num_even else 0)
        indices = batch_indices(seed, stage, step, first, self.num_natural)
        if not self.num_even:
            return indices
        even = batch_indices(seed, f"{stage} even", step, batch_size - first, self.num_even)
        return np.concatenate([indices, self.num_natural + even])

    @cached_property
    def words(self) -> list[dict[str, str]]:
        """The two traits that captions may name, per picture."""
        path = self.folder / "words.json"
        if path.exists():
            found: list[dict[str, str]] = json.loads(path.read_text())
            if len(found) >= self.count:
                return found
        words = []
        for spec in self.specs:
            traits = identity_traits(spec.class_name, spec.identity_seed)
            words.append({key: str(traits[key]) for key in ("colour_name", "pattern")})
        partial = path.with_name(f"words.{os.getpid()}.partial")
        partial.write_text(json.dumps(words))
        partial.replace(path)
        return words

    def caption(self, index: int, draw: int) -> str:
        """The caption of picture `index` in its `draw`-th use."""
        rng = numpy_generator("pretraining caption", self.seed, index, draw)
        share = STATE_SHARE if index < self.num_natural else 1.0
        return caption(self.specs[index], self.words[index], rng, state_share=share)

    def pixels(self, indices: np.ndarray) -> torch.Tensor:
        """Float [B, 3, 64, 64] in [-1, 1], on the CPU."""
        batch = torch.from_numpy(np.asarray(self.images[np.sort(indices)]))
        order = torch.from_numpy(np.argsort(np.argsort(indices)))
        return batch[order].permute(0, 3, 1, 2).float().div(127.5).sub(1.0)

    @cached_property
    def masks(self) -> np.ndarray:
        """uint8 [count, 64, 64] of SUBJECT and DETAIL (world/draw.py); memory-mapped."""
        return np.load(self.folder / "masks.npy", mmap_mode="r")

    def shares(self, indices: np.ndarray, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Float [B, 1, size, size] each, on the CPU: the subject's and the detail's share of cells.

        The subject's has the detail in it.
        """
        masks = torch.from_numpy(np.stack([self.masks[index] for index in indices]))[:, None]
        subject = F.adaptive_avg_pool2d((masks > 0).float(), size)
        return subject, F.adaptive_avg_pool2d((masks == DETAIL).float(), size)

    @cached_property
    def labels(self) -> dict[str, torch.Tensor]:
        """Long [count] per head: class, state (class * 8 + state), scene, view, style, prop."""
        names, scenes, styles = list(CLASSES), list(SCENES), list(STYLES)
        rows = []
        for spec in self.specs:
            states = [state.name for state in CLASSES[spec.class_name].states]
            class_index = names.index(spec.class_name)
            rows.append(
                (
                    class_index,
                    class_index * 8 + states.index(spec.state),
                    scenes.index(spec.scene),
                    VIEWS.index(spec.view),
                    styles.index(spec.style),
                    int(spec.prop),
                )
            )
        table = torch.tensor(rows, dtype=torch.long)
        heads = ("class", "state", "scene", "view", "style", "prop")
        return {head: table[:, i] for i, head in enumerate(heads)}


def batch_indices(seed: int, stage: str, step: int, batch_size: int, count: int) -> np.ndarray:
    """Which pictures a stage sees at `step`: drawn by counter, so a resumed run sees the same."""
    return numpy_generator("pretraining batch", stage, seed, step).integers(count, size=batch_size)
