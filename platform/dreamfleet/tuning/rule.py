"""The selection rule: the best alignment among settings whose fidelity is not below the host's.

The host is the same subject's adapter without SuDe, all else by the recipe. "Not worse": the
one-sided 90 % bound of the paired difference in fidelity, picture by picture with the same prompt
and noise, lies above minus the margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

CONFIDENCE = 0.9
T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """A setting as the rule sees it.

    Attributes:
        label: which.
        alignment: higher is better.
        excess: how far fidelity is below what is allowed; feasible at 0 or less.
        fidelity: for the Pareto front.
    """

    label: str
    alignment: float
    excess: float
    fidelity: float

    @property
    def feasible(self) -> bool:
        return self.excess <= 0


def lower_bound(differences: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """One-sided t bound of the mean of paired differences; minus infinity for fewer than two."""
    count = len(differences)
    if count < 2:
        return -math.inf
    from scipy import stats

    mean = math.fsum(differences) / count
    variance = math.fsum((d - mean) ** 2 for d in differences) / (count - 1)
    quantile = float(stats.t.ppf(confidence, count - 1))
    return mean - quantile * math.sqrt(variance / count)


def fidelity_excess(own: Mapping[str, float], host: Mapping[str, float], margin: float) -> float:
    """The constraint: 0 or less where `own` is not worse than `host` by more than `margin`.

    Args:
        own, host: fidelity by picture; those that both have are compared.
        margin: what may be lost.
    """
    bound = _paired_bound(own, host)
    return 2.0 if math.isinf(bound) else -margin - bound


def is_less_aligned(own: Mapping[str, float], host: Mapping[str, float]) -> bool:
    """Whether a trial is less aligned than the host for sure: the one-sided bound of the
    difference, picture by picture, lies below 0.

    Args:
        own, host: alignment by picture.
    """
    return _paired_bound(host, own) > 0


def _paired_bound(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """`lower_bound` of one minus the other, over the pictures that both have."""
    return lower_bound([value - other[name] for name, value in one.items() if name in other])


def rung_value(alignment: float, fidelity: float, host: float, margin: float) -> float:
    """What the pruner compares at a rung: alignment and fidelity together, for what has learnt
    little yet is always well aligned, and the end asks for the host's fidelity. One that is already
    too low counts below every one that is not.

    Args:
        host: the host's fidelity at the same rung.
    """
    short = host - margin - fidelity
    return alignment + fidelity if short <= 0 else -short


def as_of_last(
    own: Mapping[str, float], last: Mapping[str, float], own_mean: float, last_mean: float
) -> float:
    """A rung's mean as it would be over the last rung's pictures, of which it has only some: the
    last rung's mean plus the difference over those that both have.

    Args:
        own, last: a score by picture.
        own_mean, last_mean: of all of them; the former stands where nothing is in common.
    """
    common = [value - last[name] for name, value in own.items() if name in last]
    return last_mean + math.fsum(common) / len(common) if common else own_mean


def best_first(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Feasible ones by alignment, then the others by how little they fail."""
    return sorted(
        candidates, key=lambda c: (not c.feasible, -c.alignment if c.feasible else c.excess)
    )


def pareto_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that none beats in both alignment and fidelity, by rising alignment."""
    front = [
        own
        for own in candidates
        if not any(
            other.alignment >= own.alignment
            and other.fidelity >= own.fidelity
            and (other.alignment, other.fidelity) != (own.alignment, own.fidelity)
            for other in candidates
        )
    ]
    return sorted(front, key=lambda c: (c.alignment, -c.fidelity))
