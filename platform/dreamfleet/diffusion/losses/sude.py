"""SuDe, Subject-Derivation regularisation (arXiv 2403.06775, Eq. 4-10), in noise space and hinge
form.

With e_s the subject's prediction, e_c and e_u the teacher's class-prompt and empty-prompt
predictions at the same (x_t, t), b = e_c - e_u and means over one sample's elements, the paper's
loss and truncation threshold are

    L = w(t) (mean (e_s - e_c)^2 - mean (e_s - e_u)^2),    tau = -w(t) mean b^2,

and L - tau = 2 w(t) mean b^2 (1 - rho) with rho = <e_s - e_u, b> / <b, b>. So "kept while L > tau"
is a hinge, on while rho < 1. It is computed in that form and in fp32: as a difference of squares
the switch misfires in half precision.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dreamfleet.diffusion.losses.mse import masked_mean
from dreamfleet.diffusion.schedule import NoiseSchedule

Weighting = Literal["code", "bayes", "official"]

# 1/(2 sqrt(abar)) diverges for schedules that end at (nearly) pure noise; SD's own ends at 7.3.
MAX_CODE_WEIGHT = 7.5
# Closer to the switch than rounding: when subject and class prompt agree, noise alone would decide.
RHO_TOLERANCE = 1e-5
# The released code's guard against sigma_0 = 0.
OFFICIAL_EPSILON = 1e-6


class SudeTerms(NamedTuple):
    """SuDe of each sample.

    Attributes:
        loss: [B] fp32, zero or positive while on; without truncation it can be negative.
        rho: [B] how much of the class direction the subject's prediction carries (no gradient); 1
            where b is 0.
        is_on: [B] bool, whether the hinge passes a gradient.
    """

    loss: Tensor
    rho: Tensor
    is_on: Tensor


def sude_weight(t: Tensor, schedule: NoiseSchedule, weighting: Weighting) -> Tensor:
    """w(t) [B], fp32; 0 where abar is 0, since there a prediction says nothing about x_0.

    `code`: 1/(2 sqrt(abar)), at most 7.5: what the released code's factor comes to. `bayes`: 1,
    under which the paper's Eq. 12 holds for the unweighted loss. `official`: the released factor
    itself for t >= 1, one half at t = 0 (where the released code divides by 1e-6).
    """
    alpha_bar = schedule.alpha_bar(t)
    if weighting == "bayes":
        weight = torch.ones_like(alpha_bar)
    elif weighting == "code":
        weight = (0.5 / alpha_bar.clamp_min(1e-20).sqrt()).clamp(max=MAX_CODE_WEIGHT)
    else:
        weight = _official_weight(t, schedule)
    return torch.where(alpha_bar > 0, weight, 0.0)


def _official_weight(t: Tensor, schedule: NoiseSchedule) -> Tensor:
    """coef1 (1/abar_t - 1) / (2 sigma_t^2 + 1e-6), coef1 = beta_t sqrt(abar_{t-1}) / (1 - abar_t).

    The distance between two posterior means is coef1 sqrt(1/abar - 1) times that of the noise
    predictions; the released code divides the squared distance by 2 sigma^2 + 1e-6 and once more by
    coef1.
    """
    alpha_bar = schedule.alpha_bar(t).double()
    previous = schedule.alpha_bar((t - 1).clamp_min(0)).double()
    beta = 1 - alpha_bar / previous
    coef1 = beta * previous.sqrt() / (1 - alpha_bar)
    variance = beta * (1 - previous) / (1 - alpha_bar)
    weight = coef1 * (1 / alpha_bar.clamp_min(1e-20) - 1) / (2 * variance + OFFICIAL_EPSILON)
    return torch.where(t > 0, weight, 0.5).float()


def sude_terms(
    eps_s: Tensor,
    eps_c: Tensor,
    eps_u: Tensor,
    weight_t: Tensor,
    truncation_point: float | None = 1.0,
    mask: Tensor | None = None,
    host_weight: Tensor | None = None,
) -> SudeTerms:
    """L_sude = 2 w(t) relu(mean[(e_u + rho* b - e_s) b]) of each sample.

    While on, its gradient shifts the host's target from eps to eps + w_s w(t) b: a push like
    classifier-free guidance.

    Args:
        eps_s: [B, C, H, W] the subject's noise prediction; the gradient flows here only.
        eps_c: [B, C, H, W] the teacher's prediction under the class prompt.
        eps_u: [B, C, H, W] the teacher's prediction under the empty prompt.
        weight_t: [B] w(t) from `sude_weight`; a sample with weight 0 is off.
        truncation_point: rho* at which the hinge switches off (the paper: 1); None: never, with
            rho* = 1 in the formula.
        mask: the host's mask [B, 1 or C, H, W], normalised as the host's loss is.
        host_weight: [B] the host's weight on squared eps errors (`NoiseSchedule.epsilon_weight`);
            only with the same weight is the shifted target exact.
    """
    subject, empty = eps_s.float(), eps_u.detach().float()
    direction = eps_c.detach().float() - empty
    point = 1.0 if truncation_point is None else truncation_point
    gap = masked_mean((empty + point * direction - subject) * direction, mask)  # [B]
    power = masked_mean(direction**2, mask)  # [B]
    scale = weight_t.float() if host_weight is None else weight_t.float() * host_weight.float()
    with torch.no_grad():
        has_direction = power > 0
        distance = gap / torch.where(has_direction, power, 1.0)  # rho* - rho
        rho = torch.where(has_direction, point - distance, 1.0)
        is_on = has_direction & (weight_t > 0)
        if truncation_point is not None:
            is_on &= distance >= RHO_TOLERANCE
    return SudeTerms(torch.where(is_on, 2 * scale * gap, 0.0), rho, is_on)
