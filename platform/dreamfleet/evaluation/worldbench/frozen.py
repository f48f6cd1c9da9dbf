"""What is frozen once guidance and scored states are chosen (docs/protocol.md, section 3), as
hashes that travel with results.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.protocols import prompts_hash
from dreamfleet.world.evaluators import weights_hash

SHOWN = 16  # characters of a hash, for people


def frozen_now(
    base_hash: str,
    num_inference_steps: int,
    scheduler: str = "ddim",
    evaluators: str | Path | None = None,
) -> dict[str, str]:
    """Hashes of base, world, gating oracle and prompts, and the sampler.

    Args:
        base_hash: of the base.
        num_inference_steps, scheduler: of the sampler; guidance is what the measurement chooses.
        evaluators: folder of other evaluators of the world than the shipped ones.
    """
    root = Path(evaluators) if evaluators else None
    return {
        "base": base_hash,
        "world": world_hash(),
        "oracle A": weights_hash("oracle_a", root=root),
        "prompts": prompts_hash("worldbench"),
        "sampler": f"{scheduler}, {num_inference_steps} steps",
    }


def sampler_text(scheduler: str, num_inference_steps: int, guidance_scale: float | None) -> str:
    """How pictures are drawn, the same wherever it is written."""
    scale = "the base’s own" if guidance_scale is None else f"{guidance_scale:g}"
    return f"{scheduler}, {num_inference_steps} steps, guidance {scale}"


def states_text(states: Mapping[str, Collection[str]] | None) -> str:
    """Scored states by class: the same for the same states, whatever their order."""
    if states is None:
        return "all"
    named = sorted((name, sorted(own)) for name, own in states.items())
    return hashlib.sha256(repr(named).encode()).hexdigest()[:SHOWN]


@functools.cache
def world_hash() -> str:
    """SHA-256 of the code that draws the world and its individuals."""
    digest = hashlib.sha256()
    folder = resources.files("dreamfleet.world")
    places = [(name, folder / name) for name in _modules(folder)]
    inner = folder / "classes"
    places += [(f"classes/{name}", inner / name) for name in _modules(inner)]
    for name, place in places:
        digest.update(f"{name}\n".encode() + place.read_bytes())
    return digest.hexdigest()


def _modules(folder: Any) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".py"))


def check_frozen(then: Mapping[str, str], now: Mapping[str, str], origin: str | Path) -> None:
    """Refuse a measurement that was made with something else than what would be run now.

    Raises:
        BadInputError: naming what differs.
    """
    changed = [name for name, value in now.items() if then.get(name, value) != value]
    if changed:
        pairs = "; ".join(f"{n} {then[n][:SHOWN]}, now {now[n][:SHOWN]}" for n in changed)
        raise BadInputError(
            f"{origin}: measured with other things than this run has ({pairs}); measure the base "
            "again (check_embedded_base.py --mode base), or use what it was measured with"
        )
