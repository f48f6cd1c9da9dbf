"""Text embeddings of a frozen text encoder, computed once per prompt."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from dreamfleet.bases import Base
from dreamfleet.diffusion.conditioning import Conditioning

MAX_PROMPTS = 512  # the least recently used goes: they lie on the device


class TextCache:
    """Encodes each prompt once, alone, so that an embedding never depends on its neighbours in a
    batch.
    """

    def __init__(self, base: Base) -> None:
        def encoded(prompt: str) -> Conditioning:
            with torch.no_grad():
                return base.encode_prompts([prompt]).detach()

        self._encoded = lru_cache(maxsize=MAX_PROMPTS)(encoded)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """[B, L, D] without gradient."""
        return Conditioning.cat([self._encoded(prompt) for prompt in prompts])
