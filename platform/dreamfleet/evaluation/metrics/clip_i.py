"""CLIP-I: does it look like the subject, to CLIP."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dreamfleet.evaluation.metrics.backbones import ImageBackbone
from dreamfleet.evaluation.metrics.score import Score, check_pictures, make_score, mean_cosines


def clip_i(
    generated: Sequence[Image.Image], references: Sequence[Image.Image], backbone: ImageBackbone
) -> Score:
    """Mean cosine over all pairs of generated pictures and real photos of the subject
    (arXiv 2208.12242, section 4.2; arXiv 2208.01618).

    No text enters, so the identifier does not matter. The DreamBooth paper does not name its CLIP;
    ViT-B/32 is what Textual Inversion and Custom Diffusion use, and L/14 gives higher values.
    A copy of the photo scores best: read it together with a metric of the text.

    Raises:
        BadInputError: no pictures.
    """
    check_pictures("CLIP-I", generated=generated, reference=references)
    cosines = mean_cosines(backbone.embed_images(generated), backbone.embed_images(references))
    return make_score("clip_i", backbone.name, cosines)
