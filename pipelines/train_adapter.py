"""Train an adapter from a recipe: `dreamfleet personalize` as a job, for `ray job submit`.

    python pipelines/train_adapter.py PHOTOS --class-word dog \\
        --config pipelines/recipes/sude_lora.yaml --output-dir /absolute/folder

Inside a Ray job the working folder is a throw-away copy: outputs and tracking URIs must be absolute
paths or URIs.
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["personalize", *sys.argv[1:]]))
