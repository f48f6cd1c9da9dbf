"""CLIP-T: does it show what the prompt says, to CLIP."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.metrics.backbones import ImageTextBackbone
from dreamfleet.evaluation.metrics.score import Score, check_pictures, make_score, paired_cosines
from dreamfleet.methods.dreambooth.prompts import without_token


def clip_t(
    generated: Sequence[Image.Image],
    prompts: Sequence[str],
    token: str,
    backbone: ImageTextBackbone,
) -> Score:
    """Mean cosine of each picture with its own prompt (arXiv 2208.12242, section 4.2).

    The identifier is taken out of the prompt and the class word stays: "a photo of sks dog in the
    snow" is compared as "a photo of dog in the snow". CLIP has never seen what `sks` means; the
    paper does not say what it does, Textual Inversion deletes the placeholder. The plain cosine is
    given: Custom Diffusion reports 2.5 max(cosine, 0).

    Args:
        generated: N pictures.
        prompts: N prompts they were made from.
        token: the identifier in them.
        backbone: embeds both.

    Raises:
        BadInputError: no pictures, or another number of prompts.
    """
    texts = comparison_texts("CLIP-T", generated, prompts, token)
    cosines = paired_cosines(backbone.embed_images(generated), backbone.embed_texts(texts))
    return make_score("clip_t", backbone.name, cosines)


def comparison_texts(
    metric: str, generated: Sequence[Image.Image], prompts: Sequence[str], token: str
) -> list[str]:
    """The prompts without identifier, one per picture."""
    check_pictures(metric, generated=generated)
    if len(prompts) != len(generated):
        raise BadInputError(
            f"{metric}: {len(prompts)} prompts for {len(generated)} pictures; expected one each"
        )
    return [without_token(prompt, token) for prompt in prompts]
