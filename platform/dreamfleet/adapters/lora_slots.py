"""LoRA as a kind of slot: PEFT says where it goes, how it starts and what it is called; only the
forward of many at once is ours.

Shapes: B rows in G groups, R = K x rank, N positions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn

from dreamfleet.adapters.bank import Part, Routing, SlotState
from dreamfleet.adapters.files import read_adapter_for, save_lora
from dreamfleet.adapters.lora import (
    ADAPTER_NAME,
    TEXT_ENCODER_TARGETS,
    LoraLayers,
    config_metadata,
    initial_value,
    lora_config,
    target_modules,
)
from dreamfleet.adapters.names import find_layer
from dreamfleet.bases import Base
from dreamfleet.errors import AdapterFileError, ConfigError

# Each has the layers of those before it.
LAYERS: tuple[LoraLayers, ...] = ("attention", "attention_ff", "all")
IN_PARAMETERS = f".{ADAPTER_NAME}."
_UNET_ENDS = {own: tuple(f".{name}" for name in target_modules("sd1", own)) for own in LAYERS}
_TEXT_ENDS = tuple(f".{name}" for name in TEXT_ENCODER_TARGETS)


@dataclass(frozen=True)
class LoraShape:
    """What decides a LoRA's tensors; names as in `TrainConfig`.

    Attributes:
        more_layers: layers beyond those that `layers` and `train_text_encoder` name, for adapters
            that others have trained; a bank has room for them, training leaves them alone.
    """

    rank: int
    alpha: float
    layers: LoraLayers
    train_text_encoder: bool = False
    more_layers: frozenset[str] = frozenset()

    def sites(self, base: Base) -> list[LoraSite]:
        """As `lora_sites`."""
        return lora_sites(base, self)

    def fresh(self, base: Base, seed: int) -> SlotState:
        """As `fresh_lora`."""
        return fresh_lora(base, self, seed)

    def joined(self, other: LoraShape) -> LoraShape:
        """The smallest shape with room for both; alpha plays no part."""
        return LoraShape(
            max(self.rank, other.rank),
            1.0,
            max(self.layers, other.layers, key=LAYERS.index),
            self.train_text_encoder or other.train_text_encoder,
            self.more_layers | other.more_layers,
        )

    def save(self, folder: str | Path, base: Base, state: SlotState) -> list[Path]:
        """Write `pytorch_lora_weights.safetensors`, which diffusers loads."""
        metadata = lora_shape_metadata(base, self)
        return [save_lora(folder, base, lora_to_file(state), metadata)]


class LoraSite:
    """A linear or convolution layer with W x + scale B A x."""

    def __init__(self, name: str, module: nn.Module, max_rank: int) -> None:
        self.name, self.module = name, module
        weight: Tensor = module.weight  # type: ignore[assignment]
        if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
            raise ConfigError(
                f"train.lora_layers: {name} is a grouped or padded convolution, which a packed "
                "LoRA does not cover; leave it out"
            )
        tail = (1, 1) if isinstance(module, nn.Conv2d) else ()
        down = Part(f"{name}.lora_A{IN_PARAMETERS}weight", (max_rank, *weight.shape[1:]))
        up = Part(f"{name}.lora_B{IN_PARAMETERS}weight", (weight.shape[0], max_rank, *tail))
        self.parts = (down, up)

    def change(self, x: Tensor, output: Tensor, routing: Routing) -> Tensor:
        """`output` + scale B A x, each row with its own A and B.

        Args:
            x: [B, N, in] or [B, in]; for a convolution [B, C, H, W].
            output: the layer's own output.
        """
        if isinstance(self.module, nn.Conv2d):
            return self._convolved(x, output, *self._factors(routing))
        down, up, factor = self._linear_factors(routing)
        groups = down.shape[0]
        hidden = torch.bmm(x.reshape(groups, -1, x.shape[-1]), down)  # [G, bN, R]
        if factor is not None:
            hidden = hidden * factor.unsqueeze(1)
        flat = output.reshape(groups, -1, output.shape[-1])  # [G, bN, out]
        return torch.baddbmm(flat, hidden, up).view(output.shape)

    def _convolved(
        self, x: Tensor, output: Tensor, down: Tensor, up: Tensor, factor: Tensor | None
    ) -> Tensor:
        """down [G, R, C, k, k], up [G, out, R], factor [G, R] or None; the result lies in memory as
        `output` does: where layouts meet, every layer that follows copies.
        """
        if factor is not None:
            up = up * factor.unsqueeze(1)
        if output.is_contiguous():
            hidden = self._planes(x, down)  # [B, R, N]
            changed = torch.baddbmm(output.flatten(2), _per_row(up, len(x)), hidden)
            return changed.view(output.shape)
        flat = output.permute(0, 2, 3, 1)  # [B, H', W', out]: channels last
        hidden = self._pixels(x, down)  # [G, bN, R]
        changed = torch.baddbmm(
            flat.reshape(len(down), -1, flat.shape[-1]), hidden, up.transpose(1, 2)
        )
        return changed.view(flat.shape).permute(0, 3, 1, 2)

    def _planes(self, x: Tensor, down: Tensor) -> Tensor:
        """A x [B, R, N], a channel's pixels side by side."""
        groups = len(down)
        if self._is_product():
            return torch.bmm(_per_row(down.flatten(2), len(x)), x.flatten(2))
        side = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)  # [b, GC, H, W]
        mixed = self._conv(side, down)  # [b, GR, H', W']
        return mixed.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1).flatten(2)

    def _pixels(self, x: Tensor, down: Tensor) -> Tensor:
        """A x [G, bN, R], a pixel's channels side by side."""
        groups, flat = len(down), x.permute(0, 2, 3, 1)  # [B, H, W, C]
        if self._is_product():
            rows = flat.reshape(groups, -1, flat.shape[-1])  # [G, bN, C]
            return torch.bmm(rows, down.flatten(2).transpose(1, 2))
        side = flat.unflatten(0, (groups, -1)).permute(1, 2, 3, 0, 4).flatten(3)  # [b, H, W, GC]
        mixed = self._conv(side.permute(0, 3, 1, 2), down).permute(0, 2, 3, 1)  # [b, H', W', GR]
        own = mixed.unflatten(3, (groups, -1)).permute(3, 0, 1, 2, 4)  # [G, b, H', W', R]
        return own.reshape(groups, -1, own.shape[-1])

    def _is_product(self) -> bool:
        """Whether a matrix product does it: torch takes grouped 1x1 convolutions of few rows one
        group at a time.
        """
        conv = self.module
        assert isinstance(conv, nn.Conv2d)
        return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0)

    def _conv(self, side: Tensor, down: Tensor) -> Tensor:
        """[b, GR, H', W'], one grouped convolution: the groups' channels [b, GC, H, W] are side by
        side, a group's rows the batch.
        """
        conv = self.module
        assert isinstance(conv, nn.Conv2d)
        return F.conv2d(
            side,
            down.flatten(0, 1),
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=len(down),
        )

    def _factors(self, routing: Routing) -> tuple[Tensor, Tensor, Tensor | None]:
        """A [G, R, ...], B [G, out, R] and what multiplies the R middle values [G, R]."""
        if routing.trainable:  # gathered anew: backward goes through the gathering
            return self._gather(routing)
        gathered: tuple[Tensor, Tensor, Tensor | None] = routing.ready(
            self.name, lambda: self._gather(routing)
        )
        return gathered

    def _linear_factors(self, routing: Routing) -> tuple[Tensor, Tensor, Tensor | None]:
        """A^T [G, in, R], B^T [G, R, out] and the factor [G, R], as products take them."""

        def turned() -> tuple[Tensor, Tensor, Tensor | None]:
            down, up, factor = self._factors(routing)
            return down.transpose(1, 2), up.transpose(1, 2), factor

        if routing.trainable and not routing.identity:  # as in `_factors`
            return turned()
        kept: tuple[Tensor, Tensor, Tensor | None] = routing.ready(f"{self.name} turned", turned)
        return kept

    def _gather(self, routing: Routing) -> tuple[Tensor, Tensor, Tensor | None]:
        down_part, up_part = self.parts
        rank = routing.length(down_part.name, 0)
        down, up = routing.leaf(down_part.name, rank, 0), routing.leaf(up_part.name, rank, 1)
        if isinstance(self.module, nn.Conv2d):
            up = up.flatten(2)  # [U, out, r]
        if not routing.identity:
            down = routing.per_group(down).flatten(1, 2)  # [G, R, ...]
            up = routing.per_group(up).transpose(1, 2).flatten(2)  # [G, out, R]
        factors = routing.factors(self)
        return down, up, None if factors is None else factors.repeat_interleave(rank, dim=1)


def _per_row(factors: Tensor, rows: int) -> Tensor:
    """[B, ...] from [G, ...], each group's for its rows."""
    groups, *tail = factors.shape
    return factors.unsqueeze(1).expand(groups, rows // groups, *tail).flatten(0, 1)


def lora_sites(base: Base, shape: LoraShape) -> list[LoraSite]:
    """Where a LoRA of this shape acts, in the order of the modules; `shape.rank` is the largest."""
    names = _layer_names(base, shape)
    for more in sorted(shape.more_layers - set(names)):
        component, _, name = more.partition(".")
        module = dict(getattr(base, component).named_modules()).get(name)
        if isinstance(module, nn.Linear | nn.Conv2d):
            names[more] = module
    return [LoraSite(name, module, shape.rank) for name, module in names.items()]


def fresh_lora(base: Base, shape: LoraShape, seed: int) -> SlotState:
    """The adapter that `add_lora` begins with: same layers, same names, same numbers."""
    tensors: dict[str, Tensor] = {}
    for site in lora_sites(base, shape):
        for part in site.parts:
            tensors[part.name] = initial_value(part.name, part.shape, shape.rank, seed)
    scale = shape.alpha / shape.rank
    return SlotState(tensors, {name: scale for name in _layer_names(base, shape)})


def lora_to_file(state: SlotState) -> dict[str, Tensor]:
    """A slot's tensors under PEFT's names (`lora.lora_state`)."""
    return {name.replace(IN_PARAMETERS, "."): value for name, value in state.tensors.items()}


def lora_from_file(
    base: Base, state: Mapping[str, Tensor], scales: Mapping[str, float]
) -> SlotState:
    """A slot's state from `lora.lora_state` names.

    Args:
        scales: per layer alpha / rank; missing: 1.

    Raises:
        AdapterFileError: a tensor is no LoRA factor.
    """
    tensors: dict[str, Tensor] = {}
    layers: set[str] = set()
    named = functools.cache(functools.partial(_own_name, base))
    for key, value in state.items():
        layer, _, side = key.removesuffix(".weight").rpartition(".")
        if side not in ("lora_A", "lora_B"):
            raise AdapterFileError(f"{key}: expected a LoRA factor, ...lora_A.weight or lora_B")
        name = named(layer)
        layers.add(name)
        tensors[f"{name}.{side}{IN_PARAMETERS}weight"] = value
    own = {named(layer): scale for layer, scale in scales.items()}
    return SlotState(tensors, {name: own.get(name, 1.0) for name in layers})


def read_lora_slot(base: Base, source: str | Path, *, check_base: bool = True) -> SlotState:
    """The adapter in a file as diffusers would load it, its alphas out of the file's metadata.

    Raises:
        AdapterFileError: as `files.load_adapter`.
    """
    tensors, scales = read_adapter_for(base, source, check_base=check_base)
    return lora_from_file(base, tensors, scales)


def shape_of(state: SlotState) -> LoraShape:
    """A shape that has room for a slot's state, with no more layers than it needs."""
    ranks = [value.shape[0] for name, value in state.tensors.items() if ".lora_A" in name]
    names = {name.partition(".lora_")[0] for name in state.tensors}
    in_unet = {name for name in names if name.startswith("unet.")}
    of_unet = {name for name in in_unet if name.endswith(_UNET_ENDS["all"])}
    of_text = {name for name in names - in_unet if name.endswith(_TEXT_ENDS)}
    layers = next(own for own in LAYERS if all(name.endswith(_UNET_ENDS[own]) for name in of_unet))
    more = frozenset(names - of_unet - of_text)
    return LoraShape(max(ranks, default=1), 1.0, layers, bool(of_text), more)


def lora_shape_metadata(base: Base, shape: LoraShape) -> dict[str, dict[str, Any]]:
    """PEFT's description of the adapter, as `lora.lora_metadata` gives it for one in the base."""
    return {
        prefix: config_metadata(lora_config(shape.rank, shape.alpha, targets))
        for prefix, targets in _targets(base, shape).items()
    }


def _targets(base: Base, shape: LoraShape) -> dict[str, list[str]]:
    targets = {"unet": target_modules(base.family, shape.layers)}
    if shape.train_text_encoder:
        targets |= {name: list(TEXT_ENCODER_TARGETS) for name in base.text_encoders}
    return targets


def _layer_names(base: Base, shape: LoraShape) -> dict[str, nn.Module]:
    """The layers that PEFT would target, by name with `unet.` or `text_encoder.` in front."""
    found: dict[str, nn.Module] = {}
    for prefix, targets in _targets(base, shape).items():
        config = lora_config(shape.rank, shape.alpha, targets)
        for name, module in getattr(base, prefix).named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and check_target_module_exists(
                config, name
            ):
                found[f"{prefix}.{name}"] = module
    return found


def _own_name(base: Base, layer: str) -> str:
    found = find_layer(base, layer)
    if found is None:
        raise AdapterFileError(f"{layer}: this base has no such layer; is the adapter made for it?")
    return found[0]
