"""Full fine-tuning on several workers, in one of two ways.

DDP: each holds the model, and Ray Train's own wrapper averages the UNet's gradients while they are
computed. FSDP: each keeps a part of weights, gradients and optimiser state (Rajbhandari et al.,
arXiv 1910.02054), and gets the others' parts for a block at a time.

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
    from dreamfleet.engine.spec import ReduceGradients, Shard


def reducer(config: RunConfig, base: Base, group: Group) -> ReduceGradients | None:
    """What averages gradients over the workers after a step's last backward pass.

    Under full fine-tuning it leaves out the UNet: that one `share_unet` wraps.
    """
    if group.world_size == 1 or is_sharded(config, group):
        return None  # FSDP's backward pass averages
    if config.train.mode == "lora":
        return group.average_gradients

    def average_others(parameters: Sequence[torch.nn.Parameter]) -> None:
        wrapped = {id(parameter) for parameter in base.unet.parameters()}
        others = [parameter for parameter in parameters if id(parameter) not in wrapped]
        if others:
            group.average_gradients(others)

    return average_others


def is_sharded(config: RunConfig, group: Group) -> bool:
    """Whether each worker holds a part of the model only."""
    fully = config.train.mode == "full" and config.cluster.parallel_strategy == "fsdp"
    return fully and group.world_size > 1


def sharder(config: RunConfig, group: Group) -> Shard | None:
    """What spreads the trained modules over the workers, None where each holds them whole.

    torch's FSDP2: a UNet by blocks, a trained text encoder in one piece. Ray Train's
    `prepare_model` knows the older FSDP only, which needs a GPU and changes the parameters' names.
    """
    if not is_sharded(config, group):
        return None

    def shard(base: Base) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(base.device.type, (group.world_size,))
        unet = base.unet
        blocks = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        encoders = base.text_encoders.values() if config.train.train_text_encoder else ()
        for module in (*blocks, unet, *encoders):
            if module is not None:
                fully_shard(module, mesh=mesh)

    return shard


def share_unet(config: RunConfig, base: Base, group: Group) -> None:
    """Let training go through DistributedDataParallel around `base.unet`, once its parameters are
    trainable.

    Weights and names stay those of the UNet itself: it is what is sampled, saved and resumed.
    """
    if group.world_size == 1 or config.train.mode == "lora" or is_sharded(config, group):
        return
    from ray.train.torch import prepare_model

    base.training_unet = prepare_model(
        base.unet,
        move_to_device=False,
        parallel_strategy_kwargs={"broadcast_buffers": False, "gradient_as_bucket_view": True},
    )
