"""LoRA in a base's UNet and text encoders, defined by PEFT: it loads wherever PEFT's does."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, get_peft_model_state_dict
from peft.helpers import rescale_adapter_scale
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dreamfleet.bases import Base
from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.seeding import torch_generator

LoraLayers = Literal["attention", "attention_ff", "all"]

ADAPTER_NAME = "subject"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = (
    "conv1",
    "conv2",
    "conv_shortcut",
    "proj_in",
    "proj_out",
    "downsamplers.0.conv",
    "upsamplers.0.conv",
)
TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
# What a file always says of its LoRA.
_ALWAYS_SAID = (
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
)
# The folder that the base happened to lie in, and what was last done with the adapter.
_NEVER_SAID = ("base_model_name_or_path", "inference_mode", "peft_version")


def target_modules(family: str, layers: LoraLayers) -> list[str]:
    """Suffixes of the UNet layers that get a LoRA.

    `attention`: queries, keys, values and outputs of self- and cross-attention (as diffusers'
    DreamBooth script); `attention_ff`: the transformer blocks' feed-forward layers too; `all`: also
    the convolutions of the residual blocks, of the samplers between stages and around the
    transformers.

    Raises:
        ConfigError: a family that is not known.
    """
    if family not in ("sd1", "sd2", "sdxl"):
        raise ConfigError(f"train.lora_layers: no target layers known for model family {family!r}")
    groups = {
        "attention": ATTENTION,
        "attention_ff": (*ATTENTION, *FEED_FORWARD),
        "all": (*ATTENTION, *FEED_FORWARD, *CONVOLUTIONS),
    }
    return list(groups[layers])


def add_lora(
    base: Base,
    *,
    rank: int,
    alpha: float,
    layers: LoraLayers,
    train_text_encoder: bool = False,
    seed: int = 0,
) -> list[tuple[str, nn.Parameter]]:
    """Put a fresh LoRA into `base` and return its parameters, fp32 and trainable, by name.

    The first factor is Gaussian with deviation 1/rank and the second zero (PEFT's "gaussian"),
    drawn from generators keyed by (seed, "init.<tensor>"): independent of the order of layers and
    of what was drawn before.
    """
    unet = lora_config(rank, alpha, target_modules(base.family, layers))
    base.unet.add_adapter(unet, adapter_name=ADAPTER_NAME)
    for encoder in base.text_encoders.values() if train_text_encoder else ():
        text = lora_config(rank, alpha, TEXT_ENCODER_TARGETS)
        encoder.add_adapter(text, adapter_name=ADAPTER_NAME)
    parameters = lora_parameters(base)
    for name, parameter in parameters:
        value = initial_value(name, parameter.shape, rank, seed)
        parameter.data = value.to(parameter.device)
        parameter.requires_grad_(True)
    return parameters


def lora_config(rank: int, alpha: float, targets: Sequence[str]) -> LoraConfig:
    """PEFT's definition of a LoRA on the layers whose names end in `targets`."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )


def initial_value(name: str, shape: Sequence[int], rank: int, seed: int) -> Tensor:
    """What the tensor `name` (as in `lora_parameters`) begins as, fp32 on the CPU."""
    if "lora_B" in name:
        return torch.zeros(tuple(shape))
    return torch.randn(tuple(shape), generator=torch_generator(seed, f"init.{name}")) / rank


def lora_parameters(base: Base) -> list[tuple[str, nn.Parameter]]:
    """The adapter's parameters by name (`unet.`, `text_encoder.` or `text_encoder_2.` in front),
    in the modules' order.
    """
    return [
        (f"{prefix}.{name}", parameter)
        for prefix, module in _adapted(base)
        for name, parameter in module.named_parameters()
        if "lora_" in name
    ]


def lora_state(base: Base) -> dict[str, Tensor]:
    """The adapter as PEFT names it (the component in front): what a file holds.

    Tensors are copies.
    """
    return {
        f"{prefix}.{key}": value.detach().clone()
        for prefix, module in _adapted(base)
        for key, value in get_peft_model_state_dict(module, adapter_name=ADAPTER_NAME).items()
    }


def lora_scaling(base: Base) -> dict[str, float]:
    """By how much PEFT multiplies each layer's B A, by the layer's name as in `lora_state`."""
    return {
        f"{prefix}.{name}": float(layer.scaling[ADAPTER_NAME])
        for prefix, module in _adapted(base)
        for name, layer in module.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }


def has_lora(base: Base) -> bool:
    """Whether an adapter is in the base."""
    return bool(_adapted(base))


def lora_metadata(base: Base) -> dict[str, dict[str, Any]]:
    """PEFT's description of the adapter in each component, ready for JSON.

    Without it a file loses its alpha, and lists are sorted so that equal adapters make equal files.
    """
    return {
        prefix: config_metadata(module.peft_config[ADAPTER_NAME])
        for prefix, module in _adapted(base)
    }


def config_metadata(config: LoraConfig) -> dict[str, Any]:
    """PEFT's config ready for JSON: what makes the LoRA, and what is not PEFT's default.

    An older PEFT refuses a file with an option that it does not know, even an empty one.
    """
    usual = LoraConfig().to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in config.to_dict().items()
        if key in _ALWAYS_SAID or (key not in _NEVER_SAID and value != usual[key])
    }


def remove_lora(base: Base) -> None:
    """Take the adapter out, also a part of one; the base is exactly what it was: layers lose PEFT's
    wrappers and have their own names again.
    """
    for module in (base.unet, *base.text_encoders.values()):
        recurse_remove_peft_layers(module)
        if hasattr(module, "peft_config"):
            del module.peft_config
        module._hf_peft_config_loaded = False


class AdapterSwitch:
    """Turns the adapter in a base off and on; keeps the list of layers, so that it is quick enough
    for every step.

    Args:
        base: with its adapter already in it; without one there is nothing to switch.
    """

    def __init__(self, base: Base) -> None:
        self._layers = [
            layer
            for _, module in _adapted(base)
            for layer in module.modules()
            if isinstance(layer, BaseTunerLayer)
        ]

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The bare base.

        PEFT's `enable_adapters` would flip every parameter's requires_grad too.
        """
        before = [layer._disable_adapters for layer in self._layers]
        for layer in self._layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer, was_disabled in zip(self._layers, before, strict=True):
                layer._disable_adapters = was_disabled


@contextlib.contextmanager
def adapter_disabled(base: Base) -> Iterator[None]:
    """The bare base: the frozen pretrained teacher. A base without adapter is left as it is."""
    with AdapterSwitch(base).off():
        yield


@contextlib.contextmanager
def adapter_strength(base: Base, strength: float) -> Iterator[None]:
    """The adapter's change times `strength` (1: as trained; 0: the bare base).

    Raises:
        BadInputError: no finite number; or another than 1 where there is no LoRA.
    """
    if not math.isfinite(strength):
        raise BadInputError(
            f"adapter strength {strength}: expected a finite number (1: as trained, 0: the bare "
            "base)"
        )
    with contextlib.ExitStack() as stack:
        if strength != 1.0:
            adapted = _adapted(base)
            if not adapted:
                raise BadInputError(
                    f"adapter strength {strength:g}: a factor on a LoRA, and there is none (this "
                    "is a whole model or a bare base); leave it out"
                )
            for _, module in adapted:
                stack.enter_context(rescale_adapter_scale(module, strength))
        yield


def _adapted(base: Base) -> list[tuple[str, Any]]:
    return [
        (prefix, module)
        for prefix, module in (("unet", base.unet), *base.text_encoders.items())
        if ADAPTER_NAME in getattr(module, "peft_config", {})
    ]
