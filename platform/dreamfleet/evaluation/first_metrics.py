"""A first look at an adapter, right after training: a few figures from the pictures of the report.

Only for the embedded base, whose own judges ship with it; nothing is downloaded for the others.
These figures are an
indication: few pictures, few prompts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.report import Grid, Metric

Pictures = Sequence[Image.Image]
IDENTITY_JUDGE = "world's identity encoder"
CLIP_JUDGE = "world's CLIP"
_BEFORE_A_NOUN = frozenset({"of", "with", "and", "for", "like", "to", "by", "in", "on", "beside"})


class _Clip(Protocol):
    def embed_images(self, images: Pictures) -> Any: ...

    def embed_texts(self, texts: Sequence[str]) -> Any: ...


class _IdentityJudge(Protocol):
    def embed(self, images: Pictures, masks: Any = None) -> Any: ...


def first_metrics(
    base_name: str, token: str, photos: Pictures, grids: Sequence[Grid]
) -> list[Metric]:
    """Identity, prompt match and diversity of the pictures in `grids`, each beside the bare base's.

    Args:
        base_name: figures are given for "embedded" only.
        token: the identifier; it is taken out of prompts before they are compared with pictures.
        photos: the squares that were trained on.
        grids: pictures by prompt, with and without the adapter.

    Returns:
        The metrics that could be computed; none for another base or where a judge is not installed.
    """
    usable = [grid for grid in grids if grid.with_adapter]
    if base_name != "embedded" or not usable or not photos:
        return []
    metrics = []
    identity = _loaded("load_identity_encoder")
    if identity is not None:
        metrics.append(identity_metric(identity, photos, usable))
    clip = _loaded("load_clip")
    if clip is not None:
        metrics.append(prompt_metric(clip, token, usable))
        diversity = diversity_metric(clip, usable)
        metrics += [diversity] if diversity is not None else []
    return metrics


def identity_metric(judge: _IdentityJudge, photos: Pictures, grids: Sequence[Grid]) -> Metric:
    """Mean cosine between pictures and photos, over all pairs."""
    reference = _unit(judge.embed(list(photos)))

    def score(images: Pictures) -> float:
        return float((_unit(judge.embed(list(images))) @ reference.T).mean())

    value, baseline = _both(grids, score)
    return Metric(
        "identity",
        "Identity",
        value,
        baseline,
        "How alike the subject in the pictures and the one in the photos are, in every scene and "
        "state; 1 is the very same.",
        IDENTITY_JUDGE,
    )


def prompt_metric(clip: _Clip, token: str, grids: Sequence[Grid]) -> Metric:
    """Mean cosine between each picture and its prompt without the identifier."""
    texts = _unit(clip.embed_texts([without_token(grid.prompt, token) for grid in grids]))

    def score(side: str) -> float | None:
        rows = [
            _unit(clip.embed_images(list(getattr(grid, side)))) @ text
            for grid, text in zip(grids, texts, strict=True)
            if getattr(grid, side)
        ]
        return float(np.concatenate(rows).mean()) if rows else None

    return Metric(
        "clip_t",
        "Prompt match",
        score("with_adapter") or 0.0,
        score("without_adapter"),
        "How well the pictures fit their prompts, read without the identifier. Much below the bare "
        "base means that prompts are ignored.",
        CLIP_JUDGE,
    )


def diversity_metric(clip: _Clip, grids: Sequence[Grid]) -> Metric | None:
    """Mean of 1 - cosine over pairs of pictures of one prompt; None with one picture a prompt."""

    def score(side: str) -> float | None:
        values = []
        for grid in grids:
            images = list(getattr(grid, side))
            if len(images) > 1:
                vectors = _unit(clip.embed_images(images))
                pairs = np.triu_indices(len(images), k=1)
                values.append(float(1 - (vectors @ vectors.T)[pairs].mean()))
        return float(np.mean(values)) if values else None

    value = score("with_adapter")
    if value is None:
        return None
    return Metric(
        "diversity",
        "Diversity",
        value,
        score("without_adapter"),
        "How much pictures of one prompt differ; near 0 they are copies. Below the bare base is "
        "right: one subject varies less than a class.",
        CLIP_JUDGE,
        better="",
    )


def without_token(prompt: str, token: str) -> str:
    """ "a photo of sks dog" -> "a photo of a dog": as the judge's own captions are written."""
    if not token:
        return prompt
    words = re.split(rf"(?<!\w){re.escape(token)}(?!\w)\s*", prompt)
    out = words[0]
    for rest in words[1:]:
        # "a wet sks dog" has its article already.
        bare = not out.strip() or out.split()[-1].lower() in _BEFORE_A_NOUN
        article = f"{'an' if rest[:1].lower() in 'aeiou' else 'a'} " if bare and rest else ""
        out += article + rest
    return out


def _both(grids: Sequence[Grid], score: Callable[[Pictures], float]) -> tuple[float, float | None]:
    with_adapter = [image for grid in grids for image in grid.with_adapter]
    without = [image for grid in grids for image in grid.without_adapter]
    return score(with_adapter), score(without) if without else None


def _unit(vectors: Any) -> np.ndarray:
    rows = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)


def _loaded(name: str) -> Any | None:
    """A judge of the world, or None where it is not shipped."""
    from dreamfleet.bases.quiet import quiet_libraries

    try:
        from dreamfleet.world import evaluators

        with quiet_libraries():
            return getattr(evaluators, name)()
    except (ImportError, AttributeError, BadInputError, OSError):
        return None
