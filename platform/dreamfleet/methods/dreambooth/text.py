"""Text embeddings of a frozen text encoder, computed once per prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dreamfleet.bases import Base
from dreamfleet.diffusion.conditioning import Conditioning


class TextCache:
    """Encodes each prompt once, alone, so that an embedding never depends on its neighbours in a
    batch.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._known: dict[str, Conditioning] = {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """[B, L, D] without gradient."""
        for prompt in prompts:
            if prompt not in self._known:
                with torch.no_grad():
                    self._known[prompt] = self._base.encode_prompts([prompt]).detach()
        return Conditioning.cat([self._known[prompt] for prompt in prompts])
