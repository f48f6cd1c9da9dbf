"""Stages resume where they were, bit for bit, and see the samples of their step."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dreamfleet.errors import BadInputError, ConfigError, ResumeError
from dreamfleet.training.pretraining.corpus import Corpus, batch_indices
from dreamfleet.training.pretraining.denoiser import DETAIL_EXTRA, SUBJECT_EXTRA, DenoiserStage
from dreamfleet.training.pretraining.parallel import ordered_map
from dreamfleet.training.pretraining.portraits import Portraits
from dreamfleet.training.pretraining.run import Pretraining, load_recipe
from dreamfleet.training.pretraining.stage import (
    StageRunner,
    StageSettings,
    Stopped,
    rate_at,
    stage_record,
)
from dreamfleet.world.draw import draw_dataset
from tests.unit.pretraining.recipes import TINY, write_recipe

pytestmark = pytest.mark.heavy


def state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Weights, averaged weights and optimiser state of a stage's last checkpoint."""
    saved = torch.load(folder / f"{name}.state.pt", weights_only=True)
    flat = {f"{part}.{key}": v for part, m in saved["modules"].items() for key, v in m.items()}
    flat |= {f"ema.{i}": mean for i, mean in enumerate(saved["ema"])}
    for i, entry in saved["optimizer"]["state"].items():
        flat |= {f"optimizer.{i}.{key}": value for key, value in entry.items()}
    return flat


@pytest.mark.parametrize("name", ["denoiser", "oracle_a", "identity"])
def test_resumed_equals_uninterrupted(
    drawn: Pretraining, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    drawn.run(["decoder", "text"])  # the oracle's round trips, the denoiser's words

    def stop_in_the_middle() -> bool:
        steps.append(len(steps))
        return len(steps) == 2

    StageRunner(drawn.stage(name), tmp_path / "whole").run()
    with pytest.raises(Stopped, match="step 1"):
        StageRunner(drawn.stage(name), tmp_path / "cut", should_stop=stop_in_the_middle).run()
    torch.manual_seed(99)  # a global state that must not matter
    StageRunner(drawn.stage(name), tmp_path / "cut").run()
    whole, cut = state(tmp_path / "whole", name), state(tmp_path / "cut", name)
    assert whole.keys() == cut.keys()
    assert [key for key in whole if not torch.equal(whole[key], cut[key])] == []
    record = stage_record(tmp_path / "cut", name)
    assert record is not None and record["step"] == TINY["stages"][name]["num_steps"]  # type: ignore[index]


def test_batches_are_drawn_by_counter() -> None:
    first = batch_indices(0, "denoiser", 7, 24, 1000)
    np.random.seed(0)
    batch_indices(0, "denoiser", 6, 24, 1000)
    assert np.array_equal(first, batch_indices(0, "denoiser", 7, 24, 1000))
    others = [(1, "denoiser", 7), (0, "decoder", 7), (0, "denoiser", 8)]
    for seed, stage, step in others:
        assert not np.array_equal(first, batch_indices(seed, stage, step, 24, 1000))


def test_half_a_batch_is_even_where_the_corpus_has_such_pictures(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, 0, 1000, num_even=300)
    batch = corpus.batch(0, "denoiser", 7, 25)
    assert len(batch) == 25 and (batch < 700).sum() == 13
    assert np.array_equal(batch, corpus.batch(0, "denoiser", 7, 25))
    plain = Corpus(tmp_path, 0, 1000)
    assert np.array_equal(
        plain.batch(0, "denoiser", 7, 24), batch_indices(0, "denoiser", 7, 24, 1000)
    )


def test_the_subject_and_its_detail_count_more_where_noise_leaves_them(drawn: Pretraining) -> None:
    drawn.run(["text"])
    stage = drawn.stage("denoiser")
    assert isinstance(stage, DenoiserStage)
    subject, detail = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16)
    subject[:, :, 4:8, 4:8], detail[:, :, 5, 5] = 1.0, 1.0
    early, late = stage._weights(torch.tensor([10, 999]), subject, detail).mean(dim=1)
    assert early[5, 5] > early[4, 4] > early[0, 0] == late[0, 0]
    assert late[5, 5] < 1.5 * late[0, 0]
    ratio = float(early[5, 5] / early[0, 0])
    assert ratio == pytest.approx(1 + SUBJECT_EXTRA + DETAIL_EXTRA, rel=0.01)


def test_learning_rate_rises_stays_and_falls() -> None:
    settings = StageSettings(100, 1, 1.0, warmup_steps=10, decay_share=0.3)
    rates = [rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[10:70]) == {1.0}
    assert rates[70:] == sorted(rates[70:], reverse=True)
    assert 0.02 < rates[-1] < 0.06


def test_corpus_rows_match_their_pictures(drawn: Pretraining) -> None:
    indices = np.array([9, 2, 9, 40])
    pixels = drawn.corpus.pixels(indices)
    exact = torch.from_numpy(drawn.corpus.images[indices]).permute(0, 3, 1, 2)
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8), exact)
    assert drawn.corpus.caption(9, 4) == drawn.corpus.caption(9, 4)
    assert len({drawn.corpus.caption(9, draw) for draw in range(12)}) > 3


def test_blocks_drawn_elsewhere_give_the_same_files(
    drawn: Pretraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamfleet.world.draw.BLOCK", 4)
    monkeypatch.setattr("dreamfleet.training.pretraining.portraits.BLOCK", 40)

    def last_first(function: Callable[[range], Any], blocks: Iterable[range]) -> Iterable[Any]:
        made = [function(block) for block in reversed(list(blocks))]
        return reversed(made)

    portraits = Portraits(tmp_path / "portraits", 3, 4, 2)
    portraits.draw(map_blocks=last_first)
    draw_dataset(tmp_path / "elsewhere", 10, 3, map_blocks=last_first)
    draw_dataset(tmp_path / "here", 10, 3)
    for name in ("images.npy", "captions.jsonl", "labels.npz", "progress.json"):
        there, here = tmp_path / "elsewhere" / name, tmp_path / "here" / name
        assert there.read_bytes() == here.read_bytes()
    for name in ("images.npy", "masks.npy"):
        there, here = tmp_path / "portraits" / name, drawn.portraits.folder / name
        assert there.read_bytes() == here.read_bytes()


def test_a_kill_while_progress_is_noted_costs_no_portraits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[range] = []

    def blank(function: Callable[[range], Any], blocks: Iterable[range]) -> Iterable[Any]:
        for rows in blocks:
            drawn.append(rows)
            pictures = np.zeros((len(rows), 64, 64, 3), np.uint8)
            yield pictures, pictures[..., 0]

    def killed(path: Path, text: str, **options: Any) -> None:
        path.open("w").close()
        raise KeyboardInterrupt

    monkeypatch.setattr("dreamfleet.training.pretraining.portraits.BLOCK", 10)
    portraits = Portraits(tmp_path, 3, 1, 1)
    portraits.draw(lambda done, count: None, lambda draw, rows: blank(draw, list(rows)[:1]))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", killed)
        portraits.draw(map_blocks=blank)
    portraits.draw(map_blocks=blank)
    assert [rows.start for rows in drawn][:3] == [0, 10, 10], "the first block is kept"


def test_portraits_of_another_request_are_not_taken_for_these(tmp_path: Path) -> None:
    def blank(draw: Any, rows: Iterable[range]) -> list[tuple[np.ndarray, np.ndarray]]:
        sizes = [len(own) for own in rows]
        return [(np.zeros((n, 64, 64, 3)), np.zeros((n, 64, 64))) for n in sizes]

    Portraits(tmp_path, 3, 2, 1).draw(map_blocks=blank)
    Portraits(tmp_path, 3, 2, 1).draw(map_blocks=blank)
    with pytest.raises(ResumeError, match="holds portraits"):
        Portraits(tmp_path, 3, 1, 1).draw(map_blocks=blank)


def test_drawing_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "draws.py"
    script.write_text(
        "import os, time\n"
        "from dreamfleet.training.pretraining.parallel import ordered_map\n"
        "def own(number):\n    print(os.getpid(), flush=True)\n    time.sleep(3600)\n"
        "if __name__ == '__main__':\n"
        "    with ordered_map(2) as mapped:\n        list(mapped(own, [1, 2]))\n",
        encoding="utf-8",
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True
    ) as whole:
        assert whole.stdout is not None
        workers = [psutil.Process(int(whole.stdout.readline())) for _ in range(2)]
        whole.kill()
        _, alive = psutil.wait_procs(workers, timeout=300)
    assert alive == []


def test_processes_keep_the_order() -> None:
    with ordered_map(2) as in_processes:
        assert list(in_processes(operator.neg, range(12))) == [-i for i in range(12)]
        with pytest.raises(TypeError):
            list(in_processes(operator.neg, ["a", "b"]))
    with ordered_map(1) as plain:
        assert plain is map


def test_identity_pairs_share_state_and_scene(drawn: Pretraining) -> None:
    portraits = drawn.portraits
    for row in range(0, portraits.count, 2 * portraits.per_identity):
        for picture in range(portraits.per_identity):
            one = portraits.spec(row + picture)
            two = portraits.spec(row + portraits.per_identity + picture)
            assert (one.state, one.scene, one.view) == (two.state, two.scene, two.view)
            assert one.identity_seed != two.identity_seed


def test_bad_recipes_and_stages_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="colour"):
        load_recipe(write_recipe(tmp_path / "a.yaml", colour=1))
    with pytest.raises(ConfigError, match=r"stages\.painter"):
        stages = {"painter": {"num_steps": 1, "batch_size": 1, "learning_rate": 1.0}}
        load_recipe(write_recipe(tmp_path / "b.yaml", stages=stages))
    work = Pretraining(load_recipe(write_recipe(tmp_path / "c.yaml")), tmp_path)
    with pytest.raises(BadInputError, match="'paint' is none of: corpus"):
        work.run(["paint"])
    with pytest.raises(BadInputError, match="run stage latents"):
        work.run(["denoiser"])
    with pytest.raises(BadInputError, match="run stage corpus"):
        work.run(["latents"])
