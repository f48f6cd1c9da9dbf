"""Comparisons of arms, against computations by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.statistics import (
    both_hold,
    compare_paired,
    holm,
    sign_flip_test,
    subject_means,
)


def arms(differences: list[float]) -> tuple[dict[str, float], dict[str, float]]:
    b = {f"s{i:02d}": 0.1 * i for i in range(len(differences))}
    return {name: b[name] + d for (name, d) in zip(b, differences, strict=True)}, b


class TestSubjectMeans:
    def test_averages_images_then_prompts_then_seeds(self) -> None:
        rows = [
            {"subject": "dog", "seed": 0, "prompt": "a", "score": 1.0},
            {"subject": "dog", "seed": 0, "prompt": "a", "score": 0.0},
            {"subject": "dog", "seed": 0, "prompt": "b", "score": 1.0},
            {"subject": "dog", "seed": 1, "prompt": "a", "score": 0.0},
        ]
        # seed 0: (0.5 + 1) / 2 = 0.75; seed 1: 0
        assert subject_means(rows, "score") == {"dog": 0.375}

    def test_a_prompt_with_more_images_weighs_no_more(self) -> None:
        rows: list[dict[str, Any]] = [{"subject": "x", "prompt": "a", "score": 1.0}] * 9
        rows += [{"subject": "x", "prompt": "b", "score": 0.0}]
        assert subject_means(rows, "score") == {"x": 0.5}

    def test_leaves_out_what_has_no_score(self) -> None:
        rows: list[dict[str, Any]] = [
            {"subject": "x", "score": None},
            {"subject": "x", "score": math.nan},
            {"subject": "x", "score": True},
        ]
        assert subject_means(rows, "score") == {"x": 1.0}

    def test_refuses_rows_without_any(self) -> None:
        with pytest.raises(BadInputError, match="alignment"):
            subject_means([{"subject": "x"}], "alignment")


class TestPairedComparison:
    def test_interval_is_the_textbook_one(self) -> None:
        differences = [0.1, 0.2, 0.0, 0.3, 0.1, 0.2, 0.15, 0.05, 0.1]
        result = compare_paired(*arms(differences))
        mean = sum(differences) / 9
        deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 8)
        half = 2.306004 * deviation / 3  # t(0.975, 8 degrees of freedom)
        assert result.mean_difference == pytest.approx(mean)
        assert result.interval == pytest.approx((mean - half, mean + half), rel=1e-5)
        assert result.p_t is not None and result.p_t < 0.01

    def test_no_interval_below_eight_subjects(self) -> None:
        result = compare_paired(*arms([0.1] * 3 + [0.2] * 4))
        assert result.interval is None and result.p_t is None
        assert result.p_sign_flip == pytest.approx(2 / 2**7)

    def test_eight_equal_differences_are_no_error(self) -> None:
        result = compare_paired(*arms([0.125] * 8))
        assert result.interval == pytest.approx((0.125, 0.125))
        assert result.p_sign_flip == pytest.approx(2 / 2**8)

    def test_non_inferiority_moves_the_null(self) -> None:
        slightly_worse = [-0.01, -0.02, 0.0, -0.015, -0.01, 0.005, -0.01, -0.02, -0.01]
        a, b = arms(slightly_worse)
        fine = compare_paired(a, b, null=-0.03, alternative="greater")
        better = compare_paired(a, b, alternative="greater")
        assert fine.p_t is not None and fine.p_t < 0.001
        assert fine.p_sign_flip == pytest.approx(1 / 2**9)
        assert better.p_t is not None and better.p_t > 0.9

    def test_refuses_different_subjects(self) -> None:
        with pytest.raises(BadInputError, match="one arm only .cat"):
            compare_paired({"dog": 1.0, "cat": 0.0}, {"dog": 1.0})

    def test_refuses_no_subjects(self) -> None:
        with pytest.raises(BadInputError, match="no subjects"):
            compare_paired({}, {})


class TestSignFlips:
    @pytest.mark.parametrize("alternative", ["greater", "less"])
    def test_is_the_share_of_sign_patterns(self, alternative: str) -> None:
        values = np.array([0.3, -0.1, 0.2, 0.4, 0.25])
        patterns = itertools.product([1, -1], repeat=5)
        means = [float((values * np.array(signs)).mean()) for signs in patterns]
        sign = 1 if alternative == "greater" else -1
        share = np.mean([sign * mean >= sign * values.mean() - 1e-12 for mean in means])
        assert sign_flip_test(values, alternative) == pytest.approx(share)  # type: ignore[arg-type]

    def test_many_subjects_are_sampled_and_repeatable(self) -> None:
        values = np.random.default_rng(0).normal(0.5, 1.0, 40)
        assert sign_flip_test(values) == sign_flip_test(values)
        assert sign_flip_test(values) < 0.05


class TestHolm:
    def test_worked_example(self) -> None:
        adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
        assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})

    def test_is_at_most_one_and_keeps_order(self) -> None:
        assert holm({"x": 0.9, "y": 0.8}) == {"x": 1.0, "y": 1.0}
        assert list(holm({"x": 0.9, "y": 0.1})) == ["x", "y"]

    def test_a_claim_of_two_parts_has_the_worse_p(self) -> None:
        assert both_hold(0.01, 0.2) == 0.2
