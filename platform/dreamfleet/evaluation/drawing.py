"""Pictures drawn and scored by a pool of Ray Data actors: one row per picture, resumable.

The unit of work is one prompt of one arm: its pictures are drawn together and scored where they
are, by one actor that holds base, adapter and judges, so that no picture waits for a second device.
A finished unit is one file below `parts/`, written last, named by a hash of all that decides it:
the same command goes on where it stopped, and changed settings never meet old results.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.data.photos import to_png
from dreamfleet.data.ray_pipeline import actor_pool, dataset, rows_of
from dreamfleet.errors import DreamfleetError
from dreamfleet.evaluation.judges import NOT_NAMED, Judges, JudgeSpec, Question
from dreamfleet.evaluation.results import json_ready, write_json

if TYPE_CHECKING:
    from PIL import Image

    from dreamfleet.bases import Base
    from dreamfleet.runtime.progress import Progress
    from dreamfleet.runtime.session import RaySession

PARTS, PICTURES = "parts", "pictures"
BARE = "base"  # the arm without an adapter
UNITS_PER_BLOCK = 2
PIXELS_AT_ONCE = 16 * 256 * 256  # sixteen pictures of the small bases, one or two of the large ones


@dataclass(frozen=True)
class Arm:
    """Something that draws.

    Attributes:
        host: its name in results; `BARE` for the bare base.
        adapter: folder of a LoRA or a whole model; empty for the bare base.
        adapter_hash: of the adapter's weights.
        steps, seed: of its training.
    """

    host: str = BARE
    adapter: str = ""
    adapter_hash: str = ""
    steps: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Unit:
    """Pictures of one prompt by one arm, one per noise seed."""

    arm: Arm
    question: Question
    seeds: tuple[int, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)  # further columns of its rows


@dataclass(frozen=True)
class DrawingPlan:
    """How all units are drawn and judged."""

    base_model: str
    base_hash: str
    judges: JudgeSpec
    references: Mapping[str, tuple[bytes, ...]]  # subject -> encoded photos
    num_inference_steps: int
    guidance_scale: float | None
    scheduler: str
    device: str = "cpu"

    @cached_property
    def judges_hash(self) -> str:
        """Of the judges and their local weights, read once."""
        return self.judges.fingerprint()

    def key(self, unit: Unit) -> str:
        """Of all that decides the unit's rows."""
        photos = self.references.get(unit.question.subject_id, ())
        arm = {name: value for name, value in asdict(unit.arm).items() if name != "adapter"}
        parts: list[Any] = [
            self.base_hash, self.judges_hash, arm, repr(unit.question), unit.seeds,
            sorted(unit.columns.items()), [hashlib.sha256(photo).hexdigest() for photo in photos],
            self.num_inference_steps, self.guidance_scale, self.scheduler,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Drawn:
    """What a drawing run gave.

    Attributes:
        rows: of the subjects whose pictures are all there.
        left_out: judge -> why.
        failures: adapter -> why.
        dropped: subjects of which an arm's pictures are missing; no arm has rows of them.
    """

    rows: list[dict[str, Any]]
    left_out: dict[str, str]
    failures: dict[str, str]
    dropped: tuple[str, ...] = ()


def draw_and_judge(
    units: Sequence[Unit],
    plan: DrawingPlan,
    output_dir: Path,
    session: RaySession | None,
    progress: Progress,
) -> Drawn:
    """Do what is not done yet; returns the rows of all units, in their order.

    Pictures go below `output_dir/pictures`. With `session` None everything runs in this process.
    A subject of which a unit failed is dropped from all arms: their means cover the same subjects.

    Raises:
        DreamfleetError: an arm has no picture, or no subject has all of them.
    """
    keys = [plan.key(unit) for unit in units]
    parts = output_dir / PARTS
    parts.mkdir(parents=True, exist_ok=True)
    finished = _finished(keys, parts, plan)
    todo = [(key, unit) for key, unit in zip(keys, units, strict=True) if key not in finished]
    if len(todo) < len(units):
        progress.info(f"pictures: {len(units) - len(todo)} of {len(units)} prompts done before")
    failures: dict[str, str] = {}
    with progress.stage("pictures", len(todo)) as stage:
        for done, (key, result) in enumerate(_results(todo, plan, session), start=1):
            if "error" in result:
                failures[result["adapter"]] = result["error"]
                progress.warn(f"{result['adapter'] or 'bare base'}: {result['error']}")
            else:
                _keep(output_dir, key, result)
            stage.update(done)
    return _collected(keys, units, parts, failures)


def _finished(keys: Sequence[str], parts: Path, plan: DrawingPlan) -> set[str]:
    """Keys of parts that hold all that can be scored, and whose pictures are there: one that was
    scored while a judge could not be loaded is done again once that judge can be.
    """
    missing: dict[str, set[str]] = {}
    for key in keys:
        path = parts / f"{key}.json"
        part = _part(path)
        if part and all((parts.parent / row["picture"]).is_file() for row in part["rows"]):
            missing[key] = {judge for judge, why in part["left_out"].items() if why != NOT_NAMED}
    still: set[str] = set()
    if any(missing.values()):
        still = set(Judges(plan.judges, {}).left_out)
    return {key for key, judges in missing.items() if judges <= still}


def _collected(
    keys: Sequence[str], units: Sequence[Unit], parts: Path, failures: dict[str, str]
) -> Drawn:
    found = {key: _part(parts / f"{key}.json") for key in keys}
    _check_arms(keys, units, found, failures)
    lost = dict.fromkeys(
        unit.question.subject_id
        for key, unit in zip(keys, units, strict=True)
        if found[key] is None
    )
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for key, unit in zip(keys, units, strict=True):
        part = found[key]
        if part is not None and unit.question.subject_id not in lost:
            rows += part["rows"]
            left_out |= part["left_out"]
    if not rows:
        raise DreamfleetError(
            f"no subject has the pictures of every arm: {_first_failure(failures)}"
        )
    return Drawn(_judged_alike(rows) if left_out else rows, left_out, failures, tuple(lost))


def _judged_alike(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the figures that all pictures of their kind have: a judge that one actor could not
    load would score some prompts of one arm, and others of the other.
    """
    common: dict[str, set[str]] = {}
    for row in rows:
        common[row["kind"]] = common.get(row["kind"], set(row)) & set(row)
    return [{n: v for n, v in row.items() if n in common[row["kind"]]} for row in rows]


def _check_arms(
    keys: Sequence[str],
    units: Sequence[Unit],
    found: Mapping[str, Any],
    failures: Mapping[str, str],
) -> None:
    drawn = dict.fromkeys((unit.arm.host, unit.arm.steps) for unit in units)
    alive = {(u.arm.host, u.arm.steps) for k, u in zip(keys, units, strict=True) if found[k]}
    empty = [arm for arm in drawn if arm not in alive]
    if empty or not units:
        names = ", ".join(f"{host}, {steps} steps" if steps else host for host, steps in empty)
        raise DreamfleetError(
            f"no picture could be drawn and scored for {names or 'any arm'}: "
            f"{_first_failure(failures)}"
        )


def _first_failure(failures: Mapping[str, str]) -> str:
    return next(iter(failures.values()), "no prompts")


def _part(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return part


def _keep(output_dir: Path, key: str, result: Mapping[str, Any]) -> None:
    for row, png in zip(result["rows"], result["pngs"], strict=True):
        path = output_dir / row["picture"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
    kept = {"rows": json_ready(result["rows"]), "left_out": result["left_out"]}
    write_json(output_dir / PARTS / f"{key}.json", kept)


def _results(
    todo: Sequence[tuple[str, Unit]], plan: DrawingPlan, session: RaySession | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not todo:
        return
    if session is None:
        painter = Painter(plan)
        for key, unit in todo:
            yield key, painter.paint(key, unit)
        return
    rows = [{"unit": pickle.dumps(entry)} for entry in todo]
    blocks = -(-len(rows) // UNITS_PER_BLOCK)
    pool, resources = actor_pool(session, blocks, plan.device == "cuda")
    pipeline = dataset(rows, UNITS_PER_BLOCK).map_batches(
        Painter, fn_constructor_kwargs={"plan": plan}, batch_size=1, compute=pool, **resources
    )
    for row in rows_of(pipeline):
        yield pickle.loads(row["result"])


class Painter:
    """Holds base, adapter and judges; one instance per actor of the pool."""

    def __init__(self, plan: DrawingPlan) -> None:
        self._plan = plan
        self._judges: Judges | None = None
        self._base: Base | None = None
        self._holds = ""  # the adapter or whole model that is loaded
        self._whole = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = []
        for packed in batch["unit"]:
            key, unit = pickle.loads(packed)
            results.append(pickle.dumps((key, self.paint(key, unit))))
        return {"result": results}

    def paint(self, key: str, unit: Unit) -> dict[str, Any]:
        """Rows and PNGs of a unit; `error` where its adapter or the judges cannot be used."""
        try:
            if self._judges is None:
                plan = self._plan
                self._judges = Judges(plan.judges, plan.references, plan.device)
            images = self._draw(unit)
            scores = self._judges.score(unit.question, images)
        except DreamfleetError as error:
            return {"error": str(error), "adapter": unit.arm.adapter}
        folder = f"{PICTURES}/{unit.question.subject_id}/{unit.arm.host}/{unit.arm.steps:05d}"
        rows = [
            {**_columns(unit), "index": index, "noise_seed": seed, **score,
             "picture": f"{folder}/{key[:12]}-{index}.png"}
            for index, (seed, score) in enumerate(zip(unit.seeds, scores, strict=True))
        ]  # fmt: skip
        pngs = [to_png(image) for image in images]
        return {"rows": rows, "pngs": pngs, "left_out": self._judges.left_out}

    def _draw(self, unit: Unit) -> list[Image.Image]:
        from dreamfleet.engine.sampling import sample_images

        base = self._base_for(unit.arm.adapter)
        at_once = max(1, PIXELS_AT_ONCE // base.resolution**2)
        images: list[Image.Image] = []
        for start in range(0, len(unit.seeds), at_once):
            seeds = unit.seeds[start : start + at_once]
            images += sample_images(
                base,
                [unit.question.prompt] * len(seeds),
                seeds,
                num_inference_steps=self._plan.num_inference_steps,
                guidance_scale=self._plan.guidance_scale,
                scheduler=self._plan.scheduler,
            )
        return images

    def _base_for(self, adapter: str) -> Base:
        """The base with `adapter` in it; at most one base is held at a time."""
        from dreamfleet.adapters.files import adapter_kind, load_adapter
        from dreamfleet.adapters.lora import has_lora, remove_lora
        from dreamfleet.bases import load_base

        if self._base is not None and self._holds == adapter:
            return self._base
        whole = bool(adapter) and Path(adapter).is_dir() and adapter_kind(adapter) == "full"
        if self._base is None or whole or self._whole:
            self._base = None  # before the next is loaded: two may not fit
            name = adapter if whole else self._plan.base_model
            self._base = load_base(name, device=self._plan.device)
        self._holds, self._whole = "?", whole  # nothing known until it is loaded
        if adapter and not whole:
            load_adapter(self._base, adapter)
        elif has_lora(self._base):
            remove_lora(self._base)
        self._holds = adapter
        return self._base


def _columns(unit: Unit) -> dict[str, Any]:
    question, arm = unit.question, unit.arm
    return {
        "subject": question.subject_id,
        "class": question.class_word,
        "host": arm.host,
        "steps": arm.steps,
        "seed": arm.seed,
        "kind": question.kind,
        "prompt": question.prompt,
        "asked_state": question.state,
        "asked_scene": question.scene,
        **unit.columns,
    }
