"""Training jobs on tiny bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dreamfleet.bases import load_base, resolved_config
from dreamfleet.config import RunConfig, load_config
from dreamfleet.engine.batch import LatentSet
from dreamfleet.engine.job import TrainJob, TrainJobSpec

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
