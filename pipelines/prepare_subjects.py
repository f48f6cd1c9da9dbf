"""Check and cache photos and prior sets without training; the job entry point of `dreamfleet prepare`.

    python pipelines/prepare_subjects.py --config pipelines/recipes/sude_lora.yaml PHOTOS --class-word dog
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
