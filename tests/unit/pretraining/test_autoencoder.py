"""The VAE's encoder is the linear map it is said to be, in diffusers' own class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from dreamfleet.training.pretraining.autoencoder import (
    PatchBasis,
    build_autoencoder,
    patches,
    set_encoder,
)
from dreamfleet.training.pretraining.run import Pretraining


def random_basis(channels: int) -> PatchBasis:
    generator = torch.Generator().manual_seed(channels)
    rows = torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q[:channels]
    return PatchBasis(rows, torch.randn(48, generator=generator) * 0.1)


def relative_error(vae: AutoencoderKL, basis: PatchBasis, pixels: torch.Tensor) -> float:
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    exact = basis.encode(pixels)
    assert posterior.mean.shape == exact.shape == (len(pixels), len(basis.matrix), 16, 16)
    assert float(posterior.std.max()) < 0.01
    return float((posterior.mean - exact).norm() / exact.norm())


@pytest.mark.parametrize("channels", [4, 12, 16])
def test_encoder_is_the_linear_map(channels: int) -> None:
    vae, basis = build_autoencoder(channels), random_basis(channels)
    set_encoder(vae, basis)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert relative_error(vae, basis, pixels) < 2e-3
    assert not any(parameter.requires_grad for parameter in vae.encoder.parameters())


def test_encoder_survives_saving(drawn: Pretraining, tmp_path: Path) -> None:
    vae = build_autoencoder(16)
    set_encoder(vae, drawn.basis)
    vae.save_pretrained(tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path, local_files_only=True)
    pixels = drawn.corpus.pixels(np.arange(4))
    assert relative_error(loaded, drawn.basis, pixels) < 2e-3


def test_latents_on_disk_are_those_of_the_encoder(drawn: Pretraining) -> None:
    exact = drawn.basis.encode(drawn.corpus.pixels(np.arange(64)))
    assert torch.equal(drawn.latents, exact.half())
    assert 0.5 < float(exact.var(dim=(0, 2, 3)).mean()) < 2.0


def test_principal_components_explain_the_pictures(drawn: Pretraining) -> None:
    """Sixteen of 48 components, undone linearly, lose little; the trained decoder loses less."""
    pixels = drawn.corpus.pixels(np.arange(64))
    x = patches(pixels)
    mean = drawn.basis.mean[:, None, None]
    inverse = torch.linalg.pinv(drawn.basis.matrix)
    again = torch.einsum("pc,bchw->bphw", inverse, drawn.basis.encode(pixels)) + mean
    assert float((again - x).var() / x.var()) < 0.05
