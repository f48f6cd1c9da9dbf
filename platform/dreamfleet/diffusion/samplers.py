"""diffusers' schedulers as samplers, made from a base's own scheduler settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from dreamfleet.errors import ConfigError

SamplerName = Literal["ddim", "euler", "dpm"]


def make_scheduler(scheduler_config: Mapping[str, Any], name: str) -> Any:
    """A fresh diffusers scheduler (they hold state) with the base's betas and prediction type.

    `ddim` is deterministic DDIM (eta 0), `euler` EulerDiscrete, `dpm` DPM-Solver++(2M). The same as
    the class's own `from_config(pipeline.scheduler.config)`, except that latents are never clipped
    to [-1, 1].

    Raises:
        ConfigError: an unknown name.
    """
    kinds: dict[str, Any] = {
        "ddim": DDIMScheduler,
        "euler": EulerDiscreteScheduler,
        "dpm": DPMSolverMultistepScheduler,
    }
    if name not in kinds:
        raise ConfigError(f"scheduler = {name!r}: expected one of {', '.join(kinds)}")
    options = {"clip_sample": False} if name == "ddim" else {}
    return kinds[name].from_config(dict(scheduler_config), **options)
