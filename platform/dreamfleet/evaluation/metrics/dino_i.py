"""DINO-I: does it look like the subject, to a network that tells individuals apart."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dreamfleet.evaluation.metrics.backbones import ImageBackbone
from dreamfleet.evaluation.metrics.score import Score, check_pictures, make_score, mean_cosines


def dino_i(
    generated: Sequence[Image.Image], references: Sequence[Image.Image], backbone: ImageBackbone
) -> Score:
    """Mean cosine over all pairs of generated pictures and real photos of the subject
    (arXiv 2208.12242, section 4.2, there called DINO).

    Self-supervised features do not merge individuals of a class, which is what is asked here. No
    text enters, so the identifier does not matter. With one photo to train on, say whether the
    references are that photo or all photos: SuDe's paper does not.

    Raises:
        BadInputError: no pictures.
    """
    check_pictures("DINO-I", generated=generated, reference=references)
    cosines = mean_cosines(backbone.embed_images(generated), backbone.embed_images(references))
    return make_score("dino_i", backbone.name, cosines)
