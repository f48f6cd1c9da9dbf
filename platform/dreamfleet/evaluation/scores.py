"""From rows to tables for any protocol: figures per arm, paired with the bare base, by subject."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.statistics import compare_paired, holm, subject_means
from dreamfleet.evaluation.worldbench.plan import BASE_HOST
from dreamfleet.evaluation.worldbench.summary import (
    DIVERSITY,
    DRIFT,
    SELECTION,
    against_base,
    mean_of,
    summarise,
)

Row = Mapping[str, Any]
Table = Sequence[Mapping[str, Any]]

# metric -> (name for people, what it says, higher is better), in the order of reading: where true
# pictures are known, likeness to them comes before likeness to the photos.
METRICS: Mapping[str, tuple[str, str, bool]] = {
    "alignment": ("Alignment", "right class and right state or scene, to the oracle", True),
    "identity": ("Identity fidelity", "0: another of its class, 1: true pictures of it", True),
    "joint": ("Joint success", "right class, state or scene, and individual", True),
    "scene_alignment": ("Alignment on scenes", "right class and right scene", True),
    "identity_scenes": ("Identity on scenes", "the same on scene prompts only", True),
    "copy_rate": ("Copies", "the photo's state or scene where another was asked", False),
    "identity_subject": ("Identity, own prompt", "the same where nothing is asked", True),
    "dino_i": ("Subject fidelity (DINO-I)", "pictures against the photos, by looks alone", True),
    "clip_i": ("Subject fidelity (CLIP-I)", "pictures against the photos", True),
    "selection_fidelity": ("Fidelity on scenes", "subject against the photos, other places", True),
    "clip_t": ("Prompt fidelity (CLIP-T)", "pictures against their prompts", True),
    "blip_t": ("Prompt fidelity (BLIP-T)", "pictures against their prompts, attributes too", True),
    "pres": ("Class drift (PRES)", "class pictures against the photos", False),
    "class_div": ("Class variety (DIV)", "class pictures among themselves", True),
    "div": ("Variety (DIV)", "pictures of one prompt among themselves", True),
}
# Neither good nor bad beside the bare base: one subject varies less than a class.
NO_VERDICT_ON_BASE = ("div",)
FIDELITY = ("identity", "selection_fidelity", "dino_i", "clip_i")
ALIGNMENT = ("alignment", "clip_t", "blip_t")


def summarise_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of a protocol without true pictures: every column whose name holds a backbone.

    Returns:
        `table`: per arm (host and steps) means over subjects and the subjects' own figures, with
        pictures, prompts and training seeds averaged in this order; `against_base`: paired
        differences; `by_kind`: means by kind of prompt.

    Raises:
        BadInputError: no row has a figure.
    """
    names = list(dict.fromkeys(name for row in rows for name in row if name.endswith("]")))
    if not names:
        raise BadInputError("no picture was scored; no judge could be loaded")
    table, by_kind = [], []
    for host, steps in _arms(rows):
        mine = [row for row in rows if row["host"] == host and row["steps"] == steps]
        figures = _figures(mine, names)
        table.append(
            {"host": host, "steps": steps, "num_subjects": len({row["subject"] for row in mine}),
             "means": {name: mean_of(values.values()) for name, values in figures.items()},
             "subjects": figures}
        )  # fmt: skip
        for kind in dict.fromkeys(str(row["kind"]) for row in mine):
            own = _figures([row for row in mine if row["kind"] == kind], names)
            means = {name: mean_of(values.values()) for name, values in own.items()}
            by_kind.append({"host": host, "steps": steps, "kind": kind, "means": means})
    return {
        "subjects": sorted({str(row["subject"]) for row in rows}),
        "table": table,
        "against_base": against_base(table),
        "by_kind": by_kind,
    }


def summarise_world(
    rows: Sequence[Row], scored_states: Mapping[str, Sequence[str]] | None
) -> dict[str, Any]:
    """WorldBench's figures from rows of the drawing pipeline, and the published metrics beside."""
    names = (DIVERSITY, DRIFT, SELECTION)
    rungs: list[dict[str, Any]] = []
    for host, steps in _arms(rows):
        mine = [row for row in rows if row["host"] == host and row["steps"] == steps]
        figures = _figures(mine, names)
        for subject in dict.fromkeys(str(row["subject"]) for row in mine):
            own = {n: v[subject] for n, v in figures.items() if subject in v}
            rungs.append({"subject": subject, "host": host, "steps": steps, **own})
    summary = summarise(rows, rungs, scored_states)
    published = {(e["host"], e["steps"]): e for e in summarise_scores(rows)["table"]}
    for entry in summary["table"]:
        figures = published[entry["host"], entry["steps"]]["subjects"]
        extra = {n: v for n, v in figures.items() if n.startswith(("clip_", "dino_"))}
        entry["subjects"] |= extra
        entry["means"] |= {name: mean_of(values.values()) for name, values in extra.items()}
    return {**summary, "against_base": against_base(summary["table"])}


def compare_entries(
    a: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """`a` minus each of `others`, figure by figure, over the subjects that have the figure in both;
    p values adjusted by Holm over all figures and pairs.

    Args:
        a: an entry of a summary's `table`.
        others: entries by name.

    Raises:
        BadInputError: no figure in common, or other subjects.
    """
    found: list[dict[str, Any]] = []
    for name, other in others.items():
        found += _differences(a, name, other)
    if not found:
        raise BadInputError(
            "the two have no figure in common; expected results of the same protocol and judges"
        )
    tested = {str(i): row["p_t"] for i, row in enumerate(found) if row["p_t"] is not None}
    adjusted = holm(tested) if tested else {}
    for i, row in enumerate(found):
        row["p_holm"] = adjusted.get(str(i))
    return found


def _differences(a: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    apart = False
    for figure, own in a["subjects"].items():
        theirs = _known(other["subjects"].get(figure, {}))
        mine = _known(own)
        common = [subject for subject in mine if subject in theirs]
        apart |= bool(mine and theirs and not common)
        if common:
            result = compare_paired({s: mine[s] for s in common}, {s: theirs[s] for s in common})
            found.append({"other": name, "figure": figure, **asdict(result)})
    if apart and not found:
        raise BadInputError(
            f"{name}: no subject in common with the first; expected results of the same subjects"
        )
    return found


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {s: v for s, v in values.items() if v is not None and math.isfinite(v)}


def title(figure: str) -> str:
    """A figure's name for people, its backbone kept."""
    metric, bracket, backbone = figure.partition("[")
    known = METRICS.get(metric)
    judged = f", {backbone.rstrip(']')}" if bracket else ""
    return f"{known[0] if known else metric}{judged}"


def explanation(figure: str) -> str:
    """What a figure says."""
    known = METRICS.get(figure.partition("[")[0])
    return known[1] if known else ""


def higher_is_better(figure: str) -> bool:
    """How to read a figure."""
    known = METRICS.get(figure.partition("[")[0])
    return known[2] if known else True


def has_verdict_on_base(figure: str) -> bool:
    """Whether being above or below the bare base is good or bad."""
    return figure.partition("[")[0] not in NO_VERDICT_ON_BASE


def headline(figures: Sequence[str]) -> list[str]:
    """Figures in the order in which they should be read."""
    order = list(METRICS)
    known = [name for name in figures if name.partition("[")[0] in METRICS]
    return sorted(known, key=lambda name: order.index(name.partition("[")[0]))


def first_of(figures: Sequence[str], metrics: Sequence[str]) -> str | None:
    """The first figure that is of one of `metrics`, in their order."""
    return next((f for m in metrics for f in figures if f.partition("[")[0] == m), None)


def _arms(rows: Sequence[Row]) -> list[tuple[str, int]]:
    found = {(str(row["host"]), int(row["steps"])) for row in rows}
    return sorted(found, key=lambda arm: (arm[0] != BASE_HOST, arm))


def _figures(rows: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, float]]:
    figures = {}
    for name in names:
        scored = [row for row in rows if row.get(name) is not None]
        if scored:
            figures[name] = subject_means(scored, name)
    return figures
