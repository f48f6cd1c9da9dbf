"""Find each subject's own setting: `dreamfleet tune` as a job, for `ray job submit`.

    python pipelines/tune_adapter.py PHOTOS --class-word dog --num-samples 16 \\
        --output-dir /absolute/folder

Inside a Ray job the working folder is a throw-away copy: outputs, tracking URIs and a study's
database must be absolute paths or URIs.
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["tune", *sys.argv[1:]]))
