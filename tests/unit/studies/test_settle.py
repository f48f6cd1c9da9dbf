"""From a measured base and a ladder to the settings that studies read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.results import write_summary
from dreamfleet.evaluation.studies.command import StudyOrder, current_hashes, study_run
from dreamfleet.evaluation.studies.settings import check_split, read_settings, write_settings
from dreamfleet.evaluation.worldbench import write_gate
from dreamfleet.evaluation.worldbench.command import settle
from tests.unit.studies.helpers import ALL_HOSTS, RECIPES, write_trial_settings


def test_steps_1_to_3_settle_guidance_states_hosts_and_hashes(
    tmp_path: Path, tiny_base_folder: Path
) -> None:
    gate = {"guidance": 3.0, "scored_states": {"dog": ["sitting"]}}
    write_gate(gate, tmp_path / "base.json")
    ladders = {
        "lora": {"learnt_at": 200, "diseased": True, "at": 400, "losses": {}},
        "full": {"learnt_at": 800, "diseased": False, "at": None, "losses": {}},
        "full-prior": {"learnt_at": None, "diseased": None, "at": None, "losses": {}},
    }
    write_summary(tmp_path / "summary.json", {"table": [], "ladders": ladders})
    path = tmp_path / "settings.yaml"
    write_settings(path, sude={"lora": {"sude.weight": 1.5}})
    base = str(tiny_base_folder)
    settle(path, tmp_path / "base.json", tmp_path, {"base_model": base})
    settings = read_settings(path)
    assert settings.guidance == 3.0 and settings.scored_states == gate["scored_states"]
    assert settings.diseased() == ["lora"]
    assert (settings.steps("lora"), settings.steps("full")) == (400, 800)
    assert settings.chosen("lora") == {"sude.weight": 1.5}, "what other steps settled stays"
    check_split(settings, "C", current_hashes(base))


def test_the_primary_claim_waits_for_every_host_s_setting(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = str(tiny_base_folder)
    sude = {host: {"sude.weight": 1.5} for host in ALL_HOSTS}
    path = write_trial_settings(
        tmp_path / "s.yaml", trial=False, frozen=current_hashes(base), sude=sude
    )
    order = StudyOrder(str(RECIPES / "a_primary_claim.yaml"), str(tmp_path), str(path),
                       hosts=["lora"], base_model=base)  # fmt: skip
    assert study_run(order).study.split == "C"
    with pytest.raises(BadInputError, match=r"--set sude.weight.*settled settings alone"):
        study_run(replace(order, overrides={"sude.weight": 3.0}))
    del sude["full-prior"]
    write_settings(path, sude=sude)
    other = replace(order, config=str(RECIPES / "b_sude_weight.yaml"), split="C")
    for held_back in (order, other, replace(other, split="R")):
        with pytest.raises(BadInputError, match="no setting .* is chosen for host 'full-prior'"):
            study_run(held_back)
