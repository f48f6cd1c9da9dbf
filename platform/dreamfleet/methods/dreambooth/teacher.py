"""The pretrained weights, whose class prediction is inherited or held to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from dreamfleet.adapters.lora import AdapterSwitch
from dreamfleet.bases import Base
from dreamfleet.methods.dreambooth.config import DreamBoothSettings
from dreamfleet.methods.dreambooth.text import TextCache


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
        """Model output [B, C, h, w] without gradient."""
        with torch.no_grad(), self._bare():
            return self.base.predict(x_t, t, self._texts.encode(prompts))

    @contextlib.contextmanager
    def _bare(self) -> Iterator[None]:
        if not self.shares_weights:
            yield
            return
        if self._switch is None:  # the teacher is made before the adapter
            self._switch = AdapterSwitch(self.base)
        with self._switch.off():
            yield
