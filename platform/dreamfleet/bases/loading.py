"""Read a base model's weights: safetensors only, every key used."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from dreamfleet.bases.base import Base, frozen
from dreamfleet.bases.families import load_tokenizer
from dreamfleet.bases.files import BaseFiles, inspect_base, read_json
from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.bases.safety import SafetyChecker
from dreamfleet.diffusion.schedule import NoiseSchedule
from dreamfleet.errors import BaseModelError, first_line

# The libraries build models on the meta device by a switch of the whole process: a model that
# another thread builds meanwhile would be left without weights.
_ONE_AT_A_TIME = threading.Lock()


def load_base(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    safety_checker: bool = False,
) -> Base:
    """Load `embedded`, a diffusers folder or a hub id, frozen and in eval mode.

    Args:
        device: where to put the modules; `auto` takes a GPU if there is one.
        dtype: type of the frozen weights; a VAE whose activations overflow in fp16 (SDXL's) stays
            fp32.
        safety_checker: check drawn pictures with the base's own checker, where it has one.

    Raises:
        BaseModelError: missing, incomplete, unsafe or of an unsupported family; or no such device.
    """
    files = inspect_base(name_or_path)
    place = resolve_device(device)
    with quiet_libraries():
        unet = load_component(files, "unet", dtype)
        vae = load_component(files, "vae", vae_dtype(files, dtype))
        encoders = {
            name: frozen(load_component(files, name, dtype).to(place))
            for name in files.family.text_encoders
        }
    settings = read_json(files.path / "scheduler" / "scheduler_config.json", files.name)
    return Base(
        files=files,
        unet=frozen(unet.to(place)),
        vae=frozen(vae.to(place)),
        **encoders,
        **{name: load_tokenizer(files.path / name) for name in files.family.tokenizers},
        scheduler_config=settings,
        schedule=NoiseSchedule.from_config(settings),
        device=place,
        dtype=dtype,
        safety_checker=SafetyChecker.of(files, place) if safety_checker else None,
    )


def load_vae(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> Any:
    """The VAE of a base alone, fp32: what photos are encoded with.

    Raises:
        BaseModelError: as `load_base`.
    """
    files = inspect_base(name_or_path)
    place = resolve_device(device)
    with quiet_libraries():
        return frozen(load_component(files, "vae", torch.float32).to(place))


def vae_dtype(files: BaseFiles, dtype: torch.dtype) -> torch.dtype:
    """fp32 instead of fp16 unless the VAE says that it stands fp16 (`force_upcast: false`).

    SDXL's own VAE overflows there and decodes to black; diffusers takes the setting for true where
    it is missing.
    """
    upcast = files.vae_config.get("force_upcast", True)
    return torch.float32 if dtype == torch.float16 and upcast else dtype


def resolve_device(device: str | torch.device) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:1` as a torch device.

    Raises:
        BaseModelError: a GPU was asked for and there is none.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise BaseModelError(f"device {device}: torch sees no GPU here; use --device cpu or auto")
    return place


def load_component(files: BaseFiles, component: str, dtype: torch.dtype) -> Any:
    """One module (unet, vae or a text encoder) of a base.

    Raises:
        BaseModelError: its files are damaged, or hold other weights than its config asks for.
    """
    options: dict[str, Any] = {
        "torch_dtype": dtype,
        "variant": files.weights_variant(component),
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        with _ONE_AT_A_TIME:
            model, info = _read(files, component, options)
    except Exception as error:  # a damaged folder fails in as many ways as there are readers
        reason = first_line(error)
        raise BaseModelError(
            f"base model {files.name}: {files.path / component} cannot be loaded: {reason}; "
            "fetch or save the folder again"
        ) from error
    _check_all_used(files, component, info)
    return model


def _read(
    files: BaseFiles, component: str, options: dict[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    if component in files.family.text_encoders:
        options["dtype"] = options.pop("torch_dtype")
        model, info = files.family.load_text_encoder(files.path, component, **options)
    else:
        kind: Any = UNet2DConditionModel if component == "unet" else AutoencoderKL
        model, info = kind.from_pretrained(files.path / component, **options)
    return model, info


def _check_all_used(files: BaseFiles, component: str, info: Mapping[str, Any]) -> None:
    # Old CLIP folders carry position ids, a buffer that newer versions compute.
    unexpected = [key for key in info.get("unexpected_keys", ()) if "position_ids" not in key]
    for what, keys in (("missing", info.get("missing_keys", ())), ("unexpected", unexpected)):
        if keys:
            shown = ", ".join(sorted(map(str, keys))[:3])
            raise BaseModelError(
                f"base model {files.name}: {len(keys)} {what} tensors in {files.path / component} "
                f"({shown}, ...); "
                "its config and weights do not belong together"
            )
