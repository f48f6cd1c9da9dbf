"""How a subject is taught to a base: one folder per method, the same files in each."""

from __future__ import annotations

from dreamfleet.bases import Base
from dreamfleet.config import RunConfig
from dreamfleet.errors import ConfigError
from dreamfleet.methods.base import Batch, LossTerms, Method, NoisedLatents

__all__ = ["Batch", "LossTerms", "Method", "NoisedLatents", "make_method"]


def make_method(base: Base, config: RunConfig) -> Method:
    """The method that `config.method` names, put into `base` (which is changed).

    Raises:
        ConfigError: no such method.
    """
    if config.method == "dreambooth":
        from dreamfleet.methods.dreambooth.method import DreamBooth

        return DreamBooth(base, config)
    raise ConfigError(f"method = {config.method!r}: expected dreambooth")
