"""Figures of one optimiser step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dreamfleet.methods import LossTerms


@dataclass(frozen=True)
class StepMetrics:
    """What one step showed; means over the worker's samples, None where a term is off.

    Attributes:
        step: steps done, this one included.
        loss: the weighted sum that was differentiated.
        loss_subject: L_sub.
        grad_norm: norm of the whole gradient before clipping.
        lr: learning rate of this step.
        loss_sude: L_sude, before its weight w_s.
        rho: how much of the class direction the subject's prediction carries (1: all).
        hinge_share: share of samples at which SuDe was on.
        loss_prior: L_prior, before its weight lambda.
    """

    step: int
    loss: float
    loss_subject: float
    grad_norm: float
    lr: float
    loss_sude: float | None = None
    rho: float | None = None
    hinge_share: float | None = None
    loss_prior: float | None = None


@dataclass
class MetricSum:
    """Sums over micro-steps."""

    _values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, terms: LossTerms) -> None:
        """Note one micro-step's terms."""
        named: dict[str, Tensor | None] = {
            "loss": terms.total,
            "loss_subject": terms.subject,
            "loss_sude": terms.sude,
            "rho": terms.rho,
            "hinge_share": terms.is_on,
            "loss_prior": terms.prior,
        }
        for name, value in named.items():
            if value is not None:
                self._values.setdefault(name, []).append(float(value.detach().float().mean()))

    def mean(self, name: str) -> float:
        """Mean over micro-steps (all have the same size)."""
        values = self._values[name]
        return sum(values) / len(values)

    def metrics(self, step: int, grad_norm: float, learning_rate: float) -> StepMetrics:
        """The step's figures."""
        means = {name: self.mean(name) for name in self._values}
        return StepMetrics(step=step, grad_norm=grad_norm, lr=learning_rate, **means)
