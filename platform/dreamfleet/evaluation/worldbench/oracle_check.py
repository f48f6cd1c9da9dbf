"""The judge is judged: pictures drawn at random from benchmark folders, labelled by eye, blind to
the arm, and compared with what the oracle read (docs/protocol.md, section 7).

`draw_sample` leaves in a folder: `pictures/NNN.png` and numbered contact sheets to label from,
`words.txt` with the words that labels are made of, `labels.csv` to fill in (on the page of
`label_app`, or from a file by `import_labels`), and `key.csv`, which says whose each picture is and
is not looked at before the labels are done.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from PIL import Image, ImageDraw, ImageFont

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.report import page_environment
from dreamfleet.evaluation.results import RESULTS, read_rows
from dreamfleet.seeding import numpy_generator
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.evaluators.models import UNREADABLE
from dreamfleet.world.scenes import SCENES

LABELS, KEY, REPORT, WORDS = "labels.csv", "key.csv", "agreement.json", "words.txt"
LABEL_COLUMNS = ("id", "class", "state", "scene")
KEY_COLUMNS = (
    "id", "folder", "picture", "host", "steps", "subject", "kind",
    "seen_class", "seen_state", "seen_scene",
)  # fmt: skip
WANTED_AGREEMENT = 0.90
WANTED_SPREAD = 0.05  # between the error rates of two arms
SHEET_COLUMNS, SHEET_ROWS = 5, 5
CELL_PX, NUMBER_PX = 256, 24  # four times a picture of the drawn world: its details can be seen
MAX_BODY_BYTES = 4096


def draw_sample(
    folders: Sequence[Path],
    output_dir: Path,
    count: int = 300,
    seed: int = 0,
    arms: Sequence[str] = (),
) -> int:
    """Draw `count` pictures of state and scene prompts, as many of each arm as can be. An arm is a
    host (of studies: one of its arms), whatever its training steps.

    Args:
        folders: outputs of `benchmark worldbench`, check_embedded_base.py or of a study.
        output_dir: must not hold labels yet.
        count: pictures; fewer where there are not so many.
        seed: of the drawing of lots.
        arms: of studies, only these arms; empty: all.

    Returns:
        How many were drawn.

    Raises:
        BadInputError: there are labels already, or no pictures.
    """
    if (output_dir / LABELS).exists():
        raise BadInputError(f"{output_dir / LABELS}: there already; label those, or draw elsewhere")
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for folder in folders:
        for row in read_rows(folder / RESULTS):
            if arms and row.get("arm") not in arms:
                continue
            if row["kind"] in ("state", "scene") and row.get("seen_class"):
                name = _arm_name(row)
                own = {**row, "folder": str(folder), "host": name}
                by_arm.setdefault(name, []).append(own)
    chosen = _in_equal_parts(by_arm, count, seed)
    if not chosen:
        raise BadInputError(f"{', '.join(map(str, folders))}: no pictures of states or scenes")
    pictures = output_dir / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    key = []
    for number, row in enumerate(chosen):
        name = f"{number:03d}"
        with Image.open(Path(row["folder"]) / row["picture"]) as image:
            image.convert("RGB").save(pictures / f"{name}.png")  # without the original's metadata
        key.append({**{column: row.get(column) for column in KEY_COLUMNS}, "id": name})
    _write_csv(output_dir / KEY, KEY_COLUMNS, key)
    _write_csv(output_dir / LABELS, LABEL_COLUMNS, [{"id": row["id"]} for row in key])
    (output_dir / WORDS).write_text(_words(), encoding="utf-8")
    _write_sheets(output_dir, [str(row["id"]) for row in key])
    return len(key)


def score_labels(*output_dirs: Path) -> dict[str, Any]:
    """Compare labels with the oracle's readings, of several drawings together; writes
    `agreement.json` into the last.

    A picture agrees where class and what its prompt asked for (state or scene) are read as they
    were labelled; "unreadable" agrees with "unreadable" only.

    Returns:
        `agreement`, `error_rate_by_arm`, `spread` (largest minus smallest of them), `passed`,
        `by_question`, `confusions` (label, reading, count).

    Raises:
        BadInputError: a label is missing or names something that the world has not.
    """
    rows = [(folder, row) for folder in output_dirs for row in _read_csv(folder / KEY)]
    labels = {
        (folder, row["id"]): row for folder in output_dirs for row in _read_csv(folder / LABELS)
    }
    errors: dict[str, list[bool]] = {}
    questions: dict[str, list[bool]] = {"class": [], "state": [], "scene": []}
    confusions: dict[tuple[str, str], int] = {}
    for folder, row in rows:
        name = row["id"]
        label = _checked(folder / LABELS, name, labels.get((folder, name), {}), (row["kind"],))
        wrong = not _agrees(label, row)
        errors.setdefault(row["host"], []).append(wrong)
        for question in questions if label["class"] != UNREADABLE else ("class",):
            if label[question]:
                questions[question].append(label[question] == row[f"seen_{question}"])
        if wrong:
            asked = row["kind"]
            pair = tuple(
                " ".join(text for text in (given["class"], given[asked]) if text)
                for given in (label, {k: row[f"seen_{k}"] for k in ("class", asked)})
            )
            confusions[pair[0], pair[1]] = confusions.get((pair[0], pair[1]), 0) + 1
    rates = {arm: sum(own) / len(own) for arm, own in errors.items()}
    agreement = 1 - sum(sum(own) for own in errors.values()) / len(rows)
    spread = max(rates.values()) - min(rates.values())
    result = {
        "num_pictures": len(rows),
        "agreement": agreement,
        "by_question": {q: sum(own) / len(own) for q, own in questions.items() if own},
        "error_rate_by_arm": rates,
        "num_by_arm": {arm: len(own) for arm, own in errors.items()},
        "spread": spread,
        "passed": agreement >= WANTED_AGREEMENT - 1e-9 and spread <= WANTED_SPREAD + 1e-9,
        "confusions": [
            {"label": label, "reading": reading, "count": count}
            for (label, reading), count in sorted(confusions.items(), key=lambda item: -item[1])
        ],
    }
    (output_dirs[-1] / REPORT).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def import_labels(output_dir: Path, source: Path) -> tuple[int, int]:
    """Take labels from a CSV with the columns of `labels.csv`, of all pictures or of some; those
    that were given before are replaced. Numbers may be written without zeros in front.

    Returns:
        How many labels were taken, and how many pictures have none yet.

    Raises:
        BadInputError: naming every line that cannot be taken; then none is.
    """
    rows = _read_csv(output_dir / LABELS)
    kept = {row["id"]: row for row in rows}
    given: dict[str, Mapping[str, str]] = {}
    complaints = []
    for line, row in enumerate(_read_csv(source, "give a CSV file of labels"), start=2):
        name = row["id"].strip().zfill(len(rows[0]["id"]))
        entry = {column: (row.get(column) or "").strip() for column in LABEL_COLUMNS}
        if not any(entry[column] for column in LABEL_COLUMNS[1:]):
            continue
        try:
            if name not in kept or name in given:
                reason = "given twice" if name in given else "no such picture"
                raise BadInputError(f"{source}, picture {row['id']}: {reason}")
            # Both are asked for: who labels does not know what the prompt wanted.
            given[name] = {"id": name, **_checked(source, name, entry, ("state", "scene"))}
        except BadInputError as error:
            complaints.append(f"line {line}: {error}")
    if complaints:
        raise BadInputError("\n".join(complaints))
    rows = [dict(given.get(row["id"], row)) for row in rows]
    _write_csv(output_dir / LABELS, LABEL_COLUMNS, rows)
    return len(given), sum(not row["class"] for row in rows)


def label_app(output_dir: Path) -> FastAPI:
    """The page on which a person labels one picture after the other.

    Raises:
        BadInputError: nothing was drawn here.
    """
    _read_csv(output_dir / LABELS)
    template = page_environment().get_template("label.html.j2")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/", response_class=HTMLResponse)
    def page() -> str:
        rows = _read_csv(output_dir / LABELS)
        left = [row["id"] for row in rows if not row["class"]]
        return template.render(
            picture=left[0] if left else None,
            done=len(rows) - len(left),
            total=len(rows),
            classes={name: [s.name for s in entry.states] for name, entry in CLASSES.items()},
            scenes=list(SCENES),
            unreadable=UNREADABLE,
        )

    @app.get("/picture/{name}")
    def picture(name: str) -> Response:
        if name not in {row["id"] for row in _read_csv(output_dir / LABELS)}:
            return Response(status_code=404)
        data = (output_dir / "pictures" / f"{name}.png").read_bytes()
        return Response(data, media_type="image/png")

    @app.post("/label")
    async def label(request: Request) -> Response:
        body = await request.body()
        given = {k: v[-1] for k, v in parse_qs(body[:MAX_BODY_BYTES].decode("latin-1")).items()}
        class_name, _, state = given.get("seen", "").partition("/")
        entry = {"id": given.get("id", ""), "class": class_name, "state": state,
                 "scene": given.get("scene", "")}  # fmt: skip
        rows = _read_csv(output_dir / LABELS)
        try:
            # The scene is always asked for: the page does not know what the prompt wanted.
            _checked(output_dir / LABELS, entry["id"], entry, ("state", "scene"))
        except BadInputError as error:
            return Response(str(error), status_code=400)
        if entry["id"] not in {row["id"] for row in rows}:
            return Response("no such picture", status_code=400)
        rows = [entry if row["id"] == entry["id"] else row for row in rows]
        _write_csv(output_dir / LABELS, LABEL_COLUMNS, rows)
        return RedirectResponse("/", status_code=303)

    return app


def _arm_name(row: Mapping[str, Any]) -> str:
    """Host, and of studies the arm on it."""
    arm, host = row.get("arm"), str(row["host"])
    return host if not arm or arm == host else f"{host}: {arm}"


def _in_equal_parts(
    by_arm: Mapping[str, list[dict[str, Any]]], count: int, seed: int
) -> list[dict[str, Any]]:
    """Arms take turns, each in an order of its own; the whole is shuffled again."""
    lots = numpy_generator("oracle check", seed)
    queues = []
    for arm in sorted(by_arm):
        rows = sorted(by_arm[arm], key=lambda row: (row["folder"], row["picture"]))
        queues.append([rows[i] for i in lots.permutation(len(rows))])
    chosen: list[dict[str, Any]] = []
    while any(queues) and len(chosen) < count:
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop())
    return [chosen[i] for i in lots.permutation(len(chosen))]


def _agrees(label: Mapping[str, str], row: Mapping[str, str]) -> bool:
    if label["class"] != row["seen_class"]:
        return False
    asked = row["kind"]
    return label["class"] == UNREADABLE or label[asked] == row[f"seen_{asked}"]


def _checked(
    source: Path, name: str, label: Mapping[str, str], needed: Sequence[str]
) -> Mapping[str, str]:
    """A label that names what the world has; the `needed` of "state" and "scene" are filled in."""
    where = f"{source}, picture {name}"
    class_name, state, scene = (label.get(column) or "" for column in LABEL_COLUMNS[1:])
    if class_name == UNREADABLE:
        return {"class": UNREADABLE, "state": "", "scene": ""}
    if class_name not in CLASSES:
        raise BadInputError(
            f"{where}: class {class_name!r}; expected one of {', '.join(CLASSES)}, or {UNREADABLE}"
        )
    states = [entry.name for entry in CLASSES[class_name].states]
    if (state or "state" in needed) and state not in states:
        raise BadInputError(f"{where}: state {state!r}; expected one of {', '.join(states)}")
    if (scene or "scene" in needed) and scene not in SCENES:
        raise BadInputError(f"{where}: scene {scene!r}; expected one of {', '.join(SCENES)}")
    return {"class": class_name, "state": state, "scene": scene}


def _words() -> str:
    """What a label may say."""
    lines = ["class: states"]
    for name, entry in CLASSES.items():
        lines.append(f"  {name}: {', '.join(state.name for state in entry.states)}")
    return "\n".join([*lines, "scenes", f"  {', '.join(SCENES)}", UNREADABLE, ""])


def _write_sheets(output_dir: Path, names: Sequence[str]) -> None:
    """Numbered contact sheets: quicker to look at than single pictures."""
    font = ImageFont.load_default(18)
    each, row_px = SHEET_COLUMNS * SHEET_ROWS, CELL_PX + NUMBER_PX
    for start in range(0, len(names), each):
        sheet = Image.new("RGB", (SHEET_COLUMNS * CELL_PX, SHEET_ROWS * row_px), "white")
        pen = ImageDraw.Draw(sheet)
        for place, name in enumerate(names[start : start + each]):
            x, y = place % SHEET_COLUMNS * CELL_PX, place // SHEET_COLUMNS * row_px
            with Image.open(output_dir / "pictures" / f"{name}.png") as image:
                cell = image.resize((CELL_PX - 4, CELL_PX - 4), Image.Resampling.BICUBIC)
            sheet.paste(cell, (x + 2, y + NUMBER_PX))
            pen.text((x + 4, y + 2), name, fill="black", font=font)
        sheet.save(output_dir / f"sheet-{start // each:02d}.png")


def _write_csv(path: Path, columns: Iterable[str], rows: Sequence[Mapping[str, Any]]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


def _read_csv(path: Path, advice: str = "draw a sample first") -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a CSV file in UTF-8"
        raise BadInputError(f"{path}: cannot be read ({reason}); {advice}") from error
    if not rows or "id" not in rows[0]:
        raise BadInputError(f"{path}: expected the columns {', '.join(LABEL_COLUMNS)}")
    return rows
