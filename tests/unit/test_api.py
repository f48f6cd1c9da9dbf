"""The Python functions behind the command line, on a tiny random base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dreamfleet
from dreamfleet import cli
from dreamfleet.adapters.files import save_adapter
from dreamfleet.adapters.lora import add_lora
from dreamfleet.bases import load_base
from dreamfleet.config import dump_config, load_config
from dreamfleet.errors import AdapterFileError, BadInputError, ConfigError, SubjectSetError

pytestmark = pytest.mark.heavy

FEW: dict[str, Any] = {"num_inference_steps": 3, "device": "cpu"}


@pytest.fixture
def adapter(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """A folder as `personalize` leaves it: weights that change the picture, and the recipe."""
    base = load_base(tiny_base_folder)
    add_lora(base, rank=4, alpha=4.0, layers="all", train_text_encoder=False, seed=1)
    for name, parameter in base.unet.named_parameters():
        if ".lora_B." in name:
            parameter.data.fill_(0.3)
    folder = tmp_path / "adapter"
    save_adapter(folder, base)
    values = {
        "base_model": str(tiny_base_folder),
        "subject.class_word": "cat",
        "subject.token": "sks",
    }
    (folder / "config.yaml").write_text(dump_config(load_config(None, values)), encoding="utf-8")
    return folder


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


class TestGenerate:
    def test_a_picture_depends_on_its_seed_alone(self, tiny_base_folder: Path) -> None:
        def draw(**settings: Any) -> np.ndarray:
            return pixels(
                dreamfleet.generate("a cat", base_model=tiny_base_folder, **settings, **FEW)
            )

        three = draw(num_images=3, seed=5)
        assert three.shape[0] == 3
        assert np.abs(three - draw(num_images=3, seed=5, batch_size=2)).max() <= 1
        assert np.abs(three[1:] - draw(num_images=2, seed=6)).max() <= 1
        assert np.abs(three[0] - three[1]).max() > 1

    def test_the_adapter_changes_the_picture_and_names_its_base(
        self, adapter: Path, tiny_base_folder: Path
    ) -> None:
        with_it = pixels(dreamfleet.generate("a photo of {token} {class}", adapter=adapter, **FEW))
        filled = pixels(dreamfleet.generate("a photo of sks cat", adapter=adapter, **FEW))
        prompt = "a photo of sks cat"
        bare = pixels(dreamfleet.generate(prompt, base_model=tiny_base_folder, **FEW))
        off = pixels(dreamfleet.generate(prompt, adapter=adapter, adapter_strength=0.0, **FEW))
        assert (with_it == filled).all()
        assert np.abs(with_it - bare).max() > 4
        assert np.abs(off - bare).max() <= 1

    def test_a_whole_model_takes_no_other_base(self, tiny_base_folder: Path) -> None:
        with pytest.raises(BadInputError, match="whole model.*--base-model embedded"):
            dreamfleet.generate("a", adapter=tiny_base_folder, base_model="embedded", **FEW)

    def test_a_whole_model_and_a_bare_base_have_no_strength(self, tiny_base_folder: Path) -> None:
        givens: list[dict[str, Any]] = [
            {"adapter": tiny_base_folder},
            {"base_model": tiny_base_folder},
        ]
        for given in givens:
            with pytest.raises(BadInputError, match=r"adapter strength 0\.5.*there is none"):
                dreamfleet.generate("a", adapter_strength=0.5, **given, **FEW)

    def test_of_a_file_alone(self, adapter: Path) -> None:
        file = adapter / "pytorch_lora_weights.safetensors"
        of_file = pixels(dreamfleet.generate("a cat", adapter=file, **FEW))
        assert (of_file == pixels(dreamfleet.generate("a cat", adapter=adapter, **FEW))).all()

    @pytest.mark.parametrize("name", ["missing", "."])
    def test_17_no_adapter_there(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(AdapterFileError):
            dreamfleet.generate("a cat", adapter=tmp_path / name, **FEW)

    def test_command(
        self, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "pictures"
        arguments = ["--adapter", str(adapter), "--prompt", "a {class}", "--num-images", "2"]
        few = ["--num-inference-steps", "2", "--output_dir", str(out), "--scheduler", "euler"]
        assert cli.main(["generate", *arguments, *few]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["image_0.png", "image_1.png"]
        assert str(out) in capsys.readouterr().err

    def test_an_interrupted_command_keeps_what_is_drawn(
        self, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dreamfleet.engine import sampling

        def draw(base: Any, prompts: list[str], seeds: list[int], **_: Any) -> list[Image.Image]:
            if 2 in seeds:
                raise KeyboardInterrupt
            return [Image.new("RGB", (8, 8)) for _ in seeds]

        monkeypatch.setattr(sampling, "sample_images", draw)
        arguments = ["--adapter", str(adapter), "--prompt", "a {class}", "--num-images", "4"]
        more = ["--batch-size", "2", "--output-dir", str(tmp_path / "o")]
        assert cli.main(["generate", *arguments, *more]) == 130
        names = sorted(path.name for path in (tmp_path / "o").iterdir())
        assert names == ["image_0.png", "image_1.png"]

    def test_words_that_nothing_stands_for_are_refused(self, tiny_base_folder: Path) -> None:
        with pytest.raises(BadInputError, match=r"what \{class\} is here"):
            dreamfleet.generate("a {class}", base_model=tiny_base_folder, **FEW)

    def test_17_damaged_file_is_bad_input(
        self, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = adapter / "pytorch_lora_weights.safetensors"
        weights.write_bytes(b"<html>not found</html>")
        arguments = [
            "--adapter",
            str(adapter),
            "--prompt",
            "a",
            "--output-dir",
            str(tmp_path / "o"),
        ]
        assert cli.main(["generate", *arguments]) == 2
        assert weights.name in capsys.readouterr().err


class TestPersonalize:
    def test_settings_are_named_like_flags(self) -> None:
        with pytest.raises(ConfigError, match="max_train_step'.*max_train_steps"):
            dreamfleet.personalize("photos", class_word="dog", max_train_step=3)
        with pytest.raises(ConfigError, match="learning_rate"):
            dreamfleet.personalize("photos", class_word="dog", learning_rate=-1)

    def test_1_photos_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SubjectSetError, match="nowhere"):
            dreamfleet.personalize(tmp_path / "nowhere", class_word="dog")
