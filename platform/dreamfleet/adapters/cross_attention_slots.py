"""Changes of the cross-attention's key and value weights, and token rows: what Custom Diffusion
(arXiv 2212.04488) trains, as a kind of slot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamfleet.adapters.bank import Part, Routing, Site, SlotState
from dreamfleet.adapters.files import read_tensors
from dreamfleet.bases import Base
from dreamfleet.errors import AdapterFileError, ConfigError

TARGETS = ("attn2.to_k", "attn2.to_v")
TOKEN_ROWS = "text_encoder.token_rows"
DELTA = ".delta"
FILE_NAME = "cross_attention_weights.safetensors"
TOKEN_IDS = "dreamfleet_token_ids"  # in the file's metadata


@dataclass(frozen=True)
class CrossAttentionShape:
    """What decides an adapter's tensors.

    Attributes:
        tokens: modifier token id and the id of the token whose row it starts as, for each.
        max_tokens: rows that a bank has room for, if more.
    """

    tokens: tuple[tuple[int, int], ...] = ()
    max_tokens: int = 0

    def sites(self, base: Base) -> list[Site]:
        """As `cross_attention_sites`."""
        return cross_attention_sites(base, self._rows)

    def fresh(self, base: Base, seed: int) -> SlotState:
        """As `fresh_cross_attention`; nothing in it is drawn."""
        return fresh_cross_attention(base, dict(self.tokens))

    def joined(self, other: CrossAttentionShape) -> CrossAttentionShape:
        """The smallest shape with room for both."""
        return CrossAttentionShape(max_tokens=max(self._rows, other._rows))

    def save(self, folder: str | Path, base: Base, state: SlotState) -> list[Path]:
        """Write `cross_attention_weights.safetensors`, which `read_cross_attention` reads."""
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.cpu().contiguous() for name, value in state.tensors.items()}
        ids = [int(token) for token in state.notes.get(TOKEN_ROWS, ())]
        part = path.with_suffix(".part")
        save_file(tensors, part, {TOKEN_IDS: json.dumps(ids)})
        part.replace(path)
        return [path]

    @property
    def _rows(self) -> int:
        return max(len(self.tokens), self.max_tokens)


class WeightSite:
    """A linear layer with (W + scale dW) x."""

    def __init__(self, name: str, module: nn.Linear) -> None:
        self.name, self.module = f"{name}{DELTA}", module  # a LoRA may act on the same layer
        self.parts = (Part(self.name, tuple(module.weight.shape)),)

    def change(self, x: Tensor, output: Tensor, routing: Routing) -> Tensor:
        """`output` [B, N, out] + dW x for x [B, N, in]."""
        part = self.parts[0]
        delta = routing.per_group(routing.leaf(part.name, part.shape[0], 0))  # [G, K, out, in]
        factors = routing.factors(self)
        if factors is not None:
            delta = delta * factors[..., None, None]
        groups = delta.shape[0]
        flat = x.reshape(groups, -1, x.shape[-1])  # [G, bN, in]
        change = torch.baddbmm(
            output.reshape(groups, -1, output.shape[-1]), flat, delta.sum(1).transpose(1, 2)
        )
        return change.view(output.shape)


class TokenSite:
    """Rows of the token embedding that belong to a slot: the modifier tokens' own vectors."""

    def __init__(self, module: nn.Embedding, max_tokens: int) -> None:
        self.name, self.module = TOKEN_ROWS, module
        self.parts = (Part(TOKEN_ROWS, (max_tokens, module.embedding_dim)),)

    def change(self, x: Tensor, output: Tensor, routing: Routing) -> Tensor:
        """`output` [B, L, W] with the rows of modifier tokens replaced, for token ids x [B, L].

        A strength other than 0 takes the row as it is: half a word is no word.
        """
        most = routing.length(TOKEN_ROWS, 0)
        rows = routing.per_group(routing.leaf(TOKEN_ROWS, most, 0)).to(output.dtype)  # [G, K, n, W]
        ids = _padded_ids(routing.notes(TOKEN_ROWS), most, x.device)  # [G, K, n]
        grouped = output.unflatten(0, (rows.shape[0], -1))  # [G, b, L, W]
        tokens = x.unflatten(0, (rows.shape[0], -1)).unsqueeze(-1)  # [G, b, L, 1]
        for k in range(rows.shape[1]):
            for n in range(most):
                here = tokens == ids[:, k, n].view(-1, 1, 1, 1)
                grouped = torch.where(here, rows[:, k, n].view(-1, 1, 1, rows.shape[-1]), grouped)
        return grouped.flatten(0, 1)


def cross_attention_sites(base: Base, max_tokens: int = 1) -> list[Site]:
    """The UNet's cross-attention keys and values, and with modifier tokens the text encoder's token
    embedding.
    """
    sites: list[Site] = [
        WeightSite(f"unet.{name}", module)
        for name, module in base.unet.named_modules()
        if name.endswith(TARGETS)
    ]
    return [*sites, TokenSite(_token_embedding(base), max_tokens)] if max_tokens else sites


def fresh_cross_attention(base: Base, tokens: Mapping[int, int]) -> SlotState:
    """No change of the weights, and rows that begin as copies of other tokens' rows.

    Args:
        tokens: modifier token id -> id of the token whose row it starts as.
    """
    tensors = {
        site.parts[0].name: torch.zeros(site.parts[0].shape)
        for site in cross_attention_sites(base)
        if isinstance(site, WeightSite)
    }
    if not tokens:
        return SlotState(tensors)
    embedding: Tensor = _token_embedding(base).weight
    rows = [embedding[start].detach().float().cpu() for start in tokens.values()]
    tensors[TOKEN_ROWS] = torch.stack(rows)  # [n, W]
    return SlotState(tensors, notes={TOKEN_ROWS: tuple(tokens)})


def cross_attention_shape(state: SlotState) -> CrossAttentionShape:
    """A shape that has room for a slot's state."""
    rows = state.tensors.get(TOKEN_ROWS)
    return CrossAttentionShape(max_tokens=0 if rows is None else len(rows))


def read_cross_attention(folder: str | Path) -> SlotState:
    """The adapter that `CrossAttentionShape.save` wrote into a folder, bit for bit.

    Raises:
        AdapterFileError: it is damaged, not finite, or something else.
    """
    path = Path(folder) / FILE_NAME
    tensors, metadata = read_tensors(path)
    try:
        ids = tuple(int(token) for token in json.loads(metadata[TOKEN_IDS]))
    except (KeyError, ValueError, TypeError) as error:
        raise AdapterFileError(f"{path}: expected a file that training wrote: {error}") from error
    if len(ids) != len(tensors.get(TOKEN_ROWS, ())):
        raise AdapterFileError(f"{path}: {len(ids)} token ids for another number of token rows")
    return SlotState(tensors, notes={TOKEN_ROWS: ids} if ids else {})


def _token_embedding(base: Base) -> nn.Embedding:
    for name, module in base.text_encoder.named_modules():
        if name.endswith("token_embedding") and isinstance(module, nn.Embedding):
            return module
    raise ConfigError(
        f"base model {base.name}: its text encoder has no token embedding; token rows cannot be "
        "trained on it"
    )


def _padded_ids(
    notes: Sequence[Sequence[Sequence[int] | None]], length: int, device: torch.device
) -> Tensor:
    """[G, K, n] token ids, -1 where there is none."""
    padded = [
        [[*(ids or ()), *[-1] * (length - len(ids or ()))] for ids in group] for group in notes
    ]
    return torch.tensor(padded, device=device)
