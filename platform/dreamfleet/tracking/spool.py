"""Sending what an earlier run could not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreamfleet.config import dreamfleet_home
from dreamfleet.tracking.base import without_password
from dreamfleet.tracking.journal import Journal, has_unsent, left_behind
from dreamfleet.tracking.sender import Notify, Player
from dreamfleet.tracking.store import NotRecordedYet, Unreachable


@dataclass(frozen=True)
class FlushResult:
    """What became of the records on disk."""

    records: int  # sent
    runs: int  # wholly sent
    waiting: int  # runs that still wait
    problems: tuple[str, ...] = ()  # one line per server that takes nothing

    def summary(self) -> str:
        """One line for the user."""
        if not self.records and not self.waiting and not self.problems:
            return "nothing waits to be sent to MLflow"
        text = f"{self.records} records of {self.runs} runs sent to MLflow"
        return text + (f"; {self.waiting} runs still wait" if self.waiting else "")


def spool_folder() -> Path:
    """DREAMFLEET_HOME/spool."""
    return dreamfleet_home() / "spool"


def flush_spool(
    spool: Path | None = None,
    *,
    notify: Notify = lambda text: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> FlushResult:
    """Send all records that lie in `spool` (default: DREAMFLEET_HOME/spool) and belong to no living
    process.

    Each goes to the server that its run was meant for. Servers that do not answer are asked once.
    """
    players: dict[str, Player] = {}
    down: dict[str, str] = {}
    finished = waiting = 0
    for folder in left_behind(spool or spool_folder()):
        if should_stop():
            break
        journal = Journal.adopt(folder)
        if journal is None:  # in use
            continue
        uri = journal.handle.uri
        had_records = has_unsent(folder)
        try:
            if had_records and uri not in down:
                player = players.setdefault(uri, Player(uri, notify))
                player.play(journal, should_stop)
        except NotRecordedYet:
            pass
        except (Unreachable, OSError) as error:
            down[uri] = f"MLflow at {without_password(uri)}: {error}"
        finished += had_records and journal.is_sent
        waiting += not journal.is_sent
        journal.release()
    records = sum(player.sent for player in players.values())
    return FlushResult(records, finished, waiting, tuple(down.values()))
