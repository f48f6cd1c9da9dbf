"""What earlier steps of the protocol settled: guidance, scored states, the hosts' N, SuDe's chosen
settings, and the hashes that are frozen. A committed file; trials on D may use another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.protocols import prompts_hash
from dreamfleet.evaluation.worldbench.frozen import world_hash
from dreamfleet.evaluation.worldbench.plan import HOST_OVERRIDES
from dreamfleet.runtime.storage import write_whole

SETTINGS = "docs/evidence/settings.yaml"
TRIAL_HINT = (
    "for a trial on D give --settings pipelines/recipes/studies/trial_settings.yaml; its results "
    "are never published"
)
ROUTE = {
    "hosts": "steps 1 to 3 write it: check_embedded_base.py --mode evidence --settings FILE "
    "(docs/protocol.md, sections 3 and 4)",
    "sude": "step 4 writes it: report_studies.py --study step4 (docs/protocol.md, section 5)",
}


@dataclass(frozen=True)
class Settings:
    """The file's content.

    Attributes:
        path: where it is from.
        trial: made up for trying things on D.
        guidance: guidance scale of all pictures; None: the base's own.
        scored_states: by class; None: all states.
        hosts: by name: `diseased` and `n`.
        sude: by host: overrides of the chosen setting; None: no setting kept the likeness.
        frozen: hashes of base, evaluators, prompts and world.
    """

    path: str
    trial: bool = False
    guidance: float | None = None
    scored_states: Mapping[str, Sequence[str]] | None = None
    hosts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sude: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)

    def steps(self, host: str) -> int:
        """A host's N.

        Raises:
            BadInputError: it is not settled yet.
        """
        known = self.hosts.get(host) or {}
        if not known.get("n"):
            raise BadInputError(
                f"{self.path}: host {host!r} has no N yet. {ROUTE['hosts']}; {TRIAL_HINT}"
            )
        return int(known["n"])

    def diseased(self) -> list[str]:
        """The diseased hosts, in the protocol's order.

        Raises:
            BadInputError: not settled yet, or none is.
        """
        found = [name for name in HOST_OVERRIDES if (self.hosts.get(name) or {}).get("diseased")]
        if found:
            return found
        if self.hosts:
            raise BadInputError(
                f"{self.path}: no host is diseased, so there is nothing to cure (docs/protocol.md, "
                "section 4)"
            )
        raise BadInputError(
            f"{self.path}: which hosts are diseased is not settled yet. {ROUTE['hosts']}; "
            f"{TRIAL_HINT}"
        )

    def chosen(self, host: str) -> Mapping[str, Any] | None:
        """Overrides of the host's chosen setting of SuDe; None: none kept the likeness.

        Raises:
            BadInputError: it is not settled yet.
        """
        if host not in self.sude:
            raise BadInputError(
                f"{self.path}: no setting of SuDe is chosen for host {host!r} yet. "
                f"{ROUTE['sude']}; {TRIAL_HINT}"
            )
        return self.sude[host]


def read_settings(path: str | Path) -> Settings:
    """Read the file.

    Raises:
        BadInputError: it is not there, or is another kind of file.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return Settings(path=str(path), **(tree or {}))
    except FileNotFoundError:
        raise BadInputError(
            f"{path}: the settled settings are not there yet. {ROUTE['hosts']}; {TRIAL_HINT}"
        ) from None
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise BadInputError(f"{path}: not a file of settled settings ({error})") from error


def write_settings(path: str | Path, **changes: Any) -> None:
    """Change some of the file's keys; it is made where there is none."""
    place = Path(path)
    tree: dict[str, Any] = {}
    if place.is_file():
        tree = yaml.safe_load(place.read_text(encoding="utf-8")) or {}
    tree |= changes
    head = "# What the protocol's steps settled (docs/protocol.md); written by their commands.\n"
    write_whole(place, (head + yaml.safe_dump(tree, sort_keys=True)).encode())


def hashes(base_hash: str, judges: str) -> dict[str, str]:
    """What is frozen after section 3 of the protocol, as it is now.

    Args:
        base_hash: of the base.
        judges: of both oracles, the identity encoder and the segmenter.
    """
    return {
        "base": base_hash,
        "evaluators": judges,
        "prompts": prompts_hash("worldbench"),
        "world": world_hash(),
    }


def check_split(settings: Settings, split: str, now: Mapping[str, str]) -> None:
    """Held-back subjects are drawn with what was frozen before, and with nothing else.

    Raises:
        BadInputError: trial settings, or something frozen has changed or was never frozen.
    """
    if split == "D":
        return
    if settings.trial:
        raise BadInputError(
            f"{settings.path}: trial settings, and --split {split}: held-back subjects are run "
            f"with the settled settings only ({SETTINGS}); try things on D"
        )
    changed = [name for name, value in now.items() if settings.frozen.get(name) != value]
    if changed:
        raise BadInputError(
            f"--split {split}: {', '.join(changed)} differ from what {settings.path} has frozen "
            "(docs/protocol.md, sections 3 and 6); held-back subjects must not be drawn with them"
        )


def check_settled(settings: Settings, overrides: Mapping[str, Any]) -> None:
    """The confirmation's subjects are drawn when every host's setting is chosen, and with no other.

    Raises:
        BadInputError: a host has none yet, or a command line changes it.
    """
    for host in settings.diseased():
        settings.chosen(host)
    if overrides:
        raise BadInputError(
            f"--set {', '.join(overrides)}: the primary claim is run with the settled settings "
            "alone (docs/protocol.md, section 6); try things on D (--split D)"
        )
