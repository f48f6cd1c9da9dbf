"""Studies as commands: several processes, and sweeps by the real `tune`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dreamfleet.evaluation.studies import command
from dreamfleet.evaluation.studies.settings import read_settings
from dreamfleet.evaluation.studies.tables import read_csv
from dreamfleet.tuning import reach
from tests.tiny_evaluators import write_tiny_blip, write_tiny_dino
from tests.unit.studies.helpers import RECIPES, write_trial_settings

pytestmark = pytest.mark.slow


def short(tmp_path: Path, name: str, **changes: object) -> Path:
    (path,) = RECIPES.glob(f"{name}_*.yaml")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    few = {"pictures": {"subject": 1, "state": 1, "scene": 1}, "num_inference_steps": 1,
           "num_class_images": 2, "seeds": 1}  # fmt: skip
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump({**tree, **few, **changes}), encoding="utf-8")
    return recipe


def test_two_processes_take_subjects_side_by_side(tmp_path: Path, tiny_base: Path) -> None:
    settings = write_trial_settings(tmp_path / "settings.yaml")
    order = command.StudyOrder(
        str(short(tmp_path, "b")), str(tmp_path / "runs"), str(settings), subjects=2,
        base_model=str(tiny_base),
    )  # fmt: skip
    folder, left = command.carry_out(order, lambda text: None, num_workers=2)
    assert left == []
    table = read_csv(folder / "table.csv")
    assert {row["subject"] for row in table} == {"D00-dog", "D01-teapot"}
    assert read_settings(settings).trial


def test_tuned_settings_by_real_sweeps(tmp_path: Path, tiny_base: Path) -> None:
    """One subject; every sweep has two small trials, judged by tiny networks."""
    judges = {
        "tune.dino": str(write_tiny_dino(tmp_path / "dino")),
        "tune.blip": str(write_tiny_blip(tmp_path / "blip")),
    }
    small = {
        "tune.num_samples": 2, "tune.num_rungs": 2, "tune.images_per_rung": 4,
        "tune.images_at_end": 4, "tune.final_images": 4, "tune.final_seeds": 1,
        "tune.rung_inference_steps": 1, "space.rank": [2], "train.rank": 2,
    }  # fmt: skip
    order = command.StudyOrder(
        str(short(tmp_path, "t")), str(tmp_path / "runs"),
        str(write_trial_settings(tmp_path / "settings.yaml")), subjects=1, split="D",
        base_model=str(tiny_base), overrides={**judges, **small},
    )  # fmt: skip
    folder, left = reach.carry_out(order, lambda text: None)
    assert left == []
    arms = {row["arm"] for row in read_csv(folder / "table.csv")}
    assert arms == {"base", "F", "N", "S", "R", "w_s = 0.4", "flexible"}
    assert len(list((folder / reach.SWEEPS).glob("*.json"))) == 4
