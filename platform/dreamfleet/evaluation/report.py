"""`report.html`: one file that shows what a run was given, what came out, and how to use it.

Everything is inside the file: pictures as WebP, curves as SVG, no script, nothing fetched.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from dreamfleet.config import RunConfig, dump_config
from dreamfleet.evaluation.curves import curves, number
from dreamfleet.runtime.storage import is_uri, write_whole

REPORT = "report.html"
PICTURE_BUDGET_BYTES = 3_900_000  # base64 adds a third; the file stays under 6 MB
SMALL_PX = 160  # pictures up to this side are kept exactly
# (longest side in pixels, WebP quality), the best that fits the budget is taken.
QUALITIES = ((768, 86), (512, 84), (448, 80), (384, 78), (320, 74), (256, 70), (192, 66))
MAX_PHOTOS = 12
SAMPLED_PICTURES = 6  # encoded to guess at the size of all
GROUPS = {
    "subject": ("The subject", "The prompt it was trained with."),
    "scenes": ("In other scenes", "Places that the photos need not show."),
    "states": ("In other states", "Poses, materials and looks asked for by name."),
}
_SCENE_WORDS = re.compile(
    r"\b(in|on|at|under|beside|inside|near) (the|a|an|top)\b|\bbackground\b|\bfloor\b|\bstreet\b"
)


@dataclass(frozen=True)
class Grid:
    """Pictures of one prompt; the two lists hold the same seeds in the same order."""

    prompt: str
    with_adapter: Sequence[Image.Image]
    without_adapter: Sequence[Image.Image] = ()
    group: str = "scenes"  # subject, scenes or states


@dataclass(frozen=True)
class Metric:
    """One figure with what it means.

    Attributes:
        key: short name, as in adapter.json and MLflow.
        title: name for people.
        value: of the adapter.
        baseline: of the bare base, same prompts and seeds.
        explanation: one plain sentence.
        backbone: the model that judged.
        better: "higher", "lower", or "" where neither is.
    """

    key: str
    title: str
    value: float
    baseline: float | None = None
    explanation: str = ""
    backbone: str = ""
    better: str = "higher"


@dataclass(frozen=True)
class ReportData:
    """All that a report shows; what is empty is left out.

    Attributes:
        subject: the subject's display name.
        subject_id: its id in files, runs and the registry.
        photos: the squares that were trained on.
        photo_notes: lines about skipped and duplicate photos.
        grids: pictures by prompt.
        history: one mapping per step: step, loss, loss_subject, loss_sude, rho, hinge_share,
            loss_prior,
            grad_norm, lr.
        metrics: first metrics, may be empty.
        timings: stage -> seconds.
        versions: package -> version.
        hardware: e.g. "2 CPU cores".
        base_name: embedded, or a hub id, or a folder.
        base_location: what `from_pretrained` is given; defaults to `base_name`.
        tracking_ui: command or address of the MLflow UI.
        command: the command line that made the run.
    """

    subject: str
    subject_id: str
    class_word: str
    token: str
    config: RunConfig
    photos: Sequence[Image.Image] = ()
    photo_notes: Sequence[str] = ()
    grids: Sequence[Grid] = ()
    history: Sequence[Mapping[str, float]] = ()
    metrics: Sequence[Metric] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""
    base_name: str = "embedded"
    base_hash: str = ""
    base_location: str = ""
    output_dir: str = ""
    steps: int = 0
    seed: int = 0
    tracking_ui: str = ""
    run_id: str = ""
    model_version: str = ""
    command: str = ""
    created: datetime | None = None


def write_report(out_dir: str | Path, data: ReportData) -> Path:
    """Write `report.html` into `out_dir` and return its path; the file is whole or not there."""
    return write_whole(Path(out_dir) / REPORT, render_report(data).encode())


def render_report(data: ReportData) -> str:
    """The report as one HTML page of less than 6 MB."""
    environment = page_environment()
    encoder = PictureEncoder.fitting(_pictures(data))
    return environment.get_template("report.html.j2").render(
        data=data,
        subject_prompt=filled(data.config.subject.instance_prompt, data),
        groups=_groups(data),
        hero=_hero(data),
        photos=list(data.photos)[:MAX_PHOTOS],
        more_photos=max(0, len(data.photos) - MAX_PHOTOS),
        curves=[(curve, Markup(curve.svg)) for curve in curves(data.history)],
        picture=encoder.attributes,
        highlighted=lambda prompt: highlighted(prompt, data.token),
        settings=settings(data),
        config_yaml=dump_config(data.config),
        diffusers_code=diffusers_code(data),
        generate_command=generate_command(data),
        created=(data.created or datetime.now()).strftime("%d %B %Y, %H:%M"),
    )


def page_environment() -> Environment:
    """Templates of this package: escaped, strict, with figures and durations as filters."""
    environment = Environment(
        loader=PackageLoader("dreamfleet.evaluation"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = number
    environment.filters["duration"] = duration
    return environment


def prompt_group(prompt: str, instance_prompt: str) -> str:
    """Which part of the report a prompt belongs to: subject, scenes or states."""
    if prompt.strip() == instance_prompt.strip():
        return "subject"
    from dreamfleet.world import SCENES

    known = any(scene.phrase and scene.phrase in prompt for scene in SCENES.values())
    return "scenes" if known or _SCENE_WORDS.search(prompt) else "states"


def highlighted(prompt: str, token: str) -> Markup:
    """The prompt with its identifier token marked."""
    parts = re.split(rf"(?<!\w)({re.escape(token)})(?!\w)", prompt) if token else [prompt]
    marked = [Markup('<mark class="token">{}</mark>').format(part) if part == token
              else Markup("{}").format(part) for part in parts]  # fmt: skip
    return Markup("").join(marked)


def diffusers_code(data: ReportData) -> str:
    """How to use the adapter in plain diffusers."""
    embedded, full = data.base_name == "embedded", data.config.train.mode == "full"
    base = "embedded_path()" if embedded else json.dumps(data.base_location or data.base_name)
    folder = "OUT" if is_uri(data.output_dir) else data.output_dir
    source = json.dumps(folder) if full else base
    checker = ", safety_checker=None" if embedded else ""
    lines = [f"# OUT: a copy of {data.output_dir}"] if folder != data.output_dir else []
    lines.append("from diffusers import DiffusionPipeline")
    if embedded and not full:
        lines.append("from dreamfleet.bases import embedded_path")
    lines += ["", f"pipe = DiffusionPipeline.from_pretrained({source}{checker})"]
    if not full:
        lines.append(f"pipe.load_lora_weights({json.dumps(folder)})")
    sampling = data.config.sampling
    prompt = json.dumps(filled(data.config.subject.instance_prompt, data), ensure_ascii=False)
    options = [prompt, f"num_inference_steps={sampling.num_inference_steps}"]
    if sampling.guidance_scale is not None:
        options.append(f"guidance_scale={sampling.guidance_scale:g}")
    lines.append(f"image = pipe({', '.join(options)}).images[0]")
    lines.append(f"image.save({json.dumps(data.subject_id + '.png')})")
    return "\n".join(lines)


def generate_command(data: ReportData) -> str:
    """How to draw more pictures on the command line."""
    prompt = shlex.quote(filled(data.config.subject.instance_prompt, data))
    adapter = shlex.quote(data.output_dir or "OUT")
    return (
        f"dreamfleet generate --adapter {adapter} --prompt {prompt} "
        "--num-images 4 --output-dir pictures"
    )


def settings(data: ReportData) -> list[tuple[str, str]]:
    """What decides the result, in words."""
    config, train = data.config, data.config.train
    alpha = train.lora_alpha or train.rank
    lora = f"LoRA, rank {train.rank}, alpha {alpha}, layers: {train.lora_layers}"
    batch = train.train_batch_size * train.gradient_accumulation_steps * config.cluster.num_workers
    rows = [
        ("Base model", data.base_name),
        ("Method", f"{config.method}, {lora if train.mode == 'lora' else 'full fine-tuning'}"),
        ("Steps", f"{data.steps or train.max_train_steps} at batch {batch}"),
        ("Learning rate", f"{train.learning_rate} ({train.lr_scheduler})"),
        ("SuDe", _sude_text(config)),
        ("Prior preservation", _prior_text(config)),
        ("Sampling", _sampling_text(config)),
        ("Seed", str(data.seed or train.seed)),
        ("Hardware", data.hardware),
        ("Base hash", data.base_hash[:16]),
        ("MLflow run", data.run_id),
        ("Model version", f"{data.subject_id} v{data.model_version}" if data.model_version else ""),
    ]
    return [(name, text) for name, text in rows if text]


def duration(seconds: float) -> str:
    """Seconds as "42 s", "3 min 10 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _sude_text(config: RunConfig) -> str:
    sude = config.sude
    if sude.weight == 0:
        return "off"
    end = (
        "never rests"
        if sude.truncation_point is None
        else f"rests from ρ = {sude.truncation_point:g} up"
    )
    return f"weight {sude.weight:g}, teacher {sude.teacher}, weighting {sude.weighting}, {end}"


def _prior_text(config: RunConfig) -> str:
    prior = config.prior
    if not prior.with_prior_preservation:
        return "off"
    images = f", {prior.num_class_images} class images" if prior.form == "images" else ""
    return f"weight {prior.weight:g}, {prior.form}{images}"


def _sampling_text(config: RunConfig) -> str:
    sampling = config.sampling
    guidance = "" if sampling.guidance_scale is None else f", guidance {sampling.guidance_scale:g}"
    return f"{sampling.scheduler}, {sampling.num_inference_steps} steps{guidance}"


def filled(template: str, data: ReportData) -> str:
    """A prompt template with the subject's token and class word."""
    return template.replace("{token}", data.token).replace("{class}", data.class_word)


def _groups(data: ReportData) -> list[tuple[str, str, list[Grid]]]:
    out = []
    for key, (title, explanation) in GROUPS.items():
        found = [grid for grid in data.grids if grid.group == key and grid.with_adapter]
        if found:
            out.append((title, explanation, found))
    return out


def _hero(data: ReportData) -> list[Image.Image]:
    """A few pictures for the top: of different prompts, scenes first."""
    order = {"scenes": 0, "states": 1, "subject": 2}
    grids = sorted((grid for grid in data.grids if grid.with_adapter), key=lambda g: order[g.group])
    return [
        grid.with_adapter[index % len(grid.with_adapter)] for index, grid in enumerate(grids[:4])
    ]


def _pictures(data: ReportData) -> list[Image.Image]:
    shown = [*_hero(data), *list(data.photos)[:MAX_PHOTOS]]
    for grid in data.grids:
        shown += [*grid.with_adapter, *grid.without_adapter]
    return shown


@dataclass(frozen=True)
class PictureEncoder:
    """Pictures as attributes of an <img>, all in the same quality; within one page's budget."""

    urls: dict[
        int, str
    ]  # id of a picture -> data URI; pictures live as long as the report is written

    @classmethod
    def fitting(cls, pictures: Sequence[Image.Image]) -> PictureEncoder:
        """The best quality at which all pictures fit the budget."""
        unique = list({id(picture): picture for picture in pictures}.values())
        uses = [sum(other is picture for other in pictures) for picture in unique]
        some = list(zip(unique, uses, strict=True))[:: max(1, len(unique) // SAMPLED_PICTURES)]
        encoded: list[bytes] = []
        for longest, quality in QUALITIES:
            last = (longest, quality) == QUALITIES[-1]
            guess = sum(len(_webp(picture, longest, quality)) * n for picture, n in some)
            if guess * len(unique) > PICTURE_BUDGET_BYTES * len(some) and not last:
                continue
            encoded = [_webp(picture, longest, quality) for picture in unique]
            if sum(len(data) * n for data, n in zip(encoded, uses, strict=True)) <= (
                PICTURE_BUDGET_BYTES
            ):
                break
        prefix = "data:image/webp;base64,"
        urls = {
            id(picture): prefix + base64.b64encode(data).decode()
            for picture, data in zip(unique, encoded, strict=False)
        }
        return cls(urls)

    def attributes(self, picture: Image.Image, text: str = "") -> Markup:
        """`src`, size, `alt`, and the class for pictures that are shown enlarged."""
        small = max(picture.size) <= SMALL_PX
        return Markup('src="{}" width="{}" height="{}" alt="{}"{}').format(
            self.urls[id(picture)],
            picture.width,
            picture.height,
            text,
            Markup(' class="small"') if small else "",
        )


def _webp(picture: Image.Image, longest_px: int, quality: int) -> bytes:
    """Small pictures exactly, larger ones reduced."""
    image = picture.convert("RGB")
    buffer = io.BytesIO()
    if max(image.size) <= SMALL_PX:
        image.save(buffer, format="WEBP", lossless=True, method=4)
        return buffer.getvalue()
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    image.save(buffer, format="WEBP", quality=quality, method=4)
    return buffer.getvalue()


def as_figures(metrics: Sequence[Metric]) -> dict[str, float]:
    """Metrics for adapter.json and MLflow: key -> value, and key.without_adapter -> the bare
    base's.
    """
    out: dict[str, float] = {}
    for metric in metrics:
        out[metric.key] = metric.value
        if metric.baseline is not None:
            out[f"{metric.key}.without_adapter"] = metric.baseline
    return out
