"""What SD2 and SDXL add: two text encoders, further conditions, variants, half precision."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, PNDMScheduler
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from huggingface_hub import errors
from PIL import Image
from safetensors.torch import load_file, save_file

from dreamfleet.adapters.files import save_full
from dreamfleet.bases import hub, inspect_base, load_base, resolved_config
from dreamfleet.bases.files import BaseFiles
from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.config import load_config
from dreamfleet.diffusion.linear_steps import linear_steps
from dreamfleet.engine.sampling import sample_images
from dreamfleet.errors import BaseModelError
from tests.tiny_bases import SECOND_TEXT_WIDTH, TEXT_WIDTH, add_safety_checker, make_tiny_sd1

pytestmark = pytest.mark.heavy

UNET = "unet/diffusion_pytorch_model.safetensors"
PROMPT = "a sks dog"


def test_a_picture_equals_that_of_diffusers(family_folder: Path) -> None:
    with quiet_libraries():
        plain = DiffusionPipeline.from_pretrained(family_folder)
    plain.set_progress_bar_config(disable=True)
    base = load_base(family_folder)
    for scale in (3.0, 1.0):
        generator = torch.Generator("cpu").manual_seed(3)
        options = {"num_inference_steps": 3, "guidance_scale": scale}
        theirs = plain(PROMPT, generator=generator, **options).images[0]
        (ours,) = sample_images(base, [PROMPT], [3], **options)  # type: ignore[arg-type]
        difference = np.asarray(ours).astype(int) - np.asarray(theirs).astype(int)
        assert np.abs(difference).max() <= 1 and np.asarray(ours).std() > 5, "but for rounding"


def test_families_are_told_apart(family_folder: Path) -> None:
    base = load_base(family_folder)
    assert family_folder.name.startswith(base.family)
    assert (
        list(base.text_encoders)
        == ["text_encoder", "text_encoder_2"][: 1 + (base.family == "sdxl")]
    )
    expected = "v_prediction" if base.family == "sd2" else "epsilon"
    assert base.schedule.prediction_type == expected


def test_sdxl_conditions(tiny_sdxl_folder: Path) -> None:
    base = load_base(tiny_sdxl_folder)
    encoded = base.encode_prompts(["a dog", "", "a cat"])
    assert encoded.prompt_embeds.shape == (3, 24, TEXT_WIDTH + SECOND_TEXT_WIDTH)
    assert encoded.pooled is not None and encoded.pooled.shape == (3, SECOND_TEXT_WIDTH)
    assert not encoded.prompt_embeds[1].any() and not encoded.pooled[1].any()
    assert encoded.prompt_embeds[0].any() and encoded.pooled[0].any()
    seen: list[torch.Tensor] = []
    base.unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["added_cond_kwargs"]["time_ids"]),
        with_kwargs=True,
    )
    base.predict(torch.zeros(3, 4, 16, 24), torch.tensor([1, 2, 3]), encoded)
    assert seen[0].tolist() == [[64, 96, 0, 0, 64, 96]] * 3


def test_hashes_know_the_second_encoder(tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_sdxl_folder, folder)
    old = inspect_base(folder)
    before = (old.hash, old.text_encoder_hash, old.unet_hash)
    path = folder / "text_encoder_2" / "model.safetensors"
    state = load_file(path)
    state[next(iter(state))] += 1
    save_file(state, path, {"format": "pt"})
    after = inspect_base(folder)
    assert after.hash != before[0] and after.text_encoder_hash != before[1]
    assert after.unet_hash == before[2]
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(BaseModelError, match="tokenizer_2 missing .* family sdxl has"):
        inspect_base(folder)


def test_defaults_of_sdxl(tiny_sdxl_folder: Path) -> None:
    files = inspect_base(tiny_sdxl_folder)
    large = BaseFiles("large", files.path, files.family)
    large.__dict__["unet_config"] = {**files.unet_config, "sample_size": 256}
    lora = resolved_config(load_config(), large)
    assert (lora.train.rank, lora.train.learning_rate) == (4, 1e-4)
    assert lora.sampling.guidance_scale == 5.0 and lora.data.resolution == 1024
    full = resolved_config(load_config(None, {"train.mode": "full"}), large)
    assert full.train.learning_rate == 1e-6


@pytest.fixture
def two_variants(tmp_path: Path) -> Path:
    """A base with full weights everywhere, and other, fp16 weights of the UNet."""
    folder = make_tiny_sd1(tmp_path / "base")
    state = {key: value.half() * 0.5 for key, value in load_file(folder / UNET).items()}
    save_file(state, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"format": "pt"})
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"other")
    return folder


def test_variants_are_chosen_and_missed_by_name(two_variants: Path) -> None:
    full, half = load_base(two_variants), load_base(f"{two_variants}#fp16")
    for key, value in full.unet.state_dict().items():
        assert torch.equal(half.unet.state_dict()[key], value.half().mul(0.5).float())
    with pytest.raises(BaseModelError, match=r"variant = 'bf16'.*there are: .*the full one"):
        load_base(f"{two_variants}#bf16")
    config = load_config(None, {"base_model": "a/b", "revision": "v1", "variant": "fp16"})
    assert config.base_source == "a/b@v1#fp16"
    assert load_config().base_source == "embedded"


def test_a_variant_that_nobody_reads_changes_no_hash(two_variants: Path) -> None:
    """A hub's snapshot gets one when it is drawn with, and adapters know their base by its hash."""
    full, half = inspect_base(two_variants), inspect_base(f"{two_variants}#fp16")
    assert full.unet_hash != half.unet_hash and full.vae_hash == half.vae_hash
    (two_variants / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert inspect_base(two_variants).hash == full.hash
    # A whole copy of a hub's repository has these, what is fetched from the hub here has not.
    for name in ("model.bin", "model.ckpt", "model.msgpack", "model.h5", "model.onnx", "m.xml"):
        (two_variants / "text_encoder" / name).write_bytes(b"other")
    assert inspect_base(two_variants).hash == full.hash
    (two_variants / "scheduler" / "other.json").write_text("{}")
    assert inspect_base(two_variants).hash != full.hash


def test_downloads_that_did_not_end_are_named(tmp_path: Path) -> None:
    folder = make_tiny_sd1(tmp_path / "base")
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model-00001-of-00002.safetensors")
    parts = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": parts[0], "b": parts[1]}}
    (folder / f"{UNET}.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match=r"1 of 2 weight files missing .*00002-of-00002"):
        inspect_base(folder)
    for path in (folder / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".incomplete"))
    with pytest.raises(BaseModelError, match="a download that did not end"):
        inspect_base(folder)


def hub_error(kind: type[Exception]) -> Exception:
    """The hub client's errors as it raises them, with or without a server's answer."""
    if issubclass(kind, errors.HfHubHTTPError):
        from unittest.mock import MagicMock

        return kind("403 Client Error", response=MagicMock(headers={}))
    return kind("cannot reach huggingface.co")


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (errors.GatedRepoError, "licence accepted"),
        (errors.RepositoryNotFoundError, "check the name"),
        (errors.RevisionNotFoundError, "not this revision"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (ConnectionError, "cannot be reached"),
        (RuntimeError, "not|check the name and the network"),
    ],
)
def test_the_hubs_refusals_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], advice: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise hub_error(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(BaseModelError, match=rf"owner/name' at revision 'v2'.*{advice}"):
        load_base("owner/name@v2")


def test_without_network_the_hub_is_named() -> None:
    with pytest.raises(BaseModelError, match="cannot be reached.*or give a diffusers folder"):
        inspect_base("nobody/no-such-model")  # the tests' environment is offline


def test_the_hub_is_asked_for_one_variant_and_no_pickles(
    monkeypatch: pytest.MonkeyPatch, two_variants: Path
) -> None:
    asked: list[dict[str, object]] = []

    def snapshot(name: str, **options: object) -> str:
        asked.append(options)
        return str(two_variants)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert hub.hub_folder("owner/name") == two_variants
    assert hub.hub_folder("owner/name", "v1", "fp16") == two_variants
    plain, half = asked
    assert "*.fp16*" in plain["ignore_patterns"]  # type: ignore[operator]
    assert "unet/*.fp16*.safetensors" in half["allow_patterns"]  # type: ignore[operator]
    assert half["revision"] == "v1"
    patterns = [str(p) for options in asked for p in options["allow_patterns"]]  # type: ignore[attr-defined]
    assert not [pattern for pattern in patterns if pattern.endswith(("bin", "*/*"))]
    for path in (two_variants / "vae").glob("*.safetensors"):
        path.unlink()
    hub.hub_folder("owner/name", None, "fp16")
    assert asked[-1]["allow_patterns"] == ["vae/*.safetensors"], "what has no such variant"


def _vae_that_overflows(folder: Path, force_upcast: bool) -> None:
    """Activations of some 1e6 inside the decoder, ordinary pictures at its end."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    for key in ("decoder.conv_in.weight", "decoder.conv_in.bias"):
        state[key] *= 1e6
    save_file(state, path, {"format": "pt"})
    config = folder / "vae" / "config.json"
    settings = {**json.loads(config.read_text()), "force_upcast": force_upcast}
    config.write_text(json.dumps(settings))


@pytest.mark.parametrize("force_upcast", [True, False])
def test_a_vae_that_overflows_in_fp16_stays_fp32(
    tiny_sdxl_folder: Path, tmp_path: Path, force_upcast: bool
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_sdxl_folder, folder)
    _vae_that_overflows(folder, force_upcast)
    half = load_base(folder, dtype=torch.float16)
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.float16
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = load_base(folder).decode_latents(latents)
    if force_upcast:
        assert torch.equal(half.decode_latents(latents), whole)
        assert load_base(folder, dtype=torch.bfloat16).vae.dtype == torch.bfloat16
    else:
        assert half.vae.dtype == torch.float16
        raw = half.vae.decode(latents.half() / 0.5).sample
        assert not torch.isfinite(raw).all(), "what the setting spares us"


def test_a_saved_model_is_whole_whatever_the_precision(family_folder: Path, tmp_path: Path) -> None:
    half = load_base(family_folder, dtype=torch.bfloat16)
    save_full(tmp_path / "saved", half)
    one, two = load_base(family_folder), load_base(tmp_path / "saved")
    for name in one.files.family.weights:
        expected, found = getattr(one, name).state_dict(), getattr(two, name).state_dict()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def _as_published(folder: Path) -> None:
    """Scheduler and tokenizer as Stable Diffusion 1.x has them on the hub: PNDM without a word on
    the spacing of timesteps (its default is `leading`, Euler's is not), vocabulary and merges.
    """
    path = folder / "scheduler" / "scheduler_config.json"
    old = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "steps_offset")
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key in old}
    more = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
    path.write_text(json.dumps({**settings, **more}))
    whole = folder / "tokenizer" / "tokenizer.json"
    model = json.loads(whole.read_text())["model"]
    whole.unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    index = folder / "model_index.json"
    named = {"scheduler": ["diffusers", "PNDMScheduler"]}
    index.write_text(json.dumps({**json.loads(index.read_text()), **named}))


def test_a_saved_model_has_the_bases_own_scheduler_and_tokenizer(
    own_tiny_base: Callable[[], Path], tmp_path: Path
) -> None:
    folder, saved = own_tiny_base(), tmp_path / "saved"
    _as_published(folder)
    base = load_base(folder)
    save_full(saved, base)
    for name in ("scheduler", "tokenizer"):
        own, found = (
            {path.name: path.read_bytes() for path in (place / name).iterdir()}
            for place in (folder, saved)
        )
        assert own == found
    again = load_base(saved)
    assert torch.equal(
        again.encode_prompts([PROMPT]).prompt_embeds, (base.encode_prompts([PROMPT]).prompt_embeds)
    )
    for sampler in ("ddim", "euler", "dpm"):
        one, two = (linear_steps(own.scheduler_config, sampler, 5) for own in (base, again))
        assert torch.equal(one.coefficients, two.coefficients)
    with quiet_libraries():
        plain = DiffusionPipeline.from_pretrained(saved)
    assert type(plain.scheduler) is PNDMScheduler


def test_the_bases_own_safety_checker(
    own_tiny_base: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = own_tiny_base()
    assert load_base(folder, safety_checker=True).safety_checker is None, "it has none"
    add_safety_checker(folder, threshold=2.0)  # no cosine is that large
    draw = {"num_inference_steps": 2}
    (plain,) = sample_images(load_base(folder), [PROMPT], [1], **draw)  # type: ignore[arg-type]
    passing = load_base(folder, safety_checker=True)
    assert passing.safety_checker is not None
    (checked,) = sample_images(passing, [PROMPT], [1], **draw)  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(plain), np.asarray(checked)) and np.asarray(plain).any()
    add_safety_checker(folder, threshold=-2.0)
    strict = load_base(folder, safety_checker=True)
    black = sample_images(strict, [PROMPT] * 2, [1, 2], **draw)  # type: ignore[arg-type]
    assert not any(np.asarray(image).any() for image in black)
    assert "2 of 2 pictures" in caplog.text
    weights = folder / "safety_checker" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    broken = load_base(folder, safety_checker=True).safety_checker
    assert broken is not None
    with pytest.raises(BaseModelError, match="--safety-checker off"):
        broken([Image.new("RGB", (64, 64))])


def test_a_safety_checker_that_cannot_be_read_is_refused_before_anything_is_trained(
    own_tiny_base: Callable[[], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = own_tiny_base()
    add_safety_checker(folder, threshold=2.0)
    weights = folder / "safety_checker" / "model.safetensors"
    pickled = weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(BaseModelError, match=r"can run code .*, or draw without .*-checker off"):
        load_base(folder, safety_checker=True)
    assert load_base(folder).safety_checker is None, "nobody asked for it"
    pickled.rename(weights)
    features = (folder / "feature_extractor").rename(folder / "other")
    with pytest.raises(BaseModelError, match=r"no .*feature_extractor .*--safety-checker off"):
        load_base(folder, safety_checker=True)
    features.rename(folder / "feature_extractor")
    assert load_base(folder, safety_checker=True).safety_checker is not None and not caplog.text
    shutil.rmtree(folder / "safety_checker")
    assert load_base(folder, safety_checker=True).safety_checker is None
    assert "names a safety checker" in caplog.text and "drawn unchecked" in caplog.text


def test_a_safety_checker_of_another_variant_is_read(own_tiny_base: Callable[[], Path]) -> None:
    folder = own_tiny_base()
    add_safety_checker(folder, threshold=-2.0)
    weights = folder / "safety_checker" / "model.safetensors"
    state = {key: value.half() for key, value in load_file(weights).items()}
    save_file(state, weights.with_name("model.fp16.safetensors"), {"format": "pt"})
    weights.unlink()  # as `--variant fp16` fetches it
    checker = load_base(folder, safety_checker=True).safety_checker
    assert checker is not None
    (checked,) = checker([Image.new("RGB", (64, 64), "white")])
    assert not np.asarray(checked).any()


def test_a_saved_model_keeps_its_safety_checker(
    own_tiny_base: Callable[[], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, saved = own_tiny_base(), tmp_path / "saved"
    add_safety_checker(folder, threshold=-2.0)
    files = save_full(saved, load_base(folder))
    assert saved / "safety_checker" / "model.safetensors" in files
    checked = load_base(saved, safety_checker=True)
    (black,) = sample_images(checked, [PROMPT], [1], num_inference_steps=2)
    assert not np.asarray(black).any()
    with quiet_libraries():
        plain = DiffusionPipeline.from_pretrained(saved)
    assert type(plain.safety_checker) is StableDiffusionSafetyChecker
    assert plain.config.requires_safety_checker is True and plain.feature_extractor is not None
    weights = folder / "safety_checker" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is saved without" not in caplog.text
    save_full(tmp_path / "without", load_base(folder))
    assert "without is saved without safety checker" in caplog.text
    assert load_base(tmp_path / "without", safety_checker=True).safety_checker is None
