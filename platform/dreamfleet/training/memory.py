"""Out of memory on a device: told from other errors, and answered with what would help."""

from __future__ import annotations

import gc
import sys

from dreamfleet.config import RunConfig


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch's says that a GPU's or the machine's memory ran out."""
    text = str(error).lower()
    return isinstance(error, RuntimeError | MemoryError) and (
        "out of memory" in text or "can't allocate memory" in text or isinstance(error, MemoryError)
    )


def out_of_memory_message(subject_id: str, step: int, device: str, config: RunConfig) -> str:
    """What happened, and what to change: first what leaves the result as it is."""
    same, other = _same_result(config), _other_result(config)
    parts = [f"{subject_id}: out of memory on {device} at step {step}"]
    if same:
        parts.append(f"go on with --resume and {', '.join(same)}")
    if other:
        parts.append(f"{'or ' if same else ''}begin again (--overwrite) with {', '.join(other)}")
    parts.append("or give a device with more memory (--accelerator-type)")
    return "; ".join(parts)


def free_device_memory() -> None:
    """Give back what a failed job held, so that the next one on this device has it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _same_result(config: RunConfig) -> list[str]:
    train = config.train
    helps = [] if train.gradient_checkpointing else ["--gradient-checkpointing"]
    if train.train_batch_size > 1:
        steps = train.train_batch_size * train.gradient_accumulation_steps
        helps.append(f"--train-batch-size 1 --gradient-accumulation-steps {steps}")
    return helps


def _other_result(config: RunConfig) -> list[str]:
    train = config.train
    helps = ["--mixed-precision bf16"] if train.mixed_precision == "no" else []
    if train.mode == "full":
        helps += [] if train.use_8bit_adam else ["--use-8bit-adam"]
        helps.append("--train-mode lora")
    if train.use_ema:
        helps.append("--no-use-ema")
    if train.train_text_encoder:
        helps.append("--no-train-text-encoder")
    return [*helps, f"a --resolution below {config.data.resolution}"]
