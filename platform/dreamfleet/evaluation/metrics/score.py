"""What every metric returns, and the one formula that most of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dreamfleet.errors import BadInputError


@dataclass(frozen=True)
class Score:
    """A number with the name of what measured it.

    Attributes:
        name: metric and backbone, e.g. "clip_t[clip-vit-base-patch32]": numbers of different
            backbones are never the same quantity.
        value: the metric.
        parts: one value per generated picture (per group of pictures for DIV), whose mean is
            `value`; results are averaged per subject from these.
        higher_is_better: how to read it.
    """

    name: str
    value: float
    parts: tuple[float, ...]
    higher_is_better: bool = True


def make_score(
    metric: str, backbone: str, parts: Sequence[float] | np.ndarray, higher_is_better: bool = True
) -> Score:
    """The score whose value is the mean of `parts`."""
    values = tuple(float(part) for part in parts)
    return Score(f"{metric}[{backbone}]", float(np.mean(values)), values, higher_is_better)


def mean_cosines(generated: np.ndarray, references: np.ndarray) -> np.ndarray:
    """For each row of `generated` [N, D] its mean cosine to all rows of `references` [M, D].

    The mean of the result is the mean over all N x M pairs, which is how DreamBooth, Custom
    Diffusion and SuDe define CLIP-I and DINO-I.
    """
    return np.asarray((unit_rows(generated) @ unit_rows(references).T).mean(axis=1))


def paired_cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of row i of `images` [N, D] with row i of `texts` [N, D]."""
    return np.asarray((unit_rows(images) * unit_rows(texts)).sum(axis=1))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, in float64."""
    rows = np.asarray(vectors, dtype=np.float64)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def check_pictures(metric: str, **groups: Sequence[object]) -> None:
    """Refuse empty groups of pictures.

    Raises:
        BadInputError: naming the metric and the group.
    """
    for name, pictures in groups.items():
        if not len(pictures):
            raise BadInputError(f"{metric}: no {name} pictures; expected at least one")
