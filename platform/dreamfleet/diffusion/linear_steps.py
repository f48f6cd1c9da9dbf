"""diffusers' deterministic samplers as coefficients, so that rows at different timesteps, step
counts and samplers advance in one operation.

A step of DDIM (eta 0), Euler or DPM-Solver++(2M) is linear in the latents x, the model output o and
(2M) the prediction m kept from the step before:

    x' = a x + b o + c m,    m' = p x + q o

The coefficients are read off diffusers' own schedulers by stepping the unit vectors of (x, o, m)
through them: spacing, offsets, prediction type and the treatment of the last step stay theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamfleet.diffusion.samplers import make_scheduler
from dreamfleet.errors import ConfigError


@dataclass(frozen=True)
class LinearSteps:
    """A sampler's whole run.

    Attributes:
        timesteps: [N] as the model is told.
        input_scale: [N] what multiplies x before the model sees it.
        coefficients: [N, 5] a, b, c, p, q of every step, fp32.
        init_noise_sigma: what multiplies the first noise.
    """

    timesteps: Tensor
    input_scale: Tensor
    coefficients: Tensor
    init_noise_sigma: float

    def __len__(self) -> int:
        return len(self.timesteps)


def linear_steps(
    scheduler_config: Mapping[str, Any], name: str, num_inference_steps: int
) -> LinearSteps:
    """The run of sampler `name` (ddim, euler, dpm) with a base's scheduler settings.

    Raises:
        ConfigError: an unknown name, or a scheduler whose steps are not linear (thresholding).
    """
    scheduler = make_scheduler(scheduler_config, name)
    if scheduler.config.get("thresholding", False):
        raise ConfigError(
            f"scheduler = {name!r}: the base's scheduler clips latents dynamically (thresholding), "
            "which Stable Diffusion's latents are not made for; turn it off in its config"
        )
    scheduler.set_timesteps(num_inference_steps)
    scales, rows = [], []
    x, o, m = torch.eye(3)
    for t in scheduler.timesteps:
        scales.append(float(scheduler.scale_model_input(torch.ones(1), t)[0]))
        history = getattr(scheduler, "model_outputs", None)
        if history is not None:
            history[-1] = m
        stepped = scheduler.step(o, t, x, return_dict=False)[0]  # [3]: a, b, c
        kept = torch.zeros(3) if history is None else scheduler.model_outputs[-1]  # p, q, 0
        rows.append(torch.cat([stepped, kept[:2]]))
    return LinearSteps(
        scheduler.timesteps.float(),
        torch.tensor(scales),
        torch.stack(rows).float(),
        float(scheduler.init_noise_sigma),
    )


def advance(coefficients: Tensor, x: Tensor, output: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """(x', m') [B, C, h, w] of B rows, each with its own coefficients [B, 5]."""
    a, b, c, p, q = (column.view(-1, 1, 1, 1) for column in coefficients.unbind(1))
    return a * x + b * output + c * kept, p * x + q * output


def stacked(steps: Sequence[LinearSteps], at: Sequence[int], device: torch.device) -> list[Tensor]:
    """Timesteps [B], input scales [B] and coefficients [B, 5] of B runs at their own steps."""
    pairs = list(zip(steps, at, strict=True))
    columns = (
        torch.stack([run.timesteps[index] for run, index in pairs]),
        torch.stack([run.input_scale[index] for run, index in pairs]),
        torch.stack([run.coefficients[index] for run, index in pairs]),
    )
    return [column.to(device) for column in columns]
