"""The command line's work as Python functions: `dreamfleet.personalize`, `dreamfleet.generate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamfleet import flags
from dreamfleet.config import RunConfig, load_config
from dreamfleet.errors import AdapterFileError, BadInputError

if TYPE_CHECKING:
    from PIL import Image

    from dreamfleet.bases import Base
    from dreamfleet.personalization import PersonalizeResult
    from dreamfleet.runtime.progress import Progress
    from dreamfleet.tuning.results import TuneResult


def personalize(
    photos: str | Path | Sequence[str | Path] = (),
    *,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> PersonalizeResult:
    """Train an adapter for one subject or many.

    Args:
        photos: a folder, zip or files of one subject; several folders, or a CSV or YAML list, for
            many.
        config: a YAML recipe; `settings` win over it.
        resume: go on with the run in the output folder.
        overwrite: begin again in a used output folder.
        progress: where bars and lines go; default: nowhere.
        settings: named like the flags of `dreamfleet personalize`, e.g. `class_word="dog",
            sude_weight=0.4`.

    Raises:
        BadInputError: something given cannot be used; named.
        TrainingError: training ended without an adapter.
    """
    from dreamfleet.personalization import personalize as run

    tree = load_config(config, _overrides(photos, settings))
    return run(tree, resume=resume, overwrite=overwrite, progress=progress)


def tune(
    photos: str | Path | Sequence[str | Path] = (),
    *,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TuneResult:
    """Find each subject's own setting by a study, and train its champion.

    Args:
        photos, config, overwrite, progress: as `personalize`.
        resume: go on with the studies in the output folder.
        settings: named like the flags of `dreamfleet tune`, e.g. `class_word="dog",
            num_samples=16`.

    Raises:
        BadInputError: something given cannot be used; named.
        TrainingError: the only subject's host could not be trained.
    """
    from dreamfleet.tuning.command import tune as run

    tree = load_config(config, _overrides(photos, settings))
    return run(tree, resume=resume, overwrite=overwrite, progress=progress)


def _overrides(
    photos: str | Path | Sequence[str | Path], settings: Mapping[str, Any]
) -> dict[str, Any]:
    overrides = flags.keyword_overrides(settings)
    entries = [photos] if isinstance(photos, str | Path) else list(photos)
    if entries:
        overrides["subject.images"] = [os.fspath(entry) for entry in entries]
    return overrides


def generate(
    prompt: str,
    *,
    adapter: str | Path | None = None,
    base_model: str | Path | None = None,
    negative_prompt: str = "",
    num_images: int = 1,
    seed: int = 0,
    scheduler: str = "ddim",
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    adapter_strength: float = 1.0,
    device: str = "auto",
    safety_checker: Literal["auto", "off"] = "auto",
    batch_size: int = 8,
    progress: Progress | None = None,
    on_image: Callable[[int, Image.Image], None] | None = None,
) -> list[Image.Image]:
    """Draw `num_images` pictures; picture i has the seed `seed + i`, whatever the batch size.

    Args:
        prompt: `{token}` and `{class}` are replaced by those of the adapter.
        adapter: output folder of `personalize` (or its URI), or a LoRA file; None: the bare base.
        base_model: default: the one that the adapter was trained on, else the embedded one.
        guidance_scale: classifier-free guidance; None: the base's own.
        adapter_strength: factor on a LoRA; 0 is the bare base.
        safety_checker: auto: the base's own, where it has one; off: none.
        on_image: gets each picture's number and the picture, a batch at a time, as they are ready.

    Raises:
        AdapterFileError: the adapter is missing, damaged or for another base.
        BaseModelError: the base model cannot be loaded.
        BadInputError: a prompt with `{token}` or `{class}`, and no adapter that says what they are;
            an adapter strength, and no LoRA.
    """
    from dreamfleet.engine.sampling import sample_images
    from dreamfleet.runtime.progress import SilentProgress

    base, made_by = _loaded(adapter, base_model, device, safety_checker)
    text = _filled(prompt, made_by)
    images: list[Image.Image] = []
    with (progress or SilentProgress()).stage("pictures", num_images) as stage:
        for first in range(0, num_images, batch_size):
            seeds = [seed + i for i in range(first, min(first + batch_size, num_images))]
            drawn = sample_images(
                base,
                [text] * len(seeds),
                seeds,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                scheduler=scheduler,
                negative_prompt=negative_prompt,
                adapter_strength=adapter_strength,
            )
            for index, image in enumerate(drawn, start=first):
                if on_image is not None:
                    on_image(index, image)
            images += drawn
            stage.update(len(images))
    return images


def export_adapter(
    adapter: str | Path,
    target: str | Path,
    *,
    file_format: str = "kohya",
    base_model: str | Path | None = None,
) -> Path:
    """Write a LoRA for other programs: `kohya` is what ComfyUI, A1111 and kohya's scripts read.

    Args:
        adapter: output folder of `personalize`, or a LoRA file.
        target: the .safetensors file to write.
        base_model: default: the one that the adapter was trained on.

    Raises:
        AdapterFileError: the adapter is missing, damaged or a whole model.
    """
    from dreamfleet.adapters.kohya import export_kohya
    from dreamfleet.bases import inspect_base

    if file_format != "kohya":
        raise BadInputError(f"format {file_format!r}: expected kohya")
    place = Path(adapter).expanduser()
    if _is_whole_model(place):
        raise AdapterFileError(
            f"adapter {place}: a fully fine-tuned model is a diffusers folder already; only LoRAs "
            "are exported"
        )
    return export_kohya(place, target, inspect_base(_base_name(base_model, place)))


def import_adapter(
    file: str | Path, output_dir: str | Path, *, base_model: str | Path, device: str = "cpu"
) -> Path:
    """Make an adapter folder of a LoRA file in kohya's naming; returns the written file.

    Raises:
        AdapterFileError: damaged, not a plain LoRA, or for another base.
        BadInputError: there is an adapter in `output_dir` already.
    """
    from dreamfleet.adapters.files import WEIGHTS_NAME
    from dreamfleet.adapters.kohya import import_kohya
    from dreamfleet.bases import load_base

    folder = writable_folder(output_dir)
    if (folder / WEIGHTS_NAME).exists():
        raise BadInputError(f"output folder {folder}: there is an adapter in it; give another")
    return import_kohya(file, folder, load_base(base_model, device=device))


def writable_folder(path: str | Path) -> Path:
    """`path` as a folder that exists and takes files.

    Raises BadInputError when it cannot be made or written.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"output folder {folder}: cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInputError(f"output folder {folder}: cannot be written; give another")
    return folder


def _loaded(
    adapter: str | Path | None, base_model: str | Path | None, device: str, safety_checker: str
) -> tuple[Base, RunConfig | None]:
    """The base with the adapter in it, and the settings that made the adapter, if known."""
    from dreamfleet.bases import load_base
    from dreamfleet.runtime.storage import local_copy

    checked = safety_checker == "auto"
    if adapter is None:
        name = _base_name(base_model, None)
        return load_base(name, device=device, safety_checker=checked), None
    with local_copy(adapter) as place:
        if _is_whole_model(place):
            if base_model is not None:
                raise BadInputError(
                    f"adapter {adapter} is a whole model, which takes no other base; leave "
                    f"--base-model {base_model} out"
                )
            base = load_base(place, device=device, safety_checker=checked)
        else:
            name = _base_name(base_model, place)
            base = load_base(name, device=device, safety_checker=checked)
            _load_lora(base, place)
        return base, _recipe_beside(place)


def _is_whole_model(place: Path) -> bool:
    """True for a fully fine-tuned model, False for a LoRA's folder or file."""
    from dreamfleet.adapters.files import adapter_kind

    if not place.exists():
        raise AdapterFileError(
            f"adapter {place}: does not exist; give the output folder of `dreamfleet personalize`"
        )
    return place.is_dir() and adapter_kind(place) == "full"


def _recipe_beside(place: Path) -> RunConfig | None:
    """The configuration that lies beside an adapter of ours."""
    path = (place if place.is_dir() else place.parent) / "config.yaml"
    return load_config(path) if path.is_file() else None


def _base_name(given: str | Path | None, place: Path | None) -> str | Path:
    """The base that was asked for, else the one that the adapter at `place` was trained on."""
    if given is not None:
        return given
    if place is None:
        return "embedded"
    made_by = _recipe_beside(place)
    if made_by is not None:
        return made_by.base_source
    from dreamfleet.adapters.files import adapter_path, base_of, read_tensors

    return str(base_of(read_tensors(adapter_path(place))[1]).get("base_model", "embedded"))


def _filled(prompt: str, made_by: RunConfig | None) -> str:
    if made_by is None:
        for placeholder in ("{token}", "{class}"):
            if placeholder in prompt:
                raise BadInputError(
                    f"prompt {prompt!r}: nothing says what {placeholder} is here, for it is filled "
                    "in from the config.yaml beside an adapter; write the word itself"
                )
        return prompt
    from dreamfleet.data.subjects import fill_prompt

    return fill_prompt(prompt, made_by)


def _load_lora(base: Base, place: Path) -> None:
    from dreamfleet.adapters.files import load_adapter

    load_adapter(base, place)
