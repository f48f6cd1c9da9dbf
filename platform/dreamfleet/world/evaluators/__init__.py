"""The world's own judges, trained with the embedded base and shipped beside it.

    load_clip()              small CLIP: embed_images, embed_texts
    load_identity_encoder()  who is it: embed
    load_oracle("A"|"B")     class, state, scene, view, style, prop: read
    load_segmenter()         where is the subject: masks

Nothing about photographs rests on them.
"""

from dreamfleet.world.evaluators.load import (
    Clip,
    IdentityJudge,
    Oracle,
    SegmenterJudge,
    load_clip,
    load_identity_encoder,
    load_oracle,
    load_segmenter,
    weights_hash,
    weights_path,
)

__all__ = [
    "Clip",
    "IdentityJudge",
    "Oracle",
    "SegmenterJudge",
    "load_clip",
    "load_identity_encoder",
    "load_oracle",
    "load_segmenter",
    "weights_hash",
    "weights_path",
]
