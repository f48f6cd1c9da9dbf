"""The one configuration tree: read from YAML, overridden by flags, dumped beside every adapter.

Every field is one flag (`--prior-weight`; hyphens or underscores) and one YAML key
(`prior.weight`). Unknown keys, NaN and values out of range are refused here, before anything
starts, naming the key, what was given and what is accepted. A value of None for a training default
means "the base model's own default"; `bases.resolved_config` fills it in.

This is also the only module that reads environment variables.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dreamfleet.errors import ConfigError


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _as_list(value: Any) -> Any:
    """One folder may be written without the brackets of a list."""
    return [value] if isinstance(value, str) else value


def _unquoted_no(value: Any) -> Any:
    """YAML reads a bare `no` as false."""
    return "no" if value is False else value


def _unquoted_off(value: Any) -> Any:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


# From 999 on diffusers' samplers divide by zero, or step beyond the last of 1,000 timesteps, by the
# base's schedule; the bound keeps well away from there.
MAX_INFERENCE_STEPS = 500

Finite = Annotated[float, BeforeValidator(_finite)]
TextList = Annotated[list[str], BeforeValidator(_as_list)]


def _types(annotation: Any) -> list[Any]:
    """All types in an annotation, e.g. int and None in `int | None`."""
    inner = get_args(annotation)
    return [kind for part in inner for kind in _types(part)] if inner else [annotation]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes YAML's true and false for 1 and 0."""
        types = _types(cls.model_fields[str(info.field_name)].annotation)
        given = value if isinstance(value, list) else [value]
        is_number = (int in types or float in types) and bool not in types
        if is_number and any(isinstance(item, bool) for item in given):
            raise ValueError("expected a number, not true or false")
        return value


class SubjectConfig(_Section):
    """Whom the adapter is for."""

    images: TextList = Field(
        default_factory=list, description="photos: folders, zips, files or URIs; one per subject"
    )
    id: str | None = Field(
        None,
        description="name of the subject in files, runs and registry; default: from the folder",
    )
    class_word: str = Field("", description="what the subject is, e.g. dog")
    token: str = Field("sks", description="identifier token, or auto to pick a rare single token")
    instance_prompt: str = Field(
        "a photo of {token} {class}", description="prompt of the subject's photos"
    )
    class_prompt: str = Field(
        "a photo of {class}", description="prompt of the class, for the prior set"
    )


class DataConfig(_Section):
    """How photos become a subject set."""

    resolution: int | None = Field(
        None, ge=32, le=4096, description="side of the training picture in pixels"
    )
    crop: Literal["center", "subject"] = Field(
        "center", description="which square of a photo is used"
    )
    random_flip: bool = Field(False, description="mirror photos at random")
    max_photos: int = Field(200, ge=1, description="photos read per subject at most")
    max_pixels: int = Field(
        50_000_000,
        ge=1024,
        le=178_956_970,  # beyond it Pillow itself refuses a picture
        description="photos with more pixels are refused",
    )
    cache_path: str | None = Field(
        None,
        description="folder or URI of prepared photos and prior sets; default: in DREAMFLEET_HOME",
    )
    cache_max_gib: Finite = Field(
        10.0, gt=0, description="bound of the cache folder in GiB; the oldest entries go first"
    )
    teacher_cache_gib: Finite = Field(
        0.0,
        ge=0,
        description="the frozen teacher's predictions kept on disk, GiB at most, by sweeps and "
        "runs of many subjects; 0: not kept",
    )


class SudeConfig(_Section):
    """SuDe regularisation (arXiv 2403.06775); off while weight is 0."""

    weight: Finite = Field(0.0, ge=0, le=1000, description="w_s of Eq. 10")
    preset: Literal["official", "paper"] | None = Field(
        None,
        description="official: current teacher, official weights, 0.4; paper: current, bayes, 0.4",
    )
    teacher: Literal["pretrained", "current"] = Field(
        "pretrained", description="whose class prediction is inherited"
    )
    weighting: Literal["code", "bayes", "official"] = Field("code", description="w(t)")
    truncation_point: Finite | None = Field(
        1.0, description="rho* at which the hinge switches off; null: never"
    )


SUDE_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "official": {
        "teacher": "current", "weighting": "official", "weight": 0.4, "truncation_point": 1.0,
    },
    "paper": {
        "teacher": "current", "weighting": "bayes", "weight": 0.4, "truncation_point": 1.0,
    },
}  # fmt: skip


class PriorConfig(_Section):
    """Prior preservation (DreamBooth's second term)."""

    with_prior_preservation: bool = Field(False, description="train on the class too")
    form: Literal["images", "teacher"] = Field(
        "images", description="images of the prior set, or the frozen teacher's prediction"
    )
    weight: Finite = Field(1.0, ge=0, le=1000, description="lambda of Eq. 10")
    num_class_images: int = Field(50, ge=1, le=100_000, description="size of the prior set")
    class_data_dir: str | None = Field(
        None, description="your own class images instead of a generated prior set"
    )
    num_inference_steps: int = Field(
        25, ge=1, le=MAX_INFERENCE_STEPS, description="sampler steps for the prior set"
    )
    guidance_scale: Finite | None = Field(
        None, ge=0, le=100, description="guidance for the prior set; default: the base's own"
    )
    sample_batch_size: int = Field(8, ge=1, le=256, description="class images made at once")


class TrainConfig(_Section):
    """Training; names and meanings as in diffusers' scripts."""

    mode: Literal["lora", "full"] = Field("lora", description="train a LoRA or the whole UNet")
    max_train_steps: int | None = Field(None, ge=1, le=1_000_000, description="optimiser steps")
    learning_rate: Finite | None = Field(None, gt=0, le=10, description="AdamW learning rate")
    train_batch_size: int = Field(
        1, ge=1, le=1024, description="subject samples per worker and micro-step"
    )
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=1024, description="micro-steps per optimiser step"
    )
    rank: int | None = Field(None, ge=1, le=1024, description="LoRA rank")
    lora_alpha: Finite | None = Field(None, gt=0, description="LoRA alpha; default: the rank")
    lora_layers: Literal["attention", "attention_ff", "all"] | None = Field(
        None, description="attention; with feed-forward; all: with convolutions too"
    )
    train_text_encoder: bool = Field(False, description="train the text encoder as well")
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_unquoted_no)] = (
        Field("no", description="type of the frozen base; trained parameters stay fp32")
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations twice instead of keeping them: less memory, slower"
    )
    allow_tf32: bool = Field(False, description="TF32 for fp32 products on Ampere GPUs and later")
    use_8bit_adam: bool = Field(
        False, description="AdamW with 8-bit state, on GPUs (pip install bitsandbytes)"
    )
    enable_xformers_memory_efficient_attention: bool = Field(
        False, description="xformers attention instead of torch's own (pip install xformers)"
    )
    max_grad_norm: Finite = Field(1.0, gt=0, description="gradient clipping")
    snr_gamma: Finite | None = Field(None, gt=0, description="min-SNR gamma; null: plain MSE")
    use_ema: bool = Field(
        False, description="keep and save an exponential moving average of the trained weights"
    )
    ema_decay: Finite = Field(0.999, ge=0, lt=1, description="EMA decay per step")
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = Field(
        "constant", description="learning-rate schedule"
    )
    lr_warmup_steps: int = Field(0, ge=0, description="warm-up steps")
    adam_beta1: Finite = Field(0.9, ge=0, lt=1, description="AdamW beta1")
    adam_beta2: Finite = Field(0.999, ge=0, lt=1, description="AdamW beta2")
    adam_weight_decay: Finite = Field(1e-2, ge=0, description="AdamW weight decay")
    adam_epsilon: Finite = Field(1e-8, gt=0, description="AdamW epsilon")
    seed: int = Field(0, ge=0, lt=2**53, description="all randomness follows from it")
    checkpointing_steps: int = Field(100, ge=1, description="steps between checkpoints")
    checkpoints_total_limit: int = Field(
        2, ge=2, description="checkpoints kept; the previous one always stays"
    )


class SamplingConfig(_Section):
    """The pictures in the report and while training."""

    num_inference_steps: int = Field(25, ge=1, le=MAX_INFERENCE_STEPS, description="sampler steps")
    guidance_scale: Finite | None = Field(
        None, ge=0, le=100, description="classifier-free guidance; default: the base's own"
    )
    scheduler: Literal["ddim", "euler", "dpm"] = Field("ddim", description="sampler")
    safety_checker: Annotated[Literal["auto", "off"], BeforeValidator(_unquoted_off)] = Field(
        "auto", description="auto: the base's own, where it has one; off: none"
    )
    num_validation_images: int = Field(
        4, ge=0, le=64, description="pictures per prompt in the report"
    )
    validation_steps: int = Field(
        0, ge=0, description="steps between sample grids while training; 0: only at the end"
    )
    validation_prompts: TextList = Field(
        default_factory=list,
        description="prompts of the report; {token} and {class} are filled in; "
        "default: scenes and states of the class",
    )


class ClusterConfig(_Section):
    """One to one onto Ray's ScalingConfig, FailureConfig and RunConfig."""

    num_workers: int = Field(
        1, ge=1, le=4096, description="training workers, or engines for many subjects"
    )
    use_gpu: Literal["auto"] | bool = Field("auto", description="auto: if the cluster has a GPU")
    resources_per_worker: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="e.g. {CPU: 1, GPU: 0.5}"
    )
    accelerator_type: str | None = Field(None, description="Ray accelerator type, e.g. A100")
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray placement strategy"
    )
    max_slots: int = Field(
        8, ge=1, le=1024, description="subjects that one engine trains together in one batch"
    )
    max_failures: int = Field(3, ge=-1, description="worker losses survived; -1: without end")
    parallel: Literal["auto", "data", "subjects"] = Field(
        "auto", description="data: workers share one subject; subjects: one engine pool for many"
    )
    parallel_strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="full fine-tuning by several workers: ddp, each holds the model; fsdp: a part",
    )
    storage_path: str | None = Field(
        None,
        description="checkpoints: a shared folder or URI; default: in the output folder",
    )
    ray_address: str | None = Field(
        None, description="a running Ray; default: RAY_ADDRESS, else a private local Ray"
    )


class TrackingConfig(_Section):
    """MLflow."""

    uri: str | None = Field(
        None,
        description="address; default: MLFLOW_TRACKING_URI, else SQLite in DREAMFLEET_HOME",
    )
    experiment: str = Field("dreamfleet", description="MLflow experiment")
    enabled: bool = Field(True, description="record runs in MLflow")
    register_adapter: bool = Field(
        True, description="register the adapter as a model version with alias candidate"
    )


class Interval(_Section):
    """Numbers from `low` to `high`."""

    low: Finite
    high: Finite
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"{self.low} .. {self.high}: expected low < high, and low > 0 where log"
            )
        return self


def _dimension(value: Any) -> Any:
    """`0..2` and `log:1e-4..1e-2` are intervals, as flags give them; other values are choices."""
    single = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(single, str) and ".." in single:
        scale, _, ends = single.rpartition(":")
        low, _, high = ends.partition("..")
        return {"low": low, "high": high, "log": scale == "log"}
    if isinstance(value, dict | list | Interval) or value is None:
        choices = value if isinstance(value, list) else []
        return [None if c in ("none", "null") else c for c in choices] if choices else value
    return [value]


Numbers = Annotated[Interval | list[Finite], BeforeValidator(_dimension)]
Points = Annotated[Interval | list[Finite | None], BeforeValidator(_dimension)]


class TuneConfig(_Section):
    """How `dreamfleet tune` searches; nothing of it touches a single training."""

    num_samples: int = Field(16, ge=1, le=100_000, description="trials per subject")
    sampler: Literal["tpe", "gp", "nsga2", "random"] = Field(
        "tpe", description="Optuna's; nsga2 has two objectives and is not pruned"
    )
    sampler_seed: int = Field(0, ge=0, lt=2**32, description="seed of the sampler")
    pruner: Literal["successive_halving", "hyperband", "none"] = Field(
        "successive_halving", description="which trials end at a rung"
    )
    num_rungs: int = Field(3, ge=1, le=20, description="readings of a trial, the last one included")
    reduction_factor: int = Field(
        3, ge=2, le=16, description="steps of a rung over those of the rung before"
    )
    max_concurrent_trials: int = Field(8, ge=1, le=1024, description="trials of a subject at once")
    placement: Literal["packed", "one_per_device"] = Field(
        "packed", description="trials share engines, or each has a worker of its own"
    )
    images_per_rung: int = Field(
        8, ge=4, le=1024, description="pictures of a trial at a rung, states and scenes in turn"
    )
    images_at_end: int = Field(
        16, ge=4, le=1024, description="pictures of a trial at its last step"
    )
    final_images: int = Field(32, ge=4, le=4096, description="pictures of a finalist and seed")
    final_seeds: int = Field(2, ge=1, le=16, description="new training seeds of the finalists")
    rung_inference_steps: int = Field(
        10, ge=1, le=MAX_INFERENCE_STEPS, description="sampler steps of the pictures of trials"
    )
    fidelity_margin: Finite = Field(
        0.03, ge=0, le=2, description="how far fidelity may be below that without SuDe"
    )
    states: TextList = Field(
        default_factory=list,
        description="attributes that are asked for; default: those of protocol attributes",
    )
    storage: str | None = Field(
        None, description="Optuna storage URL; default: study.db in the output folder"
    )
    evaluators: str | None = Field(
        None, description="folder of other evaluators of the drawn world than the shipped ones"
    )
    blip: str = Field("Salesforce/blip-itm-base-coco", description="judge of prompts on real bases")
    dino: str = Field("facebook/dino-vits16", description="judge of likeness on real bases")
    judge_num_gpus: Finite = Field(
        0.1, ge=0, le=8, description="share of a GPU that the judges of real bases get"
    )
    judge_timeout_s: Finite = Field(
        600.0, gt=0, description="for judging one trial's pictures, loading the judges included"
    )


class SpaceConfig(_Section):
    """What `dreamfleet tune` searches: a list of choices, or {low, high, log}; one choice fixes.

    The recipe's own value always belongs to it.
    """

    sude_weight: Numbers = Field(Interval(low=0.0, high=3.0), description="w_s; default 0..3")
    prior_weight: Numbers = Field(Interval(low=0.0, high=2.0), description="lambda; default 0..2")
    truncation_point: Points = Field(
        [1.0, 0.75, None], description="rho*, none among them; default 1, 0.75, none"
    )
    teacher: Annotated[list[Literal["pretrained", "current"]], BeforeValidator(_as_list)] = Field(
        ["pretrained", "current"],
        description="SuDe's teacher; current needs the prior; default both",
    )
    learning_rate: Numbers | None = Field(
        None, description="default: a third to thrice the recipe's, log"
    )
    rank: Annotated[list[int], BeforeValidator(_as_list)] | None = Field(
        None, description="LoRA rank; default: the recipe's, half and twice of it"
    )
    method: Annotated[list[Literal["dreambooth"]], BeforeValidator(_as_list)] = Field(
        ["dreambooth"], description="how adapters are trained; default dreambooth"
    )


SEARCH_SECTIONS = ("tune", "space")


class RunConfig(_Section):
    """Everything a personalisation run depends on, and how `dreamfleet tune` searches."""

    base_model: str = Field(
        "embedded", description="embedded, a local diffusers folder, or a hub id"
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of a hub id; default: its main one"
    )
    variant: str | None = Field(
        None, description="set of weights, e.g. fp16; default: the full ones, else what there is"
    )
    method: Literal["dreambooth"] = Field("dreambooth", description="how the adapter is trained")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    output_dir: str | None = Field(None, description="a folder or URI; default: runs/<subject id>")
    subject: SubjectConfig = Field(default_factory=SubjectConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    sude: SudeConfig = Field(default_factory=SudeConfig)
    prior: PriorConfig = Field(default_factory=PriorConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    tune: TuneConfig = Field(default_factory=TuneConfig)
    space: SpaceConfig = Field(default_factory=SpaceConfig)

    @property
    def base_source(self) -> str:
        """Base model, revision and variant in one name, as `bases.load_base` reads it."""
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.base_model}{revision}{f'#{self.variant}' if self.variant else ''}"

    @model_validator(mode="before")
    @classmethod
    def _apply_sude_preset(cls, data: Any) -> Any:
        """A preset gives defaults: keys that the user set beside it win."""
        if (
            isinstance(data, Mapping)
            and isinstance(sude := data.get("sude"), Mapping)
            and sude.get("preset")
        ):
            return {**data, "sude": {**SUDE_PRESETS.get(str(sude["preset"]), {}), **sude}}
        return data


def describe_validation_error(
    error: ValidationError, origin: str, overridden: Mapping[str, Any] | None = None
) -> str:
    """One line per wrong key: where it comes from, the key, what was given, what is accepted.

    Keys in `overridden` come from flags; all others from `origin`.
    """
    lines: dict[str, str] = {}
    for item in error.errors():
        key = _field_key(item["loc"])
        where = "flag for" if key in (overridden or {}) else f"{origin}:"
        if item["type"] == "extra_forbidden":
            lines[key] = f"{where} unknown key {key!r}{_suggestion(key)}"
        elif item["type"] == "model_type" and key in RunConfig.model_fields:
            lines[key] = f"{where} {key} = {item.get('input')!r}: expected a section with keys"
        elif key in lines:  # a union: every accepted type has its own complaint
            lines[key] += f"; or: {_plain(item['msg'])}"
        else:
            lines[key] = f"{where} {key} = {item.get('input')!r}: {_plain(item['msg'])}"
    return "\n".join(lines.values())


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _field_key(location: tuple[int | str, ...]) -> str:
    """The dotted key of a complaint, without the names of union members that pydantic appends."""
    parts = [str(part) for part in location]
    known = flat_fields()
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in known:
            return ".".join(parts[:length])
    return ".".join(parts) or "(top level)"


def _suggestion(key: str) -> str:
    import difflib

    fields = list(flat_fields())
    sections = list(dict.fromkeys(field.partition(".")[0] for field in fields))
    name = key.rpartition(".")[2]
    close = [field for field in fields if field.replace(".", "_") == key]  # a flag's name
    close = close or [field for field in fields if field.rpartition(".")[2] == name]
    close = close or difflib.get_close_matches(key, [*fields, *sections], n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def flat_fields() -> dict[str, Any]:
    """Every leaf field by its dotted YAML key, e.g. {"prior.weight": FieldInfo}."""
    fields: dict[str, Any] = {}
    for name, info in RunConfig.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            for inner, inner_info in info.annotation.model_fields.items():
                fields[f"{name}.{inner}"] = inner_info
        else:
            fields[name] = info
    return fields


class _EveryKeyOnce(yaml.SafeLoader):
    """Refuses a key that stands twice in one place, of which YAML's readers drop the first."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"the key {key.value!r} stands there twice; keep one"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(str(key.value))
        return node


def load_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read YAML at `path` (if any) and lay `overrides` (dotted keys) over it. A SuDe preset among
    them wins over all that the file says of SuDe, as every flag wins over the recipe.

    Raises ConfigError naming each wrong key.
    """
    tree: dict[str, Any] = {}
    origin = str(path) if path else "configuration"
    if path is not None:
        try:
            loaded = yaml.load(Path(path).read_text(encoding="utf-8"), _EveryKeyOnce)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"config file {path}: cannot be read ({error}); give a readable YAML file"
            ) from error
        except yaml.YAMLError as error:
            raise ConfigError(f"config file {path}: not valid YAML: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(
                f"config file {path}: expected a mapping of keys, got {type(loaded).__name__}"
            )
        # A section whose keys are all commented out is an empty one.
        sections = {key.partition(".")[0] for key in flat_fields() if "." in key}
        tree = {
            key: {} if value is None and key in sections else value
            for key, value in (loaded or {}).items()
        }
    if (overrides or {}).get("sude.preset") and isinstance(tree.get("sude"), dict):
        of_preset = SUDE_PRESETS["official"]  # all set the same keys
        tree["sude"] = {key: v for key, v in tree["sude"].items() if key not in of_preset}
    for key, value in (overrides or {}).items():
        section, _, name = key.rpartition(".")
        target = tree
        if section:
            if not isinstance(tree.setdefault(section, {}), dict):
                break  # refused below
            target = tree[section]
        target[name] = value
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(describe_validation_error(error, origin, overrides)) from error


def dump_config(config: RunConfig) -> str:
    """The whole tree as YAML, in the order of the fields; `load_config` reads it back to an equal
    tree.
    """
    return yaml.safe_dump(plain_tree(config), sort_keys=False, allow_unicode=True)


def plain_tree(config: RunConfig) -> dict[str, Any]:
    """The tree as plain values; without what concerns searches only, where that is untouched."""
    tree = config.model_dump(mode="json")
    for name, default in (("tune", TuneConfig()), ("space", SpaceConfig())):
        if getattr(config, name) == default:
            del tree[name]
    return tree


def dreamfleet_home() -> Path:
    """Where caches, keys and the default MLflow store live (DREAMFLEET_HOME, default
    ~/.dreamfleet).
    """
    place = os.environ.get("DREAMFLEET_HOME")
    return Path(place).expanduser() if place else Path.home() / ".dreamfleet"


def environment(name: str) -> str | None:
    """An environment variable, or None when unset or empty; other modules ask here."""
    return os.environ.get(name) or None
