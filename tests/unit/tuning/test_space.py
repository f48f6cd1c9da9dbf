"""What is searched, and what becomes of a setting."""

from __future__ import annotations

from typing import Any

import pytest

from dreamfleet.config import Interval, RunConfig, dump_config, load_config
from dreamfleet.errors import ConfigError
from dreamfleet.tuning.space import (
    PRIOR,
    RANK,
    RATE,
    TEACHER,
    WEIGHT,
    WITH_PRIOR,
    applied,
    dimensions,
    endless,
    first_settings,
    searches_prior,
    suggest,
)


def recipe(**overrides: Any) -> RunConfig:
    """A resolved recipe; keys with double underscores for dots."""
    keys = {"train.learning_rate": 1e-3, "train.rank": 8, "train.lora_alpha": 16.0}
    keys |= {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(None, {"train.max_train_steps": 40, "subject.class_word": "dog", **keys})


class Scripted:
    """Suggests what it is told, and notes what it was asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers, self.asked = answers, list[str]()

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked.append(name)
        value = float(self.answers.get(name.replace(".", "__"), low))
        assert low <= value <= high
        return value

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked.append(name)
        value = self.answers.get(name.replace(".", "__"), choices[0])
        assert value in choices
        return value


def test_parameters_are_conditional() -> None:
    space = dimensions(recipe())
    without = Scripted(sude__weight=0.0)
    assert TEACHER not in suggest(without, space) and "sude.truncation_point" not in without.asked
    no_prior = Scripted(sude__weight=1.0, prior__with_prior_preservation=False)
    params = suggest(no_prior, space)
    assert params[PRIOR] == 0.0 and PRIOR not in no_prior.asked, "no sample is exactly 0"
    assert TEACHER not in params and "sude.truncation_point" in params
    both = Scripted(sude__weight=1.0, prior__with_prior_preservation=True, prior__weight=1.0,
                    sude__teacher="current")  # fmt: skip
    assert suggest(both, space)[TEACHER] == "current"


def test_the_recipe_belongs_to_the_space_and_begins_it() -> None:
    config = recipe(sude__weight=4.0, space__prior_weight="0.5..2", space__rank=["4", "16"])
    space = dimensions(config)
    assert space[WEIGHT].high == 8.0, "twice the recipe's own is among the first trials"
    assert WITH_PRIOR in space and space[PRIOR].low == 0.5 and space[RANK].choices == (4, 16, 8)
    first = first_settings(config)
    assert all(own[WITH_PRIOR] is False and PRIOR not in own for own in first)
    assert [own[WEIGHT] for own in first] == [0.0, 2.0, 4.0, 8.0]
    assert TEACHER not in first[0] and all(own[RATE] == 1e-3 for own in first)


def test_a_recipe_with_a_prior_begins_with_it() -> None:
    config = recipe(prior__with_prior_preservation=True, prior__weight=1.5)
    assert {(own[WITH_PRIOR], own[PRIOR]) for own in first_settings(config)} == {(True, 1.5)}
    always = recipe(prior__with_prior_preservation=True, space__prior_weight="log:0.1..3")
    assert WITH_PRIOR not in dimensions(always) and dimensions(always)[PRIOR].log


def test_one_choice_is_fixed_and_not_asked_for() -> None:
    config = recipe(space__sude_weight=[0.0], space__learning_rate="log:1e-4..1e-2")
    space, trial = dimensions(config), Scripted()
    assert suggest(trial, space)[WEIGHT] == 0.0 and WEIGHT not in trial.asked
    assert len(first_settings(config)) == 1
    assert space[RATE].log and space[RATE].high == 1e-2


def test_a_setting_becomes_a_configuration() -> None:
    config = recipe(prior__with_prior_preservation=True, sude__preset="official")
    own = applied(config, {WEIGHT: 0.8, PRIOR: 0.0, RANK: 4, RATE: 2e-3}, seed=7)
    assert own.sude.weight == 0.8 and own.sude.teacher == "pretrained"
    assert not own.prior.with_prior_preservation and own.prior.weight == config.prior.weight
    assert (own.train.rank, own.train.lora_alpha, own.train.seed) == (4, 8.0, 7)
    assert load_config(None, {}).model_validate(own.model_dump()).sude.weight == 0.8
    assert config.train.rank == 8, "the recipe is left alone"


def test_what_a_sweep_cannot_read_is_refused() -> None:
    without_point = recipe(space__truncation_point="0.2..0.9")
    without_point.sude.truncation_point = None
    with pytest.raises(ConfigError, match="lr_scheduler"):
        dimensions(recipe(train__lr_scheduler="cosine"))
    with pytest.raises(ConfigError, match=r"space\.truncation_point"):
        dimensions(without_point)
    with pytest.raises(ConfigError, match=r"space\.sude_weight: w_s = 0"):
        dimensions(recipe(space__sude_weight="log:0.1..3"))
    with pytest.raises(ConfigError, match="low < high"):
        recipe(space__sude_weight="2..1")


def test_untouched_search_sections_stay_out_of_files() -> None:
    plain = recipe()
    assert "tune:" not in dump_config(plain) and "space:" not in dump_config(plain)
    searching = recipe(tune__num_samples=3)
    assert "num_samples: 3" in dump_config(searching)
    assert searches_prior(plain) and isinstance(plain.space.sude_weight, Interval)


def test_the_first_trials_need_no_prior_set() -> None:
    """They have the recipe's own; with them alone a sweep makes none."""
    few = recipe(tune__num_samples=4)
    assert not searches_prior(few) and dimensions(few)[PRIOR].choices == (0.0,)
    assert searches_prior(endless(few)) and not dimensions(endless(few))[PRIOR].fixed
    assert searches_prior(recipe(tune__num_samples=5))
    assert searches_prior(recipe(tune__num_samples=4, prior__with_prior_preservation=True))
    wished = recipe(tune__num_samples=4, space__prior_weight=[0.5])
    assert searches_prior(wished) and dimensions(wished)[PRIOR].choices == (0.5,)
    assert not searches_prior(recipe(space__prior_weight=[0.0]))
