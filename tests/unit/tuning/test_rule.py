"""The selection rule on made-up numbers."""

from __future__ import annotations

import math

import pytest

from dreamfleet.config import TuneConfig
from dreamfleet.tuning.finals import Contender, decided
from dreamfleet.tuning.rule import (
    Candidate,
    as_of_last,
    best_first,
    fidelity_excess,
    is_less_aligned,
    lower_bound,
    pareto_front,
    rung_value,
)
from dreamfleet.tuning.study import rungs
from dreamfleet.tuning.trial import Reading


def test_the_bound_is_students() -> None:
    # t(0.9, 3) = 1.6377 (tables); mean 0.5, standard deviation 0.5774
    assert lower_bound([0, 1, 0, 1]) == pytest.approx(0.5 - 1.6377 * 0.57735 / 2, abs=1e-4)
    assert lower_bound([0.1]) == -math.inf


def test_pictures_are_paired() -> None:
    host = {"a": 0.2, "b": 0.6, "c": 0.9, "d": 0.4}
    same = {name: value - 0.02 for name, value in host.items()}
    assert fidelity_excess(same, host, 0.03) == pytest.approx(-0.01), "no spread: the mean counts"
    worse = {name: value - 0.05 for name, value in host.items()}
    assert fidelity_excess(worse, host, 0.03) == pytest.approx(0.02)
    assert fidelity_excess({"z": 1.0}, host, 0.03) > 0, "nothing in common proves nothing"


def test_infeasible_settings_never_win() -> None:
    good, strayed = Candidate("1", 0.6, -0.01, 0.5), Candidate("2", 0.9, 0.02, 0.1)
    worse = Candidate("3", 0.95, 0.3, 0.05)
    assert [c.label for c in best_first([worse, strayed, good])] == ["1", "2", "3"]
    assert [c.label for c in pareto_front([good, strayed, worse])] == ["1", "2", "3"]
    assert pareto_front([good, Candidate("4", 0.5, 0.0, 0.4)]) == [good]


def test_rungs_compare_what_has_learnt_the_subject() -> None:
    assert rung_value(0.9, 0.48, 0.5, 0.03) == pytest.approx(1.38)
    assert rung_value(0.98, 0.65, 0.6, 0.03) > rung_value(0.999, 0.58, 0.6, 0.03), "learns faster"
    assert rung_value(0.9, 0.3, 0.5, 0.03) == pytest.approx(-0.17)


def test_what_is_worse_than_the_host_for_sure() -> None:
    host = {"a": 0.2, "b": 0.6, "c": 0.9, "d": 0.4}
    lower = {name: value - 0.1 for name, value in host.items()}
    assert is_less_aligned(lower, host) and not is_less_aligned(host, lower)
    alike = {"a": 0.25, "b": 0.5, "c": 0.91, "d": 0.38}
    assert not is_less_aligned(alike, host) and not is_less_aligned({"e": 0.0}, host)


def test_a_rung_counts_as_of_the_last_ones_pictures() -> None:
    last = {"a": 0.5, "b": 0.1}
    assert as_of_last({"a": 0.7}, last, 0.7, 0.3) == pytest.approx(0.5)
    assert as_of_last({}, {}, 0.4, 0.6) == 0.4


def test_rungs() -> None:
    tune = TuneConfig(reduction_factor=2)
    assert rungs(TuneConfig(), 400) == (44, 132, 400)
    assert rungs(tune, 40) == (10, 20, 40)
    assert rungs(tune, 50) == (12, 24, 50)
    assert rungs(tune, 2) == (1, 2)
    assert rungs(TuneConfig(num_rungs=1), 40) == (40,)


def _reading(alignment: float, fidelity: float) -> Reading:
    pictures = {f"p{i}": fidelity + 0.01 * i for i in range(6)}
    return Reading(40, alignment, fidelity, {}, pictures, {})


def test_finals_keep_the_host_where_nothing_beats_it() -> None:
    host, other = Contender(0, {}, 40, True), Contender(5, {}, 20, False)
    seeds = (11, 12)
    found = {(0, seed): _reading(0.5, 0.6) for seed in seeds}
    better = {(5, seed): _reading(0.7, 0.59) for seed in seeds}
    finals = decided(found | better, [other, host], 0.03)
    assert finals.winner.contender is other and finals.host.alignment == 0.5
    strayed = {(5, seed): _reading(0.9, 0.5) for seed in seeds}
    assert decided(found | strayed, [other, host], 0.03).winner.contender is host
