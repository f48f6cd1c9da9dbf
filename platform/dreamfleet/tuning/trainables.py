"""What Ray Tune runs in a process of its own for every trial at work; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JOB, ORDER = "job", "order"  # keys of Tune's own configuration of a trial


def packed_trainable(config: Mapping[str, Any]) -> None:
    """A trial that drives a slot of an engine."""
    from ray import tune

    from dreamfleet.tuning.trial import run_trial

    run_trial(config[ORDER], tune.report)


def alone_trainable(config: Mapping[str, Any], tasks: Mapping[str, Any] | None = None) -> None:
    """A trial with a base of its own."""
    import ray
    from ray import tune

    from dreamfleet.tuning.trial import run_trial

    order = config[ORDER]
    assert tasks is not None
    run_trial(order, tune.report, ray.get(tasks[order.work.subject]))
