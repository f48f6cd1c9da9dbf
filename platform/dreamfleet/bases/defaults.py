"""Training and sampling settings that suit a base, and how they fill the gaps of a
configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dreamfleet.errors import ConfigError

if TYPE_CHECKING:
    from dreamfleet.bases.base import Base
    from dreamfleet.bases.files import BaseFiles
    from dreamfleet.config import RunConfig

# Single tokens that occur in captions next to never, in the order in which `--token auto` tries
# them. The first ones are Custom Diffusion's (methods for CLIP's tokenizer), the others those of
# the embedded base.
RARE_TOKENS = ("ktn", "pll", "ucd", "zwx", "vqk", "pxj", "bnq", "xjy", "qvz", "krv", "sks")
SMALL_PIXELS = 128


@dataclass(frozen=True)
class BaseDefaults:
    """What a None in the configuration becomes; names as in `TrainConfig`.

    Attributes:
        max_train_steps, learning_rate, rank, lora_layers: LoRA.
        prior_max_train_steps: LoRA with prior preservation.
        full_learning_rate, full_max_train_steps: full fine-tuning.
        full_prior_max_train_steps: full fine-tuning with prior preservation.
        text_encoder_learning_rate: full fine-tuning with the text encoder.
        guidance_scale: classifier-free guidance of samples.
        num_inference_steps: sampler steps.
    """

    max_train_steps: int
    prior_max_train_steps: int
    learning_rate: float
    rank: int
    lora_layers: Literal["attention", "attention_ff", "all"]
    full_learning_rate: float
    full_max_train_steps: int
    full_prior_max_train_steps: int
    text_encoder_learning_rate: float
    guidance_scale: float
    num_inference_steps: int = 25


# Small nets learn slowly at the rates of large ones: measured on the embedded base with one photo
# and 300 steps, attention alone at rank 8 and 1e-4 learns nothing, rank 16 on all layers at 1e-3 as
# much as full fine-tuning at 1e-4. Alone, 100 steps carry the subject into other scenes, and 200
# copy its photo; beside a prior the class first follows the subject and is itself again by 400.
SMALL = BaseDefaults(
    max_train_steps=100,
    prior_max_train_steps=400,
    learning_rate=1e-3,
    rank=16,
    lora_layers="all",
    full_learning_rate=1e-4,
    full_max_train_steps=400,
    full_prior_max_train_steps=400,
    text_encoder_learning_rate=1e-4,
    guidance_scale=3.0,
)
# The settings of diffusers' DreamBooth README.
STABLE_DIFFUSION = BaseDefaults(
    max_train_steps=500,
    prior_max_train_steps=500,
    learning_rate=1e-4,
    rank=4,
    lora_layers="attention",
    full_learning_rate=5e-6,
    full_max_train_steps=400,
    full_prior_max_train_steps=800,
    text_encoder_learning_rate=2e-6,
    guidance_scale=7.5,
)
# diffusers' SDXL README for the LoRA; its fine-tuning script's rate for the whole UNet; the
# pipeline's own guidance.
STABLE_DIFFUSION_XL = replace(
    STABLE_DIFFUSION,
    full_learning_rate=1e-6,
    text_encoder_learning_rate=1e-6,
    guidance_scale=5.0,
)


def defaults_for(files: BaseFiles) -> BaseDefaults:
    """Settings by the size of the base: those of the embedded one up to 128 pixels, else those of
    its family.
    """
    if files.resolution <= SMALL_PIXELS:
        return SMALL
    return STABLE_DIFFUSION_XL if files.family.name == "sdxl" else STABLE_DIFFUSION


def resolved_config(config: RunConfig, base: Base | BaseFiles) -> RunConfig:
    """A copy of `config` without gaps: every None that means "the base's own" is filled in, `token:
    auto` too.

    Raises:
        ConfigError: a value that does not fit this base (resolution, rank), naming the key.
    """
    files: BaseFiles = base.files if hasattr(base, "files") else base
    defaults = defaults_for(files)
    train, prior = config.train, config.prior
    full = train.mode == "full"
    rank = _first(train.rank, defaults.rank)
    filled_train = {
        "max_train_steps": _first(
            train.max_train_steps, _steps(defaults, full, prior.with_prior_preservation)
        ),
        "learning_rate": _first(
            train.learning_rate, _rate(defaults, full, train.train_text_encoder)
        ),
        "rank": rank,
        "lora_alpha": _first(train.lora_alpha, float(rank)),
        "lora_layers": _first(train.lora_layers, defaults.lora_layers),
    }
    guidance = {"guidance_scale": defaults.guidance_scale}
    resolved = config.model_copy(
        deep=True,
        update={
            "train": train.model_copy(update=filled_train),
            "data": config.data.model_copy(
                update={"resolution": _first(config.data.resolution, files.resolution)}
            ),
            "prior": prior
            if prior.guidance_scale is not None
            else prior.model_copy(update=guidance),
            "sampling": config.sampling
            if config.sampling.guidance_scale is not None
            else config.sampling.model_copy(update=guidance),
            "subject": config.subject.model_copy(update={"token": _token(config, files)}),
        },
    )
    _check_fits(resolved, files)
    return resolved


def rare_token(tokenizer: Any, taken: Sequence[str] = ()) -> str:
    """A word that is one token of `tokenizer`, rare, and not among `taken` words.

    Raises:
        ConfigError: the tokenizer has none.
    """
    candidates = [*RARE_TOKENS, *_rare_words(tokenizer)]
    for word in candidates:
        if word not in taken and len(tokenizer(word, add_special_tokens=False).input_ids) == 1:
            return word
    raise ConfigError(
        "subject.token = 'auto': this base's tokenizer has no rare single token; give --token a "
        "word"
    )


def _rare_words(tokenizer: Any) -> list[str]:
    """Three-letter words of the vocabulary, the latest merges (the rarest) first."""
    ending = "</w>"
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: -item[1])
    words = [piece.removesuffix(ending) for piece, _ in vocabulary if piece.endswith(ending)]
    return [word for word in words if len(word) == 3 and word.isascii() and word.isalpha()]


def _token(config: RunConfig, files: BaseFiles) -> str:
    if config.subject.token != "auto":
        return config.subject.token
    return rare_token(files.tokenizer(), config.subject.class_word.split())


def _steps(defaults: BaseDefaults, full: bool, with_prior: bool) -> int:
    if not full:
        return defaults.prior_max_train_steps if with_prior else defaults.max_train_steps
    return defaults.full_prior_max_train_steps if with_prior else defaults.full_max_train_steps


def _rate(defaults: BaseDefaults, full: bool, text_encoder: bool) -> float:
    if not full:
        return defaults.learning_rate
    return defaults.text_encoder_learning_rate if text_encoder else defaults.full_learning_rate


def _check_fits(config: RunConfig, files: BaseFiles) -> None:
    resolution, step = config.data.resolution, files.resolution_step
    if resolution is not None and resolution % step:
        raise ConfigError(
            f"data.resolution = {resolution}: expected a multiple of {step} for base model "
            f"{files.name}, "
            f"e.g. {files.resolution}"
        )
    if config.cluster.parallel_strategy == "fsdp":
        _check_shardable(config)
    rank = config.train.rank or 0
    if config.train.mode == "lora" and rank > files.widest_layer:
        raise ConfigError(
            f"train.rank = {rank}: larger than the widest layer of base model {files.name} "
            f"({files.widest_layer}); "
            "give a smaller rank"
        )


def _check_shardable(config: RunConfig) -> None:
    train = config.train
    reasons = {
        "train.mode = 'lora'": train.mode == "lora",
        "train.mixed_precision = 'fp16'": train.mixed_precision == "fp16",
        "train.use_8bit_adam = true": train.use_8bit_adam,
    }
    for setting, given in reasons.items():
        if given:
            raise ConfigError(
                f"cluster.parallel_strategy = 'fsdp' with {setting}: it shards the whole model of "
                "full fine-tuning, in fp32 or bf16 and with plain AdamW; use ddp, or change that"
            )


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value
