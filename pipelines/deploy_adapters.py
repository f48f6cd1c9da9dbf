"""Deploy adapters on a Ray cluster: `dreamfleet serve deploy` as a script.

    python pipelines/deploy_adapters.py service.yaml --ray-address http://head:8265

`dreamfleet serve build` writes such a file. Adapters and keys must lie where all nodes see them.
"""

from __future__ import annotations

import sys

from dreamfleet.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", "deploy", *sys.argv[1:]]))
