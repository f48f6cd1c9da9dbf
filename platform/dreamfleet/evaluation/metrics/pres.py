"""PRES: has the whole class drifted towards the subject?"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dreamfleet.evaluation.metrics.backbones import ImageBackbone
from dreamfleet.evaluation.metrics.score import Score, check_pictures, make_score, mean_cosines


def pres(
    class_pictures: Sequence[Image.Image],
    references: Sequence[Image.Image],
    backbone: ImageBackbone,
) -> Score:
    """Mean DINO cosine between the tuned model's pictures of the class and real photos of the
    subject; lower is better (arXiv 2208.12242, section 4.3).

    `class_pictures` are drawn from the class prompt, "a photo of a dog", with no identifier in it:
    a model that kept its prior shows any dog there.

    Raises:
        BadInputError: no pictures.
    """
    check_pictures("PRES", class_prompt=class_pictures, reference=references)
    cosines = mean_cosines(backbone.embed_images(class_pictures), backbone.embed_images(references))
    return make_score("pres", backbone.name, cosines, higher_is_better=False)
