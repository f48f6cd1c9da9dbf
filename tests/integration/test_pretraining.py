"""Pretraining on a real Ray: interrupted, its worker killed, gone on with, exported.

The weights are those of one plain, uninterrupted process.
"""

from __future__ import annotations

import contextlib
import runpy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import StableDiffusionPipeline

from dreamfleet.runtime.progress import SilentProgress, Stage
from dreamfleet.training.pretraining.launch import PretrainJob, pretrain
from dreamfleet.world.evaluators import load_oracle
from tests.integration.recipes import interrupt_once, own_train_workers
from tests.unit.pretraining.recipes import TINY, write_recipe

AT_EVERY_STEP = {"checkpoint_every_s": 0.0}

pytestmark = pytest.mark.usefixtures("ray_running")


class Watching(SilentProgress):
    """Calls `look` with the stage's name and what is done of it."""

    def __init__(self, look: Callable[[str, int], None]) -> None:
        self.look = look

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Stage]:
        yield _Watched(self.look, title)


class _Watched:
    def __init__(self, look: Callable[[str, int], None], title: str) -> None:
        self._look, self._title = look, title

    def update(self, done: int, note: str = "") -> None:
        self._look(self._title, done)


@contextlib.contextmanager
def killing_the_worker(state: Path) -> Iterator[list[int]]:
    """Kills the Train worker once, when `state` is written again; gives the list of the killed."""
    killed: list[int] = []
    over = threading.Event()
    before = state.stat().st_mtime_ns

    def watch() -> None:
        while not over.wait(0.02) and not killed:
            if state.stat().st_mtime_ns != before:
                worker = own_train_workers()[0]
                killed.append(worker.pid)
                worker.kill()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def run_script(repository: Path, *arguments: object) -> Result:
    main = runpy.run_path(str(repository / "pipelines" / "pretrain_base.py"))["main"]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    modules = torch.load(folder / "stages" / f"{stage}.state.pt", weights_only=True)["modules"]
    return {f"{part}.{key}": v for part, m in modules.items() for key, v in m.items()}


def test_interrupted_killed_and_resumed_on_ray_equals_plain(
    repository: Path, tmp_path: Path
) -> None:
    """Interrupted in Python, gone on with by the script, which trains everything and exports."""
    decoder = {**TINY["stages"]["decoder"], "num_steps": 300, **AT_EVERY_STEP}  # type: ignore[index]
    stages = {**TINY["stages"], "decoder": decoder}  # type: ignore[dict-item]
    recipe = write_recipe(tmp_path / "tiny.yaml", stages=stages)
    on_ray = PretrainJob(recipe, tmp_path / "ray", (), "cpu", num_threads=1, num_processes=2)

    once = interrupt_once(1)

    def interrupt(stage: str, done: int) -> None:
        if stage == "decoder":
            once(done)

    with pytest.raises(KeyboardInterrupt):
        pretrain(on_ray, progress=Watching(interrupt))
    state = tmp_path / "ray" / "stages" / "decoder.state.pt"
    assert state.exists()
    with killing_the_worker(state) as killed:
        result = run_script(
            repository,
            *("--config", recipe, "--work-dir", tmp_path / "ray", "--num-threads", 1),
            *("--num-processes", 2, "--export-to", tmp_path / "weights"),
        )
    assert result.exit_code == 0, result.output
    assert killed
    assert not (tmp_path / "ray" / "ray").exists()

    names = ("corpus", "latents", "decoder", "text", "denoiser")
    here = PretrainJob(recipe, tmp_path / "here", names, "cpu", num_threads=1, num_processes=1)
    pretrain(here, use_ray=False, progress=SilentProgress())
    for stage in ("decoder", "text", "denoiser"):
        ray, plain = weights(tmp_path / "ray", stage), weights(tmp_path / "here", stage)
        assert ray.keys() == plain.keys()
        assert [key for key in ray if not torch.equal(ray[key], plain[key])] == []
    base = tmp_path / "weights" / "base"
    assert str(base) in result.output
    _check_export(base, tmp_path / "weights" / "evaluators")


def _check_export(base: Path, evaluators: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a photo of a dog", num_inference_steps=2).images[0]
    row = load_oracle("A", evaluators).read([picture])[0]
    assert set(row) == {"class", "state", "scene", "view", "style", "prop"}


def test_script_refuses_bad_input_in_a_line(repository: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml")
    wrong = write_recipe(tmp_path / "wrong.yaml", colour=3)
    cases = [
        (("--config", recipe, "--stage", "paint"), "'paint' is none of"),
        (("--config", wrong), "colour"),
        (("--config", recipe, "--stage", "denoiser"), "run stage latents"),
    ]
    for arguments, message in cases:
        result = run_script(repository, *arguments, "--work-dir", tmp_path / "work", "--no-ray")
        assert result.exit_code == 2
        assert message in result.output and "Traceback" not in result.output
