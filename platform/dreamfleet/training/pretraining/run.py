"""From a recipe to the shipped weights: draw the world, train each stage, export.

Everything lies in one working folder and continues where it stands; stages can be run apart, in the order of
`STAGES` (each names what it needs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.training.pretraining.autoencoder import (
    DecoderStage,
    PatchBasis,
    encode_corpus,
    fit_basis,
)
from dreamfleet.training.pretraining.corpus import Corpus
from dreamfleet.training.pretraining.denoiser import DenoiserStage
from dreamfleet.training.pretraining.evaluators import (
    ClipStage,
    IdentityStage,
    OracleStage,
    SegmenterStage,
)
from dreamfleet.training.pretraining.portraits import Portraits
from dreamfleet.training.pretraining.stage import Progress, Stage, StageRunner, StageSettings
from dreamfleet.training.pretraining.tokenizer import build_tokenizer
from dreamfleet.world.captions import vocabulary_words
from dreamfleet.world.draw import draw_dataset
from dreamfleet.world.evaluators.models import OracleA, OracleB

DRAWINGS = ("corpus", "corpus_b", "portraits")
STAGES = ("latents", "decoder", "denoiser", "oracle_a", "oracle_b", "segmenter", "identity", "clip")


@dataclass(frozen=True)
class PretrainRecipe:
    """What is drawn, and how long each stage learns; `stages` maps a name to StageSettings."""

    seed: int = 0
    num_pictures: int = 60_000
    num_pictures_b: int = 20_000  # oracle B's own data draw
    portrait_identities: int = 300
    portraits_per_identity: int = 4
    latent_channels: int = 16
    autocast: bool = False
    stages: dict[str, StageSettings] = field(default_factory=dict)


def load_recipe(path: str | Path) -> PretrainRecipe:
    """Read a pretraining recipe; unknown keys are refused."""
    tree: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        stages = {name: StageSettings(**values) for name, values in tree.pop("stages").items()}
        return PretrainRecipe(stages=stages, **tree)
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"pretraining recipe {path}: {error}") from error


@dataclass
class Pretraining:
    """One recipe in one working folder."""

    recipe: PretrainRecipe
    folder: Path
    progress: Progress | None = None

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.folder / "corpus", self.recipe.seed, self.recipe.num_pictures)

    @cached_property
    def corpus_b(self) -> Corpus:
        return Corpus(self.folder / "corpus_b", self.recipe.seed + 1, self.recipe.num_pictures_b)

    @cached_property
    def portraits(self) -> Portraits:
        r = self.recipe
        return Portraits(
            self.folder / "portraits", r.seed, r.portrait_identities, r.portraits_per_identity
        )

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        return build_tokenizer(vocabulary_words())

    def run(self, names: list[str]) -> None:
        """Draw or train what is named, in order."""
        for name in names:
            if name in DRAWINGS:
                self.draw(name)
            elif name == "latents":
                self.encode()
            elif name in STAGES:
                StageRunner(self.stage(name), self.folder / "stages", self.progress).run()
            else:
                known = ", ".join((*DRAWINGS, *STAGES))
                raise BadInputError(f"pretraining stage {name!r} is none of: {known}")

    def draw(self, name: str) -> None:
        """Draw one of DRAWINGS to disk."""

        def report(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(name, done, total, {})

        if name == "portraits":
            self.portraits.draw(report)
            return
        corpus = self.corpus if name == "corpus" else self.corpus_b
        draw_dataset(corpus.folder, corpus.count, corpus.seed, progress=report)

    def encode(self) -> None:
        """Fit the linear encoder and encode the corpus with it."""
        basis = fit_basis(self.corpus, self.recipe.latent_channels)
        torch.save({"matrix": basis.matrix, "mean": basis.mean}, self.folder / "basis.pt")
        torch.save(encode_corpus(basis, self.corpus), self.folder / "latents.pt")

    @cached_property
    def basis(self) -> PatchBasis:
        """The linear encoder."""
        return PatchBasis(**torch.load(self.folder / "basis.pt", weights_only=True))

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The VAE with its decoder as far as it is trained."""
        stage = self.stage("decoder")
        runner = StageRunner(stage, self.folder / "stages")
        runner.load()
        runner.use_ema()
        return stage.vae.eval().requires_grad_(False)  # type: ignore[attr-defined]

    @cached_property
    def latents(self) -> Tensor:
        """fp16 [num_pictures, C, 16, 16]."""
        return torch.load(self.folder / "latents.pt", weights_only=True, mmap=True)

    def stage(self, name: str) -> Stage:
        """The stage called `name`, untrained."""
        recipe, settings = self.recipe, self._settings(name)
        builders: dict[str, Callable[[], Stage]] = {
            "decoder": lambda: DecoderStage(
                self.corpus, self.latents, self.basis, settings, recipe.seed
            ),
            "denoiser": lambda: DenoiserStage(
                self.corpus, self.latents, self.tokenizer, settings, recipe.seed, recipe.autocast
            ),
            "oracle_a": lambda: OracleStage(
                name, OracleA(), self.corpus, settings, recipe.seed, self._round_trip
            ),
            "oracle_b": lambda: OracleStage(
                name, OracleB(), self.corpus_b, settings, recipe.seed, self._round_trip
            ),
            "segmenter": lambda: SegmenterStage(self.portraits, settings, recipe.seed),
            "identity": lambda: IdentityStage(self.portraits, settings, recipe.seed),
            "clip": lambda: ClipStage(self.corpus, self.tokenizer, settings, recipe.seed),
        }
        return builders[name]()

    def trained(self, name: str) -> nn.Module:
        """The module of a finished stage (for "denoiser" see `trained_modules`)."""
        return next(iter(self.trained_modules(name).values()))

    def trained_modules(self, name: str) -> dict[str, nn.Module]:
        """The modules of a stage as its folder has them, averaged weights where it keeps them."""
        stage = self.stage(name)
        runner = StageRunner(stage, self.folder / "stages")
        runner.load()
        runner.use_ema()
        return stage.modules

    def _settings(self, name: str) -> StageSettings:
        if name not in self.recipe.stages:
            raise ConfigError(f"pretraining recipe: stages.{name} is missing")
        return self.recipe.stages[name]

    @torch.no_grad()
    def _round_trip(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """Through the latents and back, with noise in them as young samples have it."""
        z = self.basis.encode(pixels)
        strength = 0.35 * torch.rand((len(z), 1, 1, 1), generator=generator)
        z = z + strength * torch.randn(z.shape, generator=generator)
        return self.vae.decode(z).sample.clamp(-1, 1)
