"""Counter-based randomness: every draw comes from a generator named by what it is for.

A generator is keyed by a tuple such as ``(seed, "noise", n)``, so a draw never depends on how many
draws were made before it, by whom, or on which worker: packed equals alone, resumed equals
uninterrupted.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

KeyPart = int | str


def key_to_int(*parts: KeyPart) -> int:
    """A stable 63-bit integer for the key `parts` (the same in every process and on every
    platform).
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(*parts: KeyPart) -> np.random.Generator:
    """A NumPy generator (Philox) keyed by `parts`."""
    return np.random.Generator(np.random.Philox(key=key_to_int(*parts)))


def torch_generator(*parts: KeyPart) -> torch.Generator:
    """A CPU torch generator keyed by `parts`. Draw on the CPU and move: devices differ in their
    streams.
    """
    import torch

    return torch.Generator("cpu").manual_seed(key_to_int(*parts))
