"""Changes of the cross-attention's key and value weights, and token rows: what Custom Diffusion
(arXiv 2212.04488) trains, as a kind of slot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dreamfleet.adapters.bank import Part, Routing, Site, SlotState
from dreamfleet.bases import Base
from dreamfleet.errors import ConfigError

TARGETS = ("attn2.to_k", "attn2.to_v")
TOKEN_ROWS = "text_encoder.token_rows"


class WeightSite:
    """A linear layer with (W + scale dW) x."""

    def __init__(self, name: str, module: nn.Linear) -> None:
        self.name, self.module = name, module
        self.parts = (Part(f"{name}.delta", tuple(module.weight.shape)),)

    def change(self, x: Tensor, output: Tensor, routing: Routing) -> Tensor:
        """`output` [B, N, out] + dW x for x [B, N, in]."""
        part = self.parts[0]
        delta = routing.per_group(routing.leaf(part.name, part.shape[0], 0))  # [G, K, out, in]
        factors = routing.factors(self.name)
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
        rows = routing.per_group(routing.leaf(TOKEN_ROWS, most, 0))  # [G, K, n, W]
        ids = _padded_ids(routing.notes(TOKEN_ROWS), most, x.device)  # [G, K, n]
        grouped = output.unflatten(0, (rows.shape[0], -1))  # [G, b, L, W]
        tokens = x.unflatten(0, (rows.shape[0], -1)).unsqueeze(-1)  # [G, b, L, 1]
        for k in range(rows.shape[1]):
            for n in range(most):
                here = tokens == ids[:, k, n].view(-1, 1, 1, 1)
                grouped = torch.where(here, rows[:, k, n].view(-1, 1, 1, rows.shape[-1]), grouped)
        return grouped.flatten(0, 1)


def cross_attention_sites(base: Base, max_tokens: int = 1) -> list[Site]:
    """The UNet's cross-attention keys and values, and the text encoder's token embedding."""
    sites: list[Site] = [
        WeightSite(f"unet.{name}", module)
        for name, module in base.unet.named_modules()
        if name.endswith(TARGETS)
    ]
    return [*sites, TokenSite(_token_embedding(base), max_tokens)]


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
    embedding: Tensor = _token_embedding(base).weight
    rows = [embedding[start].detach().float().cpu().clone() for start in tokens.values()]
    if rows:
        tensors[TOKEN_ROWS] = torch.stack(rows)
    return SlotState(tensors, notes={TOKEN_ROWS: tuple(tokens)})


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
