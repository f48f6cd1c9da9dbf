"""Settings that trade time for memory, or accuracy for time; none of them changes the method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dreamfleet.config import TrainConfig
from dreamfleet.errors import ConfigError, first_line


def use_memory_settings(train: TrainConfig, modules: Iterable[tuple[str, Any]]) -> None:
    """Put `gradient_checkpointing`, `allow_tf32` and xformers attention into effect.

    Args:
        modules: what is trained, by name; of diffusers (the UNet) and of transformers.

    Raises:
        ConfigError: xformers was asked for and cannot be used here.
    """
    if train.allow_tf32:
        use_tf32()
    for name, module in modules:
        if train.gradient_checkpointing:
            _checkpoint_gradients(module)
        if name == "unet" and train.enable_xformers_memory_efficient_attention:
            _use_xformers(module)


def use_tf32() -> None:
    """TF32 for fp32 products of the whole process, as torch has it."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def _checkpoint_gradients(module: Any) -> None:
    if hasattr(module, "enable_gradient_checkpointing"):
        module.enable_gradient_checkpointing()
    else:
        # The other form of checkpointing finds no gradient where inputs need none, as those of a
        # frozen embedding do.
        module.gradient_checkpointing_enable({"use_reentrant": False})


def _use_xformers(unet: Any) -> None:
    key = "train.enable_xformers_memory_efficient_attention"
    try:
        unet.enable_xformers_memory_efficient_attention()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{key}: xformers is not installed here (pip install xformers, in the version made for "
            "your torch); or leave it out: torch's own attention is nearly as lean"
        ) from error
    except Exception as error:  # wrong build, no GPU: as many kinds as xformers has operators
        reason = first_line(error)
        raise ConfigError(
            f"{key}: xformers cannot be used here ({reason}); leave it out: torch's own attention "
            "is nearly as lean"
        ) from error
