"""What a personalisation method is to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from dreamfleet.bases import Base


@dataclass(frozen=True)
class NoisedLatents:
    """B pictures of a step, noised.

    Attributes:
        latents: [B, C, h, w] clean latents x_0.
        noise: [B, C, h, w].
        t: [B] timesteps.
        prompts: B prompts.
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    prompts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Batch:
    """One micro-step's samples.

    Attributes:
        subject: the subject's photos.
        class_prompts: for every subject sample, its prompt without identifier.
        prior: pictures of the class, or None.
    """

    subject: NoisedLatents
    class_prompts: tuple[str, ...]
    prior: NoisedLatents | None = None


@dataclass(frozen=True)
class LossTerms:
    """Losses of one micro-step, per sample; a term that is off is None.

    Attributes:
        total: scalar, what is differentiated: the mean over samples of the weighted sum.
        subject: [B]; sude: [B]; rho: [B]; is_on: [B] bool; prior: [B'].
    """

    total: Tensor
    subject: Tensor
    sude: Tensor | None = None
    rho: Tensor | None = None
    is_on: Tensor | None = None
    prior: Tensor | None = None


class Method(Protocol):
    """Prepares a base for training and computes the loss of a batch."""

    base: Base

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """All trained parameters by name, fp32; always the same list in the same order."""
        ...

    def losses(self, batch: Batch) -> LossTerms:
        """The loss of a batch, with gradient."""
        ...

    def class_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt without the identifier."""
        ...

    def train_mode(self, training: bool) -> None:
        """Switch the trained modules between training and evaluation."""
        ...
