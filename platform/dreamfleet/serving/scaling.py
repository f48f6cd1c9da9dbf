"""How many engines there should be: as many as it takes for the pictures that are wanted now.

Serve counts the requests that an engine has. Those that wait here do so in the ingress, and a
request may be for ten pictures; so ingresses tell the engines how many pictures are wanted in all,
the engines hand it to Serve as a metric of their own, and this policy reads it there. Serve adds
the bounds and the delays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

METRIC = "pictures_wanted"
POLICY = "dreamfleet.serving.scaling:PicturesPolicy"
KEPT_S = 15.0  # of what an ingress told that says no more


class Demand:
    """Pictures that are wanted, as the ingresses last told an engine.

    Args:
        now: a clock, in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._told: dict[str, tuple[float, int]] = {}

    def note(self, ingress: str, pictures: int) -> None:
        """What one ingress has, drawn and waiting."""
        self._told[ingress] = (self._now(), pictures)

    def total(self) -> int:
        """Of all ingresses that are still there."""
        oldest = self._now() - KEPT_S
        self._told = {name: own for name, own in self._told.items() if own[0] >= oldest}
        return sum(pictures for _, pictures in self._told.values())


class PicturesPolicy:
    """Serve's autoscaling policy for the engines.

    Args:
        target_pictures: drawn or waiting, for each engine.
    """

    def __init__(self, target_pictures: float) -> None:
        self.target_pictures = target_pictures

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Engines that are wanted, whole or not, and nothing to keep in mind.

        Args:
            context: Serve's `AutoscalingContext`. Every engine is told the same; one that has just
                begun has not been told yet, so the largest figure counts.
        """
        told = (context.aggregated_metrics or {}).get(METRIC)
        if not told:
            return float(context.target_num_replicas), {}
        return max(told.values()) / self.target_pictures, {}
