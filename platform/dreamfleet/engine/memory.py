"""How many rows of a forward and backward fit into memory, and how memory is kept between them."""

from __future__ import annotations

import ctypes
import sys

import psutil
import torch

from dreamfleet.bases import Base

MAX_ROWS = 64  # beyond this a larger batch gains nothing
SHARE = 0.5  # of the memory that is free now
# Activations that a row keeps for backward, in numbers per latent position and channel of the first
# level: about 500 for Stable Diffusion 1.5 (1.3 GB a row at 64x64 latents in half precision).
KEPT = 500
# glibc's numbers of two settings of its allocator (malloc.h), and what they are set to.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_FREE_BYTES, OWN_MAPPING_BYTES = 512 * 2**20, 32 * 2**20


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


def keep_freed_memory() -> None:
    """Tell glibc to keep up to half a GiB that was freed, for this whole process.

    A packed step frees some 100 MB of activations. By default they go back to the system and are
    asked for anew in the next step, page by page: a twentieth of a step's time on CPUs. Elsewhere
    than under glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_FREE_BYTES)
        mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
