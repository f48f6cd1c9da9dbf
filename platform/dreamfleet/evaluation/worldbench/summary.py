"""From rows to tables: figures per host and step, paired with the bare base; the ladder's rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.statistics import compare_paired, subject_means
from dreamfleet.evaluation.world_metrics import identity_fidelity
from dreamfleet.evaluation.worldbench.plan import BASE_HOST

Row = Mapping[str, Any]
ScoredStates = Mapping[str, Collection[str]]  # class -> states that the base reaches

GUIDANCES = (1.5, 2.0, 3.0, 5.0, 7.5)
GUIDANCE_TOLERANCE = 0.02
SCORED_STATE_SHARE = 0.85
LEARNT_SHARE = 0.95
DISEASE_LOSS = 0.15
ROUNDING = 1e-9  # a share that is just reached is reached
DISEASE_FACTORS = (1, 2, 4)  # of N*
VARIETY = "div[world-identity-distance]"  # of one prompt's pictures
DIVERSITY = f"class_{VARIETY}"  # of "photo of a {class}"
DRIFT = "pres[world-identity]"
SELECTION = "selection_fidelity[world-identity]"

COLUMNS: Mapping[str, str] = {
    "alignment": "alignment (states)",
    "scene_alignment": "alignment (scenes)",
    "copy_rate": "copies",
    "identity": "identity",
    "identity_scenes": "identity (scenes)",
    "identity_subject": "identity (own prompt)",
    "joint": "joint",
    SELECTION: "selection fidelity",
    DIVERSITY: "class variety",
    DRIFT: "class drift",
}


def summarise(
    rows: Sequence[Row], rungs: Sequence[Row], scored_states: ScoredStates | None = None
) -> dict[str, Any]:
    """All figures of a benchmark.

    Args:
        rows: one per picture.
        rungs: figures per subject, host and step that are not of single pictures.
        scored_states: states that count, by class; None: all. Scene prompts always count.

    Returns:
        `table`: per host and step the means over subjects and the subjects' own figures;
        `against_base`: paired differences; `ladders`: per host N* and the diagnosis.
    """
    subjects = sorted({str(row["subject"]) for row in rows if row["host"] == BASE_HOST})
    if not subjects:
        raise BadInputError("no rows of the bare base; run the benchmark first")
    counted = [row for row in rows if is_scored(row, scored_states)]
    table = []
    for host, steps in sorted({(str(row["host"]), int(row["steps"])) for row in rows}):
        mine = [row for row in counted if row["host"] == host and row["steps"] == steps]
        extra = [rung for rung in rungs if rung["host"] == host and rung["steps"] == steps]
        by_subject = _by_subject(mine, extra)
        table.append(
            {"host": host, "steps": steps, "num_subjects": len(by_subject["alignment"]),
             "means": {name: mean_of(values.values()) for name, values in by_subject.items()},
             "subjects": by_subject}
        )  # fmt: skip
    return {
        "subjects": subjects,
        "table": table,
        "against_base": against_base(table),
        "ladders": _ladders(table),
    }


def learnt_step(identity_by_step: Mapping[int, float]) -> int | None:
    """N*: the first rung whose identity on the subject's own prompt reaches 95 % of the best.

    None where no rung comes nearer to the subject than another identity would: nothing was learnt.

    Raises:
        BadInputError: an empty ladder.
    """
    if not identity_by_step:
        raise BadInputError("a ladder without rungs; expected identity at one step at least")
    best = max(identity_by_step.values())
    if not best > 0:
        return None
    return min(
        s for s, value in identity_by_step.items() if value >= LEARNT_SHARE * best - ROUNDING
    )


def diagnose(
    base_alignment: float, alignment_by_step: Mapping[int, float], learnt_at: int | None
) -> dict[str, Any]:
    """Whether a host is diseased: it lost 15 points of alignment at N*, else at 2 N* or 4 N*.

    Returns `diseased` (True, False, or None where the subject was not learnt or a rung still has to
    be run), `at` (the rung) and the `losses` looked at.
    """
    losses: dict[int, float] = {}
    if learnt_at is None:
        return {"diseased": None, "at": None, "losses": losses}
    for factor in DISEASE_FACTORS:
        step = factor * learnt_at
        if step not in alignment_by_step:
            return {"diseased": None, "at": None, "losses": losses, "missing_rung": step}
        losses[step] = base_alignment - alignment_by_step[step]
        if losses[step] >= DISEASE_LOSS - ROUNDING:
            return {"diseased": True, "at": step, "losses": losses}
    return {"diseased": False, "at": None, "losses": losses}


def choose_guidance(alignment_by_guidance: Mapping[float, float]) -> float:
    """The smallest guidance scale within 2 points of the best alignment (of the base alone)."""
    if not alignment_by_guidance:
        raise BadInputError("no guidance scales were measured; expected one at least")
    best = max(alignment_by_guidance.values())
    near = [
        scale
        for scale, alignment in alignment_by_guidance.items()
        if alignment >= best - GUIDANCE_TOLERANCE - ROUNDING
    ]
    return min(near)


def choose_states(
    alignment_by_state: Mapping[tuple[str, str], float],
) -> dict[str, list[str]]:
    """The scored states by class: those that the base reaches in 85 % of its pictures."""
    chosen: dict[str, list[str]] = {}
    for (class_name, state), share in alignment_by_state.items():
        chosen.setdefault(class_name, [])
        if share >= SCORED_STATE_SHARE - ROUNDING:
            chosen[class_name].append(state)
    return chosen


def markdown_table(summary: Mapping[str, Any]) -> str:
    """The table of means, for documents."""
    lines = [
        "| host | steps | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---:|" + "---:|" * len(COLUMNS),
    ]
    for entry in summary["table"]:
        cells = [_cell(entry["means"].get(name)) for name in COLUMNS]
        lines.append(f"| {entry['host']} | {entry['steps'] or ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def is_scored(row: Row, scored_states: ScoredStates | None) -> bool:
    """Whether a picture counts: of the states that are asked for, those that the base reaches."""
    if scored_states is None or row["kind"] not in ("state", "combined"):
        return True
    return row["asked_state"] in scored_states.get(str(row["class"]), ())


def _by_subject(rows: Sequence[Row], rungs: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Each figure by subject."""
    figures = {
        "alignment": shares(rows, "aligned", "state"),
        "scene_alignment": shares(rows, "aligned", "scene"),
        "copy_rate": shares(rows, "copied", "state", "scene"),
        "joint": shares(rows, "joint", "state", "scene"),
        "identity": identities(rows, "state", "scene"),
        "identity_scenes": identities(rows, "scene"),
        "identity_subject": identities(rows, "subject"),
    }
    for name in (SELECTION, DIVERSITY, DRIFT):
        figures[name] = {str(rung["subject"]): rung[name] for rung in rungs if name in rung}
    return figures


def shares(rows: Sequence[Row], score: str, *kinds: str) -> dict[str, float]:
    """By subject the mean of a score over prompts of some kinds; empty where there is none."""
    chosen = [row for row in rows if row["kind"] in kinds and row[score] is not None]
    return subject_means(chosen, score) if chosen else {}


def identities(rows: Sequence[Row], *kinds: str) -> dict[str, float]:
    """By subject the identity fidelity of the pictures of some kinds of prompts: of all pictures
    of a training seed together, then averaged over seeds.
    """
    trainings: dict[str, dict[Any, list[Row]]] = {}
    for row in rows:
        if row["kind"] in kinds:
            own = trainings.setdefault(str(row["subject"]), {})
            own.setdefault(row.get("seed"), []).append(row)
    return {
        subject: mean_of(identity_fidelity(each) for each in own.values())
        for subject, own in trainings.items()
    }


def against_base(table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Host minus bare base over the subjects that both have, for every figure."""
    base = next(entry for entry in table if entry["host"] == BASE_HOST)
    out = []
    for entry in table:
        if entry["host"] == BASE_HOST:
            continue
        differences: dict[str, Any] = {}
        for name, own in entry["subjects"].items():
            common = [
                subject
                for subject in own
                if subject in base["subjects"][name]
                and math.isfinite(own[subject] + base["subjects"][name][subject])
            ]
            if common:
                of_base = base["subjects"][name]
                result = compare_paired(
                    {s: own[s] for s in common}, {s: of_base[s] for s in common}
                )
                differences[name] = asdict(result)
        out.append({"host": entry["host"], "steps": entry["steps"], "differences": differences})
    return out


def _ladders(table: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """N* and diagnosis of every host, from means over subjects."""
    base = next(entry["means"]["alignment"] for entry in table if entry["host"] == BASE_HOST)
    out: dict[str, Any] = {}
    for host in sorted({str(entry["host"]) for entry in table} - {BASE_HOST}):
        curve = _curve(table, host, lambda means: means["identity_subject"])
        learnt_at = learnt_step(curve)
        alignments = _curve(table, host, lambda means: means["alignment"])
        out[host] = {"learnt_at": learnt_at, **diagnose(base, alignments, learnt_at)}
    return out


def _curve(
    table: Sequence[Mapping[str, Any]], host: str, figure: Callable[[Mapping[str, float]], float]
) -> dict[int, float]:
    return {entry["steps"]: figure(entry["means"]) for entry in table if entry["host"] == host}


def mean_of(values: Iterable[float]) -> float:
    """Mean of the finite values; NaN where there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else float("nan")


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
