"""The embedded base's VAE: 64x64 pictures to 16x16 latents of sixteen channels.

The encoder is linear and not trained: the leading principal components of 4x4 patches, written
into the convolutions of an ordinary AutoencoderKL. So the latents are known before any training,
the UNet can start at once, and the decoder, a trained network, can be improved later without
touching the UNet.

How a linear map passes a network with group norm and SiLU: every value z travels with its negative
in one group, beside constants that dwarf both. The group's mean is then exactly zero, its deviation
all but constant, and SiLU(a) - SiLU(-a) = a.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dreamfleet.training.pretraining.corpus import Corpus
from dreamfleet.training.pretraining.stage import Stage, StageSettings

WIDTHS = (16, 32, 64)
NORM_GROUPS = 4
ANCHOR = 100.0  # the constant channels: large against values of unit size
LOG_VARIANCE = -12.0  # the posterior is all but a point, as trained VAEs' are


def build_autoencoder(latent_channels: int) -> AutoencoderKL:
    """A small AutoencoderKL with f = 4."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=NORM_GROUPS,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


@dataclass(frozen=True)
class PatchBasis:
    """z = matrix @ (patch - mean): the leading components of 4x4 patches, each scaled.

    `matrix` [C, 48], `mean` [48]; patch pixels in the order of `patches`.
    """

    matrix: Tensor
    mean: Tensor

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, 64, 64] in [-1, 1] to latents [B, C, 16, 16]."""
        centred = patches(pixels) - self.mean[:, None, None]
        return torch.einsum("cp,bphw->bchw", self.matrix, centred)


def patches(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] to [B, 48, H/4, W/4], channels ordered coarse offset, fine offset, colour."""
    return _fold(_fold(pixels))


def _fold(x: Tensor) -> Tensor:
    """Space to depth by 2: [B, C, H, W] to [B, 4C, H/2, W/2], channel = (dy * 2 + dx) * C + c."""
    parts = [x[:, :, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
    return torch.cat(parts, dim=1)


def fit_basis(corpus: Corpus, channels: int, num_images: int = 3000) -> PatchBasis:
    """Principal components of the first pictures' patches.

    A component of deviation s is divided by sqrt(s): half-way to unit variance, so that coarse
    colour leads the denoising and detail follows. The mean variance over channels is 1.
    """
    rows = patches(corpus.pixels(np.arange(min(num_images, corpus.count))))
    flat = rows.permute(0, 2, 3, 1).reshape(-1, rows.shape[1])[::3].double()
    mean = flat.mean(dim=0)
    values, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    deviation = values[-channels:].flip(0).clamp(min=1e-12).sqrt()  # [C], largest first
    scale = deviation.rsqrt() / deviation.mean().sqrt()
    leading = vectors[:, -channels:].flip(1).T  # [C, 48]
    largest = leading.gather(1, leading.abs().argmax(dim=1, keepdim=True))
    matrix = leading * largest.sign() * scale[:, None]  # a component's sign is the solver's whim
    return PatchBasis(matrix.float(), mean.float())


@torch.no_grad()
def set_encoder(vae: AutoencoderKL, basis: PatchBasis) -> None:
    """Write `basis` into the encoder's convolutions; it is frozen from then on."""
    encoder, channels = vae.encoder, len(basis.matrix)
    for name, parameter in encoder.named_parameters():
        if "conv" in name and "norm" not in name:
            parameter.zero_()
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1.0
    _set_fold(encoder.down_blocks[0].downsamplers[0].conv, 3)
    shortcut = encoder.down_blocks[1].resnets[0].conv_shortcut
    shortcut.weight[range(12), range(12), 0, 0] = 1.0
    project = encoder.down_blocks[1].downsamplers[0].conv
    # Taps (dy, dx) of 12 channels to C components.
    for i, (dy, dx) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        project.weight[:channels, :12, dy, dx] = basis.matrix[:, 12 * i : 12 * (i + 1)]
    project.bias[:channels] = -basis.matrix @ basis.mean
    _set_pairs(encoder, channels)
    vae.quant_conv.weight.zero_()
    vae.quant_conv.weight[range(2 * channels), range(2 * channels), 0, 0] = 1.0
    vae.quant_conv.bias.zero_()
    vae.post_quant_conv.weight.zero_()
    vae.post_quant_conv.weight[range(channels), range(channels), 0, 0] = 1.0
    vae.post_quant_conv.bias.zero_()
    for part in (encoder, vae.quant_conv, vae.post_quant_conv):
        part.requires_grad_(False)


def _set_fold(conv: nn.Conv2d, channels: int) -> None:
    """A stride-2 convolution (padded right and below) as space to depth."""
    for i, (dy, dx) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        for c in range(channels):
            conv.weight[i * channels + c, c, dy, dx] = 1.0


def _set_pairs(encoder: Any, channels: int) -> None:
    """Components as (z, -z) with constants over the norm's groups, read back after SiLU."""
    width, per_group = WIDTHS[2], WIDTHS[2] // NORM_GROUPS
    pairs = per_group // 2 - 1  # of each group; its last two channels are the constants
    shortcut = encoder.down_blocks[2].resnets[0].conv_shortcut
    for group in range(NORM_GROUPS):
        last = (group + 1) * per_group
        shortcut.bias[last - 2], shortcut.bias[last - 1] = ANCHOR, -ANCHOR
    deviation = ANCHOR * (2.0 / per_group) ** 0.5
    for c in range(channels):
        group, slot = divmod(c, pairs)
        at = group * per_group + 2 * slot
        assert at + 1 < width, "more latent channels than the encoder's width carries"
        shortcut.weight[at, c, 0, 0], shortcut.weight[at + 1, c, 0, 0] = 1.0, -1.0
        encoder.conv_out.weight[c, at, 1, 1] = deviation
        encoder.conv_out.weight[c, at + 1, 1, 1] = -deviation
    encoder.conv_out.bias[channels:] = LOG_VARIANCE


@torch.no_grad()
def encode_corpus(basis: PatchBasis, corpus: Corpus, batch_size: int = 256) -> Tensor:
    """fp16 [count, C, 16, 16]."""
    rows = []
    for start in range(0, corpus.count, batch_size):
        indices = np.arange(start, min(start + batch_size, corpus.count))
        rows.append(basis.encode(corpus.pixels(indices)).half())
    return torch.cat(rows)


class DecoderStage(Stage):
    """The decoder learns to draw pictures from their latents: squared and some absolute error."""

    name = "decoder"

    def __init__(
        self, corpus: Corpus, latents: Tensor, basis: PatchBasis, settings: StageSettings, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.corpus, self.latents, self.settings, self.seed = corpus, latents, settings, seed
        self.vae = build_autoencoder(latents.shape[1])
        set_encoder(self.vae, basis)
        self.modules = {"decoder": self.vae.decoder}

    def to(self, device: torch.device | str) -> Self:
        """Move the whole VAE, not only what learns."""
        self.vae.to(device)
        return super().to(device)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        indices = self.corpus.batch(self.seed, self.name, step, size)
        x = self.corpus.pixels(indices).to(self.device)  # [B, 3, 64, 64]
        z = self.latents[torch.from_numpy(indices)].float().to(self.device)  # [B, C, 16, 16]
        made = self.vae.decode(z).sample
        mse = F.mse_loss(made, x)
        loss = mse + 0.05 * F.l1_loss(made, x)
        return loss, {"psnr_db": float(-10 * torch.log10(mse.detach() / 4))}
