"""How results of two arms are compared: over subjects, in pairs, by rules fixed beforehand.

The unit is the subject. Images of one prompt, prompts of one training run and training seeds of
one subject are averaged first (in this order), so that ten thousand images of eight subjects are
eight numbers. Differences are taken subject by subject between arms that used the same noise.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from dreamfleet.errors import BadInputError

Alternative = Literal["two-sided", "greater", "less"]

MIN_SUBJECTS = 8  # below this no interval is given: it would promise more than so few can hold
EXACT_FLIPS = 2**14  # all sign patterns are tried up to this many subjects' worth, else sampled
RANDOM_FLIPS = 20_000
ROUNDING = 1e-12  # differences as far apart as this are equal
LEVELS = ("subject", "seed", "prompt")


@dataclass(frozen=True)
class PairedComparison:
    """Arm A minus arm B over the subjects that both have.

    Attributes:
        num_subjects: pairs.
        mean_difference: mean over subjects of A - B, in the unit of the scores.
        interval: paired t interval at `confidence`; None below `MIN_SUBJECTS` subjects.
        p_t: p value of the paired t test of "difference = null"; None below `MIN_SUBJECTS`.
        p_sign_flip: p value of the sign-flip permutation test of the same; None below 2 subjects.
        confidence, null, alternative: as asked.
    """

    num_subjects: int
    mean_difference: float
    interval: tuple[float, float] | None
    p_t: float | None
    p_sign_flip: float | None
    confidence: float = 0.95
    null: float = 0.0
    alternative: Alternative = "two-sided"


def subject_means(
    rows: Iterable[Mapping[str, Any]], score: str, levels: Sequence[str] = LEVELS
) -> dict[str, float]:
    """Mean score of each subject, averaged level by level from the innermost.

    Args:
        rows: one mapping per image; rows whose score is None or NaN are left out.
        score: key of the score.
        levels: keys from the subject inwards; images of equal keys are averaged first, then the
            last level, and so on. A key that a row lacks counts as one value.

    Raises:
        BadInputError: no row has the score.
    """
    cells: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        value = row.get(score)
        if value is not None and not math.isnan(float(value)):
            cells[tuple(str(row.get(level, "")) for level in levels)].append(float(value))
    if not cells:
        raise BadInputError(f"no row has a value of {score!r}; expected at least one per subject")
    means = {key: float(np.mean(values)) for key, values in cells.items()}
    for depth in range(len(levels) - 1, 0, -1):
        groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for key, mean in means.items():
            groups[key[:depth]].append(mean)
        means = {key: float(np.mean(values)) for key, values in groups.items()}
    return {key[0]: mean for key, mean in means.items()}


def compare_paired(
    a: Mapping[str, float],
    b: Mapping[str, float],
    *,
    confidence: float = 0.95,
    null: float = 0.0,
    alternative: Alternative = "two-sided",
    seed: int = 0,
) -> PairedComparison:
    """Compare subject means `a` with `b` (see `subject_means`).

    Args:
        a, b: mean score by subject; both must name the same subjects.
        confidence: of the two-sided t interval.
        null: the difference to be refuted, e.g. -0.03 for "not worse by 0.03 or more".
        alternative: "greater": A - B > null.
        seed: of the random sign patterns where there are too many to try all.

    Raises:
        BadInputError: the arms differ in subjects, or there is none.
    """
    differences = _differences(a, b)
    count = len(differences)
    interval, p_t = None, None
    if count >= MIN_SUBJECTS:
        interval = t_interval(differences, confidence)
        p_t = _t_test(differences, null, alternative)
    return PairedComparison(
        num_subjects=count,
        mean_difference=float(differences.mean()),
        interval=interval,
        p_t=p_t,
        p_sign_flip=sign_flip_test(differences - null, alternative, seed) if count > 1 else None,
        confidence=confidence,
        null=null,
        alternative=alternative,
    )


def sign_flip_test(
    differences: np.ndarray, alternative: Alternative = "two-sided", seed: int = 0
) -> float:
    """p value of "the differences are symmetric about 0" by flipping their signs.

    All 2^n patterns are tried while there are at most `EXACT_FLIPS`; else `RANDOM_FLIPS` random
    ones.
    """
    values = np.asarray(differences, dtype=np.float64)
    few = 2 ** min(len(values), 60) <= EXACT_FLIPS
    result = stats.permutation_test(
        (values, np.zeros_like(values)),  # swapping a pair (d, 0) flips the sign of d
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=np.inf if few else RANDOM_FLIPS,
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values: compare each with the level of the whole family.

    The i-th smallest of m is multiplied by m - i + 1; adjusted values never decrease and end at 1
    (Holm 1979).
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted: dict[str, float] = {}
    highest = 0.0
    for i, name in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - i) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def both_hold(*p_values: float) -> float:
    """p value of a claim that holds only if all its parts do: the largest of theirs
    (intersection-union test, Berger 1982).
    """
    return max(p_values)


def _differences(a: Mapping[str, float], b: Mapping[str, float]) -> np.ndarray:
    unpaired = sorted(set(a) ^ set(b))
    if unpaired:
        raise BadInputError(
            f"{len(unpaired)} subjects are in one arm only ({', '.join(unpaired[:3])}); expected "
            "the same subjects in both: score the missing ones, or leave them out of both"
        )
    if not a:
        raise BadInputError("no subjects to compare; expected at least one in both arms")
    return np.array([a[subject] - b[subject] for subject in sorted(a)], dtype=np.float64)


def t_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """t interval of the mean of two or more values."""
    mean, error = float(values.mean()), float(stats.sem(values))
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(confidence, len(values) - 1, loc=mean, scale=error)
    return float(low), float(high)


def _t_test(differences: np.ndarray, null: float, alternative: Alternative) -> float:
    if float(np.ptp(differences)) <= ROUNDING:  # t is not defined; the sign-flip test still is
        return sign_flip_test(differences - null, alternative)
    return float(stats.ttest_1samp(differences, null, alternative=alternative).pvalue)
