"""The confirmation's analysis on made-up data: what is there is found, what is not is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from dreamfleet.evaluation.studies.claims import (
    choose_setting,
    judged_claims,
    primary_results,
)
from dreamfleet.evaluation.studies.recipe import Study
from dreamfleet.evaluation.studies.tables import values
from tests.unit.studies.helpers import made_up_table

HOST = "lora-prior"


def verdicts(table: list[dict[str, Any]], hosts: tuple[str, ...] = (HOST,)) -> dict[Any, str]:
    return {(own.host, own.setting): own.verdict for own in primary_results(table, hosts)}


class TestPrimaryClaim:
    def test_a_known_effect_is_found_with_its_size(self) -> None:
        table = made_up_table({(HOST, "chosen"): (0.10, 0.0), (HOST, "official"): (0.0, 0.0)})
        chosen, official = primary_results(table, [HOST])
        assert chosen.verdict == "holds" and official.verdict != "holds"
        assert chosen.alignment is not None and chosen.alignment.interval is not None
        low, high = chosen.alignment.interval
        assert low < 0.10 < high and chosen.alignment.num_subjects == 24

    def test_null_effects_are_rarely_found(self) -> None:
        """5 % over four hypotheses together: more than 5 of 30 are found once in 300 times."""
        hosts = ("lora", "full")
        effects = {(host, arm): (0.0, 0.0) for host in hosts for arm in ("chosen", "official")}
        found = 0
        for seed in range(30):
            table = made_up_table(effects, seed=seed, subjects=8)
            found += "holds" in verdicts(table, hosts).values()
        assert found <= 5

    @pytest.mark.parametrize(
        ("alignment", "identity", "holds"),
        [(0.10, 0.0, True), (0.10, -0.02, True), (0.10, -0.06, False), (0.0, 0.05, False)],
    )
    def test_both_parts_are_needed(self, alignment: float, identity: float, holds: bool) -> None:
        effects = {(HOST, arm): (alignment, identity) for arm in ("chosen", "official")}
        found = verdicts(made_up_table(effects, spread=0.01))
        assert (found[HOST, "chosen"] == "holds") is holds

    def test_p_is_the_larger_part_s_and_adjusted_by_holm(self) -> None:
        effects = {
            ("lora", "chosen"): (0.03, 0.0),
            ("lora", "official"): (0.02, 0.0),
            ("full", "chosen"): (0.01, 0.0),
            ("full", "official"): (0.0, 0.0),
        }
        table = made_up_table(effects)
        raw = {}
        for host, setting in effects:
            own = {
                arm: np.array(
                    [(r["alignment"], r["identity"]) for r in table
                     if (r["host"], r["arm"]) == (host, arm)]
                )
                for arm in (setting, "host")
            }  # fmt: skip
            parts = (own[setting] - own["host"]).T
            raw[host, setting] = max(
                stats.ttest_1samp(parts[0], 0.0, alternative="greater").pvalue,
                stats.ttest_1samp(parts[1], -0.03, alternative="greater").pvalue,
            )
        expected, highest = {}, 0.0
        for place, name in enumerate(sorted(raw, key=lambda n: raw[n])):
            highest = max(highest, min(1.0, (4 - place) * raw[name]))
            expected[name] = highest
        for result in primary_results(table, ["lora", "full"]):
            name = (result.host, result.setting)
            assert result.p == pytest.approx(raw[name])
            assert result.p_holm == pytest.approx(expected[name])
            assert (result.verdict == "holds") is bool(expected[name] < 0.05)

    def test_no_interval_below_eight_subjects(self) -> None:
        effects = {(HOST, arm): (0.2, 0.1) for arm in ("chosen", "official")}
        for result in primary_results(made_up_table(effects, subjects=7), [HOST]):
            assert result.verdict == "too few subjects" and result.p_holm is None
            assert result.alignment is not None and result.alignment.interval is None
        assert verdicts(made_up_table(effects, subjects=8))[HOST, "chosen"] == "holds"

    def test_a_clear_loss_refutes(self) -> None:
        effects = {(HOST, "chosen"): (-0.1, 0.0), (HOST, "official"): (0.1, -0.2)}
        assert set(verdicts(made_up_table(effects)).values()) == {"refuted"}

    def test_subjects_without_a_figure_are_left_out_of_both_arms(self) -> None:
        table = made_up_table({(HOST, "chosen"): (0.1, 0.0)})
        del table[3]["identity"]
        (chosen,) = primary_results(table, [HOST], settings=["chosen"])
        assert chosen.dropped == 1 and chosen.alignment is not None
        assert chosen.alignment.num_subjects == 23

    def test_a_host_without_a_chosen_setting_is_not_called_unrun(self) -> None:
        table = made_up_table({("lora", "official"): (0.1, 0.0), ("full", "chosen"): (0.1, 0.0)})
        found = verdicts(table, ("lora", "full"))
        assert found["lora", "chosen"] == found["full", "official"] == "nothing to compare"
        assert found["lora", "official"] == found["full", "chosen"] == "holds"
        (own,) = judged_claims(
            study({"claim": "c", "figure": "alignment", "arm": "chosen", "against": "host"}),
            table, ["lora"],
        )  # fmt: skip
        assert own.verdict == "nothing to compare" and own.p_holm is None

    def test_what_was_not_run_is_said(self) -> None:
        assert verdicts([]) == {(HOST, "chosen"): "not run yet", (HOST, "official"): "not run yet"}


def study(*claims: dict[str, Any]) -> Study:
    tree = {
        "study": "z", "title": "t", "question": "q", "hosts": [HOST],
        "pictures": {"state": 1}, "arms": [{"name": "host"}, {"name": "chosen"}],
        "figures": ["alignment"], "claims": list(claims),
    }  # fmt: skip
    return Study.model_validate(tree)


class TestClaims:
    def claim(self, **changes: Any) -> dict[str, Any]:
        return {"claim": "c", "figure": "alignment", "arm": "chosen", "against": "host", **changes}

    def test_direction_and_threshold(self) -> None:
        table = made_up_table({(HOST, "chosen"): (0.10, -0.10)})
        claims = [
            self.claim(), self.claim(expect="below"), self.claim(threshold=0.2),
            self.claim(figure="identity", expect="below"),
        ]  # fmt: skip
        found = judged_claims(study(*claims), table, [HOST])
        assert [own.verdict for own in found] == ["holds", "refuted", "refuted", "holds"]

    def test_only_some_subjects(self) -> None:
        table = made_up_table({(HOST, "chosen"): (0.10, 0.0)})
        (live,) = judged_claims(study(self.claim(subjects="live")), table, [HOST])
        assert live.comparison is not None and live.comparison.num_subjects == 12
        few = [row for row in table if row["subject"] < "C10"]
        (live,) = judged_claims(study(self.claim(subjects="live")), few, [HOST])
        assert live.verdict == "too few subjects" and live.comparison is not None

    def test_p_is_adjusted_over_the_study_s_claims(self) -> None:
        table = made_up_table({(HOST, "chosen"): (0.025, 0.0)})
        (alone,) = judged_claims(study(self.claim()), table, [HOST])
        several = judged_claims(study(self.claim(), self.claim(figure="identity")), table, [HOST])
        assert alone.p_holm is not None
        assert several[0].p_holm == pytest.approx(2 * alone.p_holm)
        beside = study(self.claim(), self.claim(figure="identity", exploratory=True))
        assert judged_claims(beside, table, [HOST])[0].p_holm == pytest.approx(alone.p_holm)


class TestChoice:
    def test_best_alignment_among_those_that_keep_likeness(self) -> None:
        effects = {
            (HOST, "strong"): (0.3, -0.2),
            (HOST, "fair"): (0.2, -0.01),
            (HOST, "weak"): (0.1, 0.05),
        }
        table = made_up_table(effects, spread=0.001)
        names = ["strong", "fair", "weak"]
        assert choose_setting(table, HOST, names) == "fair"
        assert choose_setting(table, HOST, ["strong"]) is None

    def test_an_arm_that_broke_down_on_a_subject_is_not_chosen(self) -> None:
        table = made_up_table({(HOST, "x"): (0.3, 0.1), (HOST, "y"): (0.1, 0.1)}, spread=0.001)
        assert choose_setting(table, HOST, ["x", "y"]) == "x"
        worst = min((row for row in table if row["arm"] == "x"), key=lambda row: row["identity"])
        table.remove(worst)
        assert choose_setting(table, HOST, ["x", "y"]) == "y"
        assert choose_setting(table, HOST, ["x"]) is None

    def test_nor_is_one_of_which_a_seed_broke_down(self) -> None:
        """Its mean over the other seed would be compared with a mean over both."""
        table = made_up_table({(HOST, "x"): (0.3, 0.1), (HOST, "y"): (0.1, 0.1)}, spread=0.001)
        row = next(row for row in table if row["arm"] == "x")
        row["seeds"] = 1
        assert choose_setting(table, HOST, ["x", "y"]) == "y"
        assert row["subject"] not in values(table, HOST, "x", 1.0, "alignment")
        assert row["subject"] in values(table, HOST, "y", 1.0, "alignment")
