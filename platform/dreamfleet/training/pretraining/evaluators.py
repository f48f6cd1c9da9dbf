"""Training the judges: oracles, identity encoder, segmenter and the small CLIP."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from dreamfleet.seeding import numpy_generator, torch_generator
from dreamfleet.training.pretraining.corpus import Corpus, batch_indices
from dreamfleet.training.pretraining.denoiser import TEXT_WIDTH
from dreamfleet.training.pretraining.portraits import Portraits
from dreamfleet.training.pretraining.stage import Stage, StageSettings
from dreamfleet.world.captions import full_caption
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.evaluators.crops import subject_crops
from dreamfleet.world.evaluators.models import IdentityEncoder, Segmenter

UNREADABLE_SHARE = 0.10
Damage = Callable[[Tensor, torch.Generator], Tensor]


def mild_damage(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur, grain and contrast as generated pictures have them; [B, 3, 64, 64] to the same."""
    size = len(pixels)
    pick = torch.rand(size, generator=generator)
    blurred = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)
    out = torch.where((pick < 0.3)[:, None, None, None], blurred, pixels)
    grain = torch.randn(pixels.shape, generator=generator) * 0.12
    out = torch.where((pick > 0.7)[:, None, None, None], out + grain, out)
    contrast = 0.8 + 0.4 * torch.rand((size, 1, 1, 1), generator=generator)
    shift = 0.15 * (torch.rand((size, 3, 1, 1), generator=generator) - 0.5)
    return (out * contrast + shift).clamp(-1, 1)


def unreadable(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures with nothing in them to name: shuffled patches, heavy blur, mixed pairs or noise."""
    out = []
    for i, picture in enumerate(pixels):
        kind = int(torch.randint(4, (1,), generator=generator))
        if kind == 0:
            patches = F.unfold(picture[None], 16, stride=16)[0]  # [768, 16]
            order = torch.randperm(patches.shape[1], generator=generator)
            picture = F.fold(patches[None, :, order], (64, 64), 16, stride=16)[0]
        elif kind == 1:
            small = F.interpolate(picture[None], size=(4, 4), mode="area")
            picture = F.interpolate(small, size=(64, 64), mode="bilinear")[0]
        elif kind == 2:
            picture = 0.5 * picture + 0.5 * pixels[(i + 1) % len(pixels)].flip(1)
        else:
            noise = torch.randn(picture.shape, generator=generator)
            picture = (0.25 * picture + 0.75 * noise).clamp(-1, 1)
        out.append(picture)
    return torch.stack(out)


class OracleStage(Stage):
    """Supervised labels on renders, VAE round trips, damaged pictures and an "unreadable" class."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        corpus: Corpus,
        settings: StageSettings,
        seed: int,
        round_trip: Damage | None = None,
    ) -> None:
        self.name, self.corpus, self.settings, self.seed = name, corpus, settings, seed
        self.model, self.round_trip = model, round_trip
        self.modules = {"model": model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        indices = batch_indices(self.seed, self.name, step, size, self.corpus.count)
        generator = torch_generator(self.name, self.seed, step)
        x = self.corpus.pixels(indices)
        if self.round_trip is not None and step % 2:
            x = self.round_trip(x, generator)
        x = mild_damage(x, generator)
        bad = int(size * UNREADABLE_SHARE)
        x[:bad] = unreadable(x[:bad], generator)
        answers = self.model(x.to(self.device))
        total = torch.zeros((), device=self.device)
        metrics: dict[str, float] = {}
        for head, logits in answers.items():
            target = self.corpus.labels[head][torch.from_numpy(indices)].to(self.device, copy=True)
            if head == "class":
                target[:bad] = logits.shape[1] - 1
            else:
                logits, target = logits[bad:], target[bad:]
            total = total + F.cross_entropy(logits, target)
            metrics[head] = float((logits.argmax(1) == target).float().mean())
        return total, metrics


class SegmenterStage(Stage):
    """Which pixels are the subject."""

    name = "segmenter"

    def __init__(self, portraits: Portraits, settings: StageSettings, seed: int) -> None:
        torch.manual_seed(seed)
        self.portraits, self.settings, self.seed = portraits, settings, seed
        self.model = Segmenter()
        self.modules = {"model": self.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        rows = batch_indices(self.seed, self.name, step, size, self.portraits.count)
        x, mask = self.portraits.pixels_and_masks(rows)
        x = mild_damage(x, torch_generator(self.name, self.seed, step))
        mask = mask.to(self.device)
        logits = self.model(x.to(self.device))
        found = logits > 0
        overlap = (found & (mask > 0.5)).sum() / (found | (mask > 0.5)).sum().clamp(min=1)
        return F.binary_cross_entropy_with_logits(logits, mask), {"iou": float(overlap)}


class IdentityStage(Stage):
    """InfoNCE: two pictures of an identity in other states and scenes against others of its class.

    A batch's identities come in pairs that share states and scenes, so that neither is a clue.
    """

    name = "identity"
    temperature = 0.1

    def __init__(self, portraits: Portraits, settings: StageSettings, seed: int) -> None:
        torch.manual_seed(seed)
        self.portraits, self.settings, self.seed = portraits, settings, seed
        self.model = IdentityEncoder()
        self.modules = {"model": self.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rows = self._rows(step)  # [2, N]
        x, masks = self.portraits.pixels_and_masks(rows.reshape(-1))
        x = mild_damage(x, torch_generator(self.name, self.seed, step))
        z = self.model(subject_crops(x, masks).to(self.device))
        half = len(z) // 2
        logits = z[:half] @ z[half:].T / self.temperature  # [N, N]
        target = torch.arange(half, device=self.device)
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        return loss / 2, {"top1": float((logits.argmax(1) == target).float().mean())}

    def _rows(self, step: int) -> np.ndarray:
        """Two different pictures of each of batch_size / 2 identities, all of one class."""
        p = self.portraits
        rng = numpy_generator("identity batch", self.seed, step)
        count = self.settings.batch_size // 2
        base = int(rng.integers(len(CLASSES))) * p.identities * p.per_identity
        pairs = rng.permutation(p.identities // 2)[: count // 2]
        identities = np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)
        two = np.stack([rng.permutation(p.per_identity)[:2] for _ in pairs]).repeat(2, axis=0)
        return (base + identities[:, None] * p.per_identity + two).T


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of two small towers: text as the base's, pictures in 8x8 patches."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)
    return CLIPModel(config)


class ClipStage(Stage):
    """The contrastive loss of CLIP (Radford et al. 2021) on captions of varying fullness."""

    name = "clip"

    def __init__(
        self, corpus: Corpus, tokenizer: CLIPTokenizer, settings: StageSettings, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.corpus, self.tokenizer, self.settings, self.seed = corpus, tokenizer, settings, seed
        self.model = build_clip(tokenizer)
        self.modules = {"model": self.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        indices = batch_indices(self.seed, self.name, step, size, self.corpus.count)
        x = self.corpus.pixels(indices)
        x = mild_damage(x, torch_generator(self.name, self.seed, step)).to(self.device)
        texts = [self._caption(int(i), step * size + k) for k, i in enumerate(indices)]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        out = self.model(pixel_values=x, **tokens.to(self.device), return_loss=True)
        target = torch.arange(size, device=self.device)
        top1 = (out.logits_per_text.argmax(1) == target).float().mean()
        return out.loss, {"top1": float(top1)}

    def _caption(self, index: int, draw: int) -> str:
        """Two of three captions say everything; the rest are as the base's, but never empty."""
        full = full_caption(self.corpus.specs[index], self.corpus.words[index])
        if draw % 3:
            return full
        return self.corpus.caption(index, draw) or full
