"""The forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, and what a model predicts of
it.

Written for timesteps that differ within a batch. Sources: Ho et al. 2020 (arXiv 2006.11239),
v-prediction from Salimans and Ho 2022 (arXiv 2202.00512), min-SNR weights from Hang et al. 2023
(arXiv 2303.09556).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor

from dreamfleet.errors import BaseModelError

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class NoiseSchedule:
    """A discrete noise schedule of T steps.

    Attributes:
        alphas_cumprod: [T] fp32, the cumulative products abar_t, falling with t.
        prediction_type: what the model predicts: the noise, or v = sqrt(abar) eps - sqrt(1-abar)
            x0.
    """

    alphas_cumprod: Tensor
    prediction_type: PredictionType = "epsilon"

    @staticmethod
    def from_config(settings: Mapping[str, Any]) -> NoiseSchedule:
        """The schedule that a folder's `scheduler_config.json` describes: diffusers' DDPM-like
        schedulers sample differently and add noise alike.

        Raises:
            BaseModelError: the model predicts something else, or its noise is not added so (flow
                matching, EDM).
        """
        name, kind = settings.get("_class_name"), settings.get("prediction_type", "epsilon")
        other = str(name).startswith(("Flow", "EDM")) or settings.get("use_flow_sigmas")
        if kind not in ("epsilon", "v_prediction") or other:
            raise BaseModelError(
                f"scheduler {name} with prediction_type {kind!r} is not supported (nor is flow "
                "matching); expected a DDPM-like scheduler with 'epsilon' or 'v_prediction'"
            )
        alphas = DDIMScheduler.from_config(dict(settings)).alphas_cumprod
        return NoiseSchedule(alphas.float(), cast(PredictionType, kind))

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return int(self.alphas_cumprod.shape[0])

    def alpha_bar(self, t: Tensor) -> Tensor:
        """abar_t, fp32, shape and device of `t`."""
        return self.alphas_cumprod.to(t.device)[t]

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t of x0 [B, ...] with noise eps [B, ...] at timesteps t [B]."""
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the model should output for (x0, eps, t)."""
        if self.prediction_type == "epsilon":
            return eps
        alpha, sigma = self._alpha_sigma(t, x0)
        return alpha * eps - sigma * x0

    def to_epsilon(self, model_output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that a model output [B, ...] at (x_t, t) implies: eps = sqrt(abar) v +
        sqrt(1-abar) x_t.
        """
        if self.prediction_type == "epsilon":
            return model_output
        alpha, sigma = self._alpha_sigma(t, x_t)
        return alpha * model_output + sigma * x_t

    def min_snr_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """Min-SNR-gamma weight [B] of the model's own MSE (arXiv 2303.09556 Eq. 5 and appendix).

        min(SNR, gamma) / SNR for eps-prediction, / (SNR + 1) for v-prediction; 1 for gamma None.
        At SNR 0 (zero terminal SNR) the eps weight is its limit, 1.
        """
        if gamma is None:
            return torch.ones(t.shape, device=t.device)
        snr = compute_snr(self, t).float()
        capped = snr.clamp(max=gamma)
        if self.prediction_type == "v_prediction":
            return capped / (snr + 1)
        return torch.where(snr > 0, capped / snr, torch.ones_like(snr))

    def epsilon_weight(self, t: Tensor, gamma: float | None) -> Tensor:
        """The weight [B] that the model's MSE gives to squared *eps* errors.

        For v-prediction an error in eps is sqrt(abar) times the error in v, so v-MSE is eps-MSE /
        abar (0 where abar is 0: there the output says nothing about eps).
        """
        weight = self.min_snr_weight(t, gamma)
        if self.prediction_type == "epsilon":
            return weight
        alpha_bar = self.alpha_bar(t)
        return torch.where(alpha_bar > 0, weight / alpha_bar.clamp_min(1e-20), 0.0)

    def _alpha_sigma(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alpha_bar(t.to(like.device))
        shape = (-1,) + (1,) * (like.dim() - 1)
        alpha = alpha_bar.sqrt().view(shape).to(like.dtype)
        sigma = (1 - alpha_bar).sqrt().view(shape).to(like.dtype)
        return alpha, sigma
