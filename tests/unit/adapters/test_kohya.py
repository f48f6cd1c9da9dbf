"""kohya's naming: written and read for every family, against diffusers' reader and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from dreamfleet.adapters.files import load_adapter, save_adapter
from dreamfleet.adapters.kohya import export_kohya, import_kohya, kohya_name
from dreamfleet.adapters.lora import add_lora, has_lora, lora_state
from dreamfleet.api import export_adapter, generate, import_adapter
from dreamfleet.bases import Base, load_base
from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.engine.sampling import sample_images
from dreamfleet.errors import AdapterFileError, BadInputError
from tests.unit.adapters.test_lora import output, perturb

pytestmark = pytest.mark.heavy

PROMPT = "a sks dog"
MIXED = "lora_unet_mid_block_resnets_0_conv1."  # a layer of `foreign_file`


def adapted(folder: Path, layers: str, alpha: float = 2.0) -> Base:
    base = load_base(folder)
    add_lora(base, rank=4, alpha=alpha, layers=layers, train_text_encoder=True)  # type: ignore[arg-type]
    perturb(base)
    return base


def plain_picture(folder: Path, lora: Path | None = None) -> np.ndarray:
    """What diffusers alone draws."""
    with quiet_libraries():
        pipeline = DiffusionPipeline.from_pretrained(folder)
        if lora is not None:
            pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(3)
    image = pipeline(PROMPT, num_inference_steps=3, guidance_scale=3.0, generator=generator)
    return np.asarray(image.images[0]).astype(float)


def own_picture(base: Base) -> np.ndarray:
    (image,) = sample_images(base, [PROMPT], [3], num_inference_steps=3, guidance_scale=3.0)
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_diffusers_reads_the_exported_file_as_ours(
    family_folder: Path, tmp_path: Path, layers: str
) -> None:
    base = adapted(family_folder, layers)
    save_adapter(tmp_path / "ours", base)
    exported = export_kohya(tmp_path / "ours", tmp_path / "kohya.safetensors", base.files)
    drawn = plain_picture(family_folder, exported)
    assert np.abs(drawn - own_picture(base)).mean() < 0.5
    assert np.abs(drawn - plain_picture(family_folder)).mean() > 0.5


@pytest.mark.parametrize("layers", ["attention", "all"])
def test_there_and_back_is_the_same_adapter(
    family_folder: Path, tmp_path: Path, layers: str
) -> None:
    base = adapted(family_folder, layers, alpha=3.0)
    ours = save_adapter(tmp_path / "ours", base)
    exported = export_adapter(tmp_path / "ours", tmp_path / "kohya.safetensors")
    (tmp_path / "plain").touch()
    assert exported.stat().st_mode == (tmp_path / "plain").stat().st_mode, "by the umask"
    with safe_open(exported, framework="pt") as file:
        assert {key.partition(".")[2] for key in file.keys()} == {  # noqa: SIM118
            "lora_down.weight",
            "lora_up.weight",
            "alpha",
        }
        assert file.metadata()["ss_network_dim"] == "4"
        assert float(file.metadata()["ss_network_alpha"]) == 3.0
    back = import_adapter(exported, tmp_path / "back", base_model=family_folder)
    one, two = load_file(ours), load_file(back)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    fresh = load_base(family_folder)
    load_adapter(fresh, tmp_path / "back")
    assert torch.equal(output(fresh), output(base)), "alpha is part of the adapter"


def test_names_of_sdxl_are_those_of_sd_scripts(tiny_sdxl_folder: Path) -> None:
    """Names as in published SDXL LoRA files; the tiny base has SDXL's block structure."""
    files = load_base(tiny_sdxl_folder).files
    block = "transformer_blocks.0.attn1.to_q"
    expected = {
        f"down_blocks.1.attentions.0.{block}": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        f"down_blocks.2.attentions.1.{block}": "input_blocks_8_1_transformer_blocks_0_attn1_to_q",
        f"up_blocks.0.attentions.2.{block}": "output_blocks_2_1_transformer_blocks_0_attn1_to_q",
        "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
        "mid_block.resnets.1.conv1": "middle_block_2_in_layers_2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "down_blocks.2.resnets.0.conv_shortcut": "input_blocks_7_0_skip_connection",
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
        "up_blocks.2.resnets.2.conv2": "output_blocks_8_0_out_layers_3",
        "up_blocks.1.resnets.0.time_emb_proj": "output_blocks_3_0_emb_layers_1",
        "add_embedding.linear_2": "label_emb_0_2",
        "conv_in": "input_blocks_0_0",
    }
    found = {path: kohya_name(files, "unet", path) for path in expected}
    assert found == {path: f"lora_unet_{name}" for path, name in expected.items()}
    text = {
        ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
        ("text_encoder_2", "text_model.encoder.layers.0.self_attn.q_proj"),
    }
    assert {kohya_name(files, *place) for place in text} == {
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_0_self_attn_q_proj",
    }


def foreign_file(base: Base, path: Path, naming: str) -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """A file as others write them: half precision, mixed ranks and alphas, 1x1 convolutions as
    matrices, one layer without alpha; and the change of each layer's weights that it means.
    """
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    changes: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    places = [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 4, 2.0),
        ("down_blocks.1.attentions.0.proj_in", 2, 2.0),
        ("mid_block.resnets.0.conv1", 3, 1.0),
        ("mid_block.resnets.0.time_emb_proj", 4, None),
    ]
    for place, rank, alpha in places:
        module: Any = base.unet.get_submodule(place)
        shape = tuple(module.weight.shape)
        name = (
            kohya_name(base.files, "unet", place)
            if naming == "own"
            else f"lora_unet_{place.replace('.', '_')}"
        )
        inner = shape[1:] if shape[2:] not in ((), (1, 1)) else shape[1:2]
        down = torch.randn((rank, *inner), generator=generator).half() / 4
        up_shape = (shape[0], rank) if len(inner) == 1 else (shape[0], rank, 1, 1)
        up = torch.randn(up_shape, generator=generator).half() / 4
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
        change = up.float().reshape(shape[0], rank) @ down.float().reshape(rank, -1)
        scale = 1.0 if alpha is None else alpha / rank
        changes[place] = (module, (scale * change).reshape(shape))
    save_file(tensors, path)
    return changes


@pytest.mark.parametrize("naming", ["own", "diffusers"])
def test_foreign_files_mean_what_they_say(family_folder: Path, tmp_path: Path, naming: str) -> None:
    merged = load_base(family_folder)
    bare = output(merged)
    changes = foreign_file(merged, tmp_path / "foreign.safetensors", naming)
    import_kohya(tmp_path / "foreign.safetensors", tmp_path / "ours", load_base(family_folder))
    with torch.no_grad():
        for module, change in changes.values():
            module.weight += change  # type: ignore[operator]
    base = load_base(family_folder)
    load_adapter(base, tmp_path / "ours")
    torch.testing.assert_close(output(base), output(merged), rtol=1e-3, atol=1e-4)
    assert (output(base) - bare).abs().mean() > 1e-2
    again = export_kohya(tmp_path / "ours", tmp_path / "again.safetensors", base.files)
    alphas = {key: float(v) for key, v in load_file(again).items() if key.endswith(".alpha")}
    assert sorted(alphas.values()) == [1.0, 2.0, 2.0, 4.0], "each layer keeps its own"


def test_an_imported_adapter_names_its_base(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = load_base(tiny_base_folder)
    foreign_file(base, tmp_path / "foreign.safetensors", "own")
    import_kohya(tmp_path / "foreign.safetensors", tmp_path / "ours", base)
    assert not has_lora(base) and [p.name for p in (tmp_path / "ours").iterdir()] == [
        "pytorch_lora_weights.safetensors"
    ]
    again = import_kohya(tmp_path / "foreign.safetensors", tmp_path / "again", base)
    assert again.read_bytes() == (tmp_path / "ours" / again.name).read_bytes(), "the base is as new"
    (drawn,) = generate(PROMPT, adapter=tmp_path / "ours", seed=3, num_inference_steps=2)
    load_adapter(base, tmp_path / "ours")
    (expected,) = sample_images(base, [PROMPT], [3], num_inference_steps=2)
    assert np.array_equal(np.asarray(drawn), np.asarray(expected)), "no --base-model needed"
    with pytest.raises(BadInputError, match="there is an adapter in it"):
        import_adapter(
            tmp_path / "foreign.safetensors", tmp_path / "ours", base_model=tiny_base_folder
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_unet_nowhere.lora_down.weight": torch.ones(1, 1)}, "one factor is missing"),
        (
            {
                "lora_unet_nowhere.lora_down.weight": torch.ones(1, 1),
                "lora_unet_nowhere.lora_up.weight": torch.ones(1, 1),
            },
            "lora_unet_nowhere, which base .* does not have",
        ),
        ({"lora_unet_conv_in.hada_w1_a": torch.ones(1, 1)}, "no part of a plain LoRA"),
        ({"lora_unet_conv_in.dora_scale": torch.ones(1)}, "no part of a plain LoRA"),
        ({"lora_unet_conv_in.alpha": torch.tensor(float("nan"))}, "NaN"),
        ({MIXED + "alpha": torch.ones(2)}, "no single number"),
        ({MIXED + "lora_down.weight": torch.tensor(1.0)}, "do not fit"),
        ({MIXED + "lora_up.weight": torch.ones(3)}, "do not fit"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tiny_base_folder: Path, tmp_path: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    base = load_base(tiny_base_folder)
    path = tmp_path / "foreign.safetensors"
    foreign_file(base, path, "own")
    save_file({**load_file(path), **change}, path)
    with pytest.raises(AdapterFileError, match=message):
        import_kohya(path, tmp_path / "ours", base)
    assert not has_lora(base) and not list((tmp_path / "ours").glob("*"))


def test_files_without_effect_and_of_other_naming_are_refused(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = load_base(tiny_base_folder)
    path = tmp_path / "foreign.safetensors"
    foreign_file(base, path, "own")
    still = {k: v * 0 if "lora_up" in k else v for k, v in load_file(path).items()}
    save_file(still, path)
    with pytest.raises(AdapterFileError, match="would change nothing"):
        import_kohya(path, tmp_path / "ours", base)
    add_lora(base, rank=2, alpha=2, layers="attention")
    ours = save_adapter(tmp_path / "lora", base)
    assert lora_state(base)
    with pytest.raises(AdapterFileError, match="need no import"):
        import_kohya(ours, tmp_path / "ours", load_base(tiny_base_folder))
    with pytest.raises(AdapterFileError, match="ends with .safetensors"):
        export_kohya(ours, tmp_path / "out.bin", base.files)
