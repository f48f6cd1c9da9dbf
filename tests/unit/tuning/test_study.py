"""The study as the only truth: what is told, what a new driver finds."""

from __future__ import annotations

import functools
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import IntegrityError, OperationalError

from dreamfleet.config import RunConfig, TuneConfig
from dreamfleet.errors import BadInputError, ResumeError
from dreamfleet.tuning.finals import contenders
from dreamfleet.tuning.rule import best_first
from dreamfleet.tuning.study import (
    CONSTRAINT,
    Owner,
    SubjectStudy,
    delete_study,
    make_sampler,
    open_storage,
)
from dreamfleet.tuning.trial import Reading
from tests.unit.tuning.test_space import recipe

halved = functools.partial(recipe, tune__reduction_factor=2)  # rungs 10, 20, 40


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


OURS = Owner("a", "/runs/a")


def opened(
    url: str, config: RunConfig | None = None, *, resume: bool = False, owner: Owner = OURS
) -> SubjectStudy:
    chosen = config or halved(tune__num_samples=6, tune__max_concurrent_trials=4)
    print_of = {"space": chosen.space.model_dump(), "base": "x"}
    storage = open_storage(url)
    return SubjectStudy(storage, "rex", chosen, print_of, resume=resume, owner=owner)


def reading(step: int, alignment: float, fidelity: float = 0.6) -> Reading:
    states = {f"s{i}": alignment for i in range(4)}
    pictures = {f"p{i}": fidelity + 0.01 * i for i in range(6)}
    return Reading(step, alignment, fidelity, states, pictures, {})


def run(study: SubjectStudy, number: int, *alignments: float, fidelity: float = 0.6) -> None:
    for step, alignment in zip(study.steps, alignments, strict=False):
        if study.read(number, reading(step, alignment, fidelity)):
            break
    study.end(number)


def test_a_database_that_others_are_filling_is_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[str] = []

    def storage(url: str, engine_kwargs: dict[str, Any]) -> Any:
        assert engine_kwargs["pool_pre_ping"], "the database may have hung up meanwhile"
        attempts.append(url)
        if len(attempts) == 1:
            raise IntegrityError("CREATE TABLE studies", None, ValueError("exists already"))
        if len(attempts) == 2:
            raise sqlite3.OperationalError("database is locked")
        return "storage"

    monkeypatch.setattr("dreamfleet.tuning.study.OPEN_AGAIN_AFTER_S", 0.0)
    monkeypatch.setattr("optuna.storages.RDBStorage", storage)
    assert cast(Any, open_storage("postgresql+psycopg://host/studies")) == "storage"
    assert len(attempts) == 3
    monkeypatch.setattr("optuna.storages.RDBStorage", _refuses)
    with pytest.raises(BadInputError, match="no such host"):
        open_storage("postgresql+psycopg://host/studies")


def test_sweeps_that_begin_at_once_find_an_empty_file(url: str) -> None:
    at_once = threading.Barrier(4)

    def study(number: int) -> int:
        at_once.wait(300)
        return open_storage(url).create_new_study([StudyDirection.MAXIMIZE], f"s{number}")

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(study, range(4)))) == 4


def _refuses(url: str, **options: Any) -> Any:
    raise OperationalError("connect", None, ValueError("no such host"))


def test_a_study_from_first_to_last(url: str) -> None:
    study = opened(url)
    first = [study.ask() for _ in range(4)]
    assert study.ask() is None, "max_concurrent_trials"
    numbers = [own.number for own in first if own]
    assert first[0] is not None and first[0].is_host
    run(study, numbers[1], 0.4, 0.5, 0.7)
    assert study.done == 0, "who is compared with the host waits for it"
    run(study, numbers[0], 0.3, 0.3, 0.3)
    assert study.done == 2
    run(study, numbers[2], 0.9, 0.9, 0.9, fidelity=0.2)
    study.read(numbers[3], reading(10, 0.1))
    study.end(numbers[3], "loss is not a number")
    for value in (0.45, 0.5, 0.55):
        asked = study.ask()
        if asked is not None:
            run(study, asked.number, value, value, value)
    assert study.finished and study.done == 6
    assert [trial.user_attrs["error"] for trial in study.failures] == ["loss is not a number"]
    winner = best_first(study.candidates())[0]
    assert winner.label == str(numbers[1]) and winner.feasible
    plain = optuna.load_study(study_name="rex", storage=url)
    assert plain.metric_names == ["alignment"]
    strayed = plain.trials[numbers[2]]
    assert strayed.state in (TrialState.COMPLETE, TrialState.PRUNED)
    assert strayed.constraints[CONSTRAINT] > 0, "well aligned, but not the subject"


def test_the_best_rung_is_taken(url: str) -> None:
    study = opened(url, halved(tune__num_samples=2, tune__pruner="none"))
    host, other = study.ask(), study.ask()
    assert host and other and study.ask() is None
    run(study, host.number, 0.3, 0.3, 0.3)
    run(study, other.number, 0.4, 0.8, 0.5)
    assert study.trials()[other.number].user_attrs["steps"] == 20
    assert study.trials()[host.number].user_attrs["steps"] == 40, "the host is the recipe"
    assert study.finished


def test_rungs_are_compared_by_the_pictures_that_they_share(url: str) -> None:
    study = opened(url, halved(tune__num_samples=2, tune__num_rungs=2, tune__pruner="none"))
    host, other = study.ask(), study.ask()
    assert host and other
    run(study, host.number, 0.3, 0.3)
    easy, hard = {"a": 0.9}, {"b": 0.3}
    first = replace(reading(20, 0.9), alignments=easy)
    last = replace(reading(40, 0.6), alignments=easy | hard)
    study.read(other.number, first), study.read(other.number, last)
    study.end(other.number)
    told = study.trials()[other.number]
    assert told.user_attrs["steps"] == 40, "an easy picture alone is no better rung"
    assert told.value == 0.6


def test_the_best_two_and_the_host_are_in_the_finals(url: str) -> None:
    study = opened(url, halved(tune__num_samples=4, tune__pruner="none"))
    for value in (0.9, 0.4, 0.5, 0.6):  # the host is the best of all
        asked = study.ask()
        assert asked
        run(study, asked.number, value, value, value)
    found = contenders(study)
    assert [(own.number, own.is_host) for own in found] == [(3, False), (2, False), (0, True)]


def test_copies_take_no_place_in_the_finals(url: str) -> None:
    study = opened(url, halved(tune__num_samples=6, tune__pruner="none"))
    host, *_ = asked_for(study, 4)
    for number in range(4):  # the first settings
        value = 0.4 + 0.1 * number
        run(study, number, value, value, value)
    for original in (host, 3):
        study.study.enqueue_trial(study.trials()[original].params)
        copy = study.ask()
        assert copy and not copy.is_host
        run(study, copy.number, 0.9, 0.9, 0.9)
    found = contenders(study)
    assert [own.number for own in found] == [5, 2, host], "neither the host's nor its own again"


def test_pruned_trials_fill_the_finals(url: str) -> None:
    study = opened(url, halved(tune__num_samples=4))
    asked = [study.ask() for _ in range(4)]
    host, *others = (own.number for own in asked if own)
    run(study, host, 0.5, 0.9, 0.9)
    for number, values in zip(others, [(0.4,), (0.6, 0.8), (0.3,)], strict=True):
        run(study, number, *values, fidelity=0.55)
    assert len(study.trials(TrialState.PRUNED)) == 3
    found = contenders(study)
    assert [own.number for own in found] == [others[1], others[0], host], "the furthest, the better"
    assert {own.steps for own in found} == {40}, "at the recipe's length"


def test_a_pruned_trial_is_a_shorter_training(url: str) -> None:
    study = opened(url, halved(tune__num_samples=4))
    host, *others = (own.number for own in [study.ask() for _ in range(4)] if own)
    for step, alignment, fidelity in [(10, 0.9, 0.2), (20, 0.5, 0.4), (40, 0.1, 0.7)]:
        study.read(host, reading(step, alignment, fidelity))
    study.end(host)
    rival, early, _ = others
    run(study, rival, 0.97, 0.9, 0.8, fidelity=0.6)  # well aligned, but never the subject
    assert not study.read(early, reading(10, 0.99, 0.6)), "not near enough yet"
    assert study.read(early, reading(20, 0.45, 0.69)), "the rival is far better aligned"
    study.end(early)
    (standing,) = [own for own in study.standings() if own.trial.number == early]
    assert standing.candidate.feasible and standing.steps == 20
    found = [(own.number, own.steps) for own in contenders(study)]
    assert found == [(early, 20), (rival, 40), (host, 40)]


def test_pruning_spares_the_host(url: str) -> None:
    study = opened(url)
    asked = [study.ask() for _ in range(4)]
    host, good, bad = (own.number for own in asked[:3] if own)
    assert not study.read(good, reading(10, 0.9))
    assert not study.read(host, reading(10, 0.1))
    assert study.read(bad, reading(10, 0.2)), "half of a rung goes on"
    study.end(bad)
    assert study.trials()[bad].state == TrialState.PRUNED


def test_trials_are_compared_with_the_host_too(url: str) -> None:
    study = opened(url)
    host, worse, alike, better = (own.number for own in [study.ask() for _ in range(4)] if own)
    assert not study.read(host, reading(10, 0.5))
    assert study.read(worse, reading(10, 0.4)), "the host alone is better"
    states = {"s0": 0.52, "s1": 0.46, "s2": 0.51, "s3": 0.47}
    near = replace(reading(10, 0.49), alignments=states)
    assert not study.read(alike, near), "not for sure"
    assert not study.read(better, reading(10, 0.6))
    assert not study.read(host, reading(20, 0.1)) and not study.read(host, reading(40, 0.1))
    study.end(host)
    assert study.trials()[host].state == TrialState.COMPLETE


def test_a_finished_host_is_compared_with_too(url: str) -> None:
    study = opened(url)
    host, worse = (own.number for own in [study.ask() for _ in range(2)] if own)
    run(study, host, 0.5, 0.5, 0.5)
    again = opened(url, resume=True)
    asked = again.ask()
    assert asked and again.read(asked.number, reading(10, 0.4))


def test_every_study_draws_numbers_of_its_own() -> None:
    def drawn(name: str, so_far: int = 0) -> float:
        sampler = make_sampler(TuneConfig(sampler="random"), name, so_far)
        study = optuna.create_study(sampler=sampler)
        return study.ask().suggest_float("x", 0, 1)

    assert drawn("rex") == drawn("rex") and len({drawn("rex"), drawn("ada"), drawn("rex", 1)}) == 3


def test_rungs_wait_for_the_host(url: str) -> None:
    study = opened(url)
    host, strayed, good = (own.number for own in [study.ask() for _ in range(3)] if own)
    assert not study.read(strayed, reading(10, 0.9, fidelity=0.1))
    assert not study.trials()[strayed].intermediate_values
    assert not study.read(good, reading(10, 0.5))
    assert not study.read(host, reading(10, 0.3))
    values = [study.trials()[number].intermediate_values[10] for number in (strayed, good)]
    assert values == [pytest.approx(-0.47), pytest.approx(1.1)], (
        "what is too far from the subject is below"
    )
    late = study.ask()
    assert late and not study.read(late.number, reading(10, 0.6))


def test_what_the_host_shows_late_ends_a_trial_at_its_next_rung(url: str) -> None:
    study = opened(url)
    host, good, strayed = (own.number for own in [study.ask() for _ in range(3)] if own)
    assert not study.read(good, reading(10, 0.5))
    assert not study.read(strayed, reading(10, 0.9, fidelity=0.1))
    assert not study.read(host, reading(10, 0.3))
    assert study.read(strayed, reading(20, 0.9, fidelity=0.1))
    study.end(strayed)
    found = study.trials()[strayed]
    assert found.state == TrialState.PRUNED and found.constraints[CONSTRAINT] > 0
    assert not study.read(good, reading(20, 0.5))


def test_a_new_driver_asks_again_for_what_was_running(url: str) -> None:
    study = opened(url)
    asked = [study.ask() for _ in range(3)]
    numbers = [own.number for own in asked if own]
    run(study, numbers[0], 0.3, 0.3, 0.3)
    study.read(numbers[1], reading(10, 0.5))
    with pytest.raises(BadInputError, match="--resume"):
        opened(url)
    again = opened(url, resume=True)
    states = [trial.state for trial in again.trials()]
    assert states.count(TrialState.COMPLETE) == 1 and TrialState.RUNNING not in states
    found: list[Any] = []
    while (own := again.ask()) is not None:
        found.append(own)
        run(again, own.number, 0.5, 0.5, 0.5)
    retried = {own.root: own.params for own in found if own.root != own.number}
    assert set(retried) == set(numbers[1:])
    assert retried[numbers[1]] == next(o.params for o in asked if o and o.number == numbers[1])
    assert again.finished and again.done == 6 and not again.failures
    thrice = opened(url, resume=True)
    assert thrice.ask() is None and thrice.finished, "nothing finished is repeated"


def asked_for(study: SubjectStudy, count: int) -> list[int]:
    return [own.number for own in [study.ask() for _ in range(count)] if own]


@pytest.mark.parametrize("kills", [1, 2])
def test_rungs_that_were_passed_before_a_kill_are_passed(url: str, kills: int) -> None:
    """A retry does not compete with its own attempt, nor with what was read later."""
    config = halved(tune__num_samples=8, tune__max_concurrent_trials=8)
    study = opened(url, config)
    host, one, two, *later, last = asked_for(study, 8)
    run(study, host, 0.3, 0.3, 0.3)
    known = {one: {10: 0.5, 20: 0.5}, two: {10: 0.6, 20: 0.9}}
    for step in (10, 20):
        assert not any(study.read(number, reading(step, known[number][step])) for number in known)
    for value, number in zip((0.7, 0.8, 0.9), later, strict=False):
        assert not study.read(number, reading(10, value))
    for _ in range(kills):  # the second driver is killed before it asks
        again = opened(url, config, resume=True)
    retried = {own.root: own.number for own in [again.ask() for _ in range(7)] if own}
    assert sorted(retried) == [one, two, *later, last]
    for root, values in known.items():
        for step, value in (values | {40: values[20]}).items():
            assert not again.read(retried[root], reading(step, value))
        again.end(retried[root])
    assert again.read(retried[last], reading(10, 0.6)), "three of the living are better"
    again.end(retried[last])
    standings = {own.trial.number: own for own in again.standings()}
    assert standings[retried[two]].candidate.alignment == 0.9
    assert contenders(again)[0].number == retried[two]


def test_who_failed_need_not_be_beaten(url: str) -> None:
    study = opened(url)
    host, first, second, third = asked_for(study, 4)
    assert not study.read(host, reading(10, 0.3)) and not study.read(first, reading(10, 0.9))
    study.end(first, "loss is not a number")
    assert not study.read(second, reading(10, 0.5))
    assert study.read(third, reading(10, 0.4)), "the living compete"


def test_what_was_beaten_before_a_kill_is_beaten(url: str) -> None:
    """Where it was beaten, and not before its host is there again."""
    study = opened(url)
    host, good, late, whole = asked_for(study, 4)
    for own in (host, good, late, whole):
        assert not study.read(own, reading(10, 0.5))
    assert not study.read(late, reading(20, 0.4))
    assert not study.read(whole, reading(20, 0.4))
    assert not study.read(host, reading(20, 0.9)), "both are to end at their next rung"
    assert not study.read(whole, reading(40, 0.4)), "too late"
    again = opened(url, resume=True)
    host, good, late, whole = asked_for(again, 4)
    assert not again.read(late, reading(10, 0.5)), "there it was not beaten"
    assert not again.read(late, reading(20, 0.4)), "nor is it before there is a host"
    for step in (10, 20, 40):
        assert not again.read(whole, reading(step, 0.4))
        assert not again.read(host, reading(step, 0.9))
    assert again.running[late].pruned
    for own in (host, late, whole):
        again.end(own)
    states = [again.trials()[number].state for number in (late, whole)]
    assert states == [TrialState.PRUNED, TrialState.COMPLETE]
    assert again.trials()[late].user_attrs["steps"] == 20


def test_a_retry_stays_in_its_bracket(url: str) -> None:
    config = halved(tune__num_samples=12, tune__max_concurrent_trials=12, tune__pruner="hyperband")
    study = opened(url, config)
    for number in asked_for(study, 12)[:2]:
        study.read(number, reading(10, 0.5))  # the pruner makes its brackets
    again = opened(url, config, resume=True)
    for own in [again.ask() for _ in range(12)]:
        assert own and own.number != own.root
    found = again.trials()
    pruner = cast(Any, study.study.pruner)
    brackets = [pruner._get_bracket_id(again.study, trial) for trial in found]
    assert brackets[:12] == brackets[12:] and len(set(brackets)) > 1


def test_a_host_that_was_interrupted_comes_first(url: str) -> None:
    few = halved(tune__num_samples=4, tune__max_concurrent_trials=2, tune__pruner="none")
    host = opened(url, few).ask()
    assert host and host.is_host
    study = opened(url, few, resume=True)
    again = study.ask()
    assert again and again.is_host and (again.params, again.root) == (host.params, host.root)
    for _ in range(3):  # each waits for the host, none takes its place
        own = study.ask()
        assert own
        run(study, own.number, 0.4, 0.4, 0.4)
    assert study.ask() is None and study.done == 0
    run(study, again.number, 0.3, 0.3, 0.3)
    assert study.finished and not study.failures
    weights = [t.params["sude.weight"] for t in study.trials(TrialState.COMPLETE)]
    assert sorted(weights) == [0.0, 0.2, 0.4, 0.8]


def test_a_host_that_was_interrupted_while_it_was_asked_keeps_its_setting(url: str) -> None:
    study = opened(url)
    trial = study.study.ask()
    trial.suggest_categorical("method", study._space["method"].choices)
    again = opened(url, resume=True).ask()
    assert again and again.is_host
    assert again.params["sude.weight"] == 0.0 and again.params["train.learning_rate"] == 1e-3


def test_a_fixed_weight_leaves_the_host_without(url: str) -> None:
    study = opened(url, halved(tune__num_samples=3, space__sude_weight=[0.8]))
    asked = [study.ask() for _ in range(3)]
    assert [own.params["sude.weight"] for own in asked if own] == [0.0, 0.8, 0.8]
    assert asked[0] and asked[0].is_host and "sude.truncation_point" not in asked[0].params


def test_other_settings_do_not_go_on(url: str) -> None:
    opened(url)
    with pytest.raises(ResumeError, match="space"):
        opened(url, halved(space__sude_weight="0..9"), resume=True)


def test_another_sweeps_study_is_left_alone(url: str) -> None:
    study, theirs = opened(url), Owner("b", "/runs/b")
    host = study.ask()
    assert host
    with pytest.raises(BadInputError, match="/runs/a"):
        opened(url, resume=True, owner=theirs)
    with pytest.raises(BadInputError, match="/runs/a"):
        delete_study(open_storage(url), "rex", {"b"})
    assert study.trials(TrialState.RUNNING), "its driver is not disturbed"
    run(study, host.number, 0.3, 0.3, 0.3)
    assert opened(url, resume=True, owner=theirs).done == 1
    delete_study(open_storage(url), "rex", {"b", "c"})
    assert opened(url, owner=theirs).done == 0


def test_a_host_that_cannot_be_trained_ends_the_study(url: str) -> None:
    study = opened(url)
    host = study.ask()
    assert host
    study.end(host.number, "out of memory")
    assert study.finished and study.ask() is None and study.host() is None


def test_a_failed_host_leaves_nothing_running(url: str) -> None:
    """And is asked again by the next command, before the others, whose readings are kept."""
    few = halved(tune__num_samples=4, tune__max_concurrent_trials=3)
    study = opened(url, few)
    host, early, late = (own for own in [study.ask() for _ in range(3)] if own)
    run(study, early.number, 0.4, 0.4, 0.4)
    study.end(host.number, "the judges did not answer")
    assert study.host_error() == "the judges did not answer"
    assert study.read(late.number, reading(10, 0.5)), "there is nothing to be compared with"
    study.end(late.number)
    assert study.finished and not study.running and not study.candidates()
    assert [own.number for own in study.failures] == [host.number]

    again = opened(url, few, resume=True)
    found = [own for own in [again.ask() for _ in range(3)] if own]
    assert [own.is_host for own in found] == [True, False, False]
    assert [own.root for own in found] == [host.number, early.number, late.number]
    assert [own.params for own in found[1:]] == [early.params, late.params]
    for own in found:
        run(again, own.number, 0.4, 0.4, 0.4)
    last = again.ask()
    assert last and last.params["sude.weight"] == 0.8, "the one that never came to be asked"
    run(again, last.number, 0.4, 0.4, 0.4)
    assert again.finished and again.done == 4


def test_failures_before_a_resume_do_not_count(url: str) -> None:
    few = halved(tune__num_samples=3, tune__max_concurrent_trials=1, tune__pruner="none")
    study = opened(url, few)
    host = study.ask()
    assert host
    run(study, host.number, 0.3, 0.3, 0.3)
    while (own := study.ask()) is not None:
        study.end(own.number, "the disk is full")
    assert study.finished and len(study.failures) == 3
    assert study.done == 1, "it was given up"
    again = opened(url, few, resume=True)
    while (own := again.ask()) is not None:
        run(again, own.number, 0.4, 0.4, 0.4)
    assert again.finished and again.done == 3


def test_more_trials_begin_with_the_first_settings_too(url: str) -> None:
    few = functools.partial(halved, tune__pruner="none")
    for number, count in enumerate([1, 3, 5]):
        study = opened(url, few(tune__num_samples=count), resume=number > 0)
        while (own := study.ask()) is not None:
            run(study, own.number, 0.3, 0.3, 0.3)
        assert study.finished and study.done == count
    weights = [trial.params["sude.weight"] for trial in study.trials()]
    assert weights[:4] == [0.0, 0.2, 0.4, 0.8]
    assert [trial.number for trial in study.trials() if trial.user_attrs.get("host")] == [0]


def test_first_settings_come_though_others_took_their_turn(url: str) -> None:
    """One fails in a short study, and a sampled one replaces it."""
    short = functools.partial(halved, tune__pruner="none", tune__max_concurrent_trials=1)
    study = opened(url, short(tune__num_samples=2))
    host = study.ask()
    assert host
    run(study, host.number, 0.3, 0.3, 0.3)
    failing = study.ask()
    assert failing and failing.params["sude.weight"] == 0.2
    study.end(failing.number, "loss is not a number")
    while (own := study.ask()) is not None:
        run(study, own.number, 0.3, 0.3, 0.3)
    assert study.finished and len(study.trials()) == 3
    more = opened(url, short(tune__num_samples=4), resume=True)
    found = []
    while (own := more.ask()) is not None:
        found.append(own.params["sude.weight"])
        run(more, own.number, 0.3, 0.3, 0.3)
    assert found == [0.4, 0.8]


def test_a_host_that_a_larger_study_asks_again_is_the_same(url: str) -> None:
    first = opened(url, halved(tune__num_samples=4)).ask()
    again = opened(url, halved(tune__num_samples=16), resume=True).ask()
    assert first and again and again.is_host and again.params == first.params


@pytest.mark.parametrize("sampler", ["nsga2", "gp", "random"])
def test_other_samplers(url: str, sampler: str) -> None:
    study = opened(url, halved(tune__num_samples=7, tune__sampler=sampler))
    while (own := study.ask()) is not None:
        value = 0.3 + 0.01 * own.number  # the better aligned, the further from the subject
        run(study, own.number, value, value, value, fidelity=0.2 if own.number > 2 else 0.6)
    assert study.finished
    two = sampler == "nsga2"
    assert len(study.study.directions) == (2 if two else 1)
    assert not (two and study.trials(TrialState.PRUNED)), "two objectives are not pruned"
    complete = study.trials(TrialState.COMPLETE)
    strayed = {trial.number for trial in complete if trial.constraints[CONSTRAINT] > 0}
    assert strayed == {trial.number for trial in complete if trial.number > 2}
    assert {trial.number for trial in study.study.best_trials} == {2}, "Optuna knows the constraint"


def test_what_gp_draws_at_random_is_not_warned_of(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The host has neither truncation point nor teacher."""
    study = opened(url, halved(tune__num_samples=6, tune__sampler="gp", tune__pruner="none"))
    logger = logging.getLogger("optuna")
    logger.addHandler(caplog.handler)
    try:
        while (own := study.ask()) is not None:
            run(study, own.number, 0.3, 0.4, 0.5)
    finally:
        logger.removeHandler(caplog.handler)
    assert study.finished and "independently" not in caplog.text


def test_hyperband_reads_the_same_rungs(url: str) -> None:
    study = opened(url, halved(tune__num_samples=8, tune__pruner="hyperband"))
    while (own := study.ask()) is not None:
        value = 0.9 / (1 + own.number)
        run(study, own.number, value, value, value)
    assert study.finished and study.trials(TrialState.COMPLETE)
