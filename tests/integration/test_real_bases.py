"""The command of the README on tiny bases of every real family, read back by plain diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.cli import main
from dreamfleet.runtime.relay import start_relay
from dreamfleet.training.fit import Fit, follow
from dreamfleet.training.ray_train import train_worker
from dreamfleet.training.task import TrainTask
from tests.integration.recipes import STEPS, WEIGHTS, recipe, train_task, trained_files
from tests.tiny_bases import FAMILIES
from tests.unit.data.helpers import write_photos

pytestmark = pytest.mark.usefixtures("ray_running")
# Relative, per tensor, of fp32 weights after 24 steps: two workers sum gradients in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=sorted(FAMILIES, reverse=True))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("bases") / request.param)


def picture(folder: Path, lora: Path | None = None) -> np.ndarray:
    """Drawn by diffusers' own pipeline of the family."""
    xl = (folder / "text_encoder_2").is_dir()
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    with quiet_libraries():
        pipeline = kind.from_pretrained(folder)
        if lora is not None:
            pipeline.load_lora_weights(lora)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(3)
    drawn = pipeline("a photo of sks dog", num_inference_steps=3, generator=generator)
    return np.asarray(drawn.images[0]).astype(float)


def run(photos: Path, base: Path, out: Path, *more: str) -> None:
    command = ["personalize", str(photos), "--class-word", "dog", "--base-model", str(base)]
    command += ["--resolution", "64", "--max-train-steps", "4", "--mixed-precision", "bf16"]
    command += ["--learning-rate", "1e-2", "--num-validation-images", "1", "--no-tracking"]
    command += ["--num-inference-steps", "2", "--output-dir", str(out)]
    assert main([*command, *more]) == 0


def train_on_two_workers(tasks: list[TrainTask], folder: Path) -> None:
    """One task after the other in one group of two workers: each is a run of its own, but
    processes that load the libraries start once.
    """
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    relay = start_relay()

    def loop(config: dict[str, Any]) -> None:
        for task in config["tasks"]:
            outcome = train_worker({"task": task, "relay": config["relay"]})
            assert outcome.status == "finished", outcome.message

    trainer = TorchTrainer(
        loop,
        train_loop_config={"tasks": [ray.put(task) for task in tasks], "relay": relay},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="two", storage_path=str(folder / "ray")),
    )
    fit = Fit(trainer)
    follow(fit, relay, lambda event: None)
    ray.kill(relay)
    fit.returned()


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        gap = torch.linalg.norm(other[name] - tensor)
        size = torch.linalg.norm(tensor).clamp(min=1e-3)  # a key's bias has no gradient
        assert gap <= TOLERANCE * size, name


def test_two_workers_equal_one_with_the_double_batch(tmp_path: Path, tiny_base: Path) -> None:
    """A LoRA with SuDe; and a whole model by DDP, and by FSDP in two parts: the second goes on
    from the sharded model's checkpoint.
    """
    lora: dict[str, Any] = {"sude": {"weight": 0.4}, "train": {}}
    whole = {"mode": "full", "adam_epsilon": 1e-4, "use_ema": True, "train_text_encoder": True}
    full: dict[str, Any] = {"train": {**whole, "gradient_accumulation_steps": 2}}
    half = {"train": {**full["train"], "max_train_steps": STEPS // 3 * 2}}
    tasks = []
    for name, settings, strategy in (
        ("lora", lora, "ddp"),
        ("ddp", full, "ddp"),
        ("fsdp", half, "fsdp"),
        ("fsdp", full, "fsdp"),
    ):
        cluster = {"num_workers": 2, "parallel_strategy": strategy}
        config = recipe(tmp_path, tiny_base, cluster=cluster, **settings)
        tasks.append(train_task(config, tmp_path / name))
    train_on_two_workers(tasks, tmp_path)

    for name, settings, others in (("one-lora", lora, ["lora"]), ("one", full, ["ddp", "fsdp"])):
        doubled = {**settings, "train": {**settings["train"], "train_batch_size": 2}}
        adapter = trained_files(recipe(tmp_path, tiny_base, **doubled), tmp_path / name)
        files = [path.relative_to(adapter) for path in adapter.rglob("*.safetensors")]
        assert Path(WEIGHTS) in files or Path("unet/diffusion_pytorch_model.safetensors") in files
        for file in files:
            for other in others:
                theirs = load_file(tmp_path / other / "checkpoints" / "adapter" / file)
                assert_close(load_file(adapter / file), theirs)
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        start = load_file(tiny_base / f"{part}.safetensors")
        one = load_file(tmp_path / "one" / "checkpoints" / "adapter" / f"{part}.safetensors")
        assert max(float((tensor - start[name]).norm()) for name, tensor in one.items()) > 0.01


@pytest.mark.parametrize(
    "mode",
    [["lora", "--train-text-encoder"], ["full", "--gradient-checkpointing"]],
    ids=["lora", "full"],
)
def test_the_command_ends_with_an_adapter_that_diffusers_reads(
    tmp_path: Path, base: Path, mode: Sequence[str]
) -> None:
    """The bases have one VAE, so photos are prepared for the first alone."""
    out = tmp_path / "out"
    run(write_photos(tmp_path / "photos", 2), base, out, "--train-mode", *mode)
    bare = picture(base)
    drawn = picture(out) if mode[0] == "full" else picture(base, out)
    assert np.isfinite(drawn).all() and np.abs(drawn - bare).mean() > 0.5
    assert (out / "report.html").is_file() and list((out / "samples").glob("*.png"))
