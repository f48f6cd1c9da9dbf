"""How many rows of a forward and backward fit into memory."""

from __future__ import annotations

import psutil
import torch

from dreamfleet.bases import Base

MAX_ROWS = 64  # beyond this a larger batch gains nothing
SHARE = 0.5  # of the memory that is free now
# Activations that a row keeps for backward, in numbers per latent position and channel of the first
# level: about 500 for Stable Diffusion 1.5 (1.3 GB a row at 64x64 latents in half precision).
KEPT = 500


def rows_that_fit(base: Base) -> int:
    """A cautious estimate from the base's size and the memory that is free now; at least 1."""
    _, height, width = base.latent_shape
    size = torch.finfo(base.dtype).bits // 8
    row = height * width * int(base.unet.config.block_out_channels[0]) * KEPT * size
    if base.device.type == "cuda":
        free = torch.cuda.mem_get_info(base.device)[0]
    else:
        free = psutil.virtual_memory().available
    return max(1, min(MAX_ROWS, int(SHARE * free / row)))
