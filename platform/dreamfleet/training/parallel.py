"""Full fine-tuning on several workers: the UNet's gradients are averaged by Ray Train's own wrapper
while they are computed.

A LoRA's gradients are megabytes and travel in one piece instead (`Group.average_gradients`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreamfleet.training.group import Group

if TYPE_CHECKING:
    import torch

    from dreamfleet.bases import Base
    from dreamfleet.config import RunConfig
    from dreamfleet.engine.spec import ReduceGradients


def reducer(config: RunConfig, base: Base, group: Group) -> ReduceGradients | None:
    """What averages gradients over the workers after a step's last backward pass.

    Under full fine-tuning it leaves out the UNet: that one `share_unet` wraps.
    """
    if group.world_size == 1:
        return None
    if config.train.mode == "lora":
        return group.average_gradients

    def average_others(parameters: Sequence[torch.nn.Parameter]) -> None:
        wrapped = {id(parameter) for parameter in base.unet.parameters()}
        others = [parameter for parameter in parameters if id(parameter) not in wrapped]
        if others:
            group.average_gradients(others)

    return average_others


def share_unet(config: RunConfig, base: Base, group: Group) -> None:
    """Let training go through DistributedDataParallel around `base.unet`, once its parameters are
    trainable.

    Weights and names stay those of the UNet itself: it is what is sampled, saved and resumed.
    """
    if group.world_size == 1 or config.train.mode == "lora":
        return
    from ray.train.torch import prepare_model

    base.training_unet = prepare_model(
        base.unet,
        move_to_device=False,
        parallel_strategy_kwargs={"broadcast_buffers": False, "gradient_as_bucket_view": True},
    )
