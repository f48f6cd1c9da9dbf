"""Squared error of one sample at a time."""

from __future__ import annotations

from torch import Tensor


def mse_per_sample(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Mean squared error of each sample [B], in fp32.

    Args:
        prediction: [B, C, H, W], any float type.
        target: [B, C, H, W].
        mask: [B, 1 or C, H, W] in [0, 1]; the mean is then over the masked elements.
        weight: [B], e.g. min-SNR weights.
    """
    error = masked_mean((prediction.float() - target.float()) ** 2, mask)
    return error if weight is None else weight * error


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all but the first axis [B], weighted by `mask` (broadcast over channels) where
    given.
    """
    if mask is None:
        return values.flatten(1).mean(dim=1)
    full = mask.to(values).expand_as(values).flatten(1)
    return (values.flatten(1) * full).sum(dim=1) / full.sum(dim=1).clamp_min(1e-12)
