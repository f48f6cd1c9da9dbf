"""A study taken in piece by piece: some hosts, some subjects, each run where and when there was
time; what is committed grows until the study is whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.results import write_summary
from dreamfleet.evaluation.studies.recipe import BASE
from dreamfleet.evaluation.studies.tables import read_csv, write_csv

TABLE, RHO, READINGS, ABOUT = "table.csv", "rho.csv", "readings.csv", "about.json"
SHEET = "sheet.webp"
# Of a recipe, what its rows depend on.
DECIDES = ("split", "classes", "first_seed", "selection_states", "oracle", "rungs", "pictures",
           "num_inference_steps", "num_class_images", "arms")  # fmt: skip
COSTS = ("train_s", "draw_s", "score_s")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """What is committed of a study, or what a run of it left to be committed.

    Attributes:
        about: as `write_results` makes it.
        table: of `subject_table`.
        rho: of `rho_table`.
        readings: of sweeps, by subject.
    """

    about: Mapping[str, Any]
    table: Sequence[Row] = ()
    rho: Sequence[Row] = ()
    readings: Sequence[Row] = ()

    @property
    def hosts(self) -> list[str]:
        """In the order in which they came."""
        return list(self.about.get("hosts", []))

    @property
    def sheets(self) -> dict[str, list[str]]:
        """Files of pictures, with the hosts that they show."""
        return dict(self.about.get("sheets", {SHEET: self.hosts}))

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Where and when its hosts were run."""
        one = {"hosts": self.hosts, **{name: self.about[name] for name in ("hardware", "date")}}
        return list(self.about.get("runs", [one]))

    def subjects(self, host: str) -> set[str]:
        """Those of whom there is anything on a host."""
        rows = [*self.table, *self.about.get("failures", [])]
        return {str(row["subject"]) for row in rows if row["host"] == host}

    def whole(self) -> Piece:
        """The hosts of which all subjects are there, and the bare base."""
        wanted = self.about["study"]["subjects"]
        return self.of([host for host in self.hosts if len(self.subjects(host)) >= wanted])

    def of(self, hosts: Sequence[str]) -> Piece:
        """These hosts only, and the bare base."""
        kept = {BASE, *hosts}
        about = {**self.about, "hosts": list(hosts)}
        for name in ("cpu_s", "failures"):
            about[name] = [row for row in self.about.get(name, []) if row["host"] in kept]
        about["rungs"] = {h: steps for h, steps in self.about["rungs"].items() if h in hosts}
        about["sheets"] = {name: own for name, own in self.sheets.items() if kept.issuperset(own)}
        about["runs"] = [run for run in self.runs if kept.intersection(run["hosts"])]
        rows = [[row for row in own if row["host"] in kept] for own in (self.table, self.rho)]
        return replace(self, about=about, table=rows[0], rho=rows[1])


def read_piece(folder: Path) -> Piece:
    """What is in a study's folder.

    Raises:
        BadInputError: there is no finished study.
    """
    table, rho, readings = (
        read_csv(folder / name) if (folder / name).is_file() else []
        for name in (TABLE, RHO, READINGS)
    )
    return Piece(read_about(folder), table, rho, readings)


def read_about(folder: Path) -> dict[str, Any]:
    """What a study wrote about itself.

    Raises:
        BadInputError: there is no finished study.
    """
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return about
    except (OSError, ValueError) as error:
        raise BadInputError(f"{folder}: no results of a study ({error})") from error


def write_piece(folder: Path, piece: Piece) -> None:
    """As `read_piece` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in ((TABLE, piece.table), (RHO, piece.rho), (READINGS, piece.readings)):
        if rows:
            write_csv(folder / name, rows)
        else:
            (folder / name).unlink(missing_ok=True)
    write_summary(folder / ABOUT, piece.about)


def joined(known: Piece, new: Piece) -> Piece:
    """What is known and a piece beside it. Of a host that both have, the piece has all subjects,
    and takes the host's place, or others, and adds them.

    Raises:
        BadInputError: the two are not of one study, share some of a host's subjects, or differ on
            what the confirmation has published.
    """
    replaced = [host for host in new.hosts if known.subjects(host) <= new.subjects(host)]
    _check_confirmed(known, new)
    if set(known.hosts) <= set(replaced):
        return new
    _check_joins(known, new, replaced)
    kept = known.of([host for host in known.hosts if host not in replaced])
    hosts = list(dict.fromkeys([*known.hosts, *new.hosts]))
    there = kept.subjects(BASE)
    rows = [*kept.table, *(r for r in new.table if r["host"] != BASE or r["subject"] not in there)]
    again = {row["subject"] for row in new.readings}
    about = {
        **new.about,
        "hosts": hosts,
        "arms": {**known.about["arms"], **new.about["arms"]},
        "rungs": _rungs_of_both(kept.about["rungs"], new.about["rungs"]),
        "study": {**new.about["study"], "hosts": hosts},
        "sheets": {**kept.sheets, **new.sheets},
        "runs": [*kept.runs, *new.runs],
        "cpu_s": _mean_costs(kept, new),
        "failures": [*kept.about.get("failures", []), *new.about.get("failures", [])],
    }
    return Piece(
        about,
        sorted(rows, key=lambda row: (str(row["subject"]), [BASE, *hosts].index(row["host"]))),
        _mean_rho(kept.rho, new.rho, hosts),
        [*(row for row in known.readings if row["subject"] not in again), *new.readings],
    )


def _check_joins(known: Piece, new: Piece, replaced: Sequence[str]) -> None:
    other = _differing(known.about, new.about)
    if other:
        raise BadInputError(
            f"study {new.about['study']['study']}: what is committed has other "
            f"{', '.join(other)} than this piece; run {', '.join(known.hosts)} anew with it"
        )
    for host in new.hosts:
        twice = sorted(known.subjects(host) & new.subjects(host))
        if twice and host not in replaced:
            raise BadInputError(
                f"{host}: {', '.join(twice[:3])} … are committed already, and others that this "
                "piece has not; give pieces with all of them, or with none"
            )


def _check_confirmed(known: Piece, new: Piece) -> None:
    """The confirmation is run once (docs/protocol.md, section 6)."""
    if not new.about["study"].get("primary"):
        return
    rows = {(row["subject"], row["host"], row["arm"]): row for row in known.table}
    for row in new.table:
        place = (row["subject"], row["host"], row["arm"])
        if place in rows and place[1] != BASE and rows[place] != row:
            raise BadInputError(
                f"{place[0]}, {place[1]}: {place[2]}: was published with other figures, and the "
                "confirmation is run once (docs/protocol.md, sections 6 and 8)"
            )


def _differing(known: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What both say, and say otherwise."""
    one, two = known["study"], new["study"]
    names = [name for name in ("subjects", "seeds", *DECIDES) if one.get(name) != two.get(name)]
    names += [name for name in ("base", "judges", "guidance") if known.get(name) != new.get(name)]
    for name in ("arms",) if new["study"]["selection_states"] else ("arms", "rungs"):
        common = known[name].keys() & new[name].keys()
        names += [f"{name} ({key})" for key in sorted(common)
                  if known[name][key] != new[name][key]]  # fmt: skip
    return names


def _rungs_of_both(
    known: Mapping[str, Sequence[int]], new: Mapping[str, Sequence[int]]
) -> dict[str, list[int]]:
    """By host the steps at which any arm was read; where each subject has its own, of both."""
    return {host: sorted({*known.get(host, ()), *new.get(host, ())}) for host in [*known, *new]}


def _mean_costs(known: Piece, new: Piece) -> list[dict[str, Any]]:
    """A mean over the subjects of both; the bare base's of those who were there first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    weights: dict[tuple[str, str], int] = {}
    for piece in (known, new):
        for row in piece.about["cpu_s"]:
            key, count = (row["host"], row["arm"]), len(piece.subjects(row["host"]))
            if key not in found:
                found[key], weights[key] = dict(row), count
            elif row["host"] != BASE:
                both = weights[key] + count
                for name in COSTS:
                    total = found[key][name] * weights[key] + row[name] * count
                    found[key][name] = total / both
                weights[key] = both
    return list(found.values())


def _mean_rho(known: Iterable[Row], new: Iterable[Row], hosts: Sequence[str]) -> list[Row]:
    """A mean over the samples of both, where both have an arm."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (*known, *new):
        key = tuple(row[name] for name in ("host", "arm", "steps", "t_from"))
        if key not in found:
            found[key] = dict(row)
            continue
        own, count = found[key], row["samples"]
        both = own["samples"] + count
        for name in ("rho", "hinge_share"):
            if name in row and name in own:  # ρ of a bin may be without a finite number
                own[name] = (own[name] * own["samples"] + row[name] * count) / both
        own["samples"] = both
    arms = list(dict.fromkeys(key[:2] for key in found))
    return sorted(
        found.values(),
        key=lambda row: (hosts.index(row["host"]), arms.index((row["host"], row["arm"])),
                         row["steps"], row["t_from"]),
    )  # fmt: skip
