"""A job without a model: enough state to see whether stopping and going on changes anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamfleet.config import RunConfig
from dreamfleet.data.subject_set import Photo, SubjectSet
from dreamfleet.errors import TrainingError
from dreamfleet.seeding import torch_generator
from dreamfleet.training.task import SamplePlan, TrainTask


@dataclass
class StubMetrics:
    step: int
    loss: float
    grad_norm: float
    rho: float | None = None


class StubJob:
    """A weight pulled by counter-based noise, with momentum as optimiser state."""

    def __init__(self, seed: int, bad_step: int | None = None) -> None:
        self.seed, self.bad_step = seed, bad_step
        self.step_index = 0
        self.weight, self.momentum = torch.zeros(8), torch.zeros(8)

    def step(self) -> StubMetrics:
        noise = torch.randn(8, generator=torch_generator(self.seed, "noise", self.step_index))
        self.momentum = 0.9 * self.momentum + (noise - self.weight)
        self.weight = self.weight + 0.1 * self.momentum
        loss = float(self.weight.square().mean())
        self.step_index += 1
        if self.step_index == self.bad_step:
            raise TrainingError(f"training broke down at step {self.step_index}")
        return StubMetrics(self.step_index, loss, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {
            "weight": self.weight.clone(),
            "momentum": self.momentum.clone(),
            "step": self.step_index,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.momentum = state["weight"].clone(), state["momentum"].clone()
        self.step_index = int(state["step"])


def subject(identity: str = "rex") -> SubjectSet:
    latents = np.zeros((1, 4, 8, 8), np.float32)
    photo = Photo("0.png", "0" * 64, 64, 64, None, 1.0, b"")
    return SubjectSet(
        id=identity,
        display_name=identity,
        class_word="dog",
        token="sks",
        photos=(photo,),
        prompts=("a photo of sks dog",),
        latent_mean=latents,
        latent_std=latents,
        flipped_mean=latents,
        flipped_std=latents,
    )


def task(
    folder: Path,
    *,
    steps: int = 20,
    every: int = 5,
    seed: int = 0,
    identity: str = "rex",
    **train: Any,
) -> TrainTask:
    values = {
        "max_train_steps": steps,
        "learning_rate": 1e-3,
        "checkpointing_steps": every,
        "seed": seed,
        **train,
    }
    config = RunConfig.model_validate({"train": values})
    plan = SamplePlan((), 0)
    return TrainTask(config, subject(identity), None, "base-hash", str(folder), "cpu", plan, plan)
