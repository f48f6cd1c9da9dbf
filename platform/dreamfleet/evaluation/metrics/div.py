"""DIV: how much do pictures of one prompt differ from each other?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.metrics.backbones import ImageBackbone
from dreamfleet.evaluation.metrics.score import Score, make_score, unit_rows

PAIRS_AT_ONCE = 16


class PairDistance(Protocol):
    """How different two pictures are."""

    @property
    def name(self) -> str:
        """Short; stands in the number's name."""
        ...

    def mean_pairwise(self, images: Sequence[Image.Image]) -> float:
        """Mean distance over all pairs of at least two pictures."""
        ...


def div(groups: Sequence[Sequence[Image.Image]], distance: PairDistance) -> Score:
    """Mean pairwise distance of pictures of the same subject and the same prompt, averaged over
    such groups; higher is better (arXiv 2208.12242, section 4.3).

    The paper writes "average LPIPS cosine similarity" but reads higher as more diverse, so it is
    the distance. No text enters; draw the groups with the identifier to see the variety of the
    subject's pictures, without it to see that of the class.

    Args:
        groups: pictures of one subject and prompt each, at least two in a group.
        distance: `LpipsDistance` (published), or `EncoderDistance` on the embedded base.

    Raises:
        BadInputError: no groups, or one with fewer than two pictures.
    """
    sizes = [len(group) for group in groups]
    if not sizes or min(sizes) < 2:
        raise BadInputError(
            f"DIV: groups of {sizes} pictures; expected at least one group and two pictures in each"
        )
    return make_score("div", distance.name, [distance.mean_pairwise(group) for group in groups])


class LpipsDistance:
    """LPIPS (arXiv 1801.03924) through torchmetrics; pictures of one size, in [-1, 1].

    Args:
        net: alex (the authors' recommendation for comparing pictures), vgg or squeeze. The paper
            that defines DIV does not say which; it stands in the number's name.

    Raises:
        BadInputError: the extra `metrics` is not installed, or the network cannot be fetched.
    """

    def __init__(self, net: str = "alex") -> None:
        self.name = f"lpips-{net}"
        self._metric = _torchmetrics_lpips(net)

    @torch.no_grad()
    def mean_pairwise(self, images: Sequence[Image.Image]) -> float:
        pixels = _unit_range_pixels(images)
        pairs = list(itertools.combinations(range(len(images)), 2))
        self._metric.reset()
        for start in range(0, len(pairs), PAIRS_AT_ONCE):
            chunk = pairs[start : start + PAIRS_AT_ONCE]
            self._metric.update(pixels[[a for a, _ in chunk]], pixels[[b for _, b in chunk]])
        return float(self._metric.compute())


class EncoderDistance:
    """One minus the cosine of an encoder's embeddings: on the embedded base, of the shipped
    identity encoder. Not LPIPS, and its name says so.
    """

    def __init__(self, backbone: ImageBackbone) -> None:
        self.name = f"{backbone.name}-distance"
        self._backbone = backbone

    def mean_pairwise(self, images: Sequence[Image.Image]) -> float:
        rows = unit_rows(self._backbone.embed_images(images))
        upper = np.triu_indices(len(rows), k=1)
        return float((1.0 - rows @ rows.T)[upper].mean())


def _torchmetrics_lpips(net: str) -> Any:
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise BadInputError(
            "DIV by LPIPS needs the extra `metrics` (torchmetrics and torchvision); install it "
            "with pip install '.[metrics]' in dreamfleet's folder, or leave DIV out"
        ) from error
    try:
        return LearnedPerceptualImagePatchSimilarity(net_type=net, normalize=False)
    except (ImportError, ModuleNotFoundError, OSError, ValueError) as error:
        raise BadInputError(
            f"DIV by LPIPS: network {net!r} cannot be loaded ({error}); expected alex, vgg or "
            "squeeze, torchvision beside torchmetrics, and its weights downloaded or reachable"
        ) from error


def _unit_range_pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise BadInputError(
            f"DIV by LPIPS: pictures of different sizes {sorted(sizes)}; expected one size a group"
        )
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
