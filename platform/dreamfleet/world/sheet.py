"""Contact sheets: the world at a glance."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dreamfleet.world.classes import CLASSES
from dreamfleet.world.render import lookup, render
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec, WorldClass
from dreamfleet.world.splits import identity_seed
from dreamfleet.world.styles import STYLES

Row = tuple[str, list[tuple[str, ImageSpec]]]  # label, then (label, spec) per picture

_GAP_PX, _TEXT_PX = 4, 12


def contact_sheet(
    kind: str = "states", *, class_names: Sequence[str] = (), size_px: int = 64, zoom: int = 2
) -> Image.Image:
    """One labelled sheet: classes, states, views, styles, scenes or identities."""
    rows = lookup("sheet", kind, _ROWS)(_chosen(class_names))
    return _draw_rows(rows, size_px, zoom)


def write_sheet(
    path: str | os.PathLike[str], kind: str = "all", size_px: int = 64, zoom: int = 2
) -> None:
    """Write a sheet to `path`; "all" puts every kind below one another."""
    kinds = list(_ROWS) if kind == "all" else [kind]
    sheets = [contact_sheet(name, size_px=size_px, zoom=zoom) for name in kinds]
    width = max(sheet.width for sheet in sheets)
    whole = Image.new("RGB", (width, sum(sheet.height for sheet in sheets)), "white")
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    whole.save(Path(path))


def _chosen(class_names: Sequence[str]) -> list[WorldClass]:
    names = class_names or tuple(CLASSES)
    return [lookup("class", name, CLASSES) for name in names]


def _neutral(world_class: WorldClass, index: int = 0, scene: str = "plain") -> ImageSpec:
    seed = identity_seed("train", index)
    return ImageSpec(world_class.name, seed, world_class.states[0].name, scene, layout_seed=index)


def _class_rows(classes: Sequence[WorldClass]) -> list[Row]:
    return [("classes", [(entry.name, _neutral(entry, 1)) for entry in classes])]


def _state_rows(classes: Sequence[WorldClass]) -> list[Row]:
    """Per class one identity in its eight states."""
    rows: list[Row] = []
    for entry in classes:
        seed = identity_seed("train", 2)
        cells = [
            (state.name, ImageSpec(entry.name, seed, state.name, "plain", layout_seed=2))
            for state in entry.states
        ]
        rows.append((entry.name, cells))
    return rows


def _view_rows(classes: Sequence[WorldClass]) -> list[Row]:
    """Per class with views and per view, the states that can be seen from there."""
    rows: list[Row] = []
    for entry in classes:
        for view in entry.views[1:]:
            states = [s.name for s in entry.states if (s.name, view) not in entry.hidden]
            cells = [
                (state, ImageSpec(entry.name, identity_seed("train", 2), state, "plain", view))
                for state in states
            ]
            rows.append((f"{entry.name}, {view}", cells))
    return rows


def _style_rows(classes: Sequence[WorldClass]) -> list[Row]:
    rows: list[Row] = []
    for style in STYLES:
        cells = []
        for index, entry in enumerate(classes):
            scene = list(SCENES)[1 + index % (len(SCENES) - 1)]
            spec = _neutral(entry, 3, scene)
            styled = ImageSpec(
                entry.name, spec.identity_seed, spec.state, scene, style=style, layout_seed=3
            )
            cells.append((entry.name, styled))
        rows.append((style, cells))
    return rows


def _scene_rows(classes: Sequence[WorldClass]) -> list[Row]:
    rows: list[Row] = []
    for scene in SCENES:
        cells = [(entry.name, _neutral(entry, i, scene)) for i, entry in enumerate(classes)]
        rows.append((scene, cells))
    return rows


def _identity_rows(classes: Sequence[WorldClass]) -> list[Row]:
    return [
        (entry.name, [(str(index), _neutral(entry, index)) for index in range(10)])
        for entry in classes
    ]


_ROWS: Mapping[str, Callable[[Sequence[WorldClass]], list[Row]]] = {
    "classes": _class_rows,
    "states": _state_rows,
    "views": _view_rows,
    "styles": _style_rows,
    "scenes": _scene_rows,
    "identities": _identity_rows,
}


def _draw_rows(rows: Sequence[Row], size_px: int, zoom: int) -> Image.Image:
    font = ImageFont.load_default(10)
    cell = size_px * zoom + _GAP_PX
    columns = max(len(cells) for _, cells in rows)
    row_height = cell + 2 * _TEXT_PX + _GAP_PX
    sheet = Image.new("RGB", (columns * cell + _GAP_PX, len(rows) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (row_label, cells) in enumerate(rows):
        top = i * row_height
        draw.text((_GAP_PX, top), row_label, fill=(180, 20, 20), font=font)
        for j, (label, spec) in enumerate(cells):
            left = _GAP_PX + j * cell
            draw.text((left, top + _TEXT_PX), label, fill="black", font=font)
            picture = render(spec, size_px).image
            enlarged = picture.resize((size_px * zoom,) * 2, Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, top + 2 * _TEXT_PX))
    return sheet
