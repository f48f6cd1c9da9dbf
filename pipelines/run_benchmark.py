"""Train a recipe on a benchmark's subjects and score it: `dreamfleet benchmark` as a job.

    python pipelines/run_benchmark.py worldbench \\
        --config pipelines/recipes/dreambooth_lora.yaml --output-dir /absolute/folder
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
