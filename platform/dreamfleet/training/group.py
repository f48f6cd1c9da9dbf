"""The workers of one training run: gradients are averaged, and all stop at the same step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Group:
    """This worker's place among `world_size`; alone, nothing is communicated."""

    rank: int = 0
    world_size: int = 1

    def average_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the workers, in one collective over a flat fp32
        buffer.

        What DistributedDataParallel does, without its wrapper around the UNet: adapters are
        megabytes, and a plain module keeps the state dict's names.
        """
        if self.world_size == 1:
            return
        import torch
        import torch.distributed

        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.detach().reshape(-1).float() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.world_size
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()

    def agree(self, metrics: Mapping[str, float], stop: bool) -> tuple[dict[str, float], bool]:
        """Mean of each metric over the workers that have it (NaN: not at this step), and whether
        any wants to stop.
        """
        if self.world_size == 1:
            return dict(metrics), stop
        import torch
        import torch.distributed

        values = torch.tensor(list(metrics.values()), dtype=torch.float64)
        known = ~torch.isnan(values)
        message = torch.cat(
            [
                torch.where(known, values, 0.0),
                known.double(),
                torch.tensor([float(stop)], dtype=torch.float64),
            ]
        )
        message = message.to(_collective_device())
        torch.distributed.all_reduce(message)
        total, count = message[: len(values)], message[len(values) : -1]
        means = [
            float(t) / float(c) if c > 0 else math.nan for t, c in zip(total, count, strict=True)
        ]
        return dict(zip(metrics, means, strict=True)), bool(message[-1] > 0)


def _collective_device() -> str:
    import torch.distributed

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
