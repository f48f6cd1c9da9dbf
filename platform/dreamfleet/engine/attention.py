"""Attention by plain matrix products, where that is quicker than torch's fused one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamfleet.bases import Base

# Above this the scores of all heads, a square of it, would cost more than fused attention's time.
MAX_POSITIONS = 1024


# The layers of one input, and their weights [out of all, in] one under the other.
Joined = tuple[list[nn.Linear], Tensor]


def _looked_up(
    attn: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> None:
    """What diffusers finds as a processor's `__call__` when it looks the signature up, as it does
    before every call: finding a method's own takes longer than a small layer. Never called itself.
    """


_looked_up.__signature__ = inspect.signature(_looked_up)  # type: ignore[attr-defined]


class PlainAttention:
    """softmax(q k^T / sqrt(d)) v, for the attention layers of Stable Diffusion's UNets.

    Args:
        joined: by attention layer, which of its projections are one product.
    """

    def __init__(self, joined: Mapping[nn.Module, Joined] | None = None) -> None:
        self._joined = joined or {}
        self.__call__ = _looked_up  # type: ignore[method-assign, assignment]

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """[B, N, D] from [B, N, D], and for cross-attention [B, L, D']."""
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = self._projected(attn, hidden_states, states)  # [B, N, D], [B, L, D] twice
        query = attn.head_to_batch_dim(q)  # [B x heads, N, d]
        key = attn.head_to_batch_dim(k)  # [B x heads, L, d]
        value = attn.head_to_batch_dim(v)
        if q.shape[1] * k.shape[1] > MAX_POSITIONS**2:  # a picture larger than the base's own
            # Torch's kernel without the whole [N, L] takes four axes only.
            one, two, three = (part.unsqueeze(0) for part in (query, key, value))
            mixed = F.scaled_dot_product_attention(one, two, three, scale=attn.scale).squeeze(0)
        else:
            scores = torch.bmm(query * attn.scale, key.transpose(1, 2)).softmax(dim=-1)
            mixed = torch.bmm(scores, value)
        output: Tensor = attn.to_out[0](attn.batch_to_head_dim(mixed))  # of [B, N, D]
        return output

    def _projected(self, attn: Any, x: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        """Queries of x [B, N, D], keys and values of the states [B, L, D']."""
        layers, weight = self._joined.get(attn, ([], None))
        own = [attn.to_q, attn.to_k, attn.to_v]
        if weight is None or own[-len(layers) :] != layers:  # or somebody has replaced one
            return attn.to_q(x), attn.to_k(states), attn.to_v(states)
        outputs = F.linear(states, weight).chunk(len(layers), dim=-1)
        pairs = zip(layers, outputs, strict=True)
        together = tuple(_hooked(layer, states, output) for layer, output in pairs)
        return together if len(together) == 3 else (attn.to_q(x), *together)


def _hooked(layer: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """What the layer's forward hooks, a bank's adapters among them, make of its output."""
    for hook in layer._forward_hooks.values():
        changed = hook(layer, (x,), output)
        output = output if changed is None else changed
    return output


def _joined(layers: Iterable[Any]) -> dict[nn.Module, Joined]:
    """Queries, keys and values of self-attention, keys and values of cross-attention.

    The layers' own weights become views of the joint ones, so nothing is held twice.
    """
    joined: dict[nn.Module, Joined] = {}
    for attn in layers:
        own = (
            [attn.to_k, attn.to_v] if attn.is_cross_attention else [attn.to_q, attn.to_k, attn.to_v]
        )
        if not all(type(layer) is nn.Linear and layer.bias is None for layer in own):
            continue
        if len({layer.out_features for layer in own}) > 1:
            continue
        weight = torch.cat([layer.weight.detach() for layer in own])  # [out of all, in]
        for layer, part in zip(own, weight.chunk(len(own)), strict=True):
            layer.weight.data = part
        joined[attn] = (own, weight)
    return joined


def use_fast_attention(base: Base, *, frozen: bool = False) -> None:
    """Plain matrix products on CPUs for small latents.

    Measured at 16x16 latents: forward and backward take half the time of torch's fused attention,
    whose gain is memory that is no need there. The results differ by rounding (1e-6).

    Args:
        frozen: the base's weights stay what they are, and are not written to a file: projections of
            one input are one product (2 % of a step).
    """
    _, height, width = base.latent_shape
    if base.device.type != "cpu" or height * width > MAX_POSITIONS:
        return
    layers = [layer for layer in base.unet.modules() if hasattr(layer, "set_processor")]
    if all(_is_plain(layer) for layer in layers):
        base.unet.set_attn_processor(PlainAttention(_joined(layers) if frozen else None))


def _is_plain(layer: Any) -> bool:
    """Whether a layer asks for nothing but attention itself."""
    extras = (layer.spatial_norm, layer.group_norm, layer.norm_cross, layer.norm_q, layer.norm_k)
    return (
        not any(extras)
        and not layer.residual_connection
        and layer.rescale_output_factor == 1.0
        and layer.added_kv_proj_dim is None
        and layer.to_out[1].p == 0.0
    )
