"""The subject cut out: what the identity encoder looks at."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 0.10  # of the box's side, kept around the subject


def subject_crops(pixels: Tensor, masks: Tensor) -> Tensor:
    """The subject of each picture on grey, its box (squared, with a margin) enlarged to 64x64.

    `pixels` [B, 3, 64, 64] in [-1, 1], `masks` [B, 1, 64, 64] in [0, 1]. An empty mask keeps the
    whole picture.
    """
    size = pixels.shape[-1]
    rows = []
    for mask in masks:
        found = torch.nonzero(mask[0] > 0.5)
        if len(found) < 16:
            rows.append(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
            continue
        low, high = found.min(dim=0).values.float(), found.max(dim=0).values.float() + 1
        side = float((high - low).max()) * (1 + 2 * MARGIN) / size  # of the picture's side
        center = (low + high) / size - 1.0  # in [-1, 1]: y, x
        rows.append(torch.tensor([[side, 0.0, float(center[1])], [0.0, side, float(center[0])]]))
    theta = torch.stack(rows).to(pixels)
    empty = (masks.flatten(1).sum(dim=1) < 16).to(pixels)[:, None, None, None]
    masked = pixels * torch.maximum(masks, empty)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(masked, grid, align_corners=False)
