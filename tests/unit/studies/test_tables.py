"""From rows of pictures to figures of a subject; the expected values are counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dreamfleet.evaluation.studies.figures import rho_table
from dreamfleet.evaluation.studies.tables import (
    figures,
    means,
    read_csv,
    subject_table,
    write_csv,
)


def row(kind: str, prompt: str, aligned: bool | None, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "study": "b", "host": "lora", "arm": "host", "rung": 1.0, "steps": 4, "seed": seed,
        "subject": "D00-dog", "class": "dog", "live": True, "kind": kind, "prompt": prompt,
        "asks": more.get("asked_state", ""), "aligned": aligned, "copied": False, "joint": aligned,
        "similarity": 0.6, "floor": 0.4, "ceiling": 0.8, "photo_similarity": 0.5,
        "asked_state": None, "asked_scene": None, "seen_class": "dog", "seen_state": "sitting",
        "seen_scene": "snow", "seen_prop": "no", "class_variety": None, **more,
    }  # fmt: skip


def test_prompts_count_alike_whatever_their_pictures() -> None:
    rows = [row("state", "a", True), row("state", "b", False), row("state", "b", False),
            row("state", "b", True)]  # fmt: skip
    assert figures(rows)["alignment"] == pytest.approx((1 + 1 / 3) / 2)


def test_seeds_are_averaged_last() -> None:
    rows = [row("state", "a", True), row("state", "b", True), row("state", "a", False, seed=1)]
    (own,) = subject_table(rows)
    assert own["alignment"] == pytest.approx(0.5) and own["seeds"] == 2 and own["pictures"] == 3


def test_identity_is_summed_gains_over_summed_ranges() -> None:
    rows = [row("state", "a", True), row("scene", "b", True, similarity=0.4, ceiling=1.4)]
    assert figures(rows)["identity"] == pytest.approx(0.2 / 1.4)
    assert figures(rows)["identity_states"] == pytest.approx(0.5)


def test_only_scored_states_count_and_both_parts_of_a_combined_prompt_are_told_apart() -> None:
    rows = [
        row("state", "a", True, asked_state="sitting"),
        row("state", "b", False, asked_state="hat"),
        row("combined", "c", False, asked_state="sitting", asked_scene="beach"),
    ]
    (own,) = subject_table(rows, {"dog": ["sitting"]})
    assert own["alignment"] == 1.0
    assert (own["combined_alignment"], own["state_of_combined"]) == (0.0, 1.0)
    assert own["scene_of_combined"] == 0.0


def test_published_figures_are_told_by_their_backbone() -> None:
    common = {"study": "b", "subject": "dog", "class": "dog", "live": True}
    rows = [
        {**common, "kind": "state", "prompt": "a", "blip_t[blip]": 0.4, "dino_i[vit]": 0.7},
        {**common, "kind": "scene", "prompt": "b", "blip_t[blip]": 0.2, "dino_i[vit]": 0.5},
        {**common, "kind": "class", "prompt": "c", "pres[vit]": 0.3},
    ]
    found = figures(rows)
    assert found["alignment"] == 0.4 and found["identity"] == pytest.approx(0.6)
    assert found["class_drift"] == 0.3 and "copy_rate" not in found


def test_a_table_comes_back_from_its_file(tmp_path: Path) -> None:
    table = [{"arm": "none", "steps": 4, "live": True, "alignment": 1 / 3, "identity": 1e-7},
             {"arm": "1 photo", "steps": 4, "live": False, "identity": float("nan")}]  # fmt: skip
    write_csv(tmp_path / "t.csv", table)
    first, second = read_csv(tmp_path / "t.csv")
    assert first["alignment"] == pytest.approx(1 / 3, rel=1e-4)
    assert (first["arm"], first["live"], first["identity"]) == ("none", 1, 1e-7)
    assert second["arm"] == "1 photo" and "identity" not in second and "alignment" not in second


def test_names_stay_names_where_they_are_numbers(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [{"arm": "400", "subject": "00", "steps": 400}])
    assert read_csv(tmp_path / "t.csv") == [{"arm": "400", "subject": "00", "steps": 400}]


def test_an_arm_is_one_row_even_where_each_subject_has_its_own_steps() -> None:
    common = {"host": "lora", "rung": 1.0}
    table = [{**common, "arm": "S", "steps": 44, "alignment": 0.2},
             {**common, "arm": "F", "steps": 200, "alignment": 0.1},
             {**common, "arm": "S", "steps": 400, "alignment": 0.6},
             {**common, "arm": "F", "steps": 200, "alignment": 0.3}]  # fmt: skip
    found = [(own["arm"], own["steps"], own["subjects"], own["alignment"])
             for own in means(table, ["alignment"])]  # fmt: skip
    assert found == [("S", None, 2, pytest.approx(0.4)), ("F", 200, 2, pytest.approx(0.2))]


def test_rho_by_part_of_the_training_and_range_of_t() -> None:
    logs = [
        {"host": "lora", "arm": "x", "step": step, "t": t, "rho": rho, "hinge_share": 1.0}
        for step, t, rho in [(1, 10, 0.2), (1, 200, 0.4), (8, 10, 1.0), (8, 900, 3.0)]
    ]
    found = {(own["steps"], own["t_from"]): own for own in rho_table(logs)}
    assert found[1, 0]["rho"] == pytest.approx(0.3) and found[1, 0]["samples"] == 2
    assert found[8, 750]["rho"] == 3.0
    longer = [{**logs[0], "host": "lora-prior", "step": 1600}]
    assert {own["steps"] for own in rho_table([*logs, *longer])} == {1, 8, 1600}  # by host
    assert rho_table([{"host": "lora", "arm": "x", "step": 1, "t": 1, "rho": None}]) == []
