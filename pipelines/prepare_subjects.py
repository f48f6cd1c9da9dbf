"""Check and cache photos and prior sets without training: `dreamfleet prepare` as a job.

    python pipelines/prepare_subjects.py PHOTOS --class-word dog \\
        --config pipelines/recipes/sude_lora.yaml
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
