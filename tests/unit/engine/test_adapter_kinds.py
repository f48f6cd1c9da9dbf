"""Jobs and pictures of another kind of adapter share an engine with LoRAs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamfleet.adapters.bank import SlotState
from dreamfleet.adapters.cross_attention_slots import TOKEN_IDS, TOKEN_ROWS, CrossAttentionShape
from dreamfleet.bases import load_base
from dreamfleet.engine.engine import Engine
from dreamfleet.engine.job import TrainJob
from dreamfleet.engine.packed_sampling import ImageRequest
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.engine.spec import TrainJobSpec
from dreamfleet.errors import AdapterFileError, ConfigError
from tests.tiny_jobs import tiny_spec

pytestmark = pytest.mark.heavy

STEPS = 8
REQUEST = ImageRequest("a photo of sks dog", 7, num_inference_steps=3, guidance_scale=2.0)


def both(folder: Path) -> dict[str, TrainJobSpec]:
    """A LoRA, and keys, values and the identifier's row of the same subject."""
    settings = {"train__adam_epsilon": 1e-4, "sude__weight": 0.4}
    lora = tiny_spec(folder, train__train_text_encoder=True, **settings)
    token, word = load_base(folder).tokenizer("sks dog", add_special_tokens=False).input_ids
    other = tiny_spec(folder, train__learning_rate=1e-3, **settings)
    return {
        "lora": lora,
        "cross": replace(other, adapter=CrossAttentionShape(((token, word),))),
    }


def trained(folder: Path, *names: str, late: str = "") -> tuple[Engine, dict[str, SlotState]]:
    """Jobs of an engine after `STEPS` steps; `late` joins after the others' third."""
    engine, specs = Engine(load_base(folder), EngineSettings(max_slots=4)), both(folder)
    for name in sorted(names, key=lambda name: name == late):
        engine.add_job(name, specs[name])
        engine.run_until(name, 3 if late else STEPS)
        while late and engine.step():
            pass
    for name in names:
        engine.run_until(name, STEPS)
    while engine.step():
        pass
    return engine, {name: engine.job(name).final_state() for name in names}


def drawn(engine: Engine, *adapters: tuple[str, float]) -> Image.Image:
    ticket = engine.submit(replace(REQUEST, adapters=adapters))
    while engine.step():
        pass
    return ticket.image.result(timeout=0)


def apart(one: Image.Image, two: Image.Image) -> int:
    pixels = [np.asarray(picture).astype(int) for picture in (one, two)]
    return int(np.abs(pixels[0] - pixels[1]).max())


def moved(state: SlotState, start: SlotState, name: str) -> Tensor:
    return state.tensors[name].cpu() - start.tensors[name].cpu()


def test_kinds_train_and_draw_side_by_side(tiny_base_folder: Path, tmp_path: Path) -> None:
    specs, base = both(tiny_base_folder), load_base(tiny_base_folder)
    engine, together = trained(tiny_base_folder, "lora", "cross", late="cross")
    assert engine.metrics()["jobs_per_step"] > 1
    for name in together:
        engine_alone, alone = trained(tiny_base_folder, name)
        engine_alone.close()
        shape = engine.job(name).shape
        start = shape.fresh(base, specs[name].config.train.seed)
        assert together[name].tensors.keys() == alone[name].tensors.keys() == start.tensors.keys()
        for part in start.tensors:
            own, reference = moved(together[name], start, part), moved(alone[name], start, part)
            assert float(reference.norm()) > 0, part
            assert float((own - reference).norm()) <= 1e-3 * float(reference.norm()) + 1e-7, part
    for name in together:
        files = engine.job(name).export(tmp_path / name)
        assert [path.is_file() for path in files] == [True]
        engine.add_adapter(name, tmp_path / name)
    assert dict(engine._host["cross"].notes) == dict(together["cross"].notes)
    assert torch.equal(
        engine._host["cross"].tensors[TOKEN_ROWS], together["cross"].tensors[TOKEN_ROWS]
    )
    tickets = [
        engine.submit(replace(REQUEST, adapters=adapters))
        for adapters in ((("cross", 1.0),), (("lora", 1.0),), (("lora", 1.0), ("cross", 0.5)), ())
    ]
    while engine.step():
        pass
    pictures = [ticket.image.result(timeout=0) for ticket in tickets]
    assert min(apart(one, two) for one in pictures for two in pictures if one is not two) > 1
    engine.close()
    fresh = Engine(load_base(tiny_base_folder), EngineSettings(max_slots=2))
    fresh.add_adapter("cross", tmp_path / "cross")
    assert apart(drawn(fresh, ("cross", 1.0)), pictures[0]) <= 1
    assert apart(drawn(fresh), pictures[3]) <= 1
    place = tmp_path / "cross" / "cross_attention_weights.safetensors"
    state = load_file(place)
    save_file({**state, TOKEN_ROWS: state[TOKEN_ROWS] * torch.nan}, place, {TOKEN_IDS: "[0]"})
    with pytest.raises(AdapterFileError, match=f"{TOKEN_ROWS} holds NaN"):
        fresh.add_adapter("cross", tmp_path / "cross")
    save_file(state, place)
    with pytest.raises(AdapterFileError, match="expected a file that training wrote"):
        fresh.add_adapter("cross", tmp_path / "cross")
    place.write_bytes(b"no")
    with pytest.raises(AdapterFileError, match="not a safetensors file"):
        fresh.add_adapter("cross", tmp_path / "cross")
    fresh.close()
    with pytest.raises(ConfigError, match="CrossAttentionShape trains in an engine's slot only"):
        TrainJob(specs["cross"], base)
