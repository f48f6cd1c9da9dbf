"""The model cards that lie beside the shipped weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dreamfleet.training.pretraining.run import PretrainRecipe
from dreamfleet.training.pretraining.stage import stage_record

COMMAND = """\
python pipelines/pretrain_base.py --config pipelines/recipes/pretrain_embedded.yaml \\
    --work-dir /absolute/work/folder --export"""

BASE_CARD = """\
---
license: apache-2.0
library_name: diffusers
tags: [text-to-image, stable-diffusion, synthetic]
---
# The embedded base of dreamfleet

A small Stable Diffusion (64x64 pixels, {channels} latent channels at 16x16) trained from scratch on
dreamfleet's synthetic world: drawn subjects in states, scenes, views and styles. It is the offline
stand-in for tests, demos and method studies. Nothing about photographs rests on it.

    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None)
    pipe("a photo of a dog in the snow", num_inference_steps=25, guidance_scale=3.0).images[0]

- Licence: Apache-2.0, as dreamfleet's. Data: pictures drawn by dreamfleet's own renderer, nothing
  else; no person and no photograph is in them.
- Parts: `unet` (fp16 file, v-prediction), `vae` (fp32; its linear encoder is computed, its decoder
  trained), `text_encoder` (fp32, warmed up on captions, then trained with the UNet), `tokenizer`
  (byte-level BPE, 32 tokens).
- Intended use: trying out personalisation on a CPU. It knows twelve kinds of drawn things and no
  others.
- Checks: `checksums.json` holds the SHA-256 of every file. Measured reach:
  `docs/embedded_base.md` of the repository.

## How it was made

    {command}

Seed {seed}; {pictures} pictures. The times are those of training alone, on the machine of the run.

{table}
"""

EVALUATORS_CARD = """\
# The evaluators of dreamfleet's synthetic world

Small networks that judge pictures of the world, trained on its renders: two oracles (class, state,
scene, view, style, prop), a subject segmenter, an identity encoder and a CLIP. They know drawn
pictures of 64x64 pixels and say nothing about photographs. Licence: Apache-2.0; half-precision
files; each folder's `checksums.json` holds the SHA-256 of its files.

Oracle A is for tuning and gates. Oracle B, of another architecture and trained on another draw of
the world, is for final scores only.

    {command}

Seed {seed}.

{table}
"""


def base_card(work_dir: Path, recipe: PretrainRecipe) -> str:
    """README.md of the base."""
    return BASE_CARD.format(
        channels=recipe.latent_channels,
        command=COMMAND.replace("\n", "\n    "),
        seed=recipe.seed,
        pictures=f"{recipe.num_pictures:,}",
        table=_table(work_dir, ("decoder", "text", "denoiser")),
    )


def evaluators_card(work_dir: Path, recipe: PretrainRecipe, names: Iterable[str]) -> str:
    """README.md of the evaluators."""
    return EVALUATORS_CARD.format(
        command=COMMAND.replace("\n", "\n    "), seed=recipe.seed, table=_table(work_dir, names)
    )


def _table(work_dir: Path, names: Iterable[str]) -> str:
    """What each stage learnt with, from its last checkpoint."""
    lines = ["| stage | steps | batch | learning rate | minutes |", "|---|---|---|---|---|"]
    for name in names:
        record = stage_record(work_dir / "stages", name)
        if record is None:
            continue
        settings = record["settings"]
        cells = [
            name,
            f"{record['step']:,} of {settings['num_steps']:,}",
            str(settings["batch_size"]),
            f"{settings['learning_rate']:g}",
            f"{record['seconds'] / 60:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
