"""Train an adapter from a recipe; the job entry point for `ray job submit`, and the same as `dreamfleet personalize`.

    python pipelines/train_adapter.py --config pipelines/recipes/sude_lora.yaml PHOTOS --class-word dog --output-dir /absolute/out

Inside a Ray job the working folder is a throw-away copy: outputs and tracking URIs must be absolute paths or URIs.
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["personalize", *sys.argv[1:]]))
