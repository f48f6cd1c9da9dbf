"""Training the judges: oracles, identity encoder, segmenter and the small CLIP."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from dreamfleet.seeding import numpy_generator, torch_generator
from dreamfleet.training.pretraining.corpus import Corpus, batch_indices
from dreamfleet.training.pretraining.denoiser import TEXT_WIDTH, WARM_UP_ANSWERS
from dreamfleet.training.pretraining.portraits import Portraits
from dreamfleet.training.pretraining.stage import Stage, StageSettings
from dreamfleet.world.captions import full_caption
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.evaluators.crops import subject_crops
from dreamfleet.world.evaluators.load import moved
from dreamfleet.world.evaluators.models import IdentityEncoder, Segmenter

UNREADABLE_SHARE = 0.10
# Of an oracle's pictures one in six goes through the VAE: decoding 48 pictures costs three times
# the step itself.
ROUND_TRIP_ONE_IN = 6
SHIFT_PX = 1  # at most, to each side: what is read must not hang on where patches begin
# Measured on one core with bf16 products: an oracle's step takes 0.10 s instead of 0.12 s, and half
# as long as in fp32 and the ordinary layout.
LAYOUT = torch.channels_last
Damage = Callable[[Tensor, torch.Generator], Tensor]


def use_fast_layout(model: nn.Module) -> None:
    """Put the convolutions into LAYOUT."""
    model.to(memory_format=LAYOUT)  # type: ignore[call-overload]


def moved_at_random(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each of the pictures [B, 3, H, W] moved by up to SHIFT_PX pixels, its border repeated."""
    corners = torch.randint(2 * SHIFT_PX + 1, (len(pixels), 2), generator=generator)
    shifts = (SHIFT_PX - corners).tolist()
    return torch.cat(
        [
            moved(picture, right, down)
            for picture, (down, right) in zip(pixels.split(1), shifts, strict=True)
        ]
    )


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
        use_fast_layout(self.model)
        self.modules = {"model": model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        indices = self.corpus.batch(self.seed, self.name, step, size)
        generator = torch_generator(self.name, self.seed, step)
        x = self.corpus.pixels(indices)
        if self.round_trip is not None:
            some = slice(step % ROUND_TRIP_ONE_IN, None, ROUND_TRIP_ONE_IN)
            x[some] = self.round_trip(x[some], generator)
        x = mild_damage(moved_at_random(x, generator), generator)
        bad = int(size * UNREADABLE_SHARE)
        x[:bad] = unreadable(x[:bad], generator)
        with self.mixed():
            answers = self.model(x.to(self.device, memory_format=LAYOUT))
        total = torch.zeros((), device=self.device)
        metrics: dict[str, float] = {}
        for head, raw in answers.items():
            logits = raw.float()
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
        use_fast_layout(self.model)
        self.modules = {"model": self.model}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        rows = batch_indices(self.seed, self.name, step, size, self.portraits.count)
        x, mask = self.portraits.pixels_and_masks(rows)
        x = mild_damage(x, torch_generator(self.name, self.seed, step))
        mask = mask.to(self.device)
        with self.mixed():
            logits = self.model(x.to(self.device, memory_format=LAYOUT)).float()
        found = logits > 0
        overlap = (found & (mask > 0.5)).sum() / (found | (mask > 0.5)).sum().clamp(min=1)
        return F.binary_cross_entropy_with_logits(logits, mask), {"iou": float(overlap)}


class IdentityStage(Stage):
    """InfoNCE: two pictures of an identity in other states and scenes against other identities.

    A batch's identities come in pairs that share class, states and scenes, so that none of these is
    a clue. Beside it the features tell the identity's traits as the renderer knows them: with that
    and with all classes in a batch, 150 steps reached on unseen identities what 500 steps of one
    class a batch and InfoNCE alone had not reached on seen ones.
    """

    name = "identity"
    temperature = 0.1
    traits_weight = 3.0

    def __init__(self, portraits: Portraits, settings: StageSettings, seed: int) -> None:
        torch.manual_seed(seed)
        self.portraits, self.settings, self.seed = portraits, settings, seed
        self.model = IdentityEncoder()
        classes, _, width = portraits.traits[0].shape
        self.traits = nn.Linear(self.model.features, classes * width)
        self.modules = {"model": self.model, "traits": self.traits}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        rows = self._rows(step)  # [2, N]
        x, masks = self.portraits.pixels_and_masks(rows.reshape(-1))
        x = mild_damage(x, torch_generator(self.name, self.seed, step))
        with self.mixed():
            features = self.model.describe(subject_crops(x, masks).to(self.device))  # [2N, F]
            z = F.normalize(self.model.projection(features).float(), dim=1)
            told = self.traits(features).float()
        half = len(z) // 2
        logits = z[:half] @ z[half:].T / self.temperature  # [N, N]
        target = torch.arange(half, device=self.device)
        same = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        traits = self._traits_loss(told, rows.reshape(-1))
        top1 = float((logits.argmax(1) == target).float().mean())
        loss = same + self.traits_weight * traits
        return loss, {"top1": top1, "traits": float(traits.detach())}

    def _traits_loss(self, told: Tensor, rows: np.ndarray) -> Tensor:
        """Mean squared error of `told` [2N, classes * D] over the numbers a class has."""
        values, known = self.portraits.traits
        class_index, identity = self.portraits.place(rows)
        target = values[class_index, identity].to(self.device)  # [2N, D]
        mask = known[class_index].to(self.device)
        own = told.view(len(rows), *known.shape)[torch.arange(len(rows)), class_index]
        return ((own - target).square() * mask).sum() / mask.sum()

    def _rows(self, step: int) -> np.ndarray:
        """Two different pictures of each of batch_size / 2 identities, as many of every class."""
        p = self.portraits
        rng = numpy_generator("identity batch", self.seed, step)
        pairs_each = max(1, self.settings.batch_size // (4 * len(CLASSES)))
        chosen = []
        for class_index in range(len(CLASSES)):
            pairs = rng.permutation(p.identities // 2)[:pairs_each]
            identities = np.stack([2 * pairs, 2 * pairs + 1], axis=1).reshape(-1)
            two = np.stack([rng.permutation(p.per_identity)[:2] for _ in pairs]).repeat(2, axis=0)
            numbers = class_index * p.identities + identities
            chosen.append((numbers[:, None] * p.per_identity + two).T)
        return np.concatenate(chosen, axis=1)


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
    """The contrastive loss of CLIP (Radford et al. 2021) on captions of varying fullness.

    The text tower begins as the base's warmed-up text encoder, and the picture tower is asked what
    the picture shows beside: a plain vision transformer learns little from few contrasts alone.
    """

    name = "clip"
    answers_weight = 0.5

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: CLIPTokenizer,
        settings: StageSettings,
        seed: int,
        text_encoder: CLIPTextModel | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.corpus, self.tokenizer, self.settings, self.seed = corpus, tokenizer, settings, seed
        self.model = build_clip(tokenizer)
        if text_encoder is not None:
            self.model.text_model.load_state_dict(text_encoder.state_dict())
        width = self.model.config.vision_config.hidden_size
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, count) for name, count in WARM_UP_ANSWERS.items()}
        )
        self.modules = {"model": self.model, "heads": self.heads}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        indices = self.corpus.batch(self.seed, self.name, step, size)
        x = self.corpus.pixels(indices)
        x = mild_damage(x, torch_generator(self.name, self.seed, step)).to(self.device)
        texts = [self._caption(int(i), step * size + k) for k, i in enumerate(indices)]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with self.mixed():
            out = self.model(pixel_values=x, **tokens.to(self.device))
            pooled = out.vision_model_output.pooler_output  # [B, D]
            answers = {name: head(pooled).float() for name, head in self.heads.items()}
        logits = out.logits_per_text.float()  # [B, B], text by picture
        target = torch.arange(size, device=self.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        metrics = {"top1": float((logits.argmax(1) == target).float().mean())}
        for name, answer in answers.items():
            shown = self.corpus.labels[name][torch.from_numpy(indices)].to(self.device)
            loss = loss + self.answers_weight * F.cross_entropy(answer, shown)
            metrics[name] = float((answer.argmax(1) == shown).float().mean())
        return loss, metrics

    def _caption(self, index: int, draw: int) -> str:
        """Two of three captions say everything; the rest are as the base's, but never empty."""
        full = full_caption(self.corpus.specs[index], self.corpus.words[index])
        if draw % 3:
            return full
        return self.corpus.caption(index, draw) or full
