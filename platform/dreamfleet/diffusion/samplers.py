"""diffusers' schedulers as samplers, made from a base's own scheduler settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from dreamfleet.errors import ConfigError

SamplerName = Literal["ddim", "euler", "dpm"]

# What a sampler is, whatever the base's own scheduler is set to: DDIM leaves latents unclipped, and
# DPM-Solver++(2M) has neither another order nor the noise of the SDE form.
FIXED: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"clip_sample": False},
    "dpm": {"algorithm_type": "dpmsolver++", "solver_order": 2},
}


def make_scheduler(scheduler_config: Mapping[str, Any], name: str) -> Any:
    """A fresh diffusers scheduler (they hold state) with the base's betas and prediction type.

    `ddim` is deterministic DDIM (eta 0), `euler` EulerDiscrete, `dpm` DPM-Solver++(2M). The same as
    the class's own `from_config(pipeline.scheduler.config)`, except for `FIXED`.

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
    return kinds[name].from_config(dict(scheduler_config), **FIXED.get(name, {}))
