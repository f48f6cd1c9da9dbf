"""Made-up judges, tables and settings for the tests of studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from dreamfleet.evaluation.studies.fields import WorldField
from dreamfleet.evaluation.studies.recipe import Study
from dreamfleet.evaluation.world_metrics import WorldScorer

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "pipelines" / "recipes" / "studies"
ALL_HOSTS = ("lora", "lora-prior", "full", "full-prior")
FEW = {"num_inference_steps": 1, "num_class_images": 2}


class SeesDogs:
    """Always a standing dog in the snow, in a photo from the side."""

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        seen = {"class": "dog", "state": "standing", "scene": "snow", "view": "side",
                "style": "photo", "prop": "no"}  # fmt: skip
        return [dict(seen) for _ in images]


class Colours:
    """Mean colours as identities."""

    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        rows = np.stack([np.asarray(i, float).reshape(-1, 3).mean(axis=0) - 127 for i in images])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fixed_field(study: Study) -> WorldField:
    """The drawn world, read by judges of known answers."""
    return WorldField(study, scorer=WorldScorer(SeesDogs(), Colours()), judges="fixed")


def quick(study: Study, **changes: Any) -> Study:
    """One step of sampling, a picture of each prompt."""
    few = {name: min(count, 2 if name == "class_" else 1) for name, count in study.pictures}
    pictures = study.pictures.model_copy(update=few)
    return study.model_copy(update={"pictures": pictures, **FEW, **changes})


def write_trial_settings(path: Path, steps: int = 2, **changes: Any) -> Path:
    """Settings under which every host is diseased after a few steps."""
    tree = {
        "trial": True,
        "guidance": 1.0,
        "hosts": {host: {"diseased": True, "n": steps} for host in ALL_HOSTS},
        "sude": {host: {"sude.weight": 1.5} for host in ALL_HOSTS},
        **changes,
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def made_up_table(
    effects: Mapping[tuple[str, str], tuple[float, float]],
    *,
    subjects: int = 24,
    spread: float = 0.05,
    seed: int = 0,
    study: str = "a",
) -> list[dict[str, Any]]:
    """A table as `subject_table` makes it.

    Args:
        effects: by host and setting, what SuDe adds to alignment and identity.
        spread: deviation of a subject's own effect about that.
    """
    lots = np.random.default_rng(seed)
    rows = []
    for host in dict.fromkeys(host for host, _ in effects):
        base = lots.normal((0.5, 0.4), 0.15, (subjects, 2))
        arms = {"host": (0.0, 0.0), **{arm: own for (h, arm), own in effects.items() if h == host}}
        for arm, effect in arms.items():
            own = base if arm == "host" else base + lots.normal(effect, spread, base.shape)
            for number, (alignment, identity) in enumerate(own):
                rows.append(
                    {"study": study, "host": host, "arm": arm, "rung": 1.0, "steps": 400,
                     "subject": f"C{number:02d}", "class": "dog", "live": number % 2,
                     "seeds": 2, "pictures": 90,
                     "alignment": float(alignment), "identity": float(identity)}
                )  # fmt: skip
    return rows
