"""The settings of DreamBooth that the loss depends on, out of the whole configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dreamfleet.config import RunConfig
from dreamfleet.diffusion.losses.sude import Weighting


@dataclass(frozen=True)
class DreamBoothSettings:
    """Names as in `RunConfig`.

    Attributes:
        mode: lora or full.
        train_text_encoder: whether the text encoder trains too.
        snr_gamma: min-SNR gamma, or None.
        sude_weight, sude_teacher, sude_weighting, truncation_point: SuDe; off at weight 0.
        prior_form: None without prior preservation.
        prior_weight: lambda of Eq. 10.
    """

    mode: Literal["lora", "full"] = "lora"
    train_text_encoder: bool = False
    snr_gamma: float | None = None
    sude_weight: float = 0.0
    sude_teacher: Literal["pretrained", "current"] = "pretrained"
    sude_weighting: Weighting = "code"
    truncation_point: float | None = 1.0
    prior_form: Literal["images", "teacher"] | None = None
    prior_weight: float = 1.0

    @staticmethod
    def from_config(config: RunConfig) -> DreamBoothSettings:
        train, sude, prior = config.train, config.sude, config.prior
        return DreamBoothSettings(
            mode=train.mode,
            train_text_encoder=train.train_text_encoder,
            snr_gamma=train.snr_gamma,
            sude_weight=sude.weight,
            sude_teacher=sude.teacher,
            sude_weighting=sude.weighting,
            truncation_point=sude.truncation_point,
            prior_form=prior.form if prior.with_prior_preservation else None,
            prior_weight=prior.weight,
        )

    @property
    def with_sude(self) -> bool:
        return self.sude_weight > 0

    @property
    def needs_frozen_teacher(self) -> bool:
        """Whether any term compares with the pretrained weights."""
        return self.prior_form == "teacher" or (
            self.with_sude and self.sude_teacher == "pretrained"
        )
