"""Base models from the Hugging Face hub: only what is read, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

from dreamfleet.errors import BaseModelError, first_line

WEIGHT_FOLDERS = ("unet", "vae", "text_encoder", "text_encoder_2", "safety_checker")
OTHER_VARIANTS = ("*.fp16*", "*.bf16*", "*.non_ema*")
PLAIN_FILES = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    "tokenizer_2/*",
    "feature_extractor/*.json",
    *(f"{folder}/*.json" for folder in WEIGHT_FOLDERS),
)


def hub_folder(name: str, revision: str | None = None, variant: str | None = None) -> Path:
    """The local copy of a hub id, downloaded where needed: one variant of the weights, no pickles.

    Raises:
        BaseModelError: no such model or revision, no access, or no network and nothing cached.
    """
    from huggingface_hub import snapshot_download

    try:
        ending = f"*.{variant}*.safetensors" if variant else "*.safetensors"
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*PLAIN_FILES, *(f"{part}/{ending}" for part in WEIGHT_FOLDERS)],
                ignore_patterns=None if variant else list(OTHER_VARIANTS),
            )
        )
        bare = _without_weights(folder)
        if bare:
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[f"{part}/*.safetensors" for part in bare],
                ignore_patterns="*.non_ema*",
            )
        return folder
    except Exception as error:  # the hub's client raises many kinds, its network library's too
        raise BaseModelError(_explained(name, revision, error)) from error


def _without_weights(folder: Path) -> list[str]:
    """Components of which the repository has other variants only than the one asked for."""
    return [
        part
        for part in WEIGHT_FOLDERS
        if (folder / part / "config.json").is_file()
        and not any((folder / part).glob("*.safetensors"))
    ]


def _explained(name: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    asked = f"base model {name!r}" + (f" at revision {revision!r}" if revision else "")
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{asked}: the hub wants its licence accepted first; do so on "
            f"https://huggingface.co/{name}, then run `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{asked}: the hub has the model, but not this revision; give a branch, tag or commit"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{asked}: neither a local folder nor on the hub, or private; check the name, or run "
            "`hf auth login`"
        )
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | OSError):
        return (
            f"{asked}: neither a local folder nor in the hub's cache, and the hub cannot be "
            f"reached ({first_line(error)}); fetch it where there is a network "
            f"(`hf download {name}`), or give a diffusers folder"
        )
    return (
        f"{asked}: neither a local folder nor to be had from the hub ({first_line(error)}); "
        "check the name and the network, or give a diffusers folder"
    )
