"""Which settings a checkpoint belongs to: a run is continued only under the settings that it began
with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreamfleet.config import RunConfig
from dreamfleet.errors import ResumeError

# These may change between the parts of a run: they do not touch what is computed.
FREE = (
    "output_dir",
    "device",
    "subject.images",
    "subject.id",
    "data.max_photos",
    "data.max_pixels",
    "data.cache_path",
    "data.cache_max_gib",
    "data.teacher_cache_gib",
    "prior.class_data_dir",
    "prior.sample_batch_size",
    "train.checkpointing_steps",
    "train.checkpoints_total_limit",
    "train.train_batch_size",
    "train.gradient_accumulation_steps",
    "train.gradient_checkpointing",
    "train.enable_xformers_memory_efficient_attention",
    "revision",  # part of base_model by then
    "variant",
    "sampling.",
    "cluster.",
    "tracking.",
    "tune.",
    "space.",
)


def run_fingerprint(
    config: RunConfig, *, world_size: int, subject_key: str, prior_key: str, base_hash: str
) -> dict[str, Any]:
    """Everything that decides the adapter, as a flat dict of plain values.

    Batch size, accumulation and workers count only by their product: the samples of a step are the
    same.
    """
    flat = _flatten(config.model_dump(mode="json"))
    values = {key: value for key, value in flat.items() if not key.startswith(FREE)}
    train = config.train
    batch = train.train_batch_size * train.gradient_accumulation_steps * world_size
    if config.train.lr_scheduler in ("constant", "constant_with_warmup"):
        values.pop("train.max_train_steps")  # more steps are then simply more steps
    return {
        **values,
        "effective batch size": batch,
        "photos and captions": subject_key,
        "prior set": prior_key,
        "base model files": base_hash,
    }


def check_same_run(saved: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise ResumeError naming the first settings that differ from those of the checkpoint."""
    different = [
        key
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key) and not key.startswith(FREE)  # an older version saved it
    ]
    if not different:
        return
    shown = "; ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in different[:4])
    raise ResumeError(
        f"{where}: the run began under other settings: {shown}; "
        "go on with those (they are in its config.yaml), or begin again with --overwrite "
        "or another --output-dir"
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
