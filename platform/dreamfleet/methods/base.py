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
        keys: B names of (x_0, noise, t): equal names are equal samples. Empty: nothing is known.
    """

    latents: Tensor
    noise: Tensor
    t: Tensor
    prompts: tuple[str, ...]
    keys: tuple[str, ...] = ()

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


@dataclass(frozen=True)
class Query:
    """What a denoiser is asked: B noisy latents.

    Attributes:
        x_t: [B, C, h, w]; t: [B]; prompts: B prompts.
        keys: B names of (x_t, t), as in `NoisedLatents`.
    """

    x_t: Tensor
    t: Tensor
    prompts: tuple[str, ...]
    keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Questions:
    """All predictions that the loss of one batch needs.

    Attributes:
        student: of the weights being trained, with gradient.
        pretrained: of the frozen pretrained weights, or None.
        current: of the weights being trained, without gradient, or None.
    """

    student: Query
    pretrained: Query | None = None
    current: Query | None = None


@dataclass(frozen=True)
class Answers:
    """The model outputs [B, C, h, w] for `Questions`."""

    student: Tensor
    pretrained: Tensor | None = None
    current: Tensor | None = None


class Objective(Protocol):
    """A loss apart from the networks: which predictions it needs, and what it makes of them."""

    def questions(self, batch: Batch) -> Questions:
        """What to predict for a batch."""
        ...

    def losses(self, batch: Batch, answers: Answers) -> LossTerms:
        """The loss of a batch given the predictions; the gradient flows into `answers.student`."""
        ...

    def class_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt without the identifier."""
        ...


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
