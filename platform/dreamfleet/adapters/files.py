"""Adapter files: written through diffusers with all that plain `load_lora_weights` needs, read
with distrust.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dreamfleet.adapters.lora import (
    ADAPTER_NAME,
    has_lora,
    lora_metadata,
    lora_scaling,
    lora_state,
    remove_lora,
)
from dreamfleet.adapters.names import find_layer, name_in_files
from dreamfleet.adapters.scales import PEFT_METADATA_KEY, lora_scales, peft_configs
from dreamfleet.bases import Base
from dreamfleet.bases.loading import load_component
from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.bases.safety import save_safety_checker
from dreamfleet.errors import AdapterFileError

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
METADATA_KEY = "dreamfleet"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 64 * 2**20
MAX_FILE_BYTES = 4 * 2**30


def save_adapter(folder: str | Path, base: Base) -> Path:
    """Write the LoRA in `base` as `pytorch_lora_weights.safetensors`;
    `pipe.load_lora_weights(folder)` reads it.

    The file is written beside and renamed, so a kill leaves no half file. Its metadata hold PEFT's
    config (else alpha is lost), and the base's hash.
    """
    if not has_lora(base):
        raise AdapterFileError("there is no adapter in this base; train or load one first")
    return save_lora(folder, base, lora_state(base), lora_metadata(base))


def save_lora(
    folder: str | Path,
    base: Base,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Mapping[str, Any]],
) -> Path:
    """As `save_adapter`, for a LoRA that is not in the base.

    Args:
        tensors: under the names of `lora.lora_state`; in the file text encoders' layers have the
            names that every version of diffusers and transformers reads (`names.name_in_files`).
        metadata: as `lora.lora_metadata` gives it.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = _split(tensors)
    part = target / f".{WEIGHTS_NAME}.{os.getpid()}.part"
    write_lora(base, part, state, metadata)
    _add_metadata(part, base)
    return part.replace(target / WEIGHTS_NAME)


def write_lora(
    base: Base,
    path: Path,
    state: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Mapping[str, Any]],
) -> None:
    """Tensors and PEFT's description of each component, as diffusers writes them."""
    layers = {f"{component}_lora_layers": dict(part) for component, part in state.items()}
    about = {f"{component}_lora_adapter_metadata": metadata[component] for component in state}
    type(base.pipeline()).save_lora_weights(path.parent, weight_name=path.name, **layers, **about)


def save_full(folder: str | Path, base: Base) -> list[Path]:
    """Write the whole model as a diffusers folder (safetensors, fp32); returns its files.

    What lies in the base in half precision was not trained and is written as its files have it,
    and so are the scheduler and the tokenizers: every sampler makes of the model what it made of
    the base. A safety checker of the base's goes along.
    """
    target = Path(folder)
    whole = {
        name: load_component(base.files, name, torch.float32)
        for name in base.files.family.weights
        if getattr(base, name).dtype != torch.float32
    }
    with quiet_libraries():
        replace(base, **whole).pipeline().save_pretrained(target, safe_serialization=True)
    base.files.copy_settings(target)
    save_safety_checker(base.files, target)
    return sorted(path for path in target.rglob("*") if path.is_file())


def load_adapter(base: Base, source: str | Path, *, check_base: bool = True) -> None:
    """Put the adapter at `source` (the file or its folder) into `base`, in place of any that is
    there.

    Args:
        base: the base that the adapter was trained on.
        check_base: refuse a file that names another base.

    Raises:
        AdapterFileError: not safetensors, damaged, not finite, for another base, or not all of it
            was used.
    """
    path = adapter_path(source)
    state, metadata = _read_for(base, path, check_base)
    scales = lora_scales(path, state, metadata)
    if has_lora(base):
        remove_lora(base)
    try:
        _put_in(base, state, metadata)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        remove_lora(base)  # of one component it may be in already
        raise AdapterFileError(f"{path}: cannot be put into base {base.name}: {error}") from error
    wrong = _other_than(state, lora_state(base)) or _other_scales(scales, lora_scaling(base))
    if wrong:
        remove_lora(base)
        raise AdapterFileError(f"{path}: {wrong}")


def read_adapter_for(
    base: Base, source: str | Path, *, check_base: bool = True
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors of the adapter at `source`, and of each layer alpha / rank, checked against `base`;
    nothing is put in.

    Raises:
        AdapterFileError: as `load_adapter`.
    """
    path = adapter_path(source)
    state, metadata = _read_for(base, path, check_base)
    return state, lora_scales(path, state, metadata)


def adapter_path(source: str | Path) -> Path:
    """The weights file of an adapter folder (or the file itself).

    Raises:
        AdapterFileError: there is none.
    """
    path = Path(source)
    path = path / WEIGHTS_NAME if path.is_dir() else path
    if path.suffix != ".safetensors":
        raise AdapterFileError(
            f"{path}: only .safetensors adapters are read (pickled ones can run code); convert it "
            "first"
        )
    if not path.is_file():
        raise AdapterFileError(
            f"{path}: no such adapter; expected a folder with {WEIGHTS_NAME}, or such a file"
        )
    return path


def adapter_kind(folder: str | Path) -> str:
    """`lora` for a folder with LoRA weights, `full` for a whole diffusers folder.

    Raises:
        AdapterFileError: neither.
    """
    if (Path(folder) / WEIGHTS_NAME).is_file():
        return "lora"
    if (Path(folder) / "model_index.json").is_file():
        return "full"
    raise AdapterFileError(
        f"{folder}: neither {WEIGHTS_NAME} nor model_index.json in it; give a finished run's folder"
    )


def read_adapter(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of an adapter file, checked: whole, finite, in PEFT's naming, two
    factors of one rank to a layer.

    Raises:
        AdapterFileError: naming what is wrong.
    """
    state, metadata = read_tensors(path)
    _check_names(path, state)
    _check_pairs(path, state)
    return state, metadata


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file in any naming, checked: whole and finite.

    Raises:
        AdapterFileError: naming what is wrong.
    """
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterFileError(f"{path}: damaged or not a safetensors file: {error}") from error
    if not state:
        raise AdapterFileError(f"{path}: holds no tensors")
    for key, value in state.items():
        if not bool(torch.isfinite(value.float()).all()):
            raise AdapterFileError(
                f"{path}: {key} holds NaN or infinite values; the training that made it broke down"
            )
    return state, metadata


def base_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file's metadata say of its base: `base_model`, `base_hash`; empty for files made
    elsewhere.

    Raises:
        AdapterFileError: they are nested too deeply to be read.
    """
    try:
        content = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError:
        return {}
    except RecursionError as error:
        raise AdapterFileError(
            f"the adapter file's metadata {METADATA_KEY!r} are nested too deeply to be read; get "
            "the file anew"
        ) from error
    return content if isinstance(content, dict) else {}


def _read_for(base: Base, path: Path, check_base: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `read_adapter`, checked against `base`."""
    state, metadata = read_adapter(path)
    if check_base:
        _check_base(path, metadata, base)
    _check_fits(path, state, base)
    return state, metadata


def _put_in(base: Base, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """What diffusers' `load_lora_weights` does with the file, by the metadata as this PEFT takes
    them; it reads them itself and passes on options that PEFT may not know.
    """
    told = None
    if metadata.get(PEFT_METADATA_KEY):
        configs = peft_configs(metadata)
        told = {
            f"{name}.{key}": value for name, own in configs.items() for key, value in own.items()
        }
    # Copies: they become the adapter's own, and `state` is what that is compared with.
    tensors = {key: value.clone() for key, value in state.items()}
    with quiet_libraries():
        pipeline = base.pipeline()
        options = {
            "network_alphas": None,
            "adapter_name": ADAPTER_NAME,
            "metadata": told,
            "low_cpu_mem_usage": True,  # as load_lora_weights
        }
        pipeline.load_lora_into_unet(tensors, unet=base.unet, **options)
        for name, encoder in base.text_encoders.items():
            pipeline.load_lora_into_text_encoder(
                tensors, text_encoder=encoder, prefix=name, **options
            )


def _split(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        prefix, _, name = name_in_files(key).partition(".")
        parts.setdefault(prefix, {})[name] = value.cpu().contiguous()
    return parts


def _add_metadata(path: Path, base: Base) -> None:
    """Note the base in the file itself (a folder's other files may get lost), and put the header in
    a fixed order.

    safetensors writes metadata in random order; equal adapters shall be equal files.
    """
    about = {
        "version": FORMAT_VERSION,
        "base_model": base.name,
        "base_hash": base.hash,
        "family": base.family,
    }
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    metadata = {**header.pop("__metadata__", {}), METADATA_KEY: json.dumps(about, sort_keys=True)}
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    path.unlink()  # safetensors wrote it for the owner alone; a new one goes by the umask
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + content[end:])
        file.flush()
        os.fsync(file.fileno())


def _check_header(path: Path) -> None:
    """Size and header, before anything trusts them."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise AdapterFileError(
            f"{path}: {size / 2**30:.1f} GiB; an adapter has at most {MAX_FILE_BYTES // 2**30} GiB"
        )
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise AdapterFileError(
                f"{path}: not a safetensors file (a header of {length} bytes in a file of {size} "
                "bytes)"
            )
        header = file.read(length)
    try:
        json.loads(header, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{path}: damaged header: {error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a tensor name occurs twice")
    return result


def _check_names(path: Path, state: Mapping[str, Tensor]) -> None:
    if any(key.startswith(("lora_unet_", "lora_te")) for key in state):
        raise AdapterFileError(
            f"{path}: kohya's naming; `dreamfleet import {path.name} --base-model BASE "
            "--output-dir DIR` makes an adapter of it"
        )
    for key in state:
        known = key.startswith(("unet.", "text_encoder.", "text_encoder_2.")) and key.endswith(
            (".lora_A.weight", ".lora_B.weight")
        )
        if not known:
            raise AdapterFileError(
                f"{path}: tensor {key!r} is no LoRA factor of unet or text_encoder; expected names "
                "such as "
                "unet.<layer>.lora_A.weight"
            )


def _check_base(path: Path, metadata: Mapping[str, str], base: Base) -> None:
    try:
        about = base_of(metadata)
    except AdapterFileError as error:
        raise AdapterFileError(f"{path}: {error}") from error
    if about.get("base_hash") not in (None, base.hash):
        raise AdapterFileError(
            f"{path}: was trained on base model {about.get('base_model')!r} (hash "
            f"{str(about['base_hash'])[:12]}), "
            f"not on {base.name!r} (hash {base.hash[:12]}); give --base-model the one it was "
            "trained on"
        )


def _check_pairs(path: Path, state: Mapping[str, Tensor]) -> None:
    for layer in sorted({key.rsplit(".lora_", 1)[0] for key in state}):
        down, up = (state.get(f"{layer}.lora_{side}.weight") for side in "AB")
        if down is None or up is None:
            raise AdapterFileError(f"{path}: layer {layer}, of which one factor is missing")
        check_factors(path, layer, down, up)


def check_factors(path: Path, layer: str, down: Tensor, up: Tensor) -> None:
    """Whether two factors are matrices (or kernels) of one rank, which is at least 1.

    Raises:
        AdapterFileError: they are not.
    """
    if min(down.ndim, up.ndim) < 2 or not down.shape[0] == up.shape[1] >= 1:
        raise AdapterFileError(
            f"{path}: layer {layer} has factors {tuple(down.shape)} and {tuple(up.shape)}, which "
            "do not fit each other; expected (rank, in) and (out, rank)"
        )


def _check_fits(path: Path, state: Mapping[str, Tensor], base: Base) -> None:
    """Factors of the shapes that the base's layers have."""
    for layer in sorted({key.rsplit(".lora_", 1)[0] for key in state}):
        _, found = find_layer(base, layer) or (None, None)
        module = getattr(found, "base_layer", found)  # where another adapter is still in
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise AdapterFileError(
                f"{path}: layer {layer}, which this base does not have as a linear or convolution "
                f"layer; is it an adapter for {base.name!r}?"
            )
        down, up = (state[f"{layer}.lora_{side}.weight"] for side in "AB")
        _check_shapes(path, layer, down, up, module)


def _check_shapes(
    path: Path, layer: str, down: Tensor, up: Tensor, module: nn.Linear | nn.Conv2d
) -> None:
    weight = module.weight
    kernel = (1,) * (weight.ndim - 2)  # of the second factor of a convolution
    if down.shape[1:] != weight.shape[1:] or up.shape != (*weight.shape[:1], len(down), *kernel):
        raise AdapterFileError(
            f"{path}: layer {layer} has factors {tuple(down.shape)} and {tuple(up.shape)}, which "
            "do not fit weights "
            f"{tuple(weight.shape)}; it was made for another base"
        )


def _other_than(state: Mapping[str, Tensor], in_base: Mapping[str, Tensor]) -> str:
    """What is wrong with what diffusers put into the base, in the base's precision; empty: nothing.

    It drops what it does not understand without an error.
    """
    loaded = {name_in_files(key): value for key, value in in_base.items()}
    expected = {name_in_files(key): value for key, value in state.items()}
    taken = [
        key
        for key in loaded.keys() & expected.keys()
        if torch.equal(loaded[key].cpu(), expected[key].to(loaded[key].dtype))
    ]
    if len(taken) < len(expected):
        return (
            f"only {len(taken)} of {len(state)} tensors were taken over; "
            "the file names layers in a way that diffusers does not read"
        )
    more = sorted(loaded.keys() - expected.keys())
    if more:
        return (
            f"its metadata ask for {len(more)} tensors that it does not hold ({more[0]}, ...); "
            "expected a plain LoRA"
        )
    return ""


def _other_scales(scales: Mapping[str, float], in_base: Mapping[str, float]) -> str:
    """Whether PEFT takes the metadata for something else than `lora_scales` does; empty: no."""
    loaded = {name_in_files(layer): scale for layer, scale in in_base.items()}
    for layer, scale in scales.items():
        found = loaded[name_in_files(layer)]
        if not math.isclose(found, scale, rel_tol=1e-6):
            return (
                f"layer {layer} has alpha / rank {scale:g} by its metadata, and PEFT takes "
                f"{found:g}; expected the same; save the adapter again, with its own config"
            )
    return ""
