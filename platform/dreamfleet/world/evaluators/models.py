"""The networks that judge pictures of the world: two oracles, an identity encoder and a segmenter.

All take float pictures [B, 3, 64, 64] in [-1, 1]. The small CLIP is transformers' own CLIPModel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNREADABLE = "unreadable"
# Number of answers per question; class has one more than the world: "unreadable".
HEADS = {"class": 13, "state": 96, "scene": 10, "view": 3, "style": 5, "prop": 2}


class _Residual(nn.Module):
    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width_out),
            nn.ReLU(),
            nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width_out),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.skip = nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class OracleA(nn.Module):
    """A residual network with one linear head per question."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        w = width
        self.trunk = nn.Sequential(
            nn.Conv2d(3, w, 3, 2, 1, bias=False),  # [B, w, 32, 32]
            nn.BatchNorm2d(w),
            nn.ReLU(),
            _Residual(w, w, 1),
            _Residual(w, 2 * w, 2),  # [B, 2w, 16, 16]
            _Residual(2 * w, 4 * w, 2),  # [B, 4w, 8, 8]
            _Residual(4 * w, 8 * w, 2),  # [B, 8w, 4, 4]
        )
        self.heads = nn.ModuleDict({name: nn.Linear(16 * w, n) for name, n in HEADS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        h = self.trunk(pixels)
        h = torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)  # [B, 16w]
        return {name: head(h) for name, head in self.heads.items()}


class _Block(nn.Module):
    """A ConvNeXt block (Liu et al. 2022): depthwise 5x5, then a pointwise MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.mlp = nn.Sequential(
            nn.Conv2d(width, 3 * width, 1), nn.GELU(), nn.Conv2d(3 * width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.depthwise(x)))


class OracleB(nn.Module):
    """A ConvNeXt-like network (no batch statistics, depthwise kernels).

    Unlike A in kind, and trained on another draw of the world.
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        w = width
        self.trunk = nn.Sequential(
            nn.Conv2d(3, w, 4, 4),  # [B, w, 16, 16]
            nn.GroupNorm(1, w),
            _Block(w),
            _Block(w),
            nn.Conv2d(w, 2 * w, 2, 2),  # [B, 2w, 8, 8]
            _Block(2 * w),
            _Block(2 * w),
            nn.Conv2d(2 * w, 4 * w, 2, 2),  # [B, 4w, 4, 4]
            _Block(4 * w),
            nn.GroupNorm(1, 4 * w),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(64 * w, n) for name, n in HEADS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        h = self.trunk(pixels).flatten(1)  # [B, 4w * 16]
        return {name: head(h) for name, head in self.heads.items()}


class _PreNormResidual(nn.Module):
    """A residual block of 3x3 convolutions after group norm and GELU (He et al. 2016, v2)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1)
        self.norm2 = nn.GroupNorm(8, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.skip = nn.Conv2d(width_in, width_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.gelu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.gelu(self.norm2(h)))


class IdentityEncoder(nn.Module):
    """A small ViT on convolutional patches; class token and mean token give the embedding.

    `features` is what the embedding is projected from.
    """

    def __init__(self, width: int = 128, depth: int = 2, heads: int = 4, dim: int = 128) -> None:
        super().__init__()
        self.features = 2 * width
        self.patches = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),  # [B, 32, 32, 32]
            _PreNormResidual(32, 32, 1),
            _PreNormResidual(32, 64, 2),
            _PreNormResidual(64, 64, 1),
            _PreNormResidual(64, width, 2),  # [B, width, 8, 8]
            nn.GroupNorm(8, width),
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 65, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.projection = nn.Linear(self.features, dim)

    def describe(self, pixels: Tensor) -> Tensor:
        """[B, features], before the projection."""
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)  # [B, 64, width]
        first = self.class_token.expand(len(tokens), -1, -1)
        h = self.blocks(torch.cat([first, tokens], dim=1) + self.positions)
        return torch.cat([h[:, 0], h[:, 1:].mean(dim=1)], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit vectors [B, dim]."""
        return F.normalize(self.projection(self.describe(pixels)), dim=1)


class Segmenter(nn.Module):
    """A small U-Net: logits [B, 1, 64, 64] of "this pixel is the subject"."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        w = width

        def block(n_in: int, n_out: int, stride: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()
            )

        self.down1 = block(3, w)
        self.down2 = nn.Sequential(block(w, 2 * w, 2), block(2 * w, 2 * w))
        self.down3 = nn.Sequential(block(2 * w, 4 * w, 2), block(4 * w, 4 * w))
        self.down4 = nn.Sequential(block(4 * w, 4 * w, 2), block(4 * w, 4 * w))
        self.up3 = block(8 * w, 2 * w)
        self.up2 = block(4 * w, w)
        self.up1 = nn.Conv2d(2 * w, 1, 3, 1, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        h1 = self.down1(pixels)  # [B, w, 64, 64]
        h2 = self.down2(h1)  # [B, 2w, 32, 32]
        h3 = self.down3(h2)  # [B, 4w, 16, 16]
        h = F.interpolate(self.down4(h3), scale_factor=2.0)
        h = F.interpolate(self.up3(torch.cat([h, h3], dim=1)), scale_factor=2.0)
        h = F.interpolate(self.up2(torch.cat([h, h2], dim=1)), scale_factor=2.0)
        return self.up1(torch.cat([h, h1], dim=1))
