"""Score an adapter by a protocol: `dreamfleet evaluate` as a job, for `ray job submit`.

    python pipelines/evaluate_adapter.py --adapter /absolute/adapter --protocol attributes \\
        --output-dir /absolute/folder
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
