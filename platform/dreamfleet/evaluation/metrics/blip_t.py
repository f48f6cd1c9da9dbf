"""BLIP-T: does it show what the prompt says, attributes included, to BLIP."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dreamfleet.evaluation.metrics.backbones import ImageTextBackbone
from dreamfleet.evaluation.metrics.clip_t import comparison_texts
from dreamfleet.evaluation.metrics.score import Score, make_score, paired_cosines


def blip_t(
    generated: Sequence[Image.Image],
    prompts: Sequence[str],
    token: str,
    backbone: ImageTextBackbone,
) -> Score:
    """Mean cosine of each picture with its own prompt in BLIP's contrastive space
    (arXiv 2403.06775, section 5.1).

    The paper names neither checkpoint nor projection; the image-text contrastive heads (256-d) of
    BLIP base ITM are the natural reading. The identifier is taken out of the prompt and the class
    word stays, as in CLIP-T. Published values are times 100.

    Args:
        generated: N pictures.
        prompts: N prompts they were made from.
        token: the identifier in them.
        backbone: embeds both.

    Raises:
        BadInputError: no pictures, or another number of prompts.
    """
    texts = comparison_texts("BLIP-T", generated, prompts, token)
    cosines = paired_cosines(backbone.embed_images(generated), backbone.embed_texts(texts))
    return make_score("blip_t", backbone.name, cosines)
