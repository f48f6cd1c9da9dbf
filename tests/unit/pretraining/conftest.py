"""One tiny working folder for all tests here: drawn, trained and exported once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from dreamfleet.training.pretraining.denoiser import build_unet
from dreamfleet.training.pretraining.export import export_weights
from dreamfleet.training.pretraining.run import STAGES, Pretraining, load_recipe
from tests.unit.pretraining.recipes import write_recipe


@dataclass
class Exported:
    """The exported folders and what they were made from."""

    work: Pretraining
    base: Path
    evaluators: Path


@pytest.fixture(scope="package", autouse=True)
def small_unet() -> Iterator[None]:
    """The same UNet, narrower: its state is read and written many times here."""

    def build(latent_channels: int) -> UNet2DConditionModel:
        config = dict(build_unet(latent_channels).config)
        return UNet2DConditionModel(**{**config, "block_out_channels": (16, 32, 32)})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dreamfleet.training.pretraining.denoiser.build_unet", build)
        yield


@pytest.fixture(scope="package")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Pretraining:
    """The drawings and latents of the tiny recipe."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pretraining")
    work = Pretraining(load_recipe(write_recipe(folder / "tiny.yaml")), folder)
    work.run(["corpus", "corpus_b", "portraits", "latents"])
    return work


@pytest.fixture(scope="package")
def exported(drawn: Pretraining) -> Exported:
    """Every stage trained for a few steps, and exported."""
    drawn.run(STAGES)
    folder = drawn.folder / "exported"
    export_weights(drawn, folder / "base", folder / "evaluators")
    return Exported(drawn, folder / "base", folder / "evaluators")
