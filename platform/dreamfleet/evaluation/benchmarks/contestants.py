"""Jobs, engines and data for the benchmarks: random photos, because only time is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamfleet.adapters.bank import SlotState
from dreamfleet.adapters.files import save_lora
from dreamfleet.adapters.lora_slots import (
    LoraShape,
    fresh_lora,
    lora_shape_metadata,
    lora_to_file,
)
from dreamfleet.bases import Base, load_base, resolved_config
from dreamfleet.config import load_config
from dreamfleet.engine.batch import LatentSet
from dreamfleet.engine.engine import Engine
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.engine.spec import TrainJobSpec
from dreamfleet.evaluation.benchmarks.settings import BenchSettings
from dreamfleet.seeding import torch_generator

PHOTOS = 4
PROMPT, CLASS_PROMPT = "a photo of sks dog", "a photo of dog"
LEARNING_RATE = 1e-4
FAR = 1_000_000  # steps; no contestant reaches its end


def loaded(settings: BenchSettings) -> Base:
    """The base of all contestants, a copy for each."""
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return load_base(settings.base_model, device=settings.device, dtype=dtype)


def photos(base: Base, subject: int) -> Tensor:
    """[N, 3, H, W] in [-1, 1]."""
    shape = (PHOTOS, 3, base.resolution, base.resolution)
    return torch.rand(shape, generator=torch_generator(subject, "benchmark.photos")) * 2 - 1


def job_spec(
    base: Base, settings: BenchSettings, subject: int, batch_size: int, **keys: Any
) -> TrainJobSpec:
    """A job on one subject's photos; `keys` are configuration keys, double underscores for dots."""
    given = {
        "subject.class_word": "dog",
        "train.rank": settings.rank,
        "train.lora_layers": settings.layers,
        "train.learning_rate": LEARNING_RATE,
        "train.train_batch_size": batch_size,
        "train.max_train_steps": FAR,
        "train.seed": subject,
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    config = resolved_config(load_config(None, given), base)
    mean, std = (moment.cpu() for moment in base.encode_images(photos(base, subject)))
    subject_set = LatentSet(mean, std, [PROMPT] * PHOTOS)
    return TrainJobSpec(config, subject_set, LatentSet(mean, std, [CLASS_PROMPT] * PHOTOS))


class Packed:
    """An engine with jobs that step together."""

    def __init__(self, settings: BenchSettings, specs: list[dict[str, Any]]) -> None:
        self._base = loaded(settings)
        self.engine = Engine(
            self._base, EngineSettings(max_slots=len(specs), max_rows=16 * len(specs))
        )
        self._jobs = [f"job {index}" for index in range(len(specs))]
        for name, keys in zip(self._jobs, specs, strict=True):
            self.engine.add_job(name, job_spec(self._base, settings, **keys))

    def run(self, steps: int) -> None:
        """`steps` further steps of every job."""
        reached = self.engine.job(self._jobs[0]).step_index + steps
        for name in self._jobs:
            self.engine.run_until(name, reached)
        while self.engine.step():
            pass


class OneAfterAnother:
    """The same jobs, each alone in an engine of its own."""

    def __init__(self, settings: BenchSettings, specs: list[dict[str, Any]]) -> None:
        self._engines = [Packed(settings, [keys]) for keys in specs]

    def run(self, steps: int) -> None:
        """`steps` further steps of each job, one job after the other."""
        for engine in self._engines:
            engine.run(steps)


def adapter(base: Base, settings: BenchSettings, subject: int) -> SlotState:
    """Random numbers in the shape of a trained adapter."""
    shape = LoraShape(settings.rank, float(settings.rank), settings.layers)
    fresh = fresh_lora(base, shape, subject)
    generator = torch_generator(subject, "benchmark.adapter")
    tensors = {
        name: 0.01 * torch.randn(value.shape, generator=generator)
        for name, value in fresh.tensors.items()
    }
    return SlotState(tensors, fresh.scales)


def write_adapter(base: Base, settings: BenchSettings, subject: int, folder: Path) -> Path:
    """The same as a file that diffusers loads."""
    shape = LoraShape(settings.rank, float(settings.rank), settings.layers)
    files = lora_to_file(adapter(base, settings, subject))
    save_lora(folder, base, files, lora_shape_metadata(base, shape))
    return folder
