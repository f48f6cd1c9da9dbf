"""Where a base model's files are, whether they are whole and safe, and their hashes; no weights
are loaded here.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dreamfleet.bases.families import Family, family_of, load_tokenizer
from dreamfleet.bases.hub import hub_folder
from dreamfleet.errors import BaseModelError

EMBEDDED = "embedded"
PACKAGE_FOLDER = Path(__file__).parent
# diffusion_pytorch_model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, ...
_WEIGHTS_NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<variant>[\w-]+?))?"
    r"(?:-\d{5}-of-\d{5})?(?:\.(?P<old_variant>[\w-]+))?\.safetensors"
)
# diffusion_pytorch_model.safetensors.index.json, model.safetensors.index.fp16.json, ...
_INDEX_NAME = re.compile(
    r"(?:diffusion_pytorch_model|model)\.safetensors\.index(?:\.(?P<variant>[\w-]+))?\.json"
)
# Pickles, flax, Keras, ONNX, OpenVINO: what a whole copy of a hub's folder has beside safetensors;
# and what is there for people.
_NEVER_READ = (".md", ".bin", ".ckpt", ".msgpack", ".h5", ".onnx", ".onnx_data", ".xml")


@dataclass(frozen=True)
class BaseFiles:
    """A diffusers folder that was looked through.

    Attributes:
        name: as the user gave it: `embedded`, a folder or a hub id.
        path: the folder.
        family: which kind of model it is.
        variant: which of several sets of weights to read, e.g. `fp16`; None: the full ones, or
            whatever there is.
    """

    name: str
    path: Path
    family: Family
    variant: str | None = None

    @cached_property
    def index(self) -> dict[str, Any]:
        """model_index.json."""
        return read_json(self.path / "model_index.json", self.name)

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
        """SHA-256 of the text encoders' and the tokenizers' files."""
        family = self.family
        return _combined(
            [self._component_hash(name) for name in (*family.text_encoders, *family.tokenizers)]
        )

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all components, the scheduler's settings included."""
        parts = [self.unet_hash, self.vae_hash, self.text_encoder_hash]
        return _combined([*parts, self._component_hash("scheduler")])

    def weights_variant(self, component: str) -> str | None:
        """The variant whose weights are read: the wished one, else the full weights (None), else
        the only one there is.

        Raises:
            BaseModelError: no safetensors weights, not the wished variant, or not all of its parts.
        """
        folder = self.path / component
        found = weight_variants(folder)
        if not found:
            raise BaseModelError(f"base model {self.name}: {_no_weights(folder)}")
        chosen = self.variant if self.variant in found else None
        if chosen is None and None not in found:
            chosen = sorted(map(str, found))[0]
        if self.variant is not None and chosen != self.variant and component == "unet":
            names = ", ".join("the full one" if name is None else str(name) for name in found)
            raise BaseModelError(
                f"base model {self.name}: variant = {self.variant!r}: no such weights in {folder}; "
                f"there are: {names}"
            )
        _check_parts(self.name, folder, chosen)
        return chosen

    def tokenizer(self) -> Any:
        """The (first) tokenizer alone (cheap; no weights)."""
        return load_tokenizer(self.path / self.family.tokenizers[0])

    def copy_settings(self, folder: Path) -> None:
        """Give a model that was made of this base, and saved in `folder`, the scheduler's and the
        tokenizers' files as they are here.

        diffusers writes what it made of them: other settings, and a tokenizer's newest form only.
        """
        names = ("scheduler", *self.family.tokenizers)
        for name in names:
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
            for path in (self.path / name).iterdir():
                if path.is_file():  # its content alone: a cache's files may be links, and read-only
                    shutil.copyfile(path, folder / name / path.name)
        self.copy_entries(folder, names)

    def copy_entries(self, folder: Path, names: Iterable[str]) -> None:
        """Write what this base's model_index.json says of `names` into that in `folder`."""
        path = folder / "model_index.json"
        entries = {name: self.index[name] for name in names if name in self.index}
        content = {**json.loads(path.read_text(encoding="utf-8")), **entries}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _component_hash(self, component: str) -> str:
        """Of all files but those that are not read, of other variants and in other formats: they
        may come and go (a hub's snapshot has room for all), and a base with other weights is
        another one.
        """
        digest = hashlib.sha256()
        for path in sorted((self.path / component).iterdir()):
            weights, index = _WEIGHTS_NAME.fullmatch(path.name), _INDEX_NAME.fullmatch(path.name)
            if weights and _variant(weights) != self.weights_variant(component):
                continue
            if index and index["variant"] != self.weights_variant(component):
                continue
            if path.is_file() and not path.name.startswith(".") and path.suffix not in _NEVER_READ:
                digest.update(path.name.encode() + b"\0" + file_hash(path).encode())
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

    Args:
        name_or_path: `embedded`, a folder, or a hub id; behind it, where wished, `@revision` (of a
            hub id) and `#variant`, as `RunConfig.base_source` writes them.

    Raises:
        BaseModelError: naming what is missing and the way out.
    """
    name = str(name_or_path)
    path, variant = _folder_of(name)
    missing = missing_files(path)
    if missing:
        raise BaseModelError(
            f"base model {name}: {', '.join(missing)} missing in {path}; expected a diffusers "
            "folder with "
            "model_index.json, unet, vae, text_encoder, tokenizer and scheduler"
        )
    index = read_json(path / "model_index.json", name)
    unet = read_json(path / "unet" / "config.json", name)
    files = BaseFiles(name, path, family_of(name, index, unet), variant)
    _check_components(files)
    for component in files.family.weights:
        files.weights_variant(component)
    return files


def missing_files(folder: Path) -> list[str]:
    """Which of a diffusers folder's files are not there, of those that all families have."""
    needed = ["model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"]
    needed += ["scheduler/scheduler_config.json", "tokenizer"]
    return [name for name in needed if not (folder / name).exists()]


def weight_variants(folder: Path) -> set[str | None]:
    """The variants of safetensors weights in a component's folder; None is the full one."""
    found: set[str | None] = set()
    for path in folder.glob("*.safetensors"):
        match = _WEIGHTS_NAME.fullmatch(path.name)
        if match:
            found.add(_variant(match))
    return found


def _variant(weights: re.Match[str]) -> str | None:
    return weights["variant"] or weights["old_variant"]


def _check_components(files: BaseFiles) -> None:
    """The further folders of the family."""
    missing = [name for name in files.family.components if not (files.path / name).is_dir()]
    missing += [
        f"{name}/config.json"
        for name in files.family.weights
        if name not in missing and not (files.path / name / "config.json").is_file()
    ]
    if missing:
        raise BaseModelError(
            f"base model {files.name}: {', '.join(missing)} missing in {files.path}; a folder of "
            f"family {files.family.name} has {', '.join(files.family.components)}; "
            "fetch or save it again"
        )


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        return (
            f"no .safetensors weights in {folder} (only {', '.join(pickled)}, which can run code "
            "when read); give a folder saved with safe_serialization=True"
        )
    broken = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".part", ".incomplete")
    )
    state = f"only {', '.join(broken)}: a download that did not end" if broken else "none"
    return f"no .safetensors weights in {folder} ({state}); fetch or save the folder again"


def _check_parts(name: str, folder: Path, variant: str | None) -> None:
    """Large weights lie in several files, which an index names."""
    for index in folder.glob("*.safetensors.index*.json"):
        if not index.name.endswith(f".index.{variant}.json" if variant else ".index.json"):
            continue
        parts = sorted(set(dict(read_json(index, name).get("weight_map", {})).values()))
        gone = [part for part in parts if not (folder / part).is_file()]
        if gone:
            raise BaseModelError(
                f"base model {name}: {len(gone)} of {len(parts)} weight files missing in {folder} "
                f"({gone[0]}): a download that did not end; fetch the folder again"
            )


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object from a base's folder."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base model {name}: {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BaseModelError(f"base model {name}: {path}: expected a JSON object")
    return content


def _folder_of(name: str) -> tuple[Path, str | None]:
    """The folder that `name` means, and the variant it asks for."""
    if name == EMBEDDED:
        return embedded_path(), None
    place, variant = name, ""
    if "#" in name and not Path(name).expanduser().exists():
        place, _, variant = name.rpartition("#")  # a folder may have one in its name, too
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder, variant or None
    hub_id, _, revision = place.partition("@")
    looks_local = place.startswith((".", "/", "~")) or hub_id.count("/") != 1 or folder.exists()
    if looks_local:
        what = "is a file" if folder.exists() else "does not exist"
        raise BaseModelError(
            f"base model {place!r}: this folder {what}; expected 'embedded', a diffusers folder, "
            "or a hub id such as stable-diffusion-v1-5/stable-diffusion-v1-5"
        )
    return hub_folder(hub_id, revision or None, variant or None), variant or None


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _combined(hashes: list[str]) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
