"""AdamW, in full or with 8-bit state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dreamfleet.config import TrainConfig
from dreamfleet.errors import ConfigError


def make_optimizer(train: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over fp32 `parameters`, with the settings of `train`.

    `use_8bit_adam` keeps the two moments in 8 bits (Dettmers et al., arXiv 2110.02861): 2 instead
    of 8 bytes a parameter.

    Raises:
        ConfigError: 8-bit state was asked for, and bitsandbytes is missing or there is no GPU.
    """
    settings: dict[str, Any] = {
        "lr": float(train.learning_rate or 0.0),
        "betas": (train.adam_beta1, train.adam_beta2),
        "weight_decay": train.adam_weight_decay,
        "eps": train.adam_epsilon,
    }
    if not train.use_8bit_adam:
        return torch.optim.AdamW(list(parameters), fused=True, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigError(
            "train.use_8bit_adam: bitsandbytes is not installed here (pip install bitsandbytes); "
            "or train without --use-8bit-adam"
        ) from error
    if not all(parameter.is_cuda for parameter in parameters):
        raise ConfigError("train.use_8bit_adam works on GPUs only; train without it on this device")
    optimizer: torch.optim.Optimizer = AdamW8bit(list(parameters), **settings)
    return optimizer
