"""`report.html` of an evaluation or a benchmark: one file, no script, nothing fetched.

Verdict, pictures with and without the adapter from the same noise, fidelity against alignment,
figures by subject, curves, and what the numbers rest on.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from dreamfleet.evaluation.charts import Point, by_steps, scatter
from dreamfleet.evaluation.curves import curves
from dreamfleet.evaluation.drawing import BARE
from dreamfleet.evaluation.report import REPORT, PictureEncoder, page_environment
from dreamfleet.evaluation.scores import (
    ALIGNMENT,
    FIDELITY,
    explanation,
    first_of,
    has_verdict_on_base,
    headline,
    higher_is_better,
    title,
)
from dreamfleet.runtime.storage import write_whole

MAX_SUBJECTS = 8  # with pictures; the table holds all
PROMPTS_ALONE, PICTURES_ALONE = 30, 4  # of one subject
PROMPTS_EACH, PICTURES_EACH = 4, 2  # of several
CARDS = 6
MAX_PHOTOS = 4
LEFT_OUT_KINDS = ("class", "subject")  # of the grids

Row = Mapping[str, Any]


@dataclass(frozen=True)
class EvaluationPage:
    """All that the page shows.

    Attributes:
        heading, kicker: what was evaluated; the protocol.
        lead: one sentence on what was done.
        summary: as `scores.summarise_scores` returns it.
        rows: one per picture; `picture` is relative to `folder`.
        folder: the output folder.
        photos: subject -> encoded reference photos.
        warnings: what a reader must know before the numbers, e.g. that they mean nothing here.
        notes: what else to know: judges left out, subjects missing.
        settings: name -> value.
        history: training figures by step, averaged over subjects.
    """

    heading: str
    kicker: str
    lead: str
    summary: Mapping[str, Any]
    rows: Sequence[Row]
    folder: Path
    photos: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()


@dataclass(frozen=True)
class _Comparison:
    prompt: str
    kind: str
    with_adapter: list[Image.Image]
    without: list[Image.Image]


def write_evaluation_report(page: EvaluationPage) -> Path:
    """Write `report.html` into the page's folder; whole or not at all."""
    return write_whole(page.folder / REPORT, render_evaluation(page).encode())


def render_evaluation(page: EvaluationPage) -> str:
    """The page as HTML of less than 6 MB."""
    arm, base = main_arm(page.summary), base_entry(page.summary)
    figures = headline(list(arm["means"]))
    subjects = _with_pictures(page, arm)
    shown = [
        image
        for _, photos, cards in subjects
        for image in (
            *photos,
            *(i for card in cards for i in (*card.with_adapter, *card.without)),
        )
    ]
    encoder = PictureEncoder.fitting(shown or [Image.new("RGB", (1, 1))])
    return page_environment().get_template("evaluation.html.j2").render(
        page=page,
        cards=[_card(page.summary, arm, base, name) for name in figures[:CARDS]],
        figures=[(name, title(name)) for name in figures],
        arms=page.summary["table"],
        subjects=subjects,
        scatter=Markup(_scatter(page.summary)),
        steps=[(t, Markup(svg)) for t, svg in _steps(page.summary, figures)],
        legend=_legend(page.summary),
        curves=[(curve, Markup(curve.svg)) for curve in curves(page.history)],
        table=_subject_table(arm, base, figures[:CARDS]),
        kinds=_kinds(page.summary, arm, figures[:3]),
        picture=encoder.attributes,
        arm_name=arm_name(arm),
    )  # fmt: skip


def main_arm(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arm that the page is about: the last that is not the bare base."""
    entries = [entry for entry in summary["table"] if entry["host"] != BARE]
    found: Mapping[str, Any] = (entries or summary["table"])[-1]
    return found


def base_entry(summary: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The bare base's entry."""
    return next((entry for entry in summary["table"] if entry["host"] == BARE), None)


def arm_name(entry: Mapping[str, Any]) -> str:
    """An arm for people."""
    if entry["host"] == BARE:
        return "bare base"
    return f"{entry['host']}, {entry['steps']} steps" if entry["steps"] else str(entry["host"])


def difference_text(difference: Mapping[str, Any] | None) -> str:
    """A paired difference in words; why there is no interval where there is none."""
    if difference is None:
        return ""
    mean, count = difference["mean_difference"], difference["num_subjects"]
    text = f"{mean:+.3f} against the bare base".replace("-", "−")
    if difference["interval"] is None:
        few = "subject" if count == 1 else "subjects"
        return f"{text}; {count} {few}: too few for an interval"
    low, high = difference["interval"]
    return f"{text}, 95 % interval {low:+.3f} to {high:+.3f}, {count} subjects".replace("-", "−")


def _card(
    summary: Mapping[str, Any],
    arm: Mapping[str, Any],
    base: Mapping[str, Any] | None,
    name: str,
) -> dict[str, Any]:
    differences: Mapping[str, Any] = next(
        (
            entry["differences"]
            for entry in summary["against_base"]
            if (entry["host"], entry["steps"]) == (arm["host"], arm["steps"])
        ),
        {},
    )
    found = differences.get(name)
    change = found["mean_difference"] if found else 0.0
    verdict = ""
    if abs(change) >= 0.005 and has_verdict_on_base(name):
        verdict = "good" if (change > 0) == higher_is_better(name) else "bad"
    return {
        "title": title(name),
        "value": _number(arm["means"].get(name)),
        "base": _number(base["means"].get(name)) if base else "",
        "change": difference_text(found),
        "verdict": verdict,
        "explanation": explanation(name) + ("" if higher_is_better(name) else "; lower is better"),
    }


def _scatter(summary: Mapping[str, Any]) -> str:
    names = list(main_arm(summary)["means"])
    x_name, y_name = first_of(names, ALIGNMENT), first_of(names, FIDELITY)
    if x_name is None or y_name is None:
        return ""
    points = []
    for series, entry in enumerate(summary["table"]):
        label = arm_name(entry)
        means = entry["means"]
        points.append(Point(label, _float(means.get(x_name)), _float(means.get(y_name)), series))
        own_x, own_y = entry["subjects"].get(x_name, {}), entry["subjects"].get(y_name, {})
        points += [
            Point(f"{label}, {s}", _float(own_x[s]), _float(own_y[s]), series, faint=True)
            for s in own_x
            if s in own_y
        ]
    return scatter(points, title(x_name), title(y_name))


def _steps(summary: Mapping[str, Any], figures: Sequence[str]) -> list[tuple[str, str]]:
    out = []
    for name in figures:
        series: dict[str, dict[int, float]] = {}
        for entry in summary["table"]:
            if entry["host"] != BARE:
                series.setdefault(entry["host"], {})[entry["steps"]] = _float(
                    entry["means"].get(name)
                )
        svg = by_steps(series, title(name))
        if svg:
            out.append((title(name), svg))
    return out


def _legend(summary: Mapping[str, Any]) -> list[str]:
    hosts = [entry["host"] for entry in summary["table"] if entry["host"] != BARE]
    return list(dict.fromkeys(hosts))


def _subject_table(
    arm: Mapping[str, Any], base: Mapping[str, Any] | None, figures: Sequence[str]
) -> list[tuple[str, list[tuple[str, str]]]]:
    subjects = sorted({s for name in figures for s in arm["subjects"].get(name, {})})
    bare = base["subjects"] if base else {}
    return [
        (
            subject,
            [
                (
                    _number(arm["subjects"].get(name, {}).get(subject)),
                    _number(bare.get(name, {}).get(subject)),
                )
                for name in figures
            ],
        )
        for subject in subjects
    ]


def _kinds(
    summary: Mapping[str, Any], arm: Mapping[str, Any], figures: Sequence[str]
) -> list[tuple[str, list[str]]]:
    mine = (arm["host"], arm["steps"])
    return [
        (entry["kind"], [_number(entry["means"].get(name)) for name in figures])
        for entry in summary.get("by_kind", [])
        if (entry["host"], entry["steps"]) == mine and entry["kind"] != "class"
    ]


def _with_pictures(
    page: EvaluationPage, arm: Mapping[str, Any]
) -> list[tuple[str, list[Image.Image], list[_Comparison]]]:
    names = list(dict.fromkeys(str(row["subject"]) for row in page.rows))[:MAX_SUBJECTS]
    alone = len(names) == 1
    out = []
    for name in names:
        encoded = list(page.photos.get(name, ()))[:MAX_PHOTOS]
        photos = [Image.open(io.BytesIO(photo)).convert("RGB") for photo in encoded]
        out.append((name, photos, _comparisons(page, arm, name, alone)))
    return out


def _comparisons(
    page: EvaluationPage, arm: Mapping[str, Any], subject: str, alone: bool
) -> list[_Comparison]:
    own = [r for r in page.rows if r["subject"] == subject and r["kind"] not in LEFT_OUT_KINDS]
    prompts = {str(row["prompt"]): str(row["kind"]) for row in own}
    limit, count = (PROMPTS_ALONE, PICTURES_ALONE) if alone else (PROMPTS_EACH, PICTURES_EACH)
    found = []
    for prompt in _spread(prompts, limit):
        both = [
            _pictures(page.folder, own, prompt, host, steps, count)
            for host, steps in ((arm["host"], arm["steps"]), (BARE, 0))
        ]
        found.append(_Comparison(prompt, prompts[prompt], *both))
    return found


def _spread(prompts: Mapping[str, str], limit: int) -> list[str]:
    """At most `limit` prompts, of every kind some."""
    by_kind: dict[str, list[str]] = {}
    for prompt, kind in prompts.items():
        by_kind.setdefault(kind, []).append(prompt)
    picked: list[str] = []
    for place in range(max((len(own) for own in by_kind.values()), default=0)):
        picked += [own[place] for own in by_kind.values() if place < len(own)]
    kept = set(picked[:limit])
    return [prompt for prompt in prompts if prompt in kept]


def _pictures(
    folder: Path, rows: Sequence[Row], prompt: str, host: str, steps: int, count: int
) -> list[Image.Image]:
    """The first pictures of a prompt, of the first training seed."""
    found = [r for r in rows if r["prompt"] == prompt and (r["host"], r["steps"]) == (host, steps)]
    first = min((row["seed"] for row in found), default=0)
    images = []
    for row in [row for row in found if row["seed"] == first][:count]:
        with Image.open(folder / str(row["picture"])) as image:
            images.append(image.convert("RGB"))
    return images


def _number(value: float | None) -> str:
    known = value is not None and math.isfinite(value)
    return f"{value:.3f}".replace("-", "−") if known else ""


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)
