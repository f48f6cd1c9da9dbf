"""How a subject is taught to a base: one folder per method, the same files in each."""

from __future__ import annotations

from dreamfleet.bases import Base
from dreamfleet.config import RunConfig
from dreamfleet.diffusion.schedule import NoiseSchedule
from dreamfleet.errors import ConfigError
from dreamfleet.methods.base import (
    Answers,
    Batch,
    LossTerms,
    Method,
    NoisedLatents,
    Objective,
    Query,
    Questions,
)

__all__ = [
    "Answers",
    "Batch",
    "LossTerms",
    "Method",
    "NoisedLatents",
    "Objective",
    "Query",
    "Questions",
    "make_method",
    "make_objective",
]


def make_method(base: Base, config: RunConfig) -> Method:
    """The method that `config.method` names, put into `base` (which is changed).

    Raises:
        ConfigError: no such method.
    """
    if config.method == "dreambooth":
        from dreamfleet.methods.dreambooth.method import DreamBooth

        return DreamBooth(base, config)
    raise ConfigError(f"method = {config.method!r}: expected dreambooth")


def make_objective(config: RunConfig, schedule: NoiseSchedule) -> Objective:
    """The loss of the method that `config.method` names, without networks.

    Raises:
        ConfigError: no such method.
    """
    if config.method == "dreambooth":
        from dreamfleet.methods.dreambooth.loss import DreamBoothObjective

        return DreamBoothObjective.from_config(config, schedule)
    raise ConfigError(f"method = {config.method!r}: expected dreambooth")
