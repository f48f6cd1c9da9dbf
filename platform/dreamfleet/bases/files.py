"""Where a base model's files are, whether they are whole and safe, and their hashes; no weights
are loaded here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamfleet.bases.families import Family, family_of
from dreamfleet.errors import BaseModelError

EMBEDDED = "embedded"
PACKAGE_FOLDER = Path(__file__).parent
HUB_FILES = (
    "model_index.json",
    "scheduler/*.json",
    "tokenizer/*",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "unet/*.json",
    "unet/*.safetensors",
    "vae/*.json",
    "vae/*.safetensors",
)


@dataclass(frozen=True)
class BaseFiles:
    """A diffusers folder that was looked through.

    Attributes:
        name: as the user gave it: `embedded`, a folder or a hub id.
        path: the folder.
        family: which kind of model it is.
    """

    name: str
    path: Path
    family: Family

    @cached_property
    def unet_config(self) -> dict[str, Any]:
        return read_json(self.path / "unet" / "config.json", self.name)

    @cached_property
    def vae_config(self) -> dict[str, Any]:
        return read_json(self.path / "vae" / "config.json", self.name)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.vae_config["block_out_channels"]) - 1))

    @property
    def resolution(self) -> int:
        """Side of the square picture that the base was trained on, pixels."""
        size = self.unet_config["sample_size"]
        return int(size if isinstance(size, int) else size[0]) * self.vae_factor

    @property
    def resolution_step(self) -> int:
        """Training sides must be a multiple of this: the UNet halves its latents at every stage
        but the last.
        """
        return self.vae_factor * int(2 ** (len(self.unet_config["block_out_channels"]) - 1))

    @property
    def widest_layer(self) -> int:
        """The largest rank that a layer of the UNet can have."""
        return int(max(self.unet_config["block_out_channels"]))

    @cached_property
    def unet_hash(self) -> str:
        """SHA-256 of the UNet's config and weights."""
        return self._component_hash("unet")

    @cached_property
    def vae_hash(self) -> str:
        """SHA-256 of the VAE's config and weights."""
        return self._component_hash("vae")

    @cached_property
    def text_encoder_hash(self) -> str:
        """SHA-256 of the text encoder's and the tokenizer's files."""
        return _combined([self._component_hash("text_encoder"), self._component_hash("tokenizer")])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all components, the scheduler's settings included."""
        parts = [self.unet_hash, self.vae_hash, self.text_encoder_hash]
        return _combined([*parts, self._component_hash("scheduler")])

    def weights_variant(self, component: str) -> str | None:
        """`fp16` when only half-precision weights lie in the folder, else None.

        Raises:
            BaseModelError: no safetensors weights at all.
        """
        names = [path.name for path in (self.path / component).glob("*.safetensors*")]
        if any(".fp16." not in name for name in names):
            return None
        if names:
            return "fp16"
        pickled = sorted(path.name for path in (self.path / component).glob("*.bin"))
        found = f"only {', '.join(pickled)}, which can run code when read" if pickled else "none"
        raise BaseModelError(
            f"base model {self.name}: no .safetensors weights in {self.path / component} "
            f"({found}); "
            "give a folder saved with safe_serialization=True"
        )

    def tokenizer(self) -> Any:
        """The tokenizer alone (cheap; no weights)."""
        return self.family.load_tokenizer(self.path)

    def _component_hash(self, component: str) -> str:
        digest = hashlib.sha256()
        for path in sorted((self.path / component).iterdir()):
            if path.is_file() and not path.name.startswith("."):
                digest.update(path.name.encode() + b"\0" + _file_hash(path).encode())
        return digest.hexdigest()


def embedded_path() -> Path:
    """The folder of the base that ships with the package, in ordinary diffusers layout.

    Raises:
        BaseModelError: the weights are missing or incomplete.
    """
    folder = PACKAGE_FOLDER / "weights" / EMBEDDED
    missing = missing_files(folder)
    if missing:
        raise BaseModelError(
            f"the embedded base is not whole: {', '.join(missing)} missing in {folder}; reinstall "
            "the package, "
            "train it with `python pipelines/pretrain_base.py`, or give --base-model a diffusers "
            "folder"
        )
    return folder


def inspect_base(name_or_path: str | Path) -> BaseFiles:
    """Find a base model and check that it is whole and of a known family; a hub id is downloaded
    (or found in the cache).

    Raises:
        BaseModelError: naming what is missing and the way out.
    """
    name = str(name_or_path)
    path = _folder_of(name)
    missing = missing_files(path)
    if missing:
        raise BaseModelError(
            f"base model {name}: {', '.join(missing)} missing in {path}; expected a diffusers "
            "folder with "
            "model_index.json, unet, vae, text_encoder, tokenizer and scheduler"
        )
    index = read_json(path / "model_index.json", name)
    unet = read_json(path / "unet" / "config.json", name)
    files = BaseFiles(name, path, family_of(name, index, unet))
    for component in ("unet", "vae", "text_encoder"):
        files.weights_variant(component)
    return files


def missing_files(folder: Path) -> list[str]:
    """Which of a diffusers folder's files are not there."""
    needed = ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"]
    needed += ["scheduler/scheduler_config.json", "tokenizer"]
    return [name for name in needed if not (folder / name).exists()]


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object from a base's folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base model {name}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BaseModelError(f"base model {name}: {path}: expected a JSON object")
    return content


def _folder_of(name: str) -> Path:
    if name == EMBEDDED:
        return embedded_path()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    looks_local = name.startswith((".", "/", "~")) or name.count("/") != 1 or folder.exists()
    if looks_local:
        what = "is a file" if folder.exists() else "does not exist"
        raise BaseModelError(
            f"base model {name!r}: this folder {what}; expected 'embedded', a diffusers folder, "
            "or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    return _hub_folder(name)


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (
        Exception
    ) as error:  # the hub's client raises many kinds, network libraries' own among them
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BaseModelError(
            f"base model {name!r}: neither a local folder nor to be had from the hub ({reason}); "
            "check the name and the network, or give a diffusers folder"
        ) from error


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _combined(hashes: list[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
