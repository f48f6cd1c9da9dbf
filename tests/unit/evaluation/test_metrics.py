"""Metrics on tiny random checkpoints of the real architectures, against computations written apart.

The other computation resizes, crops and normalises by hand (torchvision's rules, in NumPy) and runs
the networks' parts one by one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertTokenizer,
    BlipForImageTextRetrieval,
    CLIPModel,
    CLIPTokenizer,
    ViTModel,
)

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.metrics import (
    BlipBackbone,
    ClipBackbone,
    DinoBackbone,
    EncoderDistance,
    LpipsDistance,
    blip_t,
    clip_i,
    clip_t,
    dino_i,
    div,
    pres,
)
from tests.tiny_evaluators import write_tiny_blip, write_tiny_clip, write_tiny_dino

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def photos(count: int, seed: int, size: tuple[int, int] = (80, 60)) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return [Image.fromarray(a).resize(size, Image.Resampling.BICUBIC) for a in small]


def by_hand(
    image: Image.Image, short_side: int, crop: int, mean: Any, std: Any, square: bool = False
) -> torch.Tensor:
    """Resize, CenterCrop, ToTensor, Normalize; [1, 3, crop, crop]."""
    width, height = image.size
    if square:
        size = (crop, crop)
    elif width <= height:
        size = (short_side, int(short_side * height / width))
    else:
        size = (int(short_side * width / height), short_side)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    pixels = np.asarray(resized.crop((left, top, left + crop, top + crop)), dtype=np.float64) / 255
    normalised = (pixels - np.array(mean)) / np.array(std)
    return torch.from_numpy(normalised).permute(2, 0, 1)[None].float()


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a @ b.T).item() / (a.norm() * b.norm()).item())


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "tiny-clip"
    torch.manual_seed(0)
    write_tiny_clip(folder, TOWER, image_size=48, projection_dim=20)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "tiny-dino"
    write_tiny_dino(folder, TOWER)
    return folder


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "tiny-blip"
    write_tiny_blip(folder, TOWER)
    return folder


class TestClip:
    def test_image_metric(self, clip_folder: Path) -> None:
        generated, references = photos(3, 0), photos(2, 1, (60, 96))
        score = clip_i(generated, references, ClipBackbone(str(clip_folder)))
        model = CLIPModel.from_pretrained(clip_folder).eval()

        @torch.no_grad()
        def embed(image: Image.Image) -> torch.Tensor:
            pixels = by_hand(image, 48, 48, CLIP_MEAN, CLIP_STD)
            return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

        expected = np.mean([[cosine(embed(g), embed(r)) for r in references] for g in generated])
        assert score.name == "clip_i[tiny-clip]" and score.higher_is_better
        assert score.value == pytest.approx(float(expected), abs=1e-5)
        assert len(score.parts) == 3

    def test_text_metric_takes_the_identifier_out(self, clip_folder: Path) -> None:
        generated = photos(2, 2)
        prompts = ["a photo of sks dog", "photo of sks cat"]
        score = clip_t(generated, prompts, "sks", ClipBackbone(str(clip_folder)))
        model = CLIPModel.from_pretrained(clip_folder).eval()
        tokenizer = CLIPTokenizer.from_pretrained(clip_folder)

        @torch.no_grad()
        def pair(image: Image.Image, text: str) -> float:
            pixels = by_hand(image, 48, 48, CLIP_MEAN, CLIP_STD)
            tokens = tokenizer(text, return_tensors="pt")
            out = model(pixel_values=pixels, **tokens)
            return cosine(out.image_embeds, out.text_embeds)

        expected = [
            pair(generated[0], "a photo of dog"),
            pair(generated[1], "photo of cat"),
        ]
        assert score.name == "clip_t[tiny-clip]"
        assert score.parts == pytest.approx(expected, abs=1e-5)

    def test_needs_one_prompt_per_picture(self, clip_folder: Path) -> None:
        with pytest.raises(BadInputError, match="CLIP-T: 1 prompts for 2 pictures"):
            clip_t(photos(2, 0), ["a"], "sks", ClipBackbone(str(clip_folder)))

    def test_needs_pictures(self, clip_folder: Path) -> None:
        with pytest.raises(BadInputError, match="CLIP-I: no reference pictures"):
            clip_i(photos(1, 0), [], ClipBackbone(str(clip_folder)))

    def test_unknown_backbone_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="metric backbone .*nothing-here.* cannot be"):
            ClipBackbone(str(tmp_path / "nothing-here"))


class TestDino:
    @pytest.mark.parametrize("size", [(80, 64), (64, 64), (64, 90)])
    def test_image_metric_resizes_more_than_it_crops(
        self, dino_folder: Path, size: tuple[int, int]
    ) -> None:
        generated, references = photos(2, 3, size), photos(2, 4, size)
        backbone = DinoBackbone(str(dino_folder))
        model = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()

        @torch.no_grad()
        def embed(image: Image.Image) -> torch.Tensor:
            pixels = by_hand(image, 64, 56, IMAGENET_MEAN, IMAGENET_STD)  # 56 * 256 / 224 = 64
            hidden = model.embeddings(pixels)
            for layer in model.layers:
                hidden = layer(hidden)
            return model.layernorm(hidden)[:, 0]

        expected = np.mean([[cosine(embed(g), embed(r)) for r in references] for g in generated])
        assert dino_i(generated, references, backbone).value == pytest.approx(expected, abs=1e-5)
        drift = pres(generated, references, backbone)
        assert drift.value == pytest.approx(expected, abs=1e-5)
        assert drift.name == "pres[tiny-dino]" and not drift.higher_is_better


class TestBlip:
    def test_equals_the_model_s_own_contrastive_score(self, blip_folder: Path) -> None:
        generated = photos(2, 5)
        prompts = ["a photo of sks running dog", "a photo of sks dog"]
        score = blip_t(generated, prompts, "sks", BlipBackbone(str(blip_folder)))
        model = BlipForImageTextRetrieval.from_pretrained(blip_folder).eval()
        tokenizer = BertTokenizer.from_pretrained(blip_folder)
        texts = ["a photo of running dog", "a photo of dog"]
        expected = []
        for image, text in zip(generated, texts, strict=True):
            tokens = tokenizer(text, return_tensors="pt")
            pixels = by_hand(image, 32, 32, CLIP_MEAN, CLIP_STD, square=True)
            with torch.no_grad():
                out = model(
                    input_ids=tokens.input_ids,
                    attention_mask=tokens.attention_mask,
                    pixel_values=pixels,
                    use_itm_head=False,
                )
            expected.append(float(out.itm_score))
        assert score.name == "blip_t[tiny-blip]"
        assert score.parts == pytest.approx(expected, abs=1e-5)


class _Colours:
    """An encoder that sees mean colours only."""

    name = "colours"

    def embed_images(self, images: Any) -> np.ndarray:
        return np.stack([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images])


class TestDiversity:
    def test_encoder_distance_by_hand(self) -> None:
        red, green = (Image.new("RGB", (8, 8), name) for name in ("red", "green"))
        score = div([[red, red, green], [red, red]], EncoderDistance(_Colours()))
        assert score.name == "div[colours-distance]"
        assert score.parts == pytest.approx((2 / 3, 0.0))  # of three pairs two are orthogonal
        assert score.value == pytest.approx(1 / 3)

    def test_one_picture_has_no_diversity(self) -> None:
        with pytest.raises(BadInputError, match="two pictures in each"):
            div([photos(1, 0)], EncoderDistance(_Colours()))

    def test_without_the_extra_lpips_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "torchmetrics", None)
        with pytest.raises(BadInputError, match=r"\.\[metrics\]"):
            LpipsDistance()

    def test_lpips_is_asked_about_all_pairs_in_its_own_range(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _pretend_torchmetrics(monkeypatch)
        black, white = (Image.new("RGB", (64, 64), name) for name in ("black", "white"))
        score = div([[black, white, white]], LpipsDistance("vgg"))
        assert score.name == "div[lpips-vgg]"
        assert score.value == pytest.approx((2 + 2 + 0) / 3)  # |(-1) - 1| in two of three pairs

    def test_lpips_wants_one_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _pretend_torchmetrics(monkeypatch)
        with pytest.raises(BadInputError, match="different sizes"):
            div([[*photos(1, 0), *photos(1, 1, (64, 64))]], LpipsDistance())


def _pretend_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics' interface around the mean absolute difference."""

    class Metric:
        def __init__(self, net_type: str, normalize: bool) -> None:
            assert net_type in ("alex", "vgg", "squeeze") and not normalize
            self.values: list[float] = []

        def reset(self) -> None:
            self.values = []

        def update(self, a: torch.Tensor, b: torch.Tensor) -> None:
            assert a.min() >= -1 and a.max() <= 1 and a.shape == b.shape
            self.values += (a - b).abs().mean(dim=(1, 2, 3)).tolist()

        def compute(self) -> float:
            return float(np.mean(self.values))

    module = ModuleType("torchmetrics.image.lpip")
    module.LearnedPerceptualImagePatchSimilarity = Metric  # type: ignore[attr-defined]
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", module)
