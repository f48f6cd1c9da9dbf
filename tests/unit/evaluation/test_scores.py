"""Tables, comparisons and charts from made-up figures whose answers are known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.assessment import compare, comparison_lines
from dreamfleet.assessment.comparisons import Compared
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.charts import Point, by_steps, scatter
from dreamfleet.evaluation.evaluation_report import _card
from dreamfleet.evaluation.results import SUMMARY, read_summary, write_summary
from dreamfleet.evaluation.scores import (
    compare_entries,
    headline,
    higher_is_better,
    summarise_scores,
    title,
)

CLIP, DIV = "clip_t[vit]", "class_div[lpips]"


def row(host: str, subject: str, seed: int, prompt: str, **figures: float) -> dict[str, Any]:
    steps = 0 if host == "base" else 10
    return {"host": host, "steps": steps, "subject": subject, "seed": seed, "prompt": prompt,
            "kind": "scene", **figures}  # fmt: skip


class TestSummary:
    def test_pictures_then_prompts_then_seeds_are_averaged(self) -> None:
        rows = [
            row("base", "a", 0, "p", **{CLIP: 0.0}),
            # seed 0: prompt p (0.2, 0.4) -> 0.3, prompt q 0.9 -> 0.6; seed 1: 0.2 -> mean 0.4
            row("x", "a", 0, "p", **{CLIP: 0.2}),
            row("x", "a", 0, "p", **{CLIP: 0.4}),
            row("x", "a", 0, "q", **{CLIP: 0.9}),
            row("x", "a", 1, "p", **{CLIP: 0.2}),
        ]
        summary = summarise_scores(rows)
        assert summary["table"][1]["subjects"][CLIP]["a"] == pytest.approx(0.4)
        difference = summary["against_base"][0]["differences"][CLIP]
        assert difference["mean_difference"] == pytest.approx(0.4)

    def test_refuses_rows_without_figures(self) -> None:
        with pytest.raises(BadInputError, match="no judge"):
            summarise_scores([row("base", "a", 0, "p")])

    def test_titles_keep_the_backbone(self) -> None:
        assert title(CLIP) == "Prompt fidelity (CLIP-T), vit"
        assert headline([DIV, "other", CLIP]) == [CLIP, DIV]
        assert higher_is_better(CLIP) and not higher_is_better("pres[vit]")


def entry(values: dict[str, list[float]]) -> dict[str, Any]:
    subjects = {n: {f"s{i}": v for i, v in enumerate(own)} for n, own in values.items()}
    means = {n: sum(own) / len(own) for n, own in values.items()}
    return {"host": "x", "steps": 1, "means": means, "subjects": subjects}


def comparison_text(found: list[dict[str, Any]]) -> list[str]:
    """The lines of the figures."""
    compared = [Compared("a", {}), Compared("b", {})]
    return [line for line in comparison_lines(compared, found) if line.startswith("  ")][:-1]


class TestCompare:
    def test_eight_pairs_give_an_interval_and_holm_over_all_tests(self) -> None:
        better = [0.1 + 0.01 * i for i in range(8)]
        a = entry({CLIP: better, "dino_i[vit]": better})
        b = entry({CLIP: [0.0] * 8, "dino_i[vit]": [0.1] * 8})
        found = compare_entries(a, {"b": b})
        first = found[0]
        assert first["mean_difference"] == pytest.approx(0.135)
        assert first["interval"][0] < 0.135 < first["interval"][1]
        assert first["p_sign_flip"] == pytest.approx(2 / 2**8)  # all signs alike: 2 of 256
        assert first["p_holm"] == pytest.approx(min(1, 2 * min(r["p_t"] for r in found)))

    def test_a_figure_of_no_known_direction_gets_no_verdict(self) -> None:
        """Less diversity than another adapter's is neither better nor worse."""
        a, b = ({"diversity": [value], CLIP: [value]} for value in (0.3, 0.2))
        found = compare_entries(entry(a), {"b": entry(b)})
        first, second = comparison_text(found)
        assert "+0.100" in first and "better" not in first
        assert "+0.100" in second and "better" in second

    def test_seven_pairs_give_none(self) -> None:
        a, b = entry({CLIP: [0.2] * 7}), entry({CLIP: [0.1] * 7})
        found = compare_entries(a, {"b": b})[0]
        assert found["interval"] is None and found["p_holm"] is None

    def test_nothing_in_common_is_refused(self) -> None:
        with pytest.raises(BadInputError, match="no figure in common"):
            compare_entries(entry({CLIP: [1.0]}), {"b": entry({DIV: [1.0]})})

    def test_one_null_costs_one_subject_and_other_subjects_are_refused(self) -> None:
        a, b = entry({CLIP: [0.2] * 9}), entry({CLIP: [0.1] * 9})
        b["subjects"][CLIP]["s0"] = None
        (found,) = compare_entries(a, {"b": b})
        assert found["num_subjects"] == 8 and found["interval"] is not None
        b["subjects"][CLIP] = {"somebody": 0.1}
        with pytest.raises(BadInputError, match="same subjects"):
            compare_entries(a, {"b": b})

    def test_figures_that_were_measured_otherwise_are_refused(self, tmp_path: Path) -> None:
        settings = {"oracle": "A", "scored states": "all", "adapter": "x"}
        for name, changes in (
            ("one", {}), ("two", {"adapter": "y"}), ("three", {"scored states": "0f"})
        ):  # fmt: skip
            (tmp_path / name).mkdir()
            summary = {"table": [entry({CLIP: [0.5]})], "settings": {**settings, **changes}}
            write_summary(tmp_path / name / SUMMARY, summary)
        one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
        assert compare([one, two])
        with pytest.raises(BadInputError, match="scored states all and 0f"):
            compare([one, three])

    def test_what_only_one_of_them_says_is_refused(self, tmp_path: Path) -> None:
        """A summary that does not say how it was measured is no pair to one that does."""
        for name, settings in (("one", {"sampler": "ddim"}), ("two", {}), ("three", {})):
            (tmp_path / name).mkdir()
            summary = {"table": [entry({CLIP: [0.5]})], "settings": settings}
            write_summary(tmp_path / name / SUMMARY, summary)
        one, two, three = (str(tmp_path / name) for name in ("one", "two", "three"))
        assert compare([two, three])
        with pytest.raises(BadInputError, match="sampler ddim and not said; .*anew"):
            compare([one, two])

    def test_others_of_the_same_name_are_refused(self, tmp_path: Path) -> None:
        """`personalize X/00.png` calls every subject 00."""
        known = {"one": {"s0": "rex"}, "two": {"s0": "tom", "s9": "x"}, "old": None}
        for name, individuals in known.items():
            (tmp_path / name).mkdir()
            summary: dict[str, Any] = {"table": [entry({CLIP: [0.5]})]}
            if individuals is not None:
                summary["individuals"] = individuals
            write_summary(tmp_path / name / SUMMARY, summary)
        one, two, old = (str(tmp_path / name) for name in known)
        assert compare([one, old]) and compare([old, two]), "older summaries do not say"
        with pytest.raises(BadInputError, match=r"one and two mean others .*: s0 \(reference"):
            compare([one, two])

    def test_how_many_were_compared_and_who_was_not(self) -> None:
        a, b = entry({CLIP: [0.2] * 9, "dino_i[vit]": [0.2]}), entry({CLIP: [0.1] * 8})
        lines = list(
            comparison_lines([Compared("a", a), Compared("b", b)], compare_entries(a, {"b": b}))
        )
        assert ", 8 subjects  (better)" in lines[1]
        assert lines[2] == "  (in one of them only, and not compared: s8)"

    def test_folders_and_adapters(self, tmp_path: Path) -> None:
        for name, value in (("one", 0.5), ("two", 0.25)):
            (tmp_path / name).mkdir()
            table = [{**entry({CLIP: [0.0]}), "host": "base", "steps": 0}, entry({CLIP: [value]})]
            write_summary(tmp_path / name / SUMMARY, {"table": table})
        compared, found = compare([str(tmp_path / "one"), str(tmp_path / "two")])
        text = "\n".join(comparison_lines(compared, found))
        assert "one minus two" in text and "+0.250" in text and "(better)" in text
        assert "fewer than 8 subjects" in text
        with pytest.raises(BadInputError, match="two or more"):
            compare([str(tmp_path / "one")])
        (tmp_path / "empty").mkdir()
        with pytest.raises(BadInputError, match=r"adapter\.json"):
            compare([str(tmp_path / "one"), str(tmp_path / "empty")])
        with pytest.raises(BadInputError, match="typo: no such folder; give an output folder"):
            compare([str(tmp_path / "one"), str(tmp_path / "typo")])

    def test_nan_is_kept_out_of_files(self, tmp_path: Path) -> None:
        path = tmp_path / SUMMARY
        write_summary(path, {"table": [], "x": float("nan"), "y": [1.0, float("inf")]})
        assert json.loads(path.read_text())["x"] is None
        assert read_summary(path)["y"] == [1.0, None]
        path.write_text("[]")
        with pytest.raises(BadInputError, match="no summary"):
            read_summary(path)


class TestCharts:
    def test_scatter_puts_better_up_and_right(self) -> None:
        svg = scatter([Point("low", 0.1, 0.2), Point("high", 0.9, 0.8, 1)], "x", "y")
        dots = re.findall(r'<circle[^>]*cx="([\d.]+)" cy="([\d.]+)"', svg)
        (x0, y0), (x1, y1) = sorted((float(x), float(y)) for x, y in dots)
        assert x1 > x0 and y1 < y0
        assert ">high<" in svg and "low: x 0.1, y 0.2" in svg

    def test_nothing_to_draw_is_nothing(self) -> None:
        assert scatter([Point("a", float("nan"), 1.0)], "x", "y") == ""
        assert by_steps({"a": {10: 1.0}}, "t") == ""

    def test_a_line_per_host(self) -> None:
        svg = by_steps({"lora": {10: 0.1, 20: 0.4}, "full": {10: 0.2, 20: float("nan")}}, "t")
        assert svg.count('class="line') == 2 and svg.count("<circle") == 3
        assert ">10<" in svg and ">20<" in svg

    def test_labels_are_escaped(self) -> None:
        assert "<script" not in scatter([Point("<script>", 0.0, 0.0)], "x", "y")


def test_variety_below_the_bare_base_s_is_no_fault() -> None:
    """One subject varies less than a class; of two adapters the more various one is better."""
    div = "div[lpips]"
    rows = [
        row(host, "a", 0, "p", **{CLIP: value, div: value})
        for host, value in (("base", 0.6), ("x", 0.4))
    ]
    summary = summarise_scores(rows)
    base, arm = summary["table"]
    verdicts = {n: _card(summary, arm, base, n)["verdict"] for n in (CLIP, div)}
    assert verdicts == {CLIP: "bad", div: ""}
    assert higher_is_better(div)
