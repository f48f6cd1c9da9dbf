"""From rows of pictures to one row per subject, arm and rung: the small table that is committed,
and that every figure, interval and verdict is made from.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.studies.recipe import BASE, Claim
from dreamfleet.evaluation.worldbench.summary import (
    ScoredStates,
    identities,
    is_scored,
    mean_of,
    shares,
)
from dreamfleet.runtime.storage import write_whole

Row = Mapping[str, Any]
KEYS = ("study", "host", "arm", "rung", "steps", "subject", "class", "live", "seeds", "pictures")
NAMES = ("study", "host", "arm", "subject", "class")  # an arm may be called "400"
DIGITS = 5

TITLES: Mapping[str, str] = {
    "alignment": "alignment",
    "scene_alignment": "on scenes",
    "combined_alignment": "state and scene at once",
    "state_of_combined": "state of both",
    "scene_of_combined": "scene of both",
    "copy_rate": "copies",
    "joint": "joint",
    "identity": "identity",
    "identity_states": "identity (states)",
    "identity_scenes": "identity (scenes)",
    "identity_subject": "identity (own prompt)",
    "identity_combined": "identity (both)",
    "identity_copies": "identity (copies)",
    "identity_others": "identity (not copies)",
    "right_class": "right class",
    "class_variety": "class variety (DIV)",
    "class_drift": "class drift (PRES)",
    "likeness": "likeness to the photo",
    "prop_rate": "prop seen",
    "prop_own": "prop (own prompt)",
    "recontextualisation": "recontext.",
    "views": "views",
    "art_styles": "styles",
    "materials": "materials",
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
}


def subject_table(
    rows: Sequence[Row], scored_states: ScoredStates | None = None
) -> list[dict[str, Any]]:
    """One row per host, arm, rung and subject.

    Figures are computed within a training seed (pictures of a prompt first, then prompts; identity
    as summed gains over summed ranges) and then averaged over seeds.

    Args:
        rows: of `StudyRun.rows`.
        scored_states: states that count, by class; None: all.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if is_scored(row, scored_states):
            key = (row["study"], row["host"], row["arm"], row["rung"], row["steps"],
                   row["subject"], row["class"], row["live"])  # fmt: skip
            groups.setdefault(key, []).append(row)
    table = []
    for key, own in groups.items():
        seeds = sorted({row["seed"] for row in own})
        each = [figures([row for row in own if row["seed"] == seed]) for seed in seeds]
        names = dict.fromkeys(name for one in each for name in one)
        means = {name: mean_of(one.get(name, math.nan) for one in each) for name in names}
        known = dict(zip(KEYS, (*key, len(seeds), len(own)), strict=True))
        table.append(known | {n: v for n, v in means.items() if math.isfinite(v)})
    return table


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """All figures of one training of one subject."""
    if any("similarity" in row and row["similarity"] is not None for row in rows):
        found = _world_figures(rows)
    else:
        found = _published_figures(rows)
    own = {name: next(iter(values.values())) for name, values in found.items() if values}
    return {name: float(value) for name, value in own.items() if math.isfinite(value)}


def _world_figures(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    with_state = _flagged(rows, "state_right", lambda r: r["seen_state"] == r["asked_state"])
    with_scene = _flagged(rows, "scene_right", lambda r: r["seen_scene"] == r["asked_scene"])
    prop = _flagged(rows, "prop", lambda r: r.get("seen_prop") == "yes")
    right = _flagged(rows, "right", lambda r: r["seen_class"] == r["class"])
    asked = ("subject", "state", "scene", "combined")
    found = {
        "alignment": shares(rows, "aligned", "state"),
        "scene_alignment": shares(rows, "aligned", "scene"),
        "combined_alignment": shares(rows, "aligned", "combined"),
        "state_of_combined": shares(with_state, "state_right", "combined"),
        "scene_of_combined": shares(with_scene, "scene_right", "combined"),
        "copy_rate": shares(rows, "copied", "state", "scene"),
        "joint": shares(rows, "joint", "state", "scene"),
        "identity": identities(rows, "state", "scene"),
        "identity_states": identities(rows, "state"),
        "identity_scenes": identities(rows, "scene"),
        "identity_subject": identities(rows, "subject"),
        "identity_combined": identities(rows, "combined"),
        # A copy of the photo is the likest picture of all: fewer copies alone lower the mean.
        "identity_copies": identities([r for r in rows if r["copied"]], "state", "scene"),
        "identity_others": identities([r for r in rows if not r["copied"]], "state", "scene"),
        "right_class": shares(right, "right", *asked),
        "class_drift": shares(rows, "photo_similarity", "class"),
        "class_variety": shares(rows, "class_variety", "class"),
        "likeness": shares(rows, "photo_similarity", "scene"),
        "prop_rate": shares(prop, "prop", "state", "scene"),
        "prop_own": shares(prop, "prop", "subject"),
    }
    groups = dict.fromkeys(str(row["asks"]) for row in rows if row["kind"] == "application")
    for group in groups:
        found[group] = shares([r for r in rows if r["asks"] == group], "aligned", "application")
    return found


def _published_figures(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Of photographs: alignment is BLIP-T on attributes, identity DINO-I on attributes, scenes."""
    columns = {name.partition("[")[0]: name for row in rows for name in row if name.endswith("]")}

    def of(figure: str, *kinds: str) -> dict[str, float]:
        name = columns.get(figure)
        return {} if name is None else shares([r for r in rows if name in r], name, *kinds)

    return {
        "alignment": of("blip_t", "state"),
        "scene_alignment": of("blip_t", "scene"),
        "identity": of("dino_i", "state", "scene"),
        "identity_states": of("dino_i", "state"),
        "identity_scenes": of("dino_i", "scene"),
        "identity_subject": of("dino_i", "subject"),
        "clip_t": of("clip_t", "state", "scene"),
        "clip_i": of("clip_i", "state", "scene"),
        "class_drift": of("pres", "class"),
        "class_variety": of("class_div", "class"),
    }


def _flagged(rows: Sequence[Row], name: str, test: Callable[[Row], bool]) -> list[Row]:
    return [{**row, name: test(row)} for row in rows]


def values(
    table: Sequence[Row], host: str, arm: str, rung: float, figure: str, subjects: str = "all"
) -> dict[str, float]:
    """A figure of an arm by subject; the bare base is on no host and has no rung.

    A subject on which one of the arm's seeds broke down is missing: its mean over the others would
    stand beside a mean over all.
    """
    beside = [row for row in table if row["host"] == host and row["rung"] == rung]
    seeds: dict[str, int] = {}
    for row in beside:
        seeds[row["subject"]] = max(seeds.get(row["subject"], 0), row["seeds"])
    if arm == BASE:
        own = [row for row in table if row["arm"] == BASE]
    else:
        own = [r for r in beside if r["arm"] == arm and r["seeds"] == seeds[r["subject"]]]
    return {
        str(row["subject"]): float(row[figure])
        for row in own
        if _is_among(row, subjects) and isinstance(row.get(figure), int | float)
    }


def means(table: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """Per host, arm and rung the means over subjects, in the table's order; `steps` is None where
    each subject has its own.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in table:
        groups.setdefault((row["host"], row["arm"], row["rung"]), []).append(row)
    return [
        {
            "host": host, "arm": arm, "rung": rung, "subjects": len(own),
            "steps": own[0]["steps"] if len({row["steps"] for row in own}) == 1 else None,
            **{name: mean_of(float(row[name]) for row in own if row.get(name) not in (None, ""))
               for name in names},
        }
        for (host, arm, rung), own in groups.items()
    ]  # fmt: skip


def paired(
    table: Sequence[Row], claim: Claim, host: str, rung: float
) -> tuple[dict[str, float], dict[str, float]]:
    """The claim's figure of both arms over the subjects that both have."""
    one = values(table, host, claim.arm, rung, claim.figure, claim.subjects)
    other = values(table, host, claim.against, rung, claim.figure, claim.subjects)
    common = sorted(set(one) & set(other))
    return {s: one[s] for s in common}, {s: other[s] for s in common}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Numbers with five digits, empty where there is none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    write_whole(path, buffer.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, Any]]:
    """What `write_csv` wrote, numbers as numbers; empty cells are left out.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [
                {
                    name: text if name in NAMES else _value(text)
                    for name, text in row.items()
                    if text not in ("", None)
                }
                for row in csv.DictReader(file)
            ]
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error})") from error


def _is_among(row: Row, subjects: str) -> bool:
    return subjects == "all" or bool(row["live"]) == (subjects == "live")


def _cell(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return "" if value is None else int(value)
    if isinstance(value, float):
        return "" if not math.isfinite(value) else f"{value:.{DIGITS}g}"
    return value


def _value(text: str) -> Any:
    try:
        return float(text) if any(c in text for c in ".en") else int(text)
    except ValueError:
        return text
