"""How many engines are wanted, by Serve's own context and configuration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dreamfleet.serving.scaling import KEPT_S, METRIC, Demand, PicturesPolicy


def context(metrics: dict[str, dict[str, float]] | None, target: int = 3) -> Any:
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=target)


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"a": 0.0}, 0.0),
        ({"a": 16.0}, 1.0),  # full, and nobody waits
        ({"a": 17.0}, 17 / 16),  # one waits: Serve rounds up
        ({"a": 80.0, "b": 80.0}, 5.0),  # every engine is told the same
        ({"a": 80.0, "new": 0.0}, 5.0),
    ],
)
def test_engines_for_all_pictures(told: dict[str, float], wanted: float) -> None:
    assert PicturesPolicy(16)(context({METRIC: told})) == (wanted, {})


@pytest.mark.parametrize("metrics", [None, {}, {METRIC: {}}, {"running_requests": {"a": 9.0}}])
def test_without_figures_nothing_changes(metrics: Any) -> None:
    assert PicturesPolicy(16)(context(metrics))[0] == 3


def test_what_an_ingress_told_counts_until_it_says_no_more() -> None:
    clock = [0.0]
    demand = Demand(lambda: clock[0])
    demand.note("one", 5)
    demand.note("two", 7)
    demand.note("one", 6)
    assert demand.total() == 13
    clock[0] = KEPT_S
    demand.note("two", 7)
    clock[0] += 1
    assert demand.total() == 7


@pytest.mark.heavy
def test_serve_takes_the_policy() -> None:
    """As the application gives it; Serve's controller unpickles and calls it."""
    from ray.serve._private.autoscaling_state import _resolve_policy_callable

    from dreamfleet.serving.application import _engine_options
    from dreamfleet.serving.settings import ServeSettings

    settings = ServeSettings(adapters="x", max_replicas=4, pictures_per_replica=8)
    scaling = _engine_options(settings)["autoscaling_config"]
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    policy = _resolve_policy_callable(scaling.policy)
    assert policy(context({METRIC: {"a": 20.0}})) == (2.5, {})
    own = ServeSettings(adapters="x", max_replicas=4, target_pictures=2)
    assert _engine_options(own)["autoscaling_config"].policy.policy_kwargs["target_pictures"] == 2
    assert "autoscaling_config" not in _engine_options(ServeSettings(adapters="x"))
