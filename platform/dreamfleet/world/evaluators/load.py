"""Loading the shipped evaluators and asking them about pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from dreamfleet.errors import BadInputError
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.draw import VIEWS
from dreamfleet.world.evaluators.crops import subject_crops
from dreamfleet.world.evaluators.models import (
    UNREADABLE,
    IdentityEncoder,
    OracleA,
    OracleB,
    Segmenter,
)
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.styles import STYLES

SIZE_PX = 64
BATCH = 64
PLAIN = ((0, 0),)
# Oracle B cuts pictures into patches of 4x4 pixels, so one pixel to the side it sees another
# picture: the mean of nine readings names class and state of 95.2 % of 2,000 held-out renders, one
# reading 94.8 %. Oracle A, whose windows overlap, gains nothing.
NEIGHBOURS = tuple((x, y) for y in (-1, 0, 1) for x in (-1, 0, 1))
SHIPPED = Path(__file__).resolve().parent.parent / "weights"


def weights_path(name: str, root: Path | None = None) -> Path:
    """Folder of an evaluator (clip, identity, oracle_a, oracle_b, segmenter), shipped or in `root`.

    Raises:
        BadInputError: it is not there.
    """
    folder = (root or SHIPPED) / name
    if not (folder / "model.safetensors").is_file():
        raise BadInputError(
            f"evaluator {name!r}: {folder} holds no model.safetensors; reinstall dreamfleet or "
            "train it with pipelines/pretrain_base.py --export"
        )
    return folder


def weights_hash(*names: str, root: Path | None = None) -> str:
    """SHA-256 of the weights of these evaluators, one after the other.

    Raises:
        BadInputError: one is not there.
    """
    digest = hashlib.sha256()
    for name in names:
        digest.update((weights_path(name, root) / "model.safetensors").read_bytes())
    return digest.hexdigest()


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of any size to float [N, 3, 64, 64] in [-1, 1]; larger ones are box-reduced."""
    rows = []
    for image in images:
        rgb = image.convert("RGB")
        if rgb.size != (SIZE_PX, SIZE_PX):
            rgb = rgb.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX)
        rows.append(np.asarray(rgb))
    pixels = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)
    return pixels.float().div(127.5).sub(1.0)


def _batches(pixels: Tensor) -> Iterator[Tensor]:
    yield from pixels.split(BATCH)


def _load(model: nn.Module, name: str, root: Path | None) -> nn.Module:
    state = load_file(weights_path(name, root) / "model.safetensors")
    whole = {key: v.float() if v.is_floating_point() else v for key, v in state.items()}
    model.load_state_dict(whole)
    return model.eval().requires_grad_(False)


@dataclass
class Oracle:
    """Reads a picture: what it shows, by name.

    `shifts` are pixels (right, down) by which each picture is moved, its border repeated; the
    readings' log-probabilities are averaged.
    """

    name: str
    model: nn.Module
    shifts: Sequence[tuple[int, int]] = PLAIN

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        """Per picture: class (or "unreadable"), state (of that class), scene, view, style, prop."""
        out: list[dict[str, str]] = []
        for batch in _batches(to_pixels(images)):
            answers = self._answers(batch)
            out += [self._row(answers, i) for i in range(len(batch))]
        return out

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Softmax per head, [N, answers]; state is over class * 8 + state."""
        parts = [self._answers(batch) for batch in _batches(to_pixels(images))]
        return {h: torch.cat([p[h] for p in parts]).softmax(dim=1) for h in parts[0]}

    def _answers(self, pixels: Tensor) -> dict[str, Tensor]:
        """Mean log-probabilities per head, [N, answers], of pictures [N, 3, 64, 64]."""
        readings = [self.model(moved(pixels, *shift)) for shift in self.shifts]
        return {
            head: torch.stack([reading[head].float().log_softmax(1) for reading in readings]).mean(
                0
            )
            for head in readings[0]
        }

    def _row(self, answers: dict[str, Tensor], i: int) -> dict[str, str]:
        classes = [*CLASSES, UNREADABLE]
        name = classes[int(answers["class"][i].argmax())]
        row = {
            "class": name,
            "state": "",
            "scene": list(SCENES)[int(answers["scene"][i].argmax())],
            "view": VIEWS[int(answers["view"][i].argmax())],
            "style": list(STYLES)[int(answers["style"][i].argmax())],
            "prop": "yes" if int(answers["prop"][i].argmax()) else "no",
        }
        if name in CLASSES:
            first = 8 * list(CLASSES).index(name)
            states = CLASSES[name].states
            row["state"] = states[int(answers["state"][i, first : first + 8].argmax())].name
        return row


def moved(pixels: Tensor, right: int, down: int) -> Tensor:
    """Pictures [N, 3, H, W] moved by whole pixels, their border repeated."""
    if not (right or down):
        return pixels
    reach, (height, width) = max(abs(right), abs(down)), pixels.shape[-2:]
    padded = F.pad(pixels, (reach,) * 4, mode="replicate")
    top, left = reach - down, reach - right
    return padded[:, :, top : top + height, left : left + width]


@dataclass
class SegmenterJudge:
    """Finds the subject."""

    model: nn.Module

    @torch.no_grad()
    def masks(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Bool [N, 64, 64]."""
        parts = [self.model(batch) > 0 for batch in _batches(to_pixels(images))]
        return torch.cat(parts)[:, 0].numpy()


@dataclass
class IdentityJudge:
    """Who is it: unit vectors whose cosine is high for one individual in any state and scene."""

    model: nn.Module
    segmenter: SegmenterJudge

    @torch.no_grad()
    def embed(self, images: Sequence[Image.Image], masks: np.ndarray | None = None) -> np.ndarray:
        """Float [N, 128]; `masks` bool [N, 64, 64] are found by the segmenter when not given."""
        found = self.segmenter.masks(images) if masks is None else masks
        crops = subject_crops(to_pixels(images), torch.from_numpy(found)[:, None].float())
        return torch.cat([self.model(batch) for batch in _batches(crops)]).numpy()


@dataclass
class Clip:
    """The small CLIP of the world."""

    model: CLIPModel
    tokenizer: CLIPTokenizer

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [N, 128]."""
        parts = []
        for batch in _batches(to_pixels(images)):
            hidden = self.model.vision_model(pixel_values=batch).pooler_output
            parts.append(F.normalize(self.model.visual_projection(hidden), dim=1))
        return torch.cat(parts).numpy()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, 128]."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        hidden = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(hidden), dim=1).numpy()


def load_oracle(which: str, root: Path | None = None) -> Oracle:
    """Oracle "A" (tuning and gates) or "B" (final scores only).

    `root` holds other weights than the shipped ones; so for every loader here.

    Raises:
        BadInputError: neither A nor B, or the weights are missing.
    """
    models = {"A": OracleA, "B": OracleB}
    if which not in models:
        raise BadInputError(f"oracle {which!r} is neither A nor B")
    shifts = {"A": PLAIN, "B": NEIGHBOURS}
    return Oracle(which, _load(models[which](), f"oracle_{which.lower()}", root), shifts[which])


def load_segmenter(root: Path | None = None) -> SegmenterJudge:
    """The subject segmenter."""
    return SegmenterJudge(_load(Segmenter(), "segmenter", root))


def load_identity_encoder(root: Path | None = None) -> IdentityJudge:
    """The identity encoder with the segmenter it cuts subjects out by."""
    return IdentityJudge(_load(IdentityEncoder(), "identity", root), load_segmenter(root))


def load_clip(root: Path | None = None) -> Clip:
    """The small CLIP and its tokenizer."""
    folder = weights_path("clip", root)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return Clip(model.eval().requires_grad_(False), tokenizer)
