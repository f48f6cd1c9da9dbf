"""From a recipe to the shipped weights: draw the world, train each stage, export.

Everything lies in one working folder and continues where it stands; stages can be run apart, in the
order of `STAGES` (the oracles need the decoder, the denoiser the text encoder, all need their
drawing).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.training.pretraining.autoencoder import (
    DecoderStage,
    PatchBasis,
    encode_corpus,
    fit_basis,
)
from dreamfleet.training.pretraining.corpus import Corpus
from dreamfleet.training.pretraining.denoiser import DenoiserStage, TextStage
from dreamfleet.training.pretraining.evaluators import (
    ClipStage,
    IdentityStage,
    OracleStage,
    SegmenterStage,
)
from dreamfleet.training.pretraining.parallel import ordered_map
from dreamfleet.training.pretraining.portraits import Portraits
from dreamfleet.training.pretraining.stage import (
    Progress,
    ShouldStop,
    Stage,
    StageRunner,
    StageSettings,
    Stopped,
)
from dreamfleet.training.pretraining.tokenizer import build_tokenizer
from dreamfleet.world.captions import vocabulary_words
from dreamfleet.world.draw import draw_dataset
from dreamfleet.world.evaluators.models import OracleA, OracleB

DRAWINGS = ("corpus", "corpus_b", "portraits")
EVALUATORS = ("oracle_a", "oracle_b", "segmenter", "identity", "clip")
STAGES = ("latents", "decoder", "text", "denoiser", *EVALUATORS)
# Whatever the recipe's `autocast`; oracle B's depthwise kernels take twice as long in bf16.
FULL_PRECISION = ("decoder", "text", "oracle_b")
ROUND_TRIP_NOISE = 0.35  # at most, in units of the latents' mean deviation


@dataclass(frozen=True)
class PretrainRecipe:
    """What is drawn, and how long each stage learns; `stages` maps a name to StageSettings."""

    seed: int = 0
    num_pictures: int = 60_000
    num_pictures_even: int = 0  # of them, with all states alike often
    num_pictures_b: int = 20_000  # oracle B's own data draw
    num_pictures_b_even: int = 0
    portrait_identities: int = 300
    portraits_per_identity: int = 4
    latent_channels: int = 16
    autocast: bool = False  # bf16 products in the denoiser and the evaluators
    stages: dict[str, StageSettings] = field(default_factory=dict)


def load_recipe(path: str | Path) -> PretrainRecipe:
    """Read a pretraining recipe.

    Raises:
        ConfigError: it cannot be read, or has an unknown key or stage.
    """
    try:
        tree: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        stages = {name: StageSettings(**values) for name, values in tree.pop("stages").items()}
        recipe = PretrainRecipe(stages=stages, **tree)
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"pretraining recipe {path}: {error}") from error
    if unknown := sorted(set(stages) - set(STAGES)):
        raise ConfigError(
            f"pretraining recipe {path}: stages.{unknown[0]} is none of: {', '.join(STAGES)}"
        )
    return recipe


def checked_names(names: Iterable[str]) -> list[str]:
    """`names`, or every drawing and stage in order when there are none.

    Raises:
        BadInputError: one of them is unknown.
    """
    known = [*DRAWINGS, *STAGES]
    chosen = list(names) or known
    for name in chosen:
        if name not in known:
            raise BadInputError(f"pretraining stage {name!r} is none of: {', '.join(known)}")
    return chosen


def check_stages(recipe: PretrainRecipe, names: Iterable[str]) -> None:
    """Refuse stages that are unknown, or that the recipe does not set.

    Raises:
        BadInputError: naming one.
    """
    for name in checked_names(names):
        if name in STAGES and name != "latents" and name not in recipe.stages:
            raise _unset(name)


def _unset(name: str) -> ConfigError:
    return ConfigError(
        f"pretraining recipe: stages.{name} is missing; set it, or name the stages to run"
    )


@dataclass
class Pretraining:
    """One recipe in one working folder.

    Attributes:
        progress: told about every stage.
        should_stop: asked between steps and between drawn blocks.
        device: where the modules are trained.
        processes: how many draw.
    """

    recipe: PretrainRecipe
    folder: Path
    progress: Progress | None = None
    should_stop: ShouldStop | None = None
    device: str = "cpu"
    processes: int = 1

    @cached_property
    def corpus(self) -> Corpus:
        recipe = self.recipe
        return Corpus(
            self.folder / "corpus", recipe.seed, recipe.num_pictures, recipe.num_pictures_even
        )

    @cached_property
    def corpus_b(self) -> Corpus:
        recipe = self.recipe
        return Corpus(
            self.folder / "corpus_b",
            recipe.seed + 1,
            recipe.num_pictures_b,
            recipe.num_pictures_b_even,
        )

    @cached_property
    def portraits(self) -> Portraits:
        r = self.recipe
        return Portraits(
            self.folder / "portraits", r.seed, r.portrait_identities, r.portraits_per_identity
        )

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return build_tokenizer(vocabulary_words())

    def run(self, names: Iterable[str] = ()) -> None:
        """Draw or train what is named (all when nothing is), in order.

        Raises:
            BadInputError: an unknown name, or a stage without what it needs.
            Stopped: `should_stop` said so; run again to go on.
        """
        for name in checked_names(names):
            if name in DRAWINGS:
                self.draw(name)
            elif name == "latents":
                self.encode()
            else:
                folder = self.folder / "stages"
                StageRunner(self.stage(name), folder, self.progress, self.should_stop).run()

    def draw(self, name: str) -> None:
        """Draw one of DRAWINGS to disk."""

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(name, done, total, {})
            if done < total and self.should_stop is not None and self.should_stop():
                raise Stopped(f"{name}: stopped at picture {done}")

        with ordered_map(self.processes) as map_blocks:
            if name == "portraits":
                self.portraits.draw(report, map_blocks)
                return
            corpus = self.corpus if name == "corpus" else self.corpus_b
            draw_dataset(
                corpus.folder,
                corpus.count,
                corpus.seed,
                progress=report,
                map_blocks=map_blocks,
                num_even=corpus.num_even,
            )

    def encode(self) -> None:
        """Fit the linear encoder and encode the corpus with it, unless that is done."""
        if self._encoded():
            return
        self._need(self.corpus.folder / "images.npy", "corpus")
        basis = fit_basis(self.corpus, self.recipe.latent_channels)
        _save({"matrix": basis.matrix, "mean": basis.mean}, self.folder / "basis.pt")
        _save(encode_corpus(basis, self.corpus), self.folder / "latents.pt")

    def _encoded(self) -> bool:
        if not (self.folder / "latents.pt").exists():
            return False
        expected = (self.recipe.num_pictures, self.recipe.latent_channels)
        return tuple(self.latents.shape[:2]) == expected

    @cached_property
    def basis(self) -> PatchBasis:
        """The linear encoder."""
        path = self._need(self.folder / "basis.pt", "latents")
        return PatchBasis(**torch.load(path, weights_only=True))

    @cached_property
    def latents(self) -> Tensor:
        """fp16 [num_pictures, C, 16, 16], memory-mapped."""
        path = self._need(self.folder / "latents.pt", "latents")
        latents: Tensor = torch.load(path, weights_only=True, mmap=True)
        return latents

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The VAE with its decoder as far as it is trained."""
        stage = self._trained_stage("decoder")
        assert isinstance(stage, DecoderStage)
        return stage.vae.eval().requires_grad_(False)

    def stage(self, name: str) -> Stage:
        """The stage called `name`, untrained, on `device`."""
        recipe, settings = self.recipe, self._settings(name)
        builders: dict[str, Callable[[], Stage]] = {
            "decoder": lambda: DecoderStage(
                self.corpus, self.latents, self.basis, settings, recipe.seed
            ),
            "text": lambda: TextStage(self.corpus, self.tokenizer, settings, recipe.seed),
            "denoiser": lambda: DenoiserStage(
                self.corpus,
                self.latents,
                self.tokenizer,
                settings,
                recipe.seed,
                self._warm_text_encoder(),
            ),
            "oracle_a": lambda: OracleStage(
                name, OracleA(), self.corpus, settings, recipe.seed, self._round_trip
            ),
            "oracle_b": lambda: OracleStage(
                name, OracleB(), self.corpus_b, settings, recipe.seed, self._round_trip
            ),
            "segmenter": lambda: SegmenterStage(self.portraits, settings, recipe.seed),
            "identity": lambda: IdentityStage(self.portraits, settings, recipe.seed),
            "clip": lambda: ClipStage(
                self.corpus, self.tokenizer, settings, recipe.seed, self._warm_text_encoder()
            ),
        }
        torch.manual_seed(recipe.seed)  # initial weights
        stage = builders[name]().to(self.device)
        stage.autocast = recipe.autocast and name not in FULL_PRECISION
        return stage

    def trained_modules(self, name: str) -> dict[str, nn.Module]:
        """A stage's modules as its folder has them, averaged weights where it keeps them."""
        return self._trained_stage(name).modules

    def _trained_stage(self, name: str) -> Stage:
        stage = self.stage(name)
        runner = StageRunner(stage, self.folder / "stages")
        self._need(runner.state_path, name)
        runner.load()
        runner.use_ema()
        return stage

    def _warm_text_encoder(self) -> CLIPTextModel | None:
        """The text encoder after its warm-up, None in a recipe without one."""
        if "text" not in self.recipe.stages:
            return None
        stage = self._trained_stage("text")
        assert isinstance(stage, TextStage)
        return stage.text_encoder.train()

    def _need(self, path: Path, stage: str) -> Path:
        if not path.exists():
            raise BadInputError(f"{path} is missing: run stage {stage} in {self.folder} first")
        return path

    def _settings(self, name: str) -> StageSettings:
        if name not in self.recipe.stages:
            raise _unset(name)
        return self.recipe.stages[name]

    @torch.no_grad()
    def _round_trip(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Through the latents and back, with noise in them as young samples have it."""
        z = self.basis.encode(pixels)
        strength = ROUND_TRIP_NOISE * torch.rand((len(z), 1, 1, 1), generator=generator)
        z = z + strength * torch.randn(z.shape, generator=generator)
        vae = self.vae.to(memory_format=torch.channels_last)  # with bf16 three times as fast
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.recipe.autocast):
            decoded: Tensor = vae.decode(z.to(self.device)).sample
        return decoded.float().clamp(-1, 1).cpu()


def _save(content: object, path: Path) -> None:
    """Replaces the former file only when whole: other processes may have it mapped."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)
