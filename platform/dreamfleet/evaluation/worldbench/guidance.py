"""What the base alone can do: guidance scale and scored states, before anything is trained
(docs/protocol.md, step 2).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamfleet.bases import Base
from dreamfleet.engine.sampling import sample_images
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.protocols import prompts_hash
from dreamfleet.evaluation.results import write_json
from dreamfleet.evaluation.world_metrics import ReadsPictures
from dreamfleet.evaluation.worldbench.frozen import world_hash
from dreamfleet.evaluation.worldbench.ladder import PICTURES_AT_ONCE
from dreamfleet.evaluation.worldbench.plan import SEED_LIMIT
from dreamfleet.evaluation.worldbench.summary import GUIDANCES, choose_guidance, choose_states
from dreamfleet.seeding import key_to_int
from dreamfleet.world.captions import prompt
from dreamfleet.world.classes import CLASSES

Shares = dict[tuple[str, str], float]  # (class, state) -> share of pictures


def measure_base(
    base: Base,
    oracle: ReadsPictures,
    *,
    guidances: Sequence[float] = GUIDANCES,
    images_per_state: int = 8,
    num_inference_steps: int = 25,
    classes: Sequence[str] | None = None,
    judged_by: str = "",
    kept: Path | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Alignment of "a photo of a {state} {class}" by guidance scale; the same noise at every scale.

    Each finished scale is kept in the folder `kept` and not measured again while base, judge
    (`judged_by`: name and hash) and plan are the same.

    Returns plain values: `guidance` (the choice), `scored_states` (by class, at that guidance),
    `alignment_by_guidance`, `alignment_by_state` (class -> state -> share, at the choice).
    """
    names = list(CLASSES) if classes is None else list(classes)
    shares: dict[float, Shares] = {}
    world = f"{world_hash()} {prompts_hash('worldbench')}"
    for guidance in guidances:
        what = [base.hash, judged_by, world, guidance, images_per_state, num_inference_steps, names]
        place = None if kept is None else kept / f"guidance-{guidance:g}.json"
        found = None if place is None else _read_shares(place, what)
        shares[guidance] = found or _measure_scale(
            base, oracle, guidance, names, images_per_state, num_inference_steps
        )
        if place is not None and found is None:
            write_json(place, _shares_file(what, shares[guidance]))
        means = list(shares[guidance].values())
        report(f"guidance {guidance:g}: alignment {sum(means) / len(means):.3f}")
    return _choices(shares, images_per_state)


def _measure_scale(
    base: Base,
    oracle: ReadsPictures,
    guidance: float,
    names: Sequence[str],
    images_per_state: int,
    num_inference_steps: int,
) -> Shares:
    """Share of pictures in which the oracle reads what was asked, by class and state."""
    shares: Shares = {}
    for name in names:
        for state in CLASSES[name].states:
            text = prompt(name, state=state.name)
            seeds = [
                key_to_int("base gate", name, state.name, i) % SEED_LIMIT
                for i in range(images_per_state)
            ]
            hits: list[bool] = []
            for start in range(0, len(seeds), PICTURES_AT_ONCE):
                chunk = seeds[start : start + PICTURES_AT_ONCE]
                images = sample_images(
                    base,
                    [text] * len(chunk),
                    chunk,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance,
                )
                hits += [
                    row["class"] == name and row["state"] == state.name
                    for row in oracle.read(images)
                ]
            shares[name, state.name] = sum(hits) / len(hits)
    return shares


def _shares_file(what: Sequence[Any], shares: Shares) -> dict[str, Any]:
    return {"of": what, "shares": [[*key, share] for key, share in shares.items()]}


def _read_shares(path: Path, what: Sequence[Any]) -> Shares | None:
    """What an interrupted measurement of the same things left."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["of"] != list(what):
            return None
        return {(name, state): float(share) for name, state, share in stored["shares"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _choices(
    shares: Mapping[float, Mapping[tuple[str, str], float]], images_per_state: int
) -> dict[str, Any]:
    alignments = {scale: sum(s.values()) / len(s) for scale, s in shares.items()}
    guidance = choose_guidance(alignments)
    by_state: dict[str, dict[str, float]] = {}
    for (name, state), share in shares[guidance].items():
        by_state.setdefault(name, {})[state] = share
    return {
        "guidance": guidance,
        "scored_states": choose_states(shares[guidance]),
        "alignment_by_guidance": {str(scale): value for scale, value in alignments.items()},
        "alignment_by_state": by_state,
        "images_per_state": images_per_state,
    }


def write_gate(gate: Mapping[str, Any], path: Path) -> None:
    """Keep what `measure_base` returned."""
    write_json(path, gate)


def read_gate(path: Path) -> dict[str, Any]:
    """What `write_gate` wrote.

    Raises:
        BadInputError: no such file, or another kind of file.
    """
    try:
        gate = json.loads(path.read_text(encoding="utf-8"))
        return {**gate, "guidance": float(gate["guidance"]), "scored_states": gate["scored_states"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(
            f"{path}: no measurement of the base ({error}); expected the base.json that "
            "check_embedded_base.py --mode base writes"
        ) from error
