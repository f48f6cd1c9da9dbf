"""Weights that several workers hold in parts (FSDP): put together, and taken apart again.

Checkpoints and exports hold whole tensors, so a run may go on under another number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together, in which every worker takes part; another one as it is."""
    return tensor.full_tensor() if _is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """This worker's part of a whole `tensor`, as `parameter` is sharded; without communication."""
    if not _is_sharded(parameter) or tensor.shape != parameter.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        tensor.to(parameter.device),
        parameter.device_mesh,  # type: ignore[attr-defined]
        parameter.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )


def optimizer_state_like(
    parameters: Sequence[nn.Parameter], state: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole state dict of an optimiser of these `parameters`, sharded as they are."""
    shared = {
        index: {
            key: like(parameters[index], value) if isinstance(value, Tensor) else value
            for key, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    return {**state, "state": shared}


def whole_values(named: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor whole, on the CPU, one after the other; every worker takes part."""
    for name, tensor in named:
        yield name, whole(tensor.detach()).cpu().clone()


def _is_sharded(tensor: Tensor) -> bool:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
