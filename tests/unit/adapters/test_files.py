"""Adapter files: the round trip through plain diffusers, and everything that is refused."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dreamfleet.adapters.files import (
    METADATA_KEY,
    WEIGHTS_NAME,
    adapter_kind,
    adapter_path,
    load_adapter,
    save_adapter,
    save_full,
)
from dreamfleet.adapters.lora import add_lora, has_lora, lora_scaling, lora_state
from dreamfleet.adapters.lora_slots import LoraShape, read_lora_slot
from dreamfleet.adapters.scales import PEFT_METADATA_KEY
from dreamfleet.bases import Base, load_base
from dreamfleet.engine.sampling import sample_images
from dreamfleet.errors import AdapterFileError
from tests.unit.adapters.test_lora import output, perturb

pytestmark = pytest.mark.heavy

State = dict[str, Tensor]


def adapted(folder: Path, layers: str = "all", text: bool = False, alpha: float = 2.0) -> Base:
    base = load_base(folder)
    add_lora(base, rank=4, alpha=alpha, layers=layers, train_text_encoder=text)  # type: ignore[arg-type]
    perturb(base)
    return base


def picture(pipeline: Any) -> np.ndarray:
    generator = torch.Generator("cpu").manual_seed(3)
    image = pipeline(
        "a sks dog", num_inference_steps=4, guidance_scale=3.0, generator=generator
    ).images[0]
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("layers", ["attention", "attention_ff", "all"])
@pytest.mark.parametrize("text", [False, True])
def test_round_trip_through_plain_diffusers(
    tiny_base_folder: Path, tmp_path: Path, layers: str, text: bool
) -> None:
    base = adapted(tiny_base_folder, layers, text, alpha=2.0)  # alpha != rank
    path = save_adapter(tmp_path, base)
    assert path == tmp_path / WEIGHTS_NAME and [p.name for p in tmp_path.iterdir()] == [
        WEIGHTS_NAME
    ]

    plain = StableDiffusionPipeline.from_pretrained(tiny_base_folder, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    before = picture(plain)
    plain.load_lora_weights(tmp_path)
    ours = lora_state(base)
    theirs: State = {}
    for prefix in ("unet", "text_encoder")[: 1 + text]:
        module = getattr(plain, prefix)
        name = next(iter(module.peft_config))
        loaded = get_peft_model_state_dict(module, adapter_name=name)
        theirs |= {f"{prefix}.{key}": value for key, value in loaded.items()}
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    after = picture(plain)
    (mine,) = sample_images(base, ["a sks dog"], [3], num_inference_steps=4, guidance_scale=3.0)
    assert np.abs(after - np.asarray(mine)).mean() < 0.5, "the same picture"
    assert np.abs(after - before).mean() > 0.5, "another picture than the base's"


def test_load_and_replace(tiny_base_folder: Path, tmp_path: Path) -> None:
    first = adapted(tiny_base_folder, "attention", alpha=1.0)
    second = adapted(tiny_base_folder, "all", text=True)
    save_adapter(tmp_path / "1", first)
    save_adapter(tmp_path / "2", second)
    base = load_base(tiny_base_folder)
    load_adapter(base, tmp_path / "2")
    torch.testing.assert_close(output(base), output(second))
    load_adapter(base, tmp_path / "1" / WEIGHTS_NAME)
    torch.testing.assert_close(output(base), output(first))
    assert lora_state(base).keys() == lora_state(first).keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_takes_an_adapter(
    tiny_base_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    whole = adapted(tiny_base_folder, text=True)
    save_adapter(tmp_path, whole)
    half = load_base(tiny_base_folder, dtype=dtype)
    bare = output(half)
    load_adapter(half, tmp_path)
    effect = float((output(whole) - bare).abs().mean())
    assert float((output(half) - output(whole)).abs().mean()) < 0.05 * effect


def test_tensors_that_diffusers_leaves_out_are_noticed(
    saved: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = StableDiffusionPipeline.load_lora_into_unet

    def careless(self: Any, *args: Any, **options: Any) -> None:
        load(*args, **options)
        next(own for name, own in self.unet.named_parameters() if "lora_B" in name).data.zero_()

    monkeypatch.setattr(StableDiffusionPipeline, "load_lora_into_unet", careless)
    count = len(load_file(saved))
    base = load_base(tiny_base_folder)
    bare = output(base)
    with pytest.raises(AdapterFileError, match=f"only {count - 1} of {count} tensors"):
        load_adapter(base, saved)
    assert not has_lora(base) and torch.equal(output(base), bare)


def test_tensors_that_a_file_does_not_hold_are_noticed(
    saved: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by options of a later PEFT that `scales` does not know of."""
    path, base = Path(shutil.copy(saved, tmp_path)), load_base(tiny_base_folder)
    _told(**{"unet.bias": "all"})(path)
    monkeypatch.setattr("dreamfleet.adapters.files.lora_scales", lambda *args: {})
    bare = output(base)
    with pytest.raises(AdapterFileError, match=r"ask for \d+ tensors that it does not hold"):
        load_adapter(base, tmp_path)
    assert not has_lora(base) and torch.equal(output(base), bare)


def test_half_of_an_adapter_does_not_stay(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tmp_path, adapted(tiny_base_folder, "attention", text=True))
    base = load_base(tiny_base_folder)
    bare = output(base)

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(StableDiffusionPipeline, "load_lora_into_text_encoder", broken)
    with pytest.raises(AdapterFileError, match="cannot be put into base .*size mismatch"):
        load_adapter(base, tmp_path)
    assert not has_lora(base) and torch.equal(output(base), bare)


def test_equal_adapters_make_equal_files(tiny_base_folder: Path, tmp_path: Path) -> None:
    files = [
        save_adapter(tmp_path / str(i), adapted(tiny_base_folder)).read_bytes() for i in range(2)
    ]
    assert files[0] == files[1]
    mode = (tmp_path / "0" / WEIGHTS_NAME).stat().st_mode
    (tmp_path / "plain").touch()
    assert mode == (tmp_path / "plain").stat().st_mode, "by the umask, not for the owner alone"
    with safe_open(tmp_path / "0" / WEIGHTS_NAME, framework="pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    assert about["base_hash"] == load_base(tiny_base_folder).hash and about["family"] == "sd1"


def test_full_models_are_diffusers_folders(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = load_base(tiny_base_folder)
    with torch.no_grad():
        base.unet.conv_out.bias += 1
    files = save_full(tmp_path, base)
    assert tmp_path / "model_index.json" in files and adapter_kind(tmp_path) == "full"
    assert torch.equal(output(load_base(tmp_path)), output(base))


def _with(change: Callable[[State], None]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        state = {key: value.clone() for key, value in load_file(path).items()}
        change(state)
        save_file(state, path, metadata)

    return act


def _nan(state: State) -> None:
    state[next(iter(state))][0] = float("nan")


def _kohya(state: State) -> None:
    for key in list(state):
        state["lora_unet_" + key.removeprefix("unet.").replace(".", "_")] = state.pop(key)


def _lonely(state: State) -> None:
    state.pop(next(key for key in state if "lora_B" in key))


def _unknown_layer(state: State) -> None:
    for side in "AB":
        key = next(key for key in state if f"lora_{side}" in key)
        state[f"unet.middle.of.nowhere.lora_{side}.weight"] = state.pop(key)


def _other_rank(state: State) -> None:
    key = next(key for key in state if "lora_A" in key)
    state[key] = state[key][:2].clone()


def _other_width(state: State) -> None:
    key = next(key for key in state if "to_q.lora_A" in key)
    state[key] = torch.zeros(4, 7)


def _foreign_name(state: State) -> None:
    state["something"] = torch.zeros(1)


def _shaped(**shapes: tuple[int, ...]) -> Callable[[State], None]:
    """Of one layer the factors in other shapes."""

    def change(state: State) -> None:
        layer = next(key for key in state if "to_q.lora_A" in key).removesuffix("A.weight")
        for side, shape in shapes.items():
            state[f"{layer}{side}.weight"] = torch.zeros(shape)

    return change


def _of(layer: str) -> Callable[[State], None]:
    """A LoRA of something that is no layer."""

    def change(state: State) -> None:
        state |= {f"{layer}.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}

    return change


def _told(**about: Any) -> Callable[[Path], None]:
    """Other words in PEFT's config."""

    def spoil(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        told = {**json.loads(metadata[PEFT_METADATA_KEY]), **about}
        save_file(load_file(path), path, {**metadata, PEFT_METADATA_KEY: json.dumps(told)})

    return spoil


def _about_base(text: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata())
        save_file(load_file(path), path, {**metadata, METADATA_KEY: text})

    return spoil


def _no_config(path: Path) -> None:
    save_file(load_file(path), path, {PEFT_METADATA_KEY: "{"})


def _header(size: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(struct.pack("<Q", size) + path.read_bytes()[8:])

    return spoil


def _raw(content: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(content)

    return spoil


def _crafted(header: str, data: bytes = b"\0" * 8) -> Callable[[Path], None]:
    text = header.encode()
    return _raw(struct.pack("<Q", len(text)) + text + data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


@pytest.fixture(scope="module")
def bare(tiny_base_folder: Path) -> Base:
    """A base into which nothing gets."""
    return load_base(tiny_base_folder)


@pytest.fixture(scope="module")
def saved(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter's file; to be copied."""
    return save_adapter(tmp_path_factory.mktemp("saved"), adapted(tiny_base_folder))


ONE = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWO = '{"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}'


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_with(_nan), "NaN"),
        (_with(_kohya), "kohya"),
        (_with(_lonely), "one factor is missing"),
        (_with(_unknown_layer), "does not have"),
        (_with(_other_rank), "do not fit"),
        (_with(_other_width), "do not fit"),
        (_with(_foreign_name), "no LoRA factor"),
        (_with(_shaped(A=())), "do not fit"),
        (_with(_shaped(B=(4,))), "do not fit"),
        (_with(_shaped(A=(0, 32), B=(32, 0))), "do not fit"),
        (_with(_of("unet")), "does not have"),
        (_with(_of("unet.mid_block")), "does not have"),
        (_with(_of("unet.conv_norm_out")), "does not have"),
        (_no_config, "no config of PEFT's"),
        (_told(**{"unet.lora_alpha": None}), "no config of PEFT's"),
        (_told(**{"unet.lora_alpha": float("nan")}), "finite"),
        (_told(**{"unet.lora_alpha": float("inf")}), "finite"),
        (_told(**{"unet.alpha_pattern": {"(": 2}}), "names of layers such as to_q"),
        (_told(**{"unet.alpha_pattern": {"([a-z]+)+!": 2}}), "no regular expressions"),
        (_told(**{"unet.rank_pattern": {"([a-z]+)+!": 2}}), "no regular expressions"),
        (_told(**{"unet.layers_pattern": "([a-z]+)+!"}), "no regular expressions"),
        (_told(**{"unet.target_modules": "([a-z]+)+!"}), "no regular expressions"),
        (_told(**{"unet.exclude_modules": "([a-z]+)+!"}), "no regular expressions"),
        (_told(**{"unet.use_dora": True}), "unet.use_dora = True; expected a plain LoRA"),
        (_told(**{"unet.lora_bias": True}), "unet.lora_bias = True; expected a plain LoRA"),
        (_told(**{"unet.bias": "all"}), "unet.bias = 'all'; expected a plain LoRA"),
        (_told(**{"unet.kasa_config": {}}), "unet.kasa_config = {}; expected a plain LoRA"),
        (_told(**{"unet.of_a_later_peft": 2}), "unet.of_a_later_peft = 2; expected a plain LoRA"),
        (_told(**{"unet.init_lora_weights": "pissa_niter_4"}), "'pissa_niter_4'; expected a plain"),
        (_told(**{"unet.init_lora_weights": "olora"}), "'olora'; expected a plain LoRA"),
        (_told(**{"unet.r": 8}), "has rank 4, and rank 8 by the file's metadata"),
        (_told(**{"unet.rank_pattern": {"to_q": 2}}), "to_q has rank 4, and rank 2"),
        (_about_base("[" * 100_000), "nested too deeply"),
        (_told(**{"unet.alpha_pattern": [2]}), "no config of PEFT's"),
        (_header(2 * 2**30), "not a safetensors file"),
        (_header(0), "not a safetensors file"),
        (_raw(b""), "not a safetensors file"),
        (_raw(b"<html>not found</html>"), "not a safetensors file"),
        (_cut, "damaged"),
        (_crafted(f'{{"a": {ONE}, "a": {ONE}}}'), "occurs twice"),
        (_crafted(f'{{"a": {ONE}, "b": {TWO}}}'), "damaged"),
        (_crafted("{}", b""), "no tensors"),
    ],
)
def test_bad_files_are_refused(
    bare: Base, saved: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path, base = Path(shutil.copy(saved, tmp_path)), bare
    damage(path)
    for read in (load_adapter, read_lora_slot):
        with pytest.raises(AdapterFileError, match=message) as caught:
            read(base, tmp_path)
        assert str(path) in str(caught.value)
    assert not has_lora(base), "a refused file leaves the base as it was"


@pytest.mark.filterwarnings("ignore:.*target:RuntimeWarning", "ignore:.*exclude_modules")
@pytest.mark.parametrize(
    ("about", "scales"),
    [
        ({"unet.alpha_pattern": {"to_q": 6}, "unet.rank_pattern": {"to_k": 4}}, {0.5, 1.5}),
        ({"unet.alpha_pattern": {"^conv_in": 1, "attn2.to_out.0": 8.0}}, {0.5, 2.0}),
        ({"unet.use_rslora": True}, {1.0}),
        ({"unet.init_lora_weights": True}, {0.5}),
        ({"unet.init_lora_weights": False}, {0.5}),
        ({"unet.target_modules": "all-linear", "unet.exclude_modules": ["to_q"]}, {0.5}),
        ({"unet.modules_to_save": [], "unet.layers_pattern": []}, {0.5}),
        ({"unet.of_a_later_peft": None, "unet.another": {}, "unet.off": False}, {0.5}),
    ],
)
def test_what_peft_writes_of_plain_loras_is_read(
    saved: Path, tiny_base_folder: Path, tmp_path: Path, about: dict[str, Any], scales: set[float]
) -> None:
    """And means what it means to PEFT."""
    path, base = Path(shutil.copy(saved, tmp_path)), load_base(tiny_base_folder)
    _told(**about)(path)
    state = read_lora_slot(base, path)
    assert set(state.scales.values()) == scales
    load_adapter(base, path)
    layers = {
        name: module for name, module in base.unet.named_modules() if hasattr(module, "scaling")
    }
    assert {f"unet.{name}": module.scaling["subject"] for name, module in layers.items()} == dict(
        state.scales
    )


@pytest.mark.parametrize("front", ["", "text_model.", "^text_model.", "^"])
def test_patterns_of_text_encoders_match_whatever_their_layers_are_called(
    family_folder: Path, tmp_path: Path, front: str
) -> None:
    path = save_adapter(tmp_path, adapted(family_folder, "attention", text=True))
    layer = f"{front}encoder.layers.0.self_attn.q_proj"
    base = load_base(family_folder)
    _told(**{f"{name}.alpha_pattern": {layer: 6} for name in base.text_encoders})(path)
    state = read_lora_slot(base, path)
    named = [name for name in state.scales if name.endswith("encoder.layers.0.self_attn.q_proj")]
    assert len(named) == len(base.text_encoders)
    assert {state.scales[name] for name in named} == {1.5}
    load_adapter(base, path)
    assert lora_scaling(base) == dict(state.scales)


def test_a_scale_that_peft_takes_otherwise_is_refused(
    saved: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base(tiny_base_folder)
    bare = output(base)
    taken = "dreamfleet.adapters.files.lora_scaling"
    monkeypatch.setattr(taken, lambda base: dict.fromkeys(lora_scaling(base), 2.0))
    with pytest.raises(AdapterFileError, match=r"alpha / rank 0.5 .*, and PEFT takes 2;"):
        load_adapter(base, saved)
    assert not has_lora(base) and torch.equal(output(base), bare)


def test_a_file_says_what_makes_its_lora_and_nothing_of_the_installed_peft(
    family_folder: Path, tmp_path: Path
) -> None:
    """So an older PEFT, which refuses options that it does not know, takes it."""
    base = adapted(family_folder, "all", text=True)
    alone = save_adapter(tmp_path / "alone", base)
    slot = read_lora_slot(load_base(family_folder), alone)
    shape = LoraShape(4, 2.0, "all", train_text_encoder=True)
    packed = shape.save(tmp_path / "packed", load_base(family_folder), slot)
    assert packed[0].read_bytes() == alone.read_bytes()
    with safe_open(alone, framework="pt") as file:
        told = json.loads(file.metadata()[PEFT_METADATA_KEY])
        names = list(file.keys())
    assert {key.partition(".")[0] for key in told} == {"unet", *base.text_encoders}
    assert {key.partition(".")[2] for key in told} == {
        "r",
        "lora_alpha",
        "target_modules",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "init_lora_weights",
    }
    of_text = [name for name in names if not name.startswith("unet.")]
    # As transformers below 5.6 calls them, over which diffusers finds nothing else.
    assert of_text and all(".text_model.encoder.layers." in name for name in of_text)


def test_a_config_that_leaves_alpha_out_means_pefts_own(
    saved: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    path, base = Path(shutil.copy(saved, tmp_path)), load_base(tiny_base_folder)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    told = json.loads(metadata[PEFT_METADATA_KEY])
    del told["unet.lora_alpha"]
    save_file(load_file(path), path, {**metadata, PEFT_METADATA_KEY: json.dumps(told)})
    assert set(read_lora_slot(base, path).scales.values()) == {8 / 4}
    save_file(load_file(path), path)
    assert set(read_lora_slot(base, path).scales.values()) == {1.0}, "without any: alpha = rank"


def test_another_base_is_refused(
    tiny_base_folder: Path, tiny_v_base_folder: Path, tmp_path: Path
) -> None:
    save_adapter(tmp_path, adapted(tiny_base_folder))
    other = load_base(tiny_v_base_folder)
    with pytest.raises(AdapterFileError, match="was trained on base model"):
        load_adapter(other, tmp_path)
    load_adapter(other, tmp_path, check_base=False)
    assert has_lora(other)


def test_where_there_is_no_adapter(tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="no such adapter"):
        adapter_path(tmp_path)
    (tmp_path / "lora.bin").write_bytes(b"")
    with pytest.raises(AdapterFileError, match="safetensors"):
        adapter_path(tmp_path / "lora.bin")
    with pytest.raises(AdapterFileError, match="finished run"):
        adapter_kind(tmp_path)
    with pytest.raises(AdapterFileError, match="no adapter"):
        save_adapter(tmp_path, load_base(tiny_base_folder))
