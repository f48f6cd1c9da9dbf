"""Whose class prediction is inherited: the pretrained weights or the ones being trained, never
with a gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from dreamfleet.adapters.lora import AdapterSwitch
from dreamfleet.bases import Base
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.methods.dreambooth.config import DreamBoothSettings
from dreamfleet.methods.dreambooth.text import TextCache


class Teacher(Protocol):
    """Predicts the class without gradient."""

    def predict(self, x_t: Tensor, t: Tensor, prompts: tuple[str, ...]) -> Tensor:
        """Model output [B, C, h, w], detached."""
        ...


class PretrainedTeacher:
    """The frozen base.

    With adapters it is the same network, adapter switched off; with full fine-tuning, a copy.
    """

    def __init__(self, base: Base, settings: DreamBoothSettings) -> None:
        self.shares_weights = settings.mode == "lora"
        self.base = (
            base
            if self.shares_weights
            else base.frozen_copy(text_encoder=settings.train_text_encoder)
        )
        self._texts = TextCache(self.base)
        self._switch: AdapterSwitch | None = None

    def predict(self, x_t: Tensor, t: Tensor, prompts: tuple[str, ...]) -> Tensor:
        with torch.no_grad(), self._bare():
            return self.base.predict(x_t, t, self._texts.encode(prompts)).detach()

    @contextlib.contextmanager
    def _bare(self) -> Iterator[None]:
        if not self.shares_weights:
            yield
            return
        if self._switch is None:  # the teacher is made before the adapter
            self._switch = AdapterSwitch(self.base)
        with self._switch.off():
            yield


class CurrentTeacher:
    """The weights being trained, detached (the paper's Eq. 7 and the released code)."""

    def __init__(self, base: Base, settings: DreamBoothSettings) -> None:
        self.base = base
        self._texts = None if settings.train_text_encoder else TextCache(base)

    def predict(self, x_t: Tensor, t: Tensor, prompts: tuple[str, ...]) -> Tensor:
        with torch.no_grad():
            return self.base.predict(x_t, t, self._encode(prompts)).detach()

    def _encode(self, prompts: tuple[str, ...]) -> Conditioning:
        return (
            self.base.encode_prompts(prompts)
            if self._texts is None
            else self._texts.encode(prompts)
        )
