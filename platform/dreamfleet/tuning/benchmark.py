"""What a sweep costs, in trainings of one adapter alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from dreamfleet.config import load_config
from dreamfleet.evaluation.benchmarks.contestants import Packed
from dreamfleet.evaluation.benchmarks.record import Figure
from dreamfleet.evaluation.benchmarks.settings import BenchSettings
from dreamfleet.tuning.command import tune
from dreamfleet.tuning.finals import FINALISTS
from dreamfleet.tuning.results import TuneResult
from dreamfleet.world.render import render
from dreamfleet.world.splits import benchmark_photo, subjects

NUM_SAMPLES = 16
TRAIN_STEPS = 400
# The finals train the best two and the host together. The host is never trained for fewer steps;
# but a step with SuDe takes up to a quarter more than one without. So the two took 5/7 at most.
SUDE_STEP = 1.25
FINALISTS_SHARE = FINALISTS * SUDE_STEP / (FINALISTS * SUDE_STEP + 1)
CLASS_IMAGES = 16  # as many as make a prior; how many does not change a step's time


def sweep(settings: BenchSettings) -> dict[str, Figure]:
    """16 pruned trials of one subject and their finals, against one SuDe run with prior alone."""
    alone = _alone_s(settings)
    with tempfile.TemporaryDirectory() as place:
        result = _swept(settings, Path(place))
    own = result.engine_s
    total = {
        part: own[f"{part}.training"] + own[f"{part}.drawing"] for part in ("search", "finals")
    }
    values = {
        "sweep_cost_in_runs": total["search"] / alone,
        "sweep_training_in_runs": own["search.training"] / alone,
        "sweep_finals_in_runs": FINALISTS_SHARE * total["finals"] / alone,
        "sweep_finals_training_in_runs": FINALISTS_SHARE * own["finals.training"] / alone,
        "sweep_wall_over_engine": own["search.span"] / total["search"],
    }
    return {name: Figure(value, "ratio", [value]) for name, value in values.items()}


def _alone_s(settings: BenchSettings) -> float:
    """Seconds of one training of `TRAIN_STEPS` steps with nobody beside it."""
    spec = {"subject": 0, "batch_size": 1, "prior__with_prior_preservation": True,
            "sude__weight": 0.4}  # fmt: skip
    job = Packed(settings, [spec])
    job.run(settings.steps)  # warm
    started = time.perf_counter()
    job.run(TRAIN_STEPS)
    return time.perf_counter() - started


def _swept(settings: BenchSettings, place: Path) -> TuneResult:
    """The first development subject's sweep; drawn, so that nothing need lie at hand."""
    subject = subjects("D", 1)[0]
    photos = place / "photos"
    photos.mkdir()
    render(benchmark_photo(subject)).image.save(photos / "photo.png")
    return tune(
        load_config(
            None,
            {
                "base_model": settings.base_model,
                "output_dir": str(place / "sweep"),
                "subject.images": [str(photos)],
                "subject.class_word": subject.class_name,
                "train.max_train_steps": TRAIN_STEPS,
                "train.rank": settings.rank,
                "train.lora_layers": settings.layers,
                "prior.with_prior_preservation": True,
                "prior.num_class_images": CLASS_IMAGES,
                "space.rank": [settings.rank],
                "tune.num_samples": NUM_SAMPLES,
                "tracking.enabled": False,
            },
        )
    )
