"""The reach of the embedded base on disk: reach.json, a Markdown table, contact sheets."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.embedded_reach import PARTS, Bench
from dreamfleet.evaluation.sheets import legible, save_for_page

FIGURES = "reach.json"
TABLE = "reach.md"
BEGIN = "<!-- BEGIN MEASURED (written by measure_base.py --docs) -->"
END = "<!-- END MEASURED -->"
SHEETS = {
    "states": "Samples of every class and state, in random scenes",
    "identities": "Varied identities without an identifier",
    "scenes": "Scenes",
    "styles": "Styles",
    "views": "Views",
    "vae": "Held-out renders before and after the VAE",
}


@dataclass(frozen=True)
class Row:
    """One line of the table: what, where in the figures, and the least that is wanted."""

    what: str
    path: str
    wanted: float | None = None
    unit: str = "%"


TABLE_ROWS = (
    Row("oracle A on renders: class", "oracle_a.class", 98),
    Row("oracle A on renders: state", "oracle_a.state", 95),
    Row("oracle A on renders: scene", "oracle_a.scene", 98),
    Row("oracle A on renders: view", "oracle_a.view", 95),
    Row("oracle A on renders: style", "oracle_a.style", 95),
    Row("oracle B on renders: class", "oracle_b.class", 98),
    Row("oracle B on renders: state", "oracle_b.state", 95),
    Row("oracle B on renders: scene", "oracle_b.scene", 98),
    Row("oracle B on renders: view", "oracle_b.view", 95),
    Row("oracle B on renders: style", "oracle_b.style", 95),
    Row("VAE: PSNR of held-out renders", "vae.psnr_db", 29, "dB"),
    Row("VAE: hue error of subjects", "vae.subject_hue_error_deg", None, "°"),
    Row("CLIP: picture of a caption, top-5", "clip.top5", 90),
    Row("identity encoder: other state and scene, top-1", "identity_top1.mean", 80),
    Row("samples: class", "samples.class", 95),
    Row("samples: scene", "samples.scene", 95),
    Row("samples: coarse states", "samples.coarse", 85),
    Row("samples: fine states", "samples.fine", 60),
    Row("samples by oracle B: class", "samples.b.class"),
    Row("samples by oracle B: all states", "samples.b.state"),
    Row("samples: styles", "sample_styles"),
    Row("samples: views", "sample_views"),
    Row('"photo of a {class}": hue spread over the world\'s', "hue_spread.mean", 70),
    Row('"photo of a {class}": colour spread over the world\'s', "colour_spread.mean"),
)


def measure(bench: Bench, parts: Iterable[str], folder: Path) -> dict[str, Any]:
    """Run `parts` (all when empty) and write what they give into `folder`, one part after another.

    Figures of former runs that are not measured anew stay; so does the best guidance scale.

    Raises:
        BadInputError: an unknown part.
    """
    chosen = list(parts) or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        raise BadInputError(f"part {unknown[0]!r} is none of: {', '.join(PARTS)}")
    folder.mkdir(parents=True, exist_ok=True)
    figures = _former(folder / FIGURES)
    if "samples" in figures:
        bench.guidance_scale = figures["samples"]["guidance_scale"]
    for name in chosen:
        begun = time.monotonic()
        part = PARTS[name](bench)
        seconds = {**figures.get("seconds", {}), name: round(time.monotonic() - begun, 1)}
        plans = {**figures.get("plans", {}), name: _as_json(asdict(bench.plan))}
        figures |= {**part.figures, "base_hash": bench.base.hash, "plans": plans}
        figures["seconds"] = seconds
        for kind, sheet in part.sheets.items():
            sheet.save(folder / f"{kind}.png", optimize=True)
        (folder / FIGURES).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        (folder / TABLE).write_text(markdown(figures), encoding="utf-8")
    return figures


def write_docs(page: Path, folder: Path) -> None:
    """Put the table and the sheets of `folder` between the marks of a Markdown page.

    Raises:
        BadInputError: the page has no marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise BadInputError(f"{page}: no place for the figures; expected {BEGIN} ... {END}")
    pictures = page.parent / "images" / "embedded_base"
    lines = [begin, (folder / TABLE).read_text(encoding="utf-8").rstrip()]
    for name, what in SHEETS.items():
        if (folder / f"{name}.png").is_file():
            with Image.open(folder / f"{name}.png") as sheet:
                save_for_page(legible(sheet), pictures / f"{name}.webp")
            lines += ["", f"{what}:", "", f"![{what}](images/embedded_base/{name}.webp)"]
    page.write_text(f"{before}{chr(10).join(lines)}\n{end}{after}", encoding="utf-8")


def markdown(figures: Mapping[str, Any]) -> str:
    """The table of what was measured, and the weakest classes and states."""
    lines = ["| measure | reached | wanted |", "|---|---|---|"]
    for row in TABLE_ROWS:
        value = _at(figures, row.path)
        if value is not None:
            wanted = "" if row.wanted is None else f"≥ {row.wanted:g} {row.unit}"
            lines.append(f"| {row.what} | {_shown(value, row.unit)} | {wanted} |")
    lines += ["", *_remarks(figures), ""]
    return "\n".join(lines)


def _remarks(figures: Mapping[str, Any]) -> list[str]:
    out = []
    samples = figures.get("samples")
    if samples:
        scan = ", ".join(f"{s}: {value:.3f}" for s, value in samples["guidance_scan"].items())
        tried = f" (mean of class, scene and state on other seeds, {scan})" if scan else ""
        out.append(f"Guidance scale {samples['guidance_scale']:g}{tried}.")
        out.append(f"Weakest states: {_weakest(samples['per_state'])}.")
    if "identity_top1" in figures:
        per_class = {k: v for k, v in figures["identity_top1"].items() if k != "mean"}
        out.append(f"Hardest classes for the identity encoder: {_weakest(per_class, 3)}.")
    return out


def _weakest(shares: Mapping[str, float], count: int = 6) -> str:
    worst = sorted(shares.items(), key=lambda item: item[1])[:count]
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in worst)


def _shown(value: float, unit: str) -> str:
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.1f} {unit}"


def _at(figures: Mapping[str, Any], path: str) -> float | None:
    value: Any = figures
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return float(value)


def _as_json(content: dict[str, Any]) -> dict[str, Any]:
    """What reading it back from a file would give."""
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def _former(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    former: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return former
