"""What a denoiser is conditioned on, for every model family in one type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Text conditioning of B samples.

    Attributes:
        prompt_embeds: [B, L, D] token embeddings for cross-attention.
        pooled: [B, P] pooled text embedding, for families that have one (SDXL), else None.
        time_ids: [B, 6] sizes and crops, for families that have them (SDXL), else None.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def __len__(self) -> int:
        return self.prompt_embeds.shape[0]

    def detach(self) -> Conditioning:
        """The same values, cut from the graph."""
        return self._map(lambda tensor: tensor.detach())

    def select(self, index: Tensor | Sequence[int]) -> Conditioning:
        """Rows `index` (repeats allowed), in that order."""
        rows = torch.as_tensor(index, dtype=torch.long, device=self.prompt_embeds.device)
        return self._map(lambda tensor: tensor.index_select(0, rows))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join along the batch; all parts have the same fields."""
        return Conditioning(
            torch.cat([part.prompt_embeds for part in parts]),
            _cat_optional([part.pooled for part in parts]),
            _cat_optional([part.time_ids for part in parts]),
        )

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(
            change(self.prompt_embeds),
            None if self.pooled is None else change(self.pooled),
            None if self.time_ids is None else change(self.time_ids),
        )


def _cat_optional(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return None
    if len(present) != len(tensors):
        raise ValueError("some conditionings have pooled embeddings or time ids and some have not")
    return torch.cat(present)
