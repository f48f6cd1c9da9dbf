"""Loading, hashes, refusals, encoding, and how a base fills the gaps of a configuration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from dreamfleet.bases import Base, embedded_path, inspect_base, load_base, resolved_config
from dreamfleet.bases.base import encode_images
from dreamfleet.bases.defaults import rare_token
from dreamfleet.bases.files import BaseFiles, missing_files
from dreamfleet.bases.loading import load_vae, resolve_device
from dreamfleet.config import load_config
from dreamfleet.errors import BaseModelError, ConfigError

MakeBase = Callable[[], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> Base:
    return load_base(tiny_base_folder)


def test_a_loaded_base_is_frozen_and_known(base: Base, tiny_base_folder: Path) -> None:
    assert (base.family, base.resolution, base.latent_shape) == ("sd1", 64, (4, 16, 16))
    assert base.name == str(tiny_base_folder)
    for module in (base.unet, base.vae, base.text_encoder):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert base.defaults.lora_layers == "all" and base.defaults.rank == 16


def test_any_printable_text_encodes_and_each_prompt_alone_gives_the_same(base: Base) -> None:
    prompts = ["a photo of sks dog", "", "a photo of sks dog", "Ünïcode ~ 犬 " + "x" * 90]
    together = base.encode_prompts(prompts).prompt_embeds
    assert together.shape == (4, 24, 16)
    assert torch.equal(together[0], together[2])
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(base.encode_prompts([prompt]).prompt_embeds[0], together[i])


def test_images_become_scaled_moments_and_come_back(base: Base) -> None:
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = base.encode_images(pixels)
    posterior = base.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, posterior.mean * 0.5)
    torch.testing.assert_close(std, posterior.std * 0.5)
    decoded = base.decode_latents(mean)
    assert decoded.dtype == torch.uint8 and decoded.shape == (2, 64, 64, 3)
    raw = (base.vae.decode(mean / 0.5).sample / 2 + 0.5).clamp(0, 1)
    expected = np.round(raw.permute(0, 2, 3, 1).detach().numpy() * 255)
    assert np.abs(decoded.numpy() - expected).max() <= 1


def test_hashes_follow_the_component(own_tiny_base: MakeBase, base: Base) -> None:
    folder = own_tiny_base()
    before = inspect_base(folder)
    assert before.hash == base.hash, "equal files, equal hash"
    names = ("unet_hash", "vae_hash", "text_encoder_hash", "hash")
    old = {name: getattr(before, name) for name in names}
    state = load_file(folder / UNET)
    state[next(iter(state))] += 1
    save_file(state, folder / UNET)
    after = inspect_base(folder)
    changed = [name for name in names if getattr(after, name) != old[name]]
    assert changed == ["unet_hash", "hash"]


def test_hashes_are_of_what_is_read(own_tiny_base: MakeBase, base: Base) -> None:
    folder = own_tiny_base()
    half = "diffusion_pytorch_model.safetensors.index.fp16.json"
    for name in (f"unet/{half}", "vae/README.md", "text_encoder/README.md", "tokenizer/README.md"):
        (folder / name).write_text("{}")
    assert inspect_base(folder).hash == base.hash
    (folder / f"{UNET}.index.json").write_text("{}")
    assert inspect_base(folder).hash != base.hash, "the variant's own, which says where weights lie"


def test_a_folder_with_a_number_sign_in_its_name_has_variants_too(
    own_tiny_base: MakeBase,
) -> None:
    folder = own_tiny_base()
    folder = folder.rename(folder.with_name("my #1"))
    state = load_file(folder / UNET)
    save_file(state, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    assert inspect_base(folder).variant is None
    files = inspect_base(f"{folder}#fp16")
    assert files.path == folder and files.weights_variant("unet") == "fp16"


def test_plain_diffusers_reads_the_same_folder(base: Base, tiny_base_folder: Path) -> None:
    plain = StableDiffusionPipeline.from_pretrained(tiny_base_folder, safety_checker=None)
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(base, name).state_dict(), getattr(plain, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def _remove(name: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def _set(name: str, **values: object) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return act


def _only_pickle(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet" / "diffusion_pytorch_model.bin")


def _truncate(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])


def _drop_tensor(folder: Path) -> None:
    state = load_file(folder / UNET)
    state.pop(next(iter(state)))
    save_file(state, folder / UNET)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("model_index.json"), "model_index.json missing"),
        (_remove("vae"), "vae/config.json missing"),
        (_remove("tokenizer"), "tokenizer missing"),
        (_only_pickle, "can run code"),
        (_truncate, "cannot be loaded"),
        (_drop_tensor, "1 missing tensors"),
        (
            _set("model_index.json", _class_name="FluxPipeline"),
            "FluxPipeline, which is not supported",
        ),
        (_set("unet/config.json", in_channels=9), "inpainting"),
        (
            _set("scheduler/scheduler_config.json", prediction_type="sample"),
            "prediction_type 'sample'",
        ),
        (
            _set("scheduler/scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler"),
            "FlowMatchEulerDiscreteScheduler .*is not supported",
        ),
        (
            _set("scheduler/scheduler_config.json", _class_name="EDMEulerScheduler"),
            "EDMEulerScheduler .*is not supported",
        ),
        (
            _set("scheduler/scheduler_config.json", use_flow_sigmas=True),
            "flow matching",
        ),
    ],
)
def test_damaged_bases_are_named(
    own_tiny_base: MakeBase, damage: Callable[[Path], None], message: str
) -> None:
    folder = own_tiny_base()
    damage(folder)
    with pytest.raises(BaseModelError, match=message):
        load_base(folder)


def test_missing_folders_and_unreachable_hubs_are_named(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="does not exist"):
        load_base(tmp_path / "nowhere")
    with pytest.raises(BaseModelError, match="does not exist"):
        load_base("some-name-without-owner")
    (tmp_path / "file").write_text("")
    with pytest.raises(BaseModelError, match="is a file"):
        load_base(tmp_path / "file")


def test_half_precision_files_load(own_tiny_base: MakeBase) -> None:
    folder = own_tiny_base()
    state = {key: value.half() for key, value in load_file(folder / UNET).items()}
    (folder / UNET).unlink()
    save_file(state, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    base = load_base(folder)
    assert base.unet.dtype == torch.float32, "half on disk, single in use"


def test_embedded_base_missing_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dreamfleet.bases.files.PACKAGE_FOLDER", tmp_path)
    with pytest.raises(BaseModelError, match="pretrain_base"):
        embedded_path()
    assert "tokenizer" in missing_files(tmp_path)


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(BaseModelError, match="no GPU"):
            resolve_device("cuda")


def test_gaps_are_filled(base: Base) -> None:
    config = load_config(None, {"subject.class_word": "dog", "subject.token": "auto"})
    filled = resolved_config(config, base)
    train = filled.train
    assert (train.max_train_steps, train.learning_rate, train.rank, train.lora_alpha) == (
        100,
        1e-3,
        16,
        16.0,
    )
    beside_a_prior = {**config.model_dump(), "prior": {"with_prior_preservation": True}}
    with_prior = resolved_config(type(config).model_validate(beside_a_prior), base)
    assert with_prior.train.max_train_steps == 400
    assert train.lora_layers == "all" and filled.data.resolution == 64
    assert filled.prior.guidance_scale == filled.sampling.guidance_scale == 3.0
    assert filled.subject.token == "ktn", "a rare single token"
    assert config.train.rank is None, "the given tree stays as it was"
    assert resolved_config(config, base.files) == filled
    assert resolved_config(filled, base) == filled
    kept = load_config(
        None, {"train.rank": 3, "train.lora_alpha": 1.5, "sampling.guidance_scale": 7}
    )
    again = resolved_config(kept, base)
    assert (again.train.rank, again.train.lora_alpha, again.sampling.guidance_scale) == (3, 1.5, 7)
    full = resolved_config(load_config(None, {"train.mode": "full"}), base)
    assert full.train.learning_rate == 1e-4


def test_large_bases_keep_the_settings_of_diffusers_readme(base: Base) -> None:
    files = BaseFiles("large", base.files.path, base.files.family)
    files.__dict__["unet_config"] = {**base.files.unet_config, "sample_size": 128}
    lora = resolved_config(load_config(), files).train
    assert (lora.max_train_steps, lora.learning_rate, lora.rank, lora.lora_layers) == (
        500,
        1e-4,
        4,
        "attention",
    )
    options = {"train.mode": "full", "prior.with_prior_preservation": True}
    full = resolved_config(load_config(None, options), files).train
    assert (full.max_train_steps, full.learning_rate) == (800, 5e-6)
    with_text = resolved_config(
        load_config(None, {**options, "train.train_text_encoder": True}), files
    )
    assert with_text.train.learning_rate == 2e-6


def test_settings_that_do_not_fit_the_base_are_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match=r"train.rank = 64: .*\(32\)"):
        resolved_config(load_config(None, {"train.rank": 64}), base)
    with pytest.raises(ConfigError, match="data.resolution = 60: expected a multiple of 8"):
        resolved_config(load_config(None, {"data.resolution": 60}), base)


@pytest.mark.parametrize("setting", ["mode=lora", "mixed_precision=fp16", "use_8bit_adam=true"])
def test_what_cannot_be_sharded_is_refused(base: Base, setting: str) -> None:
    key, _, value = setting.partition("=")
    options = {"cluster.parallel_strategy": "fsdp", "train.mode": "full", f"train.{key}": value}
    with pytest.raises(ConfigError, match=f"'fsdp' with train.{key} = '?{value}'?: "):
        resolved_config(load_config(None, options), base)


def test_rare_tokens(base: Base) -> None:
    assert rare_token(base.tokenizer, taken=["ktn"]) == "sks"
    assert rare_token(base.tokenizer, taken=["ktn", "sks"]) in ("dog", "cat", "the")


def test_half_precision_predicts_nearly_the_same(tiny_base_folder: Path) -> None:
    base = load_base(tiny_base_folder, dtype=torch.bfloat16)
    assert base.unet.dtype == base.text_encoder.dtype == torch.bfloat16
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([1, 500])
    with torch.no_grad():
        half = base.predict(x, t, base.encode_prompts(["a dog", ""]))
        single = load_base(tiny_base_folder)
        full = single.predict(x, t, single.encode_prompts(["a dog", ""]))
    assert (half.float() - full).abs().max() < 0.1


def test_embedded_base(embedded_base: Path) -> None:
    base = load_base("embedded")
    assert base.resolution == 64 and base.files.path == embedded_base
    assert len(base.tokenizer("sks dog", add_special_tokens=False).input_ids) == 2


def test_photos_are_encoded_by_the_vae_alone_as_by_the_base(tiny_base_folder: Path) -> None:
    base, vae = load_base(tiny_base_folder), load_vae(tiny_base_folder)
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for one, two in zip(base.encode_images(pixels), encode_images(vae, pixels), strict=True):
        assert torch.equal(one, two) and one.dtype == torch.float32
    assert not any(weight.requires_grad for weight in vae.parameters())
