"""The measured part of docs/evidence.md: steps 1 to 3 of the protocol, as a command writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.results import SUMMARY, read_summary
from dreamfleet.evaluation.sheets import legible, save_for_page
from dreamfleet.evaluation.worldbench.frozen import SHOWN, check_frozen
from dreamfleet.evaluation.worldbench.guidance import read_gate
from dreamfleet.evaluation.worldbench.plan import BASE_HOST

BEGIN = "<!-- BEGIN MEASURED (written by check_embedded_base.py --mode evidence) -->"
END = "<!-- END MEASURED -->"
PICTURES = "images/evidence"  # beside the page
COLUMNS = {
    "alignment": "alignment",
    "scene_alignment": "on scenes",
    "identity": "identity",
    "identity_subject": "identity, own prompt",
    "copy_rate": "copies",
    "joint": "joint",
}
SHEETS_PER_HOST = 1


def fill_page(page: Path, base_report: Path, ladder: Path) -> None:
    """Write the block between the marks of `page`, and its pictures beside it.

    Args:
        page: must hold both marks.
        base_report: `base.json` of --mode base.
        ladder: output folder of --mode ladder.

    Raises:
        BadInputError: a mark, the report or the ladder's summary is missing; or the two were made
            with different things.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInputError(f"{page}: expected the lines {BEGIN} and {END}")
    gate, summary = read_gate(base_report), read_summary(ladder / SUMMARY)
    check_frozen(gate.get("frozen", {}), summary.get("frozen", {}), base_report)
    lines = [*_base_lines(gate), "", *_ladder_lines(summary), "", *_sheets(page, ladder, summary)]
    page.write_text(f"{before}{begin}\n{chr(10).join(lines)}\n{end}{after}", encoding="utf-8")


def _base_lines(gate: Mapping[str, Any]) -> list[str]:
    scan = ", ".join(f"{g}: {a:.3f}" for g, a in gate["alignment_by_guidance"].items())
    scored = gate["scored_states"]
    left_out = {
        name: [s for s in states if s not in scored.get(name, [])]
        for name, states in gate["alignment_by_state"].items()
    }
    count = sum(len(states) for states in scored.values())
    total = sum(len(states) for states in gate["alignment_by_state"].values())
    lines = [
        "### The base alone",
        "",
        f"Alignment by guidance scale: {scan}. Chosen: {gate['guidance']:g}.",
        "",
        f"Scored states: {count} of {total} ({gate['images_per_state']} pictures each).",
    ]
    frozen = gate.get("frozen", {})
    if frozen:
        named = ", ".join(f"{name} `{value[:SHOWN]}`" for name, value in frozen.items())
        lines += ["", f"Frozen: {named}."]
    missing = [f"{name}: {', '.join(own)}" for name, own in left_out.items() if own]
    if missing:
        lines += ["", f"Not scored: {'; '.join(missing)}."]
    return lines


def _ladder_lines(summary: Mapping[str, Any]) -> list[str]:
    settings = summary["settings"]
    lines = [
        "### Hosts",
        "",
        f"{len(summary['subjects'])} subjects of split {settings['split']}, training seed "
        f"{settings['training_seed']}, {settings['images_per_prompt']} pictures of every prompt.",
        "",
        "| host | steps | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---:|" + "---:|" * len(COLUMNS),
    ]
    for entry in summary["table"]:
        name = "bare base" if entry["host"] == BASE_HOST else entry["host"]
        cells = " | ".join(_cell(entry["means"].get(column)) for column in COLUMNS)
        lines.append(f"| {name} | {entry['steps'] or ''} | {cells} |")
    lines.append("")
    for host, ladder in summary["ladders"].items():
        lines.append(f"- {host}: {_verdict(ladder)}")
    return lines


def _verdict(ladder: Mapping[str, Any]) -> str:
    if ladder["learnt_at"] is None:
        return "the subject was learnt at no rung."
    losses = ", ".join(f"{loss:.3f} at {step}" for step, loss in ladder["losses"].items())
    verdict = {True: f"diseased, N = {ladder['at']}", False: "not diseased"}.get(
        ladder["diseased"], f"undecided, the rung of {ladder.get('missing_rung')} steps is missing"
    )
    return f"N* = {ladder['learnt_at']}; {verdict}. Alignment lost: {losses}."


def _sheets(page: Path, ladder: Path, summary: Mapping[str, Any]) -> list[str]:
    """Contact sheets of the first subjects, one for every host, as WebP."""
    lines: list[str] = []
    for host in summary["ladders"]:
        found = [ladder / "grids" / f"{subject}-{host}.png" for subject in summary["subjects"]]
        for path in [path for path in found if path.is_file()][:SHEETS_PER_HOST]:
            target = page.parent / PICTURES / f"{path.stem}.webp"
            with Image.open(path) as image:
                save_for_page(legible(image), target)
            lines += [f"![{path.stem}: prompts across, training steps down]"
                      f"({PICTURES}/{target.name})", ""]  # fmt: skip
    return lines


def _cell(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"
