"""Beside the weights: `adapter.json` for programs, `README.md` (a model card) for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dreamfleet.bases.files import file_hash
from dreamfleet.config import RunConfig
from dreamfleet.errors import AdapterFileError
from dreamfleet.evaluation.report import (
    ReportData,
    as_figures,
    diffusers_code,
    filled,
    generate_command,
)
from dreamfleet.runtime.storage import write_whole

ADAPTER_JSON = "adapter.json"
MODEL_CARD = "README.md"
SCHEMA_VERSION = 1
MAX_JSON_BYTES = 4 * 2**20
# Not part of the adapter: working files, and what is written after adapter.json.
LEFT_OUT = frozenset({"checkpoints", ADAPTER_JSON, MODEL_CARD, "report.html"})
PACKAGES = ("dreamfleet", "torch", "diffusers", "transformers", "peft", "ray", "mlflow")
FULL = "model_index.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class AdapterFile(_Part):
    """One file of the adapter, by its path inside the folder."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)

    @field_validator("name")
    @classmethod
    def _inside(cls, name: str) -> str:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
            raise ValueError(f"{name!r} leaves the adapter's folder")
        return name


class AdapterBase(_Part):
    """The base model that the adapter belongs to."""

    name: str
    hash: str
    family: str = ""
    resolution: int | None = None


class AdapterLora(_Part):
    """The LoRA's shape."""

    rank: int = Field(ge=1)
    alpha: float
    layers: str


class AdapterInfo(_Part):
    """Everything that `adapter.json` says.

    Attributes:
        name: the subject id, as in MLflow's registry.
        metrics: key -> figure; key.without_adapter is the bare base's.
        judges: metric key -> the model that judged.
        seeds: what the seeds were for -> seed.
        tracking: MLflow's uri, run_id and model_version, as far as known.
        created: ISO 8601, UTC.
    """

    schema_version: Literal[1] = 1
    generator: str = "dreamfleet"
    name: str = Field(min_length=1)
    display_name: str = ""
    class_word: str
    token: str
    instance_prompt: str
    class_prompt: str
    method: str
    mode: Literal["lora", "full"]
    base: AdapterBase
    lora: AdapterLora | None = None
    steps: int = Field(ge=0)
    sude_weight: float = 0.0
    prior_weight: float = 0.0
    photos: int = Field(0, ge=0)
    metrics: dict[str, float] = Field(default_factory=dict)
    judges: dict[str, str] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    train_seconds: float = 0.0
    hardware: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    tracking: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    files: list[AdapterFile] = Field(default_factory=list)

    def file(self, name: str) -> AdapterFile | None:
        """The entry of a file, if it has one."""
        return next((entry for entry in self.files if entry.name == name), None)


def adapter_info(
    data: ReportData, *, family: str = "", resolution: int | None = None
) -> AdapterInfo:
    """What a report's data say about the adapter; `files` are added by `write_adapter_json`."""
    config, train = data.config, data.config.train
    rank = train.rank or 1
    lora = AdapterLora(rank=rank, alpha=train.lora_alpha or rank, layers=train.lora_layers or "")
    tracking = {"run_id": data.run_id, "model_version": data.model_version, "ui": data.tracking_ui}
    return AdapterInfo(
        name=data.subject_id,
        display_name=data.subject,
        class_word=data.class_word,
        token=data.token,
        instance_prompt=filled(config.subject.instance_prompt, data),
        class_prompt=filled(config.subject.class_prompt, data),
        method=config.method,
        mode=train.mode,
        base=AdapterBase(
            name=data.base_name, hash=data.base_hash, family=family, resolution=resolution
        ),
        lora=lora if train.mode == "lora" else None,
        steps=data.steps,
        sude_weight=config.sude.weight,
        prior_weight=config.prior.weight if config.prior.with_prior_preservation else 0.0,
        photos=len(data.photos),
        metrics=as_figures(data.metrics),
        judges={metric.key: metric.backbone for metric in data.metrics},
        seeds={"train": train.seed, "samples": data.seed},
        train_seconds=round(float(data.timings.get("training", 0.0)), 3),
        hardware=data.hardware,
        versions=dict(data.versions) or package_versions(),
        tracking={key: value for key, value in tracking.items() if value},
        created=(data.created or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
    )


def write_adapter_json(out_dir: str | Path, info: AdapterInfo) -> Path:
    """Write `adapter.json` with the SHA-256 of every file of the adapter in `out_dir`; whole or not
    at all.
    """
    folder = Path(out_dir)
    complete = info.model_copy(update={"files": list(adapter_files(folder))})
    text = json.dumps(complete.model_dump(mode="json"), indent=1, ensure_ascii=False)
    return write_whole(folder / ADAPTER_JSON, f"{text}\n".encode())


def read_adapter_json(folder: str | Path, *, verify: bool = False) -> AdapterInfo:
    """Read `adapter.json` in `folder`.

    Args:
        verify: compare every listed file with its SHA-256.

    Raises:
        AdapterFileError: missing, not valid, of a newer schema, or (with `verify`) a file is
            missing or changed.
    """
    path = Path(folder) / ADAPTER_JSON
    tree = _read_tree(path)
    version = tree.get("schema_version")
    if version != SCHEMA_VERSION:
        raise AdapterFileError(
            f"{path}: schema_version is {version!r}, this dreamfleet reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or a newer one"
        )
    try:
        info = AdapterInfo.model_validate(tree)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]
        )
        raise AdapterFileError(f"{path}: not a valid adapter description ({wrong})") from error
    if verify:
        _verify(Path(folder), info)
    return info


def write_model_card(
    out_dir: str | Path,
    data: ReportData,
    samples: Sequence[tuple[str, str]] = (),
    license_id: str | None = None,
) -> Path:
    """Write `README.md` in the style of diffusers' training scripts.

    Args:
        samples: (prompt, file inside `out_dir`) of pictures to show.
        license_id: SPDX id; default: Apache-2.0 with the embedded base, else "other".
    """
    card = model_card(data, samples, license_id)
    return write_whole(Path(out_dir) / MODEL_CARD, card.encode())


def model_card(
    data: ReportData, samples: Sequence[tuple[str, str]] = (), license_id: str | None = None
) -> str:
    """The text of the model card."""
    prompt = filled(data.config.subject.instance_prompt, data)
    front = {
        "license": license_id or ("apache-2.0" if data.base_name == "embedded" else "other"),
        "library_name": "diffusers",
        "base_model": _hub_name(data.base_name),
        "instance_prompt": prompt,
        "tags": _tags(data.config),
        "inference": True,
        "widget": [{"text": text, "output": {"url": file}} for text, file in samples],
    }
    if not samples:
        del front["widget"]
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=1000)
    parts = [
        f"---\n{header}---\n",
        f"# {_plain(data.subject)}\n",
        _introduction(data, prompt),
        _gallery(samples),
        "## Use\n",
        f"```python\n{diffusers_code(data)}\n```\n\n```sh\n{generate_command(data)}\n```\n",
        _metrics_section(data),
        _training_section(data),
        "For programs: `adapter.json`. Pictures with and without the adapter, curves and all "
        "settings: `report.html`.\n",
    ]
    return "\n".join(part for part in parts if part)


def adapter_files(folder: Path) -> Iterable[AdapterFile]:
    """Every file that belongs to the adapter in `folder`, by name."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if (
            path.is_file()
            and not path.is_symlink()
            and not hidden
            and name.parts[0] not in LEFT_OUT
        ):
            yield AdapterFile(
                name=name.as_posix(), sha256=file_hash(path), bytes=path.stat().st_size
            )


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hub_name(base_name: str) -> str:
    """A base's name as the hub's cards have it: no revision, no variant."""
    if base_name == "embedded":
        return "dreamfleet/embedded"
    return base_name if base_name.startswith("/") else re.split("[@#]", base_name)[0]


def _tags(config: RunConfig) -> list[str]:
    kind = ["lora"] if config.train.mode == "lora" else []
    sude = ["sude"] if config.sude.weight else []
    return [
        "text-to-image",
        "diffusers",
        *kind,
        "diffusers-training",
        config.method,
        *sude,
        "dreamfleet",
    ]


def _introduction(data: ReportData, prompt: str) -> str:
    kind = "LoRA adapter" if data.config.train.mode == "lora" else "fully fine-tuned model"
    photos = (
        f"{len(data.photos)} photo{'s' if len(data.photos) != 1 else ''}"
        if data.photos
        else "photos"
    )
    return (
        f"This {kind} knows one {_plain(data.class_word)}. It was trained by "
        f"{data.config.method}{' with SuDe' if data.config.sude.weight else ''} on {photos}, "
        f"on top of {_plain(data.base_name)}. Its prompt is “{_plain(prompt)}”.\n"
    )


def _gallery(samples: Sequence[tuple[str, str]]) -> str:
    lines = [f"![{_plain(text)}]({file})" for text, file in samples[:8]]
    return "\n".join([*lines, ""]) if lines else ""


def _metrics_section(data: ReportData) -> str:
    if not data.metrics:
        return ""
    rows = [
        "## First figures",
        "",
        "| | with the adapter | without | judged by |",
        "|---|---|---|---|",
    ]
    for metric in data.metrics:
        bare = "" if metric.baseline is None else f"{metric.baseline:.3f}"
        rows.append(f"| {metric.title} | {metric.value:.3f} | {bare} | {metric.backbone} |")
    return "\n".join([*rows, ""])


def _training_section(data: ReportData) -> str:
    from dreamfleet.evaluation.report import settings

    rows = [f"- {name}: {_plain(text)}" for name, text in settings(data)]
    versions = ", ".join(f"{name} {version}" for name, version in data.versions.items())
    if versions:
        rows.append(f"- Versions: {versions}")
    return "\n".join(["## How it was made", "", *rows, ""])


def _plain(text: str) -> str:
    """User text that cannot become Markdown or HTML."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    for mark in "\\`*_[]#|":
        safe = safe.replace(mark, f"\\{mark}")
    return safe


def _read_tree(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise AdapterFileError(
                f"{path}: larger than {MAX_JSON_BYTES} bytes; not an adapter.json of ours"
            )
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise AdapterFileError(
            f"{path}: not there; give the output folder of `dreamfleet personalize`"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path}: cannot be read ({error})") from error
    if not isinstance(tree, dict):
        raise AdapterFileError(f"{path}: expected a JSON object, got {type(tree).__name__}")
    return tree


def _verify(folder: Path, info: AdapterInfo) -> None:
    for entry in info.files:
        path = folder / entry.name
        if not path.is_file():
            raise AdapterFileError(
                f"{path}: listed in {ADAPTER_JSON}, but not there; copy the whole folder"
            )
        if file_hash(path) != entry.sha256:
            raise AdapterFileError(
                f"{path}: its SHA-256 is not the one in {ADAPTER_JSON}; it was changed or damaged"
            )
