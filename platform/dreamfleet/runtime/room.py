"""What is said while workers wait for room in a cluster that others fill too."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

TELL_AFTER_S = 30.0


def bundle(options: Mapping[str, Any]) -> dict[str, float]:
    """Ray's options of an actor as a placement group's bundle."""
    found = {"CPU": float(options.get("num_cpus", 0)), "GPU": float(options.get("num_gpus", 0))}
    found["memory"] = float(options.get("memory", 0))
    found |= {name: float(value) for name, value in options.get("resources", {}).items()}
    if kind := options.get("accelerator_type"):
        found[f"accelerator_type:{kind}"] = 0.001  # as Ray does for actors
    return {name: value for name, value in found.items() if value}


def waiting_text(late: int, count: int, what: str, each: Mapping[str, float]) -> str:
    """That `late` of `count` workers have not started, what each wants and what is free now."""
    import ray

    there = ray.available_resources()
    free = as_text({name: there.get(name, 0.0) for name in ("CPU", "GPU")})
    return (
        f"{late} of {count} {what} have not started within {TELL_AFTER_S:g} s: each wants "
        f"{as_text(each)}, free in the cluster are {free}; waiting for room there, or for the base "
        "to load (Ctrl-C ends it)"
    )


class Silence:
    """Calls `say` once, when workers have been silent for TELL_AFTER_S since this was made; never
    after the first of their events.
    """

    def __init__(self, say: Callable[[], None]) -> None:
        self._say: Callable[[], None] | None = say
        self._since = time.monotonic()

    def note(self, heard: bool) -> None:
        """Whether anything has come since the last call."""
        if heard:
            self._say = None
        elif self._say is not None and time.monotonic() - self._since >= TELL_AFTER_S:
            say, self._say = self._say, None
            say()


def as_text(resources: Mapping[str, float]) -> str:
    """ "1 CPU, 0.5 GPU"."""
    return ", ".join(f"{value:g} {name}" for name, value in resources.items()) or "nothing"
