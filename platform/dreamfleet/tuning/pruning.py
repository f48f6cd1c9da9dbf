"""Optuna's pruners, for studies that are gone on with after a kill.

Optuna ranks a trial among all that have come to its rung, failed ones too: a retry would have to
beat its own dead attempt. Here what failed does not compete, and a retry stands for its first
attempt: it stays in that one's bracket.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from dreamfleet.config import TuneConfig

ROOT = "folder"  # user attribute of a retry: the number of its first attempt
COMPLETED_RUNG = "completed_rung_"  # Optuna's own attributes of what it has ranked


def root_of(trial: FrozenTrial | optuna.trial.Trial) -> int:
    """The number of a trial's first attempt, by which its folder is called."""
    return int(trial.user_attrs.get(ROOT, trial.number))


def ranked(trial: FrozenTrial) -> dict[str, float]:
    """What the pruner has noted of a trial at rungs, for a retry to take over."""
    found = trial.system_attrs.items()
    return {name: value for name, value in found if name.startswith(COMPLETED_RUNG)}


def make_pruner(tune: TuneConfig, steps: Sequence[int]) -> optuna.pruners.BasePruner:
    """The study's pruner; rungs are where `study.rungs` says."""
    if tune.pruner == "none" or tune.sampler == "nsga2" or len(steps) < 2:
        return optuna.pruners.NopPruner()
    if tune.pruner == "hyperband":
        return _Hyperband(
            min_resource=steps[0], max_resource=steps[-1], reduction_factor=tune.reduction_factor
        )
    return _Halving(min_resource=steps[0], reduction_factor=tune.reduction_factor)


class _Halving(optuna.pruners.SuccessiveHalvingPruner):
    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        return bool(super().prune(_WithoutFailed(study), trial))


class _Hyperband(optuna.pruners.HyperbandPruner):
    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        first = copy.copy(trial)
        first.number = root_of(trial)
        return int(super()._get_bracket_id(study, first))

    def _create_bracket_study(self, study: optuna.Study, bracket_id: int) -> Any:
        return _WithoutFailed(super()._create_bracket_study(study, bracket_id))


class _WithoutFailed:
    """A study as pruners shall see it."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def get_trials(self, *args: Any, **kwargs: Any) -> list[FrozenTrial]:
        found = self._study.get_trials(*args, **kwargs)
        return [trial for trial in found if trial.state != TrialState.FAIL]
