"""What a finished benchmark leaves: results.parquet, summary.json, table.md and picture grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamfleet.data.photos import to_png
from dreamfleet.evaluation.results import RESULTS, SUMMARY, write_rows, write_summary
from dreamfleet.evaluation.world_metrics import WorldScorer
from dreamfleet.evaluation.worldbench.frozen import SHOWN, sampler_text, states_text
from dreamfleet.evaluation.worldbench.ladder import photo_image
from dreamfleet.evaluation.worldbench.pictures import scenes_sheet, write_sheets
from dreamfleet.evaluation.worldbench.plan import BASE_HOST, BenchSettings
from dreamfleet.evaluation.worldbench.run import read_results
from dreamfleet.evaluation.worldbench.summary import (
    DIVERSITY,
    ScoredStates,
    markdown_table,
    summarise,
)
from dreamfleet.world.evaluators import load_identity_encoder, load_oracle, weights_hash
from dreamfleet.world.splits import Subject, benchmark_photo

PHOTO_PX = 64
VARIED_SHARE = 0.7  # of the bare base's variety: "photo of a dog" stayed varied


def shipped_scorer(oracle: str) -> tuple[WorldScorer, str]:
    """Scorer with oracle "A" or "B", and the name and weights hash of its evaluators."""
    scorer = WorldScorer(load_oracle(oracle), load_identity_encoder())
    digest = weights_hash(f"oracle_{oracle.lower()}", "identity", "segmenter")
    return scorer, f"oracle-{oracle} {digest}"


def publish(
    output_dir: Path,
    settings: BenchSettings,
    scored_states: ScoredStates | None = None,
    frozen: Mapping[str, str] | None = None,
    judges: str = "",
) -> dict[str, Any]:
    """Write all result files from the chosen subjects' finished pairs; returns the summary, with
    the `frozen` hashes in it.

    Args:
        judges: the scorer's fingerprint, as `JudgeSpec` makes it.
    """
    chosen = settings.subjects()
    ids = {subject.subject_id for subject in chosen}
    all_rows, all_rungs = read_results(output_dir)
    rows = [row for row in all_rows if row["subject"] in ids]
    rungs = [rung for rung in all_rungs if rung["subject"] in ids]
    hosts = sorted({str(row["host"]) for row in rows} - {BASE_HOST})
    summary = summarise(rows, rungs, scored_states)
    measured = _measured(settings, scored_states, frozen or {}, judges)
    summary |= {"settings": settings.as_dict() | measured}
    summary |= {"scored_states": _plain_states(scored_states), "frozen": dict(frozen or {})}
    summary["adapter_check"] = adapter_check(summary)
    write_rows(output_dir / RESULTS, rows)
    write_summary(output_dir / SUMMARY, summary)
    (output_dir / "table.md").write_text(markdown_table(summary), encoding="utf-8")
    write_sheets(output_dir, rows, chosen, hosts)
    for host in hosts:
        _write_scenes(output_dir, rows, settings, host)
    _write_report(output_dir, rows, settings, summary)
    return summary


def _measured(
    settings: BenchSettings,
    scored_states: ScoredStates | None,
    frozen: Mapping[str, str],
    judges: str,
) -> dict[str, str]:
    """How it was measured, in the words of `dreamfleet benchmark`'s summaries: `compare` refuses
    what was measured otherwise.
    """
    hashes = {"base hash": frozen.get("base", ""), "world": frozen.get("world", ""),
              "prompts": frozen.get("prompts", ""), "judges": judges}  # fmt: skip
    how = settings.scheduler, settings.num_inference_steps, settings.guidance_scale
    return {
        **{name: digest[:SHOWN] for name, digest in hashes.items() if digest},
        "sampler": sampler_text(*how),
        "pictures per prompt": str(settings.images_per_prompt),
        "scored states": states_text(scored_states),
    }


def adapter_check(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per host and step: does each subject's adapter beat the bare base in identity in scenes that
    the photo does not show, and does "photo of a {class}" stay varied?
    """
    base = next(entry for entry in summary["table"] if entry["host"] == BASE_HOST)
    checks = []
    for entry in summary["table"]:
        if entry["host"] == BASE_HOST:
            continue
        own, bare = entry["subjects"], base["subjects"]
        gains = {
            subject: value - bare["identity_scenes"][subject]
            for subject, value in own["identity_scenes"].items()
            if subject in bare["identity_scenes"]
        }
        variety = {
            subject: value / bare[DIVERSITY][subject]
            for subject, value in own[DIVERSITY].items()
            if bare[DIVERSITY].get(subject)
        }
        checks.append(
            {
                "host": entry["host"],
                "steps": entry["steps"],
                "identity_gain": gains,
                "all_subjects_gain": bool(gains) and all(gain > 0 for gain in gains.values()),
                "class_variety_of_base": variety,
                "class_stays_varied": bool(variety)
                and sum(variety.values()) / len(variety) >= VARIED_SHARE,
            }
        )
    return checks


def check_text(summary: Mapping[str, Any]) -> str:
    """The table and, for every host and step, the verdict of `adapter_check`."""
    lines = [markdown_table(summary)]
    for check in summary["adapter_check"]:
        gains, variety = check["identity_gain"], check["class_variety_of_base"]
        gainers = sum(gain > 0 for gain in gains.values())
        lines.append(
            f"{check['host']}, {check['steps']} steps: identity in other scenes above the bare "
            f"base for {gainers} of {len(gains)} subjects; class variety "
            f"{_mean_text(list(variety.values()))} of the base's"
        )
    lines += [_ladder_text(host, ladder) for host, ladder in summary["ladders"].items()]
    return "\n".join(lines) + "\n"


def _ladder_text(host: str, ladder: Mapping[str, Any]) -> str:
    if ladder["learnt_at"] is None:
        return f"{host}: the subject was learnt at no rung"
    verdict = {True: "diseased", False: "not diseased"}.get(
        ladder["diseased"], f"needs the rung of {ladder.get('missing_rung')} steps"
    )
    losses = ", ".join(f"{loss:.3f} at {step}" for step, loss in ladder["losses"].items())
    return f"{host}: N* = {ladder['learnt_at']}; {verdict}; lost alignment {losses}"


def _write_scenes(
    output_dir: Path, rows: Sequence[Mapping[str, Any]], settings: BenchSettings, host: str
) -> None:
    done = {row["subject"] for row in rows if row["host"] == host}
    finished = [subject for subject in settings.subjects() if subject.subject_id in done]
    for steps in sorted({int(row["steps"]) for row in rows if row["host"] == host}):
        sheet = scenes_sheet(output_dir, rows, finished, host, steps)
        sheet.save(output_dir / "grids" / f"scenes-{host}-{steps:05d}.png")


def _write_report(
    output_dir: Path,
    rows: Sequence[Mapping[str, Any]],
    settings: BenchSettings,
    summary: Mapping[str, Any],
) -> None:
    from dreamfleet.evaluation.evaluation_report import EvaluationPage, write_evaluation_report

    photos = {s.subject_id: (_photo_png(s),) for s in settings.subjects()}
    measured = summary["settings"]
    write_evaluation_report(
        EvaluationPage(
            heading=f"WorldBench, split {settings.split}",
            kicker="hosts by training steps",
            lead="Every host read at several steps of one run, beside the bare base.",
            summary=summary,
            rows=rows,
            folder=output_dir,
            photos=photos,
            notes=[_ladder_text(host, ladder) for host, ladder in summary["ladders"].items()],
            settings={
                "sampler": measured["sampler"],
                "pictures per prompt": measured["pictures per prompt"],
                "training seed": str(settings.training_seed),
                "prior set": f"{settings.num_class_images} pictures",
            },
        )
    )


def _photo_png(subject: Subject) -> bytes:
    return to_png(photo_image(benchmark_photo(subject), PHOTO_PX))


def _plain_states(scored_states: ScoredStates | None) -> dict[str, list[str]] | None:
    if scored_states is None:
        return None
    return {name: sorted(states) for name, states in scored_states.items()}


def _mean_text(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "not measured"
