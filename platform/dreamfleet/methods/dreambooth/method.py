"""DreamBooth as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamfleet.adapters.lora import LoraLayers, add_lora
from dreamfleet.bases import Base
from dreamfleet.bases.acceleration import use_memory_settings
from dreamfleet.bases.base import frozen
from dreamfleet.bases.loading import load_component
from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.config import RunConfig
from dreamfleet.errors import ConfigError
from dreamfleet.methods.base import Answers, Batch, LossTerms, Query
from dreamfleet.methods.dreambooth.config import DreamBoothSettings
from dreamfleet.methods.dreambooth.loss import DreamBoothObjective
from dreamfleet.methods.dreambooth.teacher import PretrainedTeacher
from dreamfleet.methods.dreambooth.text import TextCache


class DreamBooth:
    """Puts an adapter into `base` (or makes its weights trainable) and computes losses.

    Args:
        base: freshly loaded; it is changed.
        config: resolved (`bases.resolved_config`): rank, alpha and layers are set.

    Raises:
        ConfigError: the configuration has gaps.
    """

    def __init__(self, base: Base, config: RunConfig) -> None:
        self.base = base
        self.token = config.subject.token
        self.settings = DreamBoothSettings.from_config(config)
        frozen_teacher = (
            PretrainedTeacher(base, self.settings) if self.settings.needs_frozen_teacher else None
        )
        self._lora = self._prepare(config)
        use_memory_settings(config.train, self._trained_modules())
        self._texts = None if self.settings.train_text_encoder else TextCache(base)
        self.teacher = frozen_teacher
        self.objective = DreamBoothObjective(self.settings, base.schedule, self.token)

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """All trained parameters by name, fp32."""
        if self.settings.mode == "lora":
            return self._lora
        return [
            (f"{prefix}.{name}", parameter)
            for prefix, module in self._trained_modules()
            for name, parameter in module.named_parameters()
        ]

    def losses(self, batch: Batch) -> LossTerms:
        """L_sub + w_s L_sude + lambda L_prior of a batch, with gradient."""
        questions = self.objective.questions(batch)
        pretrained = self._pretrained(questions.pretrained)
        with torch.no_grad():
            current = None if questions.current is None else self._predict(questions.current)
        student = self._predict(questions.student)
        return self.objective.losses(batch, Answers(student, pretrained, current))

    def class_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt without the identifier token."""
        return self.objective.class_prompts(prompts)

    def train_mode(self, training: bool) -> None:
        """Training mode for the trained modules.

        These models have no dropout; checkpointing and the like obey the flag.
        """
        for _, module in self._trained_modules():
            module.train(training)

    def _trained_modules(self) -> list[tuple[str, Any]]:
        modules = [("unet", self.base.unet)]
        if self.settings.train_text_encoder:
            modules += self.base.text_encoders.items()
        return modules

    def _prepare(self, config: RunConfig) -> list[tuple[str, nn.Parameter]]:
        if self.settings.mode == "full":
            self._prepare_full()
            return []
        train = config.train
        if train.rank is None or train.lora_layers is None:
            raise ConfigError(
                "train.rank and train.lora_layers are not set; use bases.resolved_config first"
            )
        layers: LoraLayers = train.lora_layers
        return add_lora(
            self.base,
            rank=train.rank,
            alpha=float(train.rank if train.lora_alpha is None else train.lora_alpha),
            layers=layers,
            train_text_encoder=train.train_text_encoder,
            seed=train.seed,
        )

    def _prepare_full(self) -> None:
        """Master weights in fp32: half-precision updates of 1e-6 would be lost in rounding."""
        for name, module in self._trained_modules():
            if module.dtype != torch.float32:
                with quiet_libraries():
                    whole = load_component(self.base.files, name, torch.float32)
                setattr(self.base, name, frozen(whole.to(self.base.device)))
        for _, module in self._trained_modules():
            module.requires_grad_(True)

    def _pretrained(self, query: Query | None) -> Tensor | None:
        if self.teacher is None or query is None:
            return None
        return self.teacher.predict(query.x_t, query.t, query.prompts)

    def _predict(self, query: Query) -> Tensor:
        """Of the weights being trained [B, C, h, w]."""
        encode = self.base.encode_prompts if self._texts is None else self._texts.encode
        return self.base.predict(query.x_t, query.t, encode(query.prompts))
