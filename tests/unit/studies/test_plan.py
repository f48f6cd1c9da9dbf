"""Recipes and settled settings as arms and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.evaluation.studies.command import parse_overrides, parse_part
from dreamfleet.evaluation.studies.plan import (
    noun_of,
    planned_arms,
    selection_states,
    study_subjects,
    training_key,
    world_requests,
)
from dreamfleet.evaluation.studies.recipe import Loaded, Pictures, load_study, studies_in
from dreamfleet.evaluation.studies.settings import (
    check_split,
    hashes,
    read_settings,
    write_settings,
)
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.splits import benchmark_photo, subjects
from tests.unit.studies.helpers import ALL_HOSTS, RECIPES, write_trial_settings

STUDIES = studies_in(RECIPES)
by_name = pytest.mark.parametrize("loaded", STUDIES, ids=lambda loaded: loaded.study.study)
ALL = Pictures.model_validate(
    {n: 1 for n in ("subject", "state", "scene", "combined", "applications", "class")}
)


class TestRecipes:
    def test_all_are_there(self) -> None:
        names = {loaded.study.study for loaded in STUDIES}
        assert names == {*"abcdefghijklt", "step4"}

    @by_name
    def test_says_its_command_and_cost(self, loaded: Loaded) -> None:
        head = loaded.path.read_text(encoding="utf-8").splitlines()[:4]
        assert f"--config pipelines/recipes/studies/{loaded.path.name} --output-dir" in head[1]
        assert head[2].startswith("# Cost: ") and "COST" not in head[2]

    @by_name
    def test_is_on_development_subjects_unless_it_confirms(self, loaded: Loaded) -> None:
        study = loaded.study
        held_back = {"a": "C", "t": "T"}
        assert study.split == held_back.get(study.study, "D")
        assert study.oracle == ("B" if study.study in held_back else "A")

    def test_the_confirmation_is_what_the_protocol_says(self) -> None:
        (study,) = [loaded.study for loaded in STUDIES if loaded.study.primary]
        assert (study.study, study.subjects, study.seeds, study.pictures.state) == ("a", 24, 2, 8)
        assert study.hosts == "diseased" and study.rungs == [1.0]
        assert [(arm.name, arm.sude) for arm in study.arms] == [
            ("host", "none"), ("chosen", "chosen"), ("official", "official"),
        ]  # fmt: skip

    def test_step_4_tries_every_cell(self, tmp_path: Path) -> None:
        (study,) = [loaded.study for loaded in STUDIES if loaded.study.chooses]
        settings = read_settings(write_trial_settings(tmp_path / "s.yaml"))
        arms = [arm for arm in planned_arms(study, settings) if arm.host == "lora"]
        cells = {(a.config.sude.teacher, a.config.sude.weighting, a.config.sude.weight)
                 for a in arms if a.config is not None and a.config.sude.weight}  # fmt: skip
        wanted = {(t, w, v) for t in ("current", "pretrained") for w in ("code", "bayes")
                  for v in (0.4, 1.5, 3.0, 6.0)}  # fmt: skip
        assert cells == wanted and len(arms) == 17

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"arms": [{"name": "x"}, {"name": "x"}]}, "different names"),
            ({"hosts": ["dora"]}, "lora-prior"),
            ({"hosts": ["lora", "lora"]}, "each once"),
            ({"rungs": [2, 1]}, "rising"),
            ({"photos": 3}, "photos"),
            ({"claims": [{"claim": "c", "figure": "f", "arm": "y", "against": "host"}]}, "'y'"),
            ({"arms": [{"name": "x", "search": {}}], "claims": []}, "selection_states"),
        ],
    )
    def test_wrong_ones_are_refused_by_name(
        self, tmp_path: Path, change: dict[str, Any], said: str
    ) -> None:
        tree = yaml.safe_load((RECIPES / "f_state_and_scene.yaml").read_text(encoding="utf-8"))
        path = tmp_path / "wrong.yaml"
        path.write_text(yaml.safe_dump({**tree, **change}), encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            load_study(path)

    def test_a_broken_file_beside_the_recipes_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "broken.yaml").write_text("study: [", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"broken\.yaml: cannot be read"):
            studies_in(tmp_path)


class TestSettings:
    def test_what_is_not_settled_names_the_step_that_settles_it(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match=r"(?s)check_embedded_base.*trial_settings"):
            read_settings(tmp_path / "settings.yaml")
        write_settings(tmp_path / "settings.yaml", guidance=4.0)
        settings = read_settings(tmp_path / "settings.yaml")
        with pytest.raises(BadInputError, match="diseased"):
            settings.diseased()
        with pytest.raises(BadInputError, match="no N yet"):
            settings.steps("lora")
        with pytest.raises(BadInputError, match="step4"):
            settings.chosen("lora")

    def test_a_host_without_a_chosen_setting_has_no_such_arm(self, tmp_path: Path) -> None:
        path = write_trial_settings(tmp_path / "s.yaml", sude=dict.fromkeys(ALL_HOSTS))
        study = load_study(RECIPES / "a_primary_claim.yaml")
        names = {arm.name for arm in planned_arms(study, read_settings(path))}
        assert names == {"host", "official"}

    def test_no_disease_is_said(self, tmp_path: Path) -> None:
        path = write_trial_settings(tmp_path / "s.yaml", hosts={"lora": {"diseased": False}})
        with pytest.raises(BadInputError, match="nothing to cure"):
            read_settings(path).diseased()

    def test_held_back_subjects_need_what_was_frozen(self, tmp_path: Path) -> None:
        now = hashes("base", "judges")
        trial = read_settings(write_trial_settings(tmp_path / "s.yaml", frozen=now))
        check_split(trial, "D", {})
        with pytest.raises(BadInputError, match="trial settings"):
            check_split(trial, "C", now)
        write_settings(tmp_path / "real.yaml", frozen=now)
        real = read_settings(tmp_path / "real.yaml")
        check_split(real, "C", now)
        with pytest.raises(BadInputError, match="base, world differ"):
            check_split(real, "T", {**now, "base": "x", "world": "y"})


class TestPlan:
    def test_presets_chosen_settings_and_factors(self, tmp_path: Path) -> None:
        settings = read_settings(write_trial_settings(tmp_path / "s.yaml", steps=10))
        arms = {arm.name: arm for arm in planned_arms(
            load_study(RECIPES / "b_sude_weight.yaml"), settings)}  # fmt: skip
        weights = [arm.config.sude.weight for arm in arms.values() if arm.config]
        assert weights == [0.0, 0.75, 1.5, 3.0, 6.0]
        official = next(a for a in planned_arms(load_study(RECIPES / "a_primary_claim.yaml"),
                                                settings) if a.name == "official")  # fmt: skip
        assert official.config is not None
        sude = official.config.sude
        assert (sude.weight, sude.teacher, sude.weighting) == (0.4, "current", "official")
        truncated = planned_arms(load_study(RECIPES / "c_truncation.yaml"), settings)
        assert {arm.rungs for arm in truncated} == {(5, 10, 20)}

    def test_the_key_of_a_training_knows_what_it_depends_on(self, tmp_path: Path) -> None:
        settings = read_settings(write_trial_settings(tmp_path / "s.yaml"))
        host, half, once, *_ = planned_arms(load_study(RECIPES / "b_sude_weight.yaml"), settings)
        again = planned_arms(load_study(RECIPES / "d_teacher_and_weighting.yaml"), settings)
        assert training_key({}, host.config) == training_key({}, again[0].config)
        assert training_key({}, once.config) == training_key({}, again[1].config)
        assert len({training_key({}, arm.config) for arm in (host, half, once)}) == 3
        assert training_key({"photos": 1}, host.config) != training_key({}, host.config)
        assert host.config is not None
        longer = host.config.model_copy(deep=True)
        longer.train.max_train_steps = 7
        assert training_key({}, longer) == training_key({}, host.config)

    def test_subjects_of_some_classes_go_beyond_the_first_eight(self) -> None:
        study = load_study(RECIPES / "j_incidental_content.yaml")
        found = study_subjects(study)
        assert len(found) == 8 and {s.class_name for s in found} == {"bowl", "vase"}
        assert all(CLASSES[s.class_name].prop for s in found)
        with pytest.raises(BadInputError, match="split D has 8"):
            study_subjects(load_study(RECIPES / "b_sude_weight.yaml", {"subjects": 9}))

    def test_parts_and_overrides_are_read(self) -> None:
        assert parse_part("2/3") == (1, 3)
        assert parse_overrides(["train.rank=4"]) == {"train.rank": "4"}
        for wrong in ("0/2", "3/2", "x"):
            with pytest.raises(BadInputError, match="I/N"):
                parse_part(wrong)
        with pytest.raises(BadInputError, match="KEY=VALUE"):
            parse_overrides(["rank"])


class TestPrompts:
    @pytest.mark.parametrize("subject", subjects("D", 12), ids=lambda s: s.subject_id)
    def test_nothing_that_a_photo_shows_is_asked(self, subject: Any) -> None:
        photos = [benchmark_photo(subject, number) for number in range(4)]
        asked = [request for request, _ in world_requests(subject, photos, ALL, "sks", "right")]
        shown = {photo.state for photo in photos} | {photo.scene for photo in photos}
        assert not shown & {value for own in asked for value in own.asked.values()}
        states = [own for own in asked if own.kind == "state"]
        combined = [own for own in asked if own.kind == "combined"]
        assert len(states) == len(combined) == 4
        assert combined[0].prompt.startswith(states[0].prompt)
        assert set(combined[0].asked) == {"state", "scene"}

    def test_applications_know_what_can_be_read(self) -> None:
        subject = subjects("D")[1]  # a teapot
        photo = benchmark_photo(subject)
        found = [request for request, _ in world_requests(subject, [photo], ALL, "sks", "right")
                 if request.kind == "application"]  # fmt: skip
        read = {(own.name, tuple(own.asked)) for own in found}
        assert {("art_styles", ("style",)), ("materials", ("state",))} <= read
        assert all(len(own.asked) <= 1 for own in found)

    def test_the_noun_is_replaced_as_a_word(self) -> None:
        car = next(s for s in subjects("D", 12) if s.class_name == "car")
        photo = benchmark_photo(car)
        wrong = world_requests(car, [photo], ALL, "sks", "wrong")
        assert noun_of("car", "wrong") == "fox"
        assert all("fox" in own.prompt.split() for own, _ in wrong if own.kind == "state")
        none = [own for own, _ in world_requests(car, [photo], ALL, "sks", "none")]
        assert none[0].prompt == "a photo of sks"
        assert not any("car" in own.prompt.split() for own in none if own.kind != "application")
        assert not any(own.kind == "class" for own in none)

    def test_states_of_selection_are_half_at_most(self) -> None:
        dog = subjects("D")[0]
        photo = benchmark_photo(dog)
        assert len(selection_states(dog, 4, None)) == 4
        assert photo.state not in selection_states(dog, 6, None)
        scored = [s.name for s in CLASSES["dog"].states if s.name != photo.state][:3]
        assert set(selection_states(dog, 4, {"dog": scored})) < set(scored)
