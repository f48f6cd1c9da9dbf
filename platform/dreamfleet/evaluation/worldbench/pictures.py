"""Picture grids: what the numbers say, to look at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dreamfleet.evaluation.worldbench.ladder import photo_image
from dreamfleet.evaluation.worldbench.plan import BASE_HOST
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.splits import Subject, benchmark_photo

CELL_PX = 96
MARGIN_PX = 84  # left of the rows, for their names
HEAD_PX = 52
FONT_PX = 10
INK, PAPER = (30, 30, 30), (255, 255, 255)

Row = Mapping[str, Any]


def grid(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    cell_px: int = CELL_PX,
) -> Image.Image:
    """A labelled table of pictures, enlarged without smoothing."""
    width = MARGIN_PX + cell_px * len(columns)
    sheet = Image.new("RGB", (width, HEAD_PX + cell_px * len(rows)), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = _font()
    for x, label in enumerate(columns):
        text = textwrap.fill(label, width=max(6, cell_px // 7))
        pen.text((MARGIN_PX + x * cell_px + 3, 3), text, fill=INK, font=font)
    for y, (label, images) in enumerate(rows):
        top = HEAD_PX + y * cell_px
        pen.text((3, top + 3), textwrap.fill(label, width=13), fill=INK, font=font)
        for x, image in enumerate(images):
            cell = image.convert("RGB").resize((cell_px, cell_px), Image.Resampling.NEAREST)
            sheet.paste(cell, (MARGIN_PX + x * cell_px, top))
    return sheet


def _font() -> ImageFont.FreeTypeFont:
    """matplotlib's own: the one that Pillow brings has no Greek letters."""
    import matplotlib

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(own), FONT_PX)


def ladder_sheet(output_dir: Path, rows: Sequence[Row], subject: Subject, host: str) -> Image.Image:
    """One subject on one host: prompts across, steps down, the bare base on top; first pictures of
    each prompt, all from the same noise.
    """
    photo = benchmark_photo(subject)
    mine = [
        row
        for row in rows
        if row["subject"] == subject.subject_id
        and row["host"] in (BASE_HOST, host)
        and row["index"] == 0
    ]
    prompts = list(dict.fromkeys(str(row["prompt"]) for row in mine))
    lines: list[tuple[str, list[Image.Image]]] = []
    for steps in sorted({int(row["steps"]) for row in mine}):
        found = {row["prompt"]: row for row in mine if row["steps"] == steps}
        pictures = [_open(output_dir, found[prompt]) for prompt in prompts]
        lines.append((f"{host}, {steps} steps" if steps else "bare base", pictures))
    shown = photo_image(photo, 64)
    table = [(name, [shown, *pictures]) for name, pictures in lines]
    short = [_short(prompt, subject.class_name) for prompt in prompts]
    return grid([f"photo of {subject.subject_id}", *short], table)


def scenes_sheet(
    output_dir: Path, rows: Sequence[Row], subjects: Sequence[Subject], host: str, steps: int,
    num_scenes: int = 4,
) -> Image.Image:  # fmt: skip
    """Every subject in scenes that its photo does not show: true, bare base, adapter."""
    lines = []
    for subject in subjects:
        photo = benchmark_photo(subject)
        pictures = [photo_image(photo, 64)]
        for row in _scene_rows(rows, subject, host, steps)[:num_scenes]:
            scene = str(row["asked_scene"])
            bare = next(
                other
                for other in _scene_rows(rows, subject, BASE_HOST, 0)
                if other["prompt"] == row["prompt"]
            )
            true = photo_image(subject.spec(_neutral(subject), scene, layout_seed=1), 64)
            pictures += [true, _open(output_dir, bare), _open(output_dir, row)]
        lines.append((f"{subject.subject_id} ({photo.state})", pictures))
    columns = ["photo"]
    for number in range(1, num_scenes + 1):
        columns += [f"true, scene {number}", "bare base", f"adapter, {steps} steps"]
    return grid(columns, lines)


def write_sheets(
    output_dir: Path, rows: Sequence[Row], subjects: Sequence[Subject], hosts: Sequence[str]
) -> list[Path]:
    """All ladder sheets of the finished pairs, as `grids/<subject>-<host>.png`."""
    folder = output_dir / "grids"
    folder.mkdir(parents=True, exist_ok=True)
    done = {(row["subject"], row["host"]) for row in rows}
    written = []
    for subject in subjects:
        for host in hosts:
            if (subject.subject_id, host) in done:
                path = folder / f"{subject.subject_id}-{host}.png"
                ladder_sheet(output_dir, rows, subject, host).save(path)
                written.append(path)
    return written


def _scene_rows(rows: Sequence[Row], subject: Subject, host: str, steps: int) -> list[Row]:
    return [
        row
        for row in rows
        if row["subject"] == subject.subject_id
        and row["host"] == host
        and row["steps"] == steps
        and row["kind"] == "scene"
        and row["asked_scene"] != "plain"
        and row["index"] == 0
    ]


def _neutral(subject: Subject) -> str:
    return CLASSES[subject.class_name].states[0].name


def _open(output_dir: Path, row: Row) -> Image.Image:
    with Image.open(output_dir / str(row["picture"])) as image:
        return image.convert("RGB")


def _short(prompt: str, class_name: str) -> str:
    return prompt.removeprefix("a photo of ").replace(class_name, "…", 1)
