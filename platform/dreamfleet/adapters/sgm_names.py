"""Names of SDXL's UNet layers in the original implementation (Stability's generative-models).

There a UNet is three flat lists: input_blocks, middle_block and output_blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
MIDDLE = {("resnets", "0"): "0", ("attentions", "0"): "1", ("resnets", "1"): "2"}


def sgm_path(path: str, unet_config: Mapping[str, Any]) -> str:
    """The original name of diffusers' module `path`; names unknown there stay as they are.

    Args:
        unet_config: with `layers_per_block` (one number) and `up_block_types`.
    """
    if path in TOP:
        return TOP[path]
    parts = path.split(".")
    per_block = int(unet_config["layers_per_block"]) + 1
    if parts[0] == "mid_block":
        place = MIDDLE[parts[1], parts[2]]
        return ".".join(["middle_block", place, *_inner(parts[1], parts[3:])])
    if parts[0] not in ("down_blocks", "up_blocks"):
        return path
    block, kind, index, inner = int(parts[1]), parts[2], int(parts[3]), parts[4:]
    if parts[0] == "down_blocks":
        entry = (block + 1) * per_block if kind == "downsamplers" else 1 + block * per_block + index
        return ".".join(["input_blocks", str(entry), _slot(kind, False), *_inner(kind, inner)])
    has_attention = "CrossAttn" in str(unet_config["up_block_types"][block])
    entry = block * per_block + (per_block - 1 if kind == "upsamplers" else index)
    return ".".join(["output_blocks", str(entry), _slot(kind, has_attention), *_inner(kind, inner)])


def _slot(kind: str, has_attention: bool) -> str:
    """Place within an entry of the list: residual block, then attention, then upsampler."""
    if kind == "upsamplers":
        return "2" if has_attention else "1"
    return "1" if kind == "attentions" else "0"


def _inner(kind: str, inner: list[str]) -> list[str]:
    if kind == "resnets":
        return [RESNET.get(inner[0], inner[0]), *inner[1:]]
    return ["op"] if kind == "downsamplers" else inner
