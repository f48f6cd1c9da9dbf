"""The study of tuned settings: a sweep of known outcome, all else real, on a tiny random base."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from dreamfleet.config import RunConfig
from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.evaluation.results import read_rows
from dreamfleet.evaluation.studies.command import StudyOrder, study_run
from dreamfleet.evaluation.studies.fields import WorldField
from dreamfleet.evaluation.studies.tables import read_csv
from dreamfleet.evaluation.world_metrics import WorldScorer
from dreamfleet.tuning.reach import carry_out
from dreamfleet.tuning.trial import Reading
from tests.unit.studies.helpers import RECIPES, Colours, SeesDogs, write_trial_settings

pytestmark = pytest.mark.heavy


@pytest.fixture
def order(tmp_path: Path, tiny_base_folder: Path) -> StudyOrder:
    """The recipe on one development subject, with few pictures."""
    (path,) = RECIPES.glob("t_*.yaml")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    tree |= {"pictures": {"subject": 1, "state": 1}, "num_inference_steps": 1,
             "num_class_images": 2, "seeds": 1}  # fmt: skip
    recipe = tmp_path / "t.yaml"
    recipe.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return StudyOrder(
        str(recipe), str(tmp_path / "runs"), str(write_trial_settings(tmp_path / "s.yaml")),
        subjects=1, split="D", base_model=str(tiny_base_folder),
    )  # fmt: skip


class Sweeps:
    """Finds what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[RunConfig] = []

    def __call__(self, config: RunConfig, resume: bool) -> dict[str, Any]:
        self.asked.append(config)
        fixed = config.space.sude_weight
        weight = 0.0 if fixed == [0.0] else 2.5
        found = {"sude.weight": weight, "prior.weight": 1.0, "train.learning_rate": 1e-3,
                 "train.rank": 2, "method": "dreambooth", "train.max_train_steps": 3}  # fmt: skip
        keep_study(Path(str(config.output_dir)))
        return found | ({"sude.teacher": "current"} if weight else {})


def keep_study(folder: Path) -> None:
    """A host that was read twice, and a pruned trial of half its last pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", direction="maximize")
    weights = {"sude.weight": optuna.distributions.FloatDistribution(0, 3)}
    rows = {0.0: [(1, [0.8], [0.1]), (2, [0.2, 0.6], [0.7, 0.5])], 2.5: [(1, [0.4], [0.6])]}
    for weight, read in rows.items():
        readings = [asdict(reading(step, *scores)) for step, *scores in read]
        trial = optuna.trial.create_trial(
            state=TrialState.COMPLETE if weight == 0 else TrialState.PRUNED,
            value=0.2 if weight == 0 else None,
            params={"sude.weight": weight}, distributions=weights,
            user_attrs={"readings": readings, "host": weight == 0,
                        "setting": {"sude.weight": weight}},
        )  # fmt: skip
        study.add_trial(trial)


def reading(step: int, alignments: list[float], fidelities: list[float]) -> Reading:
    by_picture = [{f"p{i}": score for i, score in enumerate(s)} for s in (alignments, fidelities)]
    means = [sum(scores.values()) / len(scores) for scores in by_picture]
    return Reading(step, means[0], means[1], by_picture[0], by_picture[1], figures={})


def field(order: StudyOrder) -> WorldField:
    return WorldField(order.study(), scorer=WorldScorer(SeesDogs(), Colours()), judges="fixed")


def test_what_sweeps_find_is_trained_on_new_seeds_and_read_on_other_states(
    order: StudyOrder,
) -> None:
    sweeps, place = Sweeps(), field(order)
    folder, left = carry_out(order, lambda text: None, sweeps, place)
    assert left == []
    kinds = [(c.tune.sampler, c.tune.num_samples, c.sude.weight) for c in sweeps.asked]
    assert kinds == [("tpe", 16, 0.0), ("tpe", 16, 1.5), ("random", 16, 1.5), ("tpe", 4, 0.4)]
    assert {c.train.max_train_steps for c in sweeps.asked} == {2}  # the host's N
    assert all(Path(c.subject.images[0]).is_file() for c in sweeps.asked)
    rows = read_rows(folder / "results.parquet")
    assert {(row["arm"], row["steps"]) for row in rows} == {
        ("base", 0), ("F", 2), ("w_s = 0.4", 2), ("N", 3), ("S", 3), ("R", 3), ("flexible", 3),
    }  # fmt: skip
    assert {row["seed"] for row in rows if row["arm"] != "base"} == {1000}
    selection = set(place.selection(place.members()[0]))
    asked = {row["asked_state"] for row in rows if row["kind"] == "state"}
    assert len(selection) == 4 and len(asked) == 3 and not selection & asked
    about = json.loads((folder / "about.json").read_text())
    assert about["arms"]["D00-dog, lora: S"]["sude.teacher"] == "current"
    without = about["arms"]["D00-dog, lora: N"]
    assert "sude.weight" not in without and without["train.max_train_steps"] == 3
    assert about["rungs"] == {"lora": [2, 3]}
    seen = [row for row in read_csv(folder / "readings.csv") if row["arm"] == "S"]
    assert [(row["steps"], row["is_end_of_host"], row["sude.weight"]) for row in seen] == [
        (2, 1, 0), (1, 0, 0), (1, 0, 2.5),
    ]  # fmt: skip
    # Beside the host's 0.2 and 0.7 on the same picture; its means are 0.4 and 0.6.
    pairs = [(row["alignment"], row["fidelity"]) for row in seen]
    assert pairs == [pytest.approx(pair) for pair in [(0.4, 0.6), (1.0, 0.0), (0.6, 0.5)]]

    carry_out(order, lambda text: None, sweeps, place)
    assert len(sweeps.asked) == 4, "nothing is swept twice"


def test_held_back_subjects_and_the_plain_runner_are_refused(order: StudyOrder) -> None:
    with pytest.raises(BadInputError, match="trial settings"):
        carry_out(replace(order, split="T"), lambda text: None, Sweeps(), field(order))
    with pytest.raises(ConfigError, match="arms search"):
        study_run(order, lambda text: None, field(order))


def test_a_sweep_that_finds_nothing_is_an_error(order: StudyOrder) -> None:
    with pytest.raises(BadInputError, match="the sweep found"):
        carry_out(order, lambda text: None, lambda config, resume: {}, field(order))
