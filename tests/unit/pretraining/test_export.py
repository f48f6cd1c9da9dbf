"""What is exported loads in plain diffusers and transformers, and answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from dreamfleet.bases import load_base
from dreamfleet.engine.sampling import sample_images
from dreamfleet.training.pretraining.denoiser import build_unet
from dreamfleet.training.pretraining.export import wrong_files
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.evaluators import load_clip, load_identity_encoder, load_oracle
from dreamfleet.world.render import render
from dreamfleet.world.scenes import SCENES
from dreamfleet.world.spec import ImageSpec
from tests.unit.pretraining.conftest import Exported

pytestmark = pytest.mark.heavy

PROMPT = "a photo of a dog in the snow"
IMAGES = [
    render(ImageSpec(name, 5, CLASSES[name].states[1].name, "beach")).image
    for name in ("dog", "vase", "car")
]


def test_base_loads_in_plain_diffusers_and_draws_the_same_picture(exported: Exported) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(exported.base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(7)
    settings = {"num_inference_steps": 3, "guidance_scale": 3.0}
    picture = pipeline(PROMPT, generator=generator, **settings).images[0]
    assert picture.size == (64, 64)
    base = load_base(exported.base)
    ours = sample_images(base, [PROMPT], [7], **settings)[0]  # type: ignore[arg-type]
    assert np.abs(np.asarray(picture, float) - np.asarray(ours, float)).mean() < 2


def test_base_folder_is_small_checked_and_has_a_card(exported: Exported) -> None:
    for folder in (
        exported.base,
        *(path for path in exported.evaluators.iterdir() if path.is_dir()),
    ):
        assert wrong_files(folder) == []
    sums = json.loads((exported.base / "checksums.json").read_text())
    assert "unet/diffusion_pytorch_model.safetensors" in sums
    card = (exported.base / "README.md").read_text()
    for words in ("license: apache-2.0", "Seed 3", "pretrain_base.py", "| denoiser | 3 of 3 |"):
        assert words in card
    folders = (exported.base, exported.evaluators)
    size = sum(p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file())
    whole_unet = sum(parameter.numel() for parameter in build_unet(16).parameters())
    assert 6.5e6 < whole_unet < 7e6
    assert size + 2 * whole_unet < 40e6


def test_exported_unet_is_the_averaged_one(exported: Exported) -> None:
    modules = exported.work.trained_modules("denoiser")
    base = load_base(exported.base)
    for key, value in modules["unet"].state_dict().items():
        assert torch.equal(base.unet.state_dict()[key], value.half().float())
    for key, value in modules["text_encoder"].state_dict().items():
        assert torch.equal(base.text_encoder.state_dict()[key], value)


def test_oracles_answer_by_name(exported: Exported) -> None:
    for which in ("A", "B"):
        oracle = load_oracle(which, exported.evaluators)
        for row in oracle.read(IMAGES):
            assert row["class"] in (*CLASSES, "unreadable") and row["scene"] in SCENES
            states = (
                [s.name for s in CLASSES[row["class"]].states] if row["class"] in CLASSES else [""]
            )
            assert row["state"] in states
        for share in oracle.probabilities(IMAGES).values():
            assert torch.allclose(share.sum(dim=1), torch.ones(3), atol=1e-4)


def test_identity_encoder_and_segmenter_answer(exported: Exported) -> None:
    judge = load_identity_encoder(exported.evaluators)
    masks = judge.segmenter.masks(IMAGES)
    assert masks.shape == (3, 64, 64) and masks.dtype == bool
    for given in (None, np.zeros_like(masks), np.ones_like(masks)):
        vectors = judge.embed(IMAGES, given)
        assert vectors.shape == (3, 128)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_clip_answers(exported: Exported) -> None:
    clip = load_clip(exported.evaluators)
    large = [image.resize((256, 256)) for image in IMAGES]
    assert np.allclose(clip.embed_images(large), clip.embed_images(IMAGES), atol=0.2)
    texts = clip.embed_texts(["a photo of a dog", "", "a photo of a vase"])
    assert texts.shape == (3, 128)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-4)
