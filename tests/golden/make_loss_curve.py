"""Make tests/golden/loss_curve.json: 20 steps of LoRA with prior and SuDe on the tiny random base.

Run from the repository root: PYTHONPATH=platform:. python -m tests.golden.make_loss_curve
The curve changes only when the training itself does; a change of it is a change of results, to be
explained.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.tiny_bases import make_tiny_sd1
from tests.tiny_jobs import tiny_job

CURVE_FILE = Path(__file__).parent / "loss_curve.json"
STEPS = 20
NAMES = ("loss", "loss_subject", "loss_sude", "rho", "loss_prior", "grad_norm")
OPTIONS = {
    "prior__with_prior_preservation": True,
    "sude__weight": 0.4,
    "sude__truncation_point": 3.0,
    "train__snr_gamma": 5.0,
    "train__train_batch_size": 2,
    "train__lr_scheduler": "cosine",
}


def loss_curve(base_folder: Path) -> dict[str, list[float]]:
    """Figures of each step by name."""
    job = tiny_job(base_folder, **OPTIONS)
    rows = [asdict(job.step()) for _ in range(STEPS)]
    return {name: [row[name] for row in rows] for name in NAMES}


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        curves = loss_curve(make_tiny_sd1(folder))
    content = {"steps": STEPS, "options": OPTIONS, "curves": curves}
    CURVE_FILE.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
