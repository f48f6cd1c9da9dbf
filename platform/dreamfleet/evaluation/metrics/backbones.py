"""The networks behind the metrics, with the preprocessing under which their numbers were published.

Real bases are judged by public checkpoints, loaded by hub id or folder; the embedded base by the
evaluators that ship with the world. All preprocessing is Pillow's: torchvision is never imported.
Where a border of an odd number of pixels is cropped, transformers rounds down and torchvision to
even, so the two may differ by one pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from PIL import Image

from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.errors import BadInputError, first_line

if TYPE_CHECKING:
    from dreamfleet.world.evaluators import Clip, IdentityJudge

CLIP_NAME = "openai/clip-vit-base-patch32"
DINO_NAME = "facebook/dino-vits16"
BLIP_NAME = "Salesforce/blip-itm-base-coco"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCH = 32


class ImageBackbone(Protocol):
    """Pictures to unit vectors."""

    @property
    def name(self) -> str:
        """Short; stands in every number's name."""
        ...

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors float [N, D]."""
        ...


class ImageTextBackbone(ImageBackbone, Protocol):
    """Pictures and texts to unit vectors of one space."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float [N, D]."""
        ...


class ClipBackbone:
    """CLIP (arXiv 2103.00020): shorter side to the input size, bicubic; centre crop; CLIP's own
    mean and deviation; projected features. Texts are cut at the tokenizer's length.

    Args:
        name_or_path: hub id or folder of a transformers CLIP.
        device: where to compute.

    Raises:
        BadInputError: it cannot be loaded.
    """

    def __init__(self, name_or_path: str = CLIP_NAME, device: str = "cpu") -> None:
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        self.name = short_name(name_or_path)
        self.device = device
        self.model = _loaded(CLIPModel.from_pretrained, name_or_path).to(device)
        self.tokenizer = _loaded(CLIPTokenizer.from_pretrained, name_or_path, module=False)
        side = int(self.model.config.vision_config.image_size)
        self.processor = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [N, D]."""
        return _in_batches(images, self._embed_images)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D]."""
        return _in_batches(texts, self._embed_texts)

    def _embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = _pixels(self.processor, images).to(self.device)
        return torch.as_tensor(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        return torch.as_tensor(self.model.get_text_features(**tokens).pooler_output)


class DinoBackbone:
    """DINO (arXiv 2104.14294): shorter side to 256/224 of the input size, bicubic; centre crop;
    ImageNet mean and deviation; the class token of the last layer after its norm.

    DreamBooth, Custom Diffusion and SuDe evaluate with ViT-S/16 in this way. The file's own
    preprocessing (straight to 224, bilinear) is not used.

    Args:
        name_or_path: hub id or folder of a transformers ViT.
        device: where to compute.

    Raises:
        BadInputError: it cannot be loaded.
    """

    def __init__(self, name_or_path: str = DINO_NAME, device: str = "cpu") -> None:
        from transformers import CLIPImageProcessorPil, ViTModel

        self.name = short_name(name_or_path)
        self.device = device
        self.model = _loaded(ViTModel.from_pretrained, name_or_path, add_pooling_layer=False)
        self.model.to(device)
        side = int(self.model.config.image_size)
        # CLIP's processor is resize, centre crop and normalise: torchvision's three, by Pillow.
        self.processor = CLIPImageProcessorPil(
            size={"shortest_edge": side * 256 // 224},
            crop_size={"height": side, "width": side},
            image_mean=list(IMAGENET_MEAN),
            image_std=list(IMAGENET_STD),
        )

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [N, D]."""
        return _in_batches(images, self._embed_images)

    def _embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = _pixels(self.processor, images).to(self.device)
        return torch.as_tensor(self.model(pixel_values=pixels).last_hidden_state[:, 0])


class BlipBackbone:
    """BLIP (arXiv 2201.12086), image-text contrastive projections of the ITM model: straight to the
    input size (384), bicubic; CLIP's mean and deviation; class tokens of both towers, projected.

    Args:
        name_or_path: hub id or folder of a transformers BlipForImageTextRetrieval.
        device: where to compute.

    Raises:
        BadInputError: it cannot be loaded.
    """

    def __init__(self, name_or_path: str = BLIP_NAME, device: str = "cpu") -> None:
        from transformers import AutoTokenizer, BlipForImageTextRetrieval, BlipImageProcessorPil

        self.name = short_name(name_or_path)
        self.device = device
        self.model = _loaded(BlipForImageTextRetrieval.from_pretrained, name_or_path).to(device)
        self.tokenizer = _loaded(AutoTokenizer.from_pretrained, name_or_path, module=False)
        side = int(self.model.config.vision_config.image_size)
        self.processor = BlipImageProcessorPil(size={"height": side, "width": side})

    @torch.no_grad()
    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [N, 256]."""
        return _in_batches(images, self._embed_images)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, 256]."""
        return _in_batches(texts, self._embed_texts)

    def _embed_images(self, images: Sequence[Image.Image]) -> torch.Tensor:
        pixels = _pixels(self.processor, images).to(self.device)
        hidden = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return torch.as_tensor(self.model.vision_proj(hidden[:, 0]))

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.device)
        hidden = self.model.text_encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).last_hidden_state
        return torch.as_tensor(self.model.text_proj(hidden[:, 0]))


class WorldClipBackbone:
    """The small CLIP that ships with the world; any picture is box-reduced to 64 pixels."""

    name = "world-clip"

    def __init__(self, clip: Clip | None = None) -> None:
        from dreamfleet.world.evaluators import load_clip

        self.clip = clip or load_clip()

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [N, D]."""
        return self.clip.embed_images(images)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors [N, D]."""
        return self.clip.embed_texts(texts)


class WorldIdentityBackbone:
    """The world's identity encoder (trained as DINO is) on segmented subject crops."""

    name = "world-identity"

    def __init__(self, judge: IdentityJudge | None = None) -> None:
        from dreamfleet.world.evaluators import load_identity_encoder

        self.judge = judge or load_identity_encoder()

    def embed_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Unit vectors [N, D]."""
        return self.judge.embed(images)


def short_name(name_or_path: str) -> str:
    """What stands in a number's name: the last part of a hub id or folder."""
    return Path(name_or_path).name


def _pixels(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    upright = [image.convert("RGB") for image in images]
    return torch.as_tensor(processor(images=upright, return_tensors="pt")["pixel_values"])


def _in_batches(items: Sequence[Any], embed: Callable[[Sequence[Any]], torch.Tensor]) -> np.ndarray:
    rows = [embed(chunk).float().cpu() for chunk in _chunks(items)]
    return np.asarray(torch.nn.functional.normalize(torch.cat(rows), dim=1).numpy())


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


def check_backbone(name_or_path: str) -> None:
    """Look for a hub id or folder, without its weights.

    Raises:
        BadInputError: it is not there, and cannot be fetched.
    """
    from transformers import AutoConfig

    _loaded(AutoConfig.from_pretrained, name_or_path, module=False)


def _loaded(
    read: Callable[..., Any], name_or_path: str, *, module: bool = True, **options: Any
) -> Any:
    """What `read` makes of a hub id or folder; networks in fp32, frozen, in eval mode."""
    if module:
        options |= {"dtype": torch.float32}
    try:
        with quiet_libraries():
            loaded = read(name_or_path, **options)
    except Exception as error:  # offline, unknown id, wrong architecture: as many kinds as readers
        reason = first_line(error)
        raise BadInputError(
            f"metric backbone {name_or_path!r} cannot be loaded: {reason}; give the folder of a "
            "downloaded copy, or allow downloads"
        ) from error
    return loaded.eval().requires_grad_(False) if module else loaded
