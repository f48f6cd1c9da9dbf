"""LoRA files in the naming of kohya's sd-scripts, which ComfyUI and the A1111 family read too.

A layer is `<component>_<path with underscores>` with `.lora_down.weight`, `.lora_up.weight` and a
scalar `.alpha`; its change is `alpha / rank * up @ down`. SDXL's UNet goes by the names of the
original implementation (`adapters.sgm_names`), the others by diffusers' own.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save
from torch import Tensor, nn

from dreamfleet.adapters.files import (
    METADATA_KEY,
    adapter_path,
    check_factors,
    load_adapter,
    read_adapter,
    read_tensors,
    save_adapter,
    write_lora,
)
from dreamfleet.adapters.lora import config_metadata, remove_lora
from dreamfleet.adapters.names import text_path
from dreamfleet.adapters.scales import lora_scales
from dreamfleet.adapters.sgm_names import sgm_path
from dreamfleet.bases import Base, BaseFiles
from dreamfleet.errors import AdapterFileError

TEXT_PREFIXES = {
    "sd1": {"text_encoder": "lora_te"},
    "sd2": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
}
VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}
PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


def export_kohya(adapter: str | Path, target: str | Path, files: BaseFiles) -> Path:
    """Write the adapter at `adapter` (folder or file) as kohya's `target`; tensors stay the same.

    Args:
        files: of the base that it was trained on, or of one of the same shape.

    Raises:
        AdapterFileError: the adapter is damaged, or `target` is no .safetensors name.
    """
    source, path = adapter_path(adapter), Path(target).expanduser()
    if path.suffix != ".safetensors":
        raise AdapterFileError(f"{path}: expected a name that ends with .safetensors")
    state, metadata = read_adapter(source)
    scales = lora_scales(source, state, metadata)
    written: dict[str, Tensor] = {}
    for layer in sorted({key.rsplit(".lora_", 1)[0] for key in state}):
        component, _, module_path = layer.partition(".")
        name = kohya_name(files, component, module_path)
        down, up = (state[f"{layer}.lora_{side}.weight"] for side in "AB")
        written[f"{name}.lora_down.weight"] = down.contiguous()
        written[f"{name}.lora_up.weight"] = up.contiguous()
        alpha = scales[layer] * down.shape[0]
        written[f"{name}.alpha"] = torch.tensor(alpha)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(save(written, _network_metadata(written, metadata, files)))
    return part.replace(path)


def import_kohya(source: str | Path, folder: str | Path, base: Base) -> Path:
    """Make an adapter folder of kohya's file `source` for `base`, which is left as it was.

    The factors keep their values (as fp32), each layer its own rank and alpha.

    Raises:
        AdapterFileError: not safetensors, damaged, other than plain LoRA, layers that the base does
            not have, or no effect.
    """
    path = adapter_path(source)
    tensors, _ = read_tensors(path)
    state, alphas = _converted(path, tensors, base)
    if not any(bool(value.any()) for key, value in state.items() if ".lora_B." in key):
        raise AdapterFileError(f"{path}: all its second factors are zero; it would change nothing")
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    part = target / f".import.{os.getpid()}.safetensors"
    try:
        _write_with_alphas(part, state, alphas, base)
        load_adapter(base, part)  # refuses what does not fit, or is not used whole
        return save_adapter(target, base)
    finally:
        part.unlink(missing_ok=True)
        remove_lora(base)


def kohya_name(files: BaseFiles, component: str, module_path: str) -> str:
    """kohya's name of a module of diffusers' or transformers'."""
    family = files.family.name
    if component == "unet":
        path = sgm_path(module_path, files.unet_config) if family == "sdxl" else module_path
        return f"lora_unet_{path.replace('.', '_')}"
    return _text_name(TEXT_PREFIXES[family][component], module_path)


def is_kohya(state: Mapping[str, Any]) -> bool:
    """Whether tensor names are in kohya's naming."""
    return any(key.startswith(("lora_unet_", "lora_te")) for key in state)


def _text_name(prefix: str, module_path: str) -> str:
    return f"{prefix}_{text_path(module_path).replace('.', '_')}"


def _known_names(base: Base) -> dict[str, tuple[str, str, Any]]:
    """Each name that a file may use: component, path and module."""
    known: dict[str, tuple[str, str, Any]] = {}
    components = [("unet", base.unet), *base.text_encoders.items()]
    for component, root in components:
        for path, module in root.named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            entry = (component, path, module)
            known[kohya_name(base.files, component, path)] = entry
            if component == "unet":  # diffusers' own names, which its scripts write for SDXL too
                known[f"lora_unet_{path.replace('.', '_')}"] = entry
            elif component == "text_encoder":
                known[_text_name("lora_te", path)] = entry
    return known


def _converted(
    path: Path, tensors: Mapping[str, Tensor], base: Base
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors in PEFT's naming (component in front), and each layer's alpha."""
    if not is_kohya(tensors):
        raise AdapterFileError(
            f"{path}: not in kohya's naming (lora_unet_..., lora_te...); files of diffusers "
            "and PEFT need no import: give them to --adapter"
        )
    known = _known_names(base)
    state: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, parts in _layers(path, tensors).items():
        if name not in known:
            raise AdapterFileError(
                f"{path}: layer {name}, which base {base.name!r} (family {base.family}) does not "
                "have; give --base-model the one it was trained on"
            )
        component, module_path, module = known[name]
        layer = f"{component}.{module_path}"
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        rank = down.shape[0]
        state[f"{layer}.lora_A.weight"] = _as_module(down, module, (rank, *module.weight.shape[1:]))
        state[f"{layer}.lora_B.weight"] = _as_module(up, module, (up.shape[0], rank))
        alphas[layer] = float(parts["alpha"]) if "alpha" in parts else float(rank)
    return state, alphas


def _layers(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, part = key.partition(".")
        if part not in PARTS:
            raise AdapterFileError(
                f"{path}: tensor {key!r} is no part of a plain LoRA ({', '.join(PARTS)}); LoHa, "
                "LoKr, DoRA and their like are not read"
            )
        layers.setdefault(name, {})[part] = value
    for name, parts in layers.items():
        if not {"lora_down.weight", "lora_up.weight"} <= set(parts):
            raise AdapterFileError(f"{path}: of layer {name} one factor is missing")
        check_factors(path, name, parts["lora_down.weight"], parts["lora_up.weight"])
        if "alpha" in parts and parts["alpha"].numel() != 1:
            raise AdapterFileError(f"{path}: alpha of layer {name} is no single number")
    return layers


def _as_module(factor: Tensor, module: Any, shape: tuple[int, ...]) -> Tensor:
    """A factor in the shape that PEFT gives it; some files store 1x1 convolutions as matrices."""
    if isinstance(module, nn.Conv2d) and len(shape) == 2:
        shape = (*shape, 1, 1)
    fits = factor.numel() == math.prod(shape)
    return (factor.reshape(shape) if fits else factor).float().contiguous()


def _write_with_alphas(
    path: Path, state: Mapping[str, Tensor], alphas: Mapping[str, float], base: Base
) -> None:
    """A file of ours whose layers have each their own rank and alpha."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        component, _, name = key.partition(".")
        parts.setdefault(component, {})[name] = value
    metadata = {}
    for component, own in parts.items():
        layers = sorted({name.rsplit(".lora_", 1)[0] for name in own})
        ranks = {layer: int(own[f"{layer}.lora_A.weight"].shape[0]) for layer in layers}
        strengths = {layer: alphas[f"{component}.{layer}"] for layer in layers}
        rank, alpha = _usual(ranks), _usual(strengths)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]
            target_modules=layers,
            rank_pattern={layer: r for layer, r in ranks.items() if r != rank},
            alpha_pattern={layer: a for layer, a in strengths.items() if a != alpha},
        )
        metadata[component] = config_metadata(config)
    write_lora(base, path, parts, metadata)


def _usual(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _network_metadata(
    written: Mapping[str, Tensor], metadata: Mapping[str, str], files: BaseFiles
) -> dict[str, str]:
    """What sd-scripts note of a network and others show of it."""
    ranks = [value.shape[0] for key, value in written.items() if key.endswith(PARTS[0])]
    alphas = [float(value) for key, value in written.items() if key.endswith(".alpha")]
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(Counter(ranks).most_common(1)[0][0]),
        "ss_network_alpha": str(Counter(alphas).most_common(1)[0][0]),
        "ss_base_model_version": VERSIONS[files.family.name],
        "ss_v2": str(files.family.name == "sd2"),
        METADATA_KEY: metadata.get(METADATA_KEY, "{}"),
    }
