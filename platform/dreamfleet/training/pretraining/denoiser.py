"""The embedded base's UNet and text encoder, trained together on latents and fresh captions."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamfleet.seeding import torch_generator
from dreamfleet.training.pretraining.corpus import Corpus
from dreamfleet.training.pretraining.stage import Stage, StageSettings

TEXT_WIDTH = 128
EVEN_SHARE = 0.25
TIME_CENTER, TIME_SPREAD = -0.3, 0.9  # of the times' logits: half of them between 290 and 580
SUBJECT_EXTRA = 3.0
DETAIL_EXTRA = 12.0
WARM_UP_ANSWERS = {"class": 12, "state": 96, "scene": 10, "view": 3, "style": 5}


def build_scheduler() -> DDIMScheduler:
    """Scaled linear up to 0.02, v-prediction.

    Stable Diffusion's own end of 0.012 leaves so much signal that a place of this world can be
    told from the noisiest latents: the words were then never needed, and hardly learned. Prediction
    is of v since a noise prediction there says next to nothing of the picture.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    """6.7 M parameters on 16x16 latents; attention at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=(64, 128, 128),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text transformer of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Long [count] in [0, 1000): most lie where a subject's shape and colours are settled.

    A quarter is drawn evenly, the rest from a logit-normal law (Esser et al. 2024): drawn evenly
    alone, half of all steps go into noise that hides everything but the place.
    """
    even = torch.rand(count, generator=generator)
    middle = torch.sigmoid(TIME_CENTER + TIME_SPREAD * torch.randn(count, generator=generator))
    is_even = torch.rand(count, generator=generator) < EVEN_SHARE
    return (torch.where(is_even, even, middle) * 1000).long().clamp(max=999)


class DenoiserStage(Stage):
    """v-prediction (Salimans & Ho 2022), weighted squared error; the text encoder begins warm."""

    name = "denoiser"

    def __init__(
        self,
        corpus: Corpus,
        latents: Tensor,
        tokenizer: CLIPTokenizer,
        settings: StageSettings,
        seed: int,
        text_encoder: CLIPTextModel | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.corpus, self.latents, self.tokenizer = corpus, latents, tokenizer
        self.settings, self.seed = settings, seed
        self.scheduler = build_scheduler()
        self.text_encoder = text_encoder or build_text_encoder(tokenizer)
        self.unet = build_unet(latents.shape[1])
        # On a CPU the fused attention's backward is several times slower than plain matrix products
        # at these sizes (measured: 28 against 86 pictures/s in bf16).
        self.unet.set_attn_processor(AttnProcessor())
        self.modules = {"unet": self.unet, "text_encoder": self.text_encoder}
        deviation = latents[:4096].float().std(dim=(0, 2, 3))  # [C]
        self.channel_weights = (deviation / deviation.mean())[None, :, None, None]

    def to(self, device: torch.device | str) -> Self:
        """Move the modules; on a GPU the fused attention is the faster one."""
        super().to(device)
        if self.device.type != "cpu":
            self.unet.set_default_attn_processor()
        return self

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        indices = self.corpus.batch(self.seed, self.name, step, size)
        generator = torch_generator("denoiser stage", self.seed, step)
        x0 = self.latents[torch.from_numpy(indices)].float().to(self.device)  # [B, C, 16, 16]
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        t = draw_times(size, generator).to(self.device)
        captions = [self.corpus.caption(int(i), step * size + k) for k, i in enumerate(indices)]
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        noisy = self.scheduler.add_noise(x0, noise, t)
        with self.mixed():
            hidden = self.text_encoder(tokens.to(self.device)).last_hidden_state  # [B, L, D]
            prediction = self.unet(noisy, t, hidden).sample
        error = (prediction.float() - self.scheduler.get_velocity(x0, noise, t)).square()
        shares = self.corpus.shares(indices, x0.shape[-1])
        weights = self._weights(t, *(share.to(self.device) for share in shares))
        return (error * weights).mean(), {"mse": float(error.detach().mean())}

    def _weights(self, t: Tensor, subject: Tensor, detail: Tensor) -> Tensor:
        """[B, C, 16, 16]: coarse colours count more than the rest, the subject more than its scene.

        Most counts what a fine state alone changes: often one cell of 256, it was not learnt by its
        own share of the error. These parts fade with the noise: where that hides the subject, the
        weight would tell where it is, and the prediction lean that way.
        """
        signal = self.scheduler.alphas_cumprod.to(t.device)[t].sqrt()[:, None, None, None]
        extra = SUBJECT_EXTRA * subject + DETAIL_EXTRA * detail
        return self.channel_weights.to(t.device) * (1.0 + signal * extra)


class TextStage(Stage):
    """The text encoder's warm-up: from a caption, tell what the picture shows.

    A caption often does not say, so the accuracies have a ceiling; what counts is that words which
    matter for the picture are told apart before the denoiser begins to listen.
    """

    name = "text"

    def __init__(
        self, corpus: Corpus, tokenizer: CLIPTokenizer, settings: StageSettings, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.corpus, self.tokenizer, self.settings, self.seed = corpus, tokenizer, settings, seed
        self.text_encoder = build_text_encoder(tokenizer)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(TEXT_WIDTH, count) for name, count in WARM_UP_ANSWERS.items()}
        )
        self.modules = {"text_encoder": self.text_encoder, "heads": self.heads}

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        size = self.settings.batch_size
        indices = self.corpus.batch(self.seed, self.name, step, size)
        captions = [self.corpus.caption(int(i), step * size + k) for k, i in enumerate(indices)]
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        hidden = self.text_encoder(tokens.to(self.device)).last_hidden_state  # [B, L, D]
        total = torch.zeros((), device=self.device)
        metrics = {}
        for name, head in self.heads.items():
            target = self.corpus.labels[name][torch.from_numpy(indices)].to(self.device)
            logits = head(hidden[:, -1])
            total = total + F.cross_entropy(logits, target)
            metrics[name] = float((logits.argmax(1) == target).float().mean())
        return total, metrics
