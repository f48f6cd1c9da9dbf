"""Write the trained parts where the package ships them: diffusers layout, hashes and cards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.training.pretraining.cards import base_card, evaluators_card
from dreamfleet.training.pretraining.denoiser import build_scheduler
from dreamfleet.training.pretraining.run import EVALUATORS, Pretraining

PACKAGE = Path(__file__).resolve().parents[2]
BASE_FOLDER = PACKAGE / "bases" / "weights" / "embedded"
EVALUATOR_FOLDER = PACKAGE / "world" / "weights"
CHECKSUMS = "checksums.json"


def export_weights(
    pretraining: Pretraining,
    base_folder: Path = BASE_FOLDER,
    evaluator_folder: Path = EVALUATOR_FOLDER,
    evaluators: tuple[str, ...] = EVALUATORS,
) -> None:
    """Base to `base_folder`, evaluators beside one another in `evaluator_folder`.

    Raises:
        BadInputError: a stage has no state in the working folder.
    """
    with quiet_libraries():
        export_base(pretraining, base_folder)
        for name in evaluators:
            export_evaluator(pretraining, name, evaluator_folder / name)
    if evaluators:
        card = evaluators_card(pretraining.folder, pretraining.recipe, evaluators)
        (evaluator_folder / "README.md").write_text(card, encoding="utf-8")


def export_base(pretraining: Pretraining, folder: Path) -> None:
    """UNet in half precision, VAE and text encoder in fp32.

    A half text encoder beside a float UNet fails in a plain `from_pretrained`.
    """
    from diffusers import StableDiffusionPipeline  # speaks of missing packages: in quiet

    modules = pretraining.trained_modules("denoiser")
    pipeline = StableDiffusionPipeline(
        vae=pretraining.vae,
        text_encoder=modules["text_encoder"],
        tokenizer=pretraining.tokenizer,
        unet=modules["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    half = {key: value.half().contiguous() for key, value in modules["unet"].state_dict().items()}
    save_file(half, folder / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (folder / "README.md").write_text(
        base_card(pretraining.folder, pretraining.recipe), encoding="utf-8"
    )
    write_checksums(folder)


def export_evaluator(pretraining: Pretraining, name: str, folder: Path) -> None:
    """Weights in half precision; CLIP with its config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = pretraining.trained_modules(name)["model"]
    if name == "clip":
        model.half().save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
        pretraining.tokenizer.save_pretrained(folder)
    else:
        save_file(_half_state(model), folder / "model.safetensors", {"format": "pt"})
    write_checksums(folder)


def _half_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Half precision but for batch-norm statistics, which half cannot hold."""
    out = {}
    for key, value in model.state_dict().items():
        whole = "running_" in key or not value.is_floating_point()
        out[key] = (value if whole else value.half()).contiguous()
    return out


def write_checksums(folder: Path) -> None:
    """SHA-256 of every file, in checksums.json; all files readable for everyone."""
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes for the owner alone
    sums = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS
    }
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")


def wrong_files(folder: Path) -> list[str]:
    """Files that are missing or differ from checksums.json."""
    sums = json.loads((folder / CHECKSUMS).read_text())
    return [
        name
        for name, expected in sums.items()
        if not (folder / name).is_file()
        or hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected
    ]
