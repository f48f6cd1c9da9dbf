"""Training jobs on tiny bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dreamfleet.adapters.bank import AdapterBank
from dreamfleet.adapters.lora_slots import LoraShape, lora_sites
from dreamfleet.bases import load_base, resolved_config
from dreamfleet.config import RunConfig, load_config
from dreamfleet.engine.batch import LatentSet
from dreamfleet.engine.job import TrainJob, TrainJobSpec
from dreamfleet.engine.packed_job import PackedJob
from dreamfleet.engine.packed_training import PackedTrainer
from dreamfleet.engine.teacher import FrozenTeacher, TeacherCache
from dreamfleet.methods.dreambooth.text import TextCache

PROMPT, CLASS_PROMPT = "a photo of sks dog", "a photo of dog"
SMALL = {"subject.class_word": "dog", "train.rank": 4, "train.max_train_steps": 20}


def tiny_config(folder: Path, **overrides: Any) -> RunConfig:
    """A resolved configuration; keys with double underscores for dots."""
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return resolved_config(load_config(None, {**SMALL, **keys}), load_base(folder))


def latent_set(prompt: str, count: int = 3, seed: int = 0, channels: int = 4) -> LatentSet:
    """Random moments."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = (torch.randn(count, channels, 16, 16, generator=generator) for _ in range(2))
    return LatentSet(mean, 0.1 * std.abs(), [prompt] * count)


def tiny_spec(folder: Path, **overrides: Any) -> TrainJobSpec:
    """Three random photos and three random class pictures."""
    return TrainJobSpec(
        tiny_config(folder, **overrides), latent_set(PROMPT), latent_set(CLASS_PROMPT, seed=1)
    )


def tiny_job(folder: Path, **overrides: Any) -> TrainJob:
    """A job on a freshly loaded base."""
    return TrainJob(tiny_spec(folder, **overrides), load_base(folder))


def weights(job: TrainJob) -> dict[str, torch.Tensor]:
    """Copies of the trained parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in job.method.parameters()}


def packed_trainer(
    folder: Path, max_slots: int = 4, rank: int = 4, **options: Any
) -> PackedTrainer:
    """A shared base with an empty bank."""
    base = load_base(folder)
    sites = lora_sites(base, LoraShape(rank, float(rank), "all", train_text_encoder=True))
    bank = AdapterBank(sites, max_slots, base.device)
    cache = options.pop("cache", None) or TeacherCache()
    teacher = FrozenTeacher(base, TextCache(base), cache, max_rows=64)
    return PackedTrainer(base, bank, teacher, **{"max_rows": 64, **options})


def packed_job(trainer: PackedTrainer, spec: TrainJobSpec) -> PackedJob:
    """A job in a slot of the trainer's bank."""
    return PackedJob(spec, trainer.base, trainer.bank, trainer.teacher.texts)
