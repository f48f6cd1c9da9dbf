"""Votes in a SQLite file; safe for several people at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dreamfleet.errors import BadInputError

Choice = Literal["a", "b", "neither"]
QUESTIONS = {
    "subject": "Which picture keeps the subject of the photos better?",
    "text": "Which picture fits the text better?",
}
CHOICES: tuple[Choice, ...] = ("a", "b", "neither")
TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS study (a TEXT NOT NULL, b TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS votes (
  voter TEXT NOT NULL,
  pair TEXT NOT NULL,
  question TEXT NOT NULL CHECK (question IN ('subject', 'text')),
  choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'neither')),
  created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
  PRIMARY KEY (voter, pair, question)
);
"""


@dataclass(frozen=True)
class Vote:
    """One answer."""

    voter: str
    pair: str
    question: str
    choice: Choice


class Votes:
    """The votes of one study: A against B.

    Args:
        path: the SQLite file; made if it is not there.
        a, b: names of the two; a file of another study is refused.

    Raises:
        BadInputError: the file cannot be made, is no database, or of another study.
    """

    def __init__(self, path: str | Path, a: str, b: str) -> None:
        self.path = Path(path).expanduser()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._connection() as connection:
                connection.executescript(_SCHEMA)
                stored = connection.execute("SELECT a, b FROM study").fetchone()
                if stored is None:
                    connection.execute("INSERT INTO study VALUES (?, ?)", (a, b))
        except (sqlite3.Error, OSError) as error:
            raise BadInputError(
                f"{self.path}: votes cannot be kept here ({error}); give another --votes file"
            ) from error
        if stored not in (None, (a, b)):
            raise BadInputError(
                f"{self.path}: holds votes on {stored[0]} against {stored[1]}, not {a} against "
                f"{b}; give another --votes file"
            )

    def add(self, votes: Sequence[Vote]) -> None:
        """Keep answers; a later answer to the same question replaces the earlier one."""
        rows = [(vote.voter, vote.pair, vote.question, vote.choice) for vote in votes]
        with self._connection() as connection:
            connection.executemany(
                "INSERT INTO votes (voter, pair, question, choice) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (voter, pair, question) DO UPDATE SET choice = excluded.choice",
                rows,
            )

    def answered(self, voter: str) -> set[str]:
        """Pairs that this person has answered."""
        query = "SELECT DISTINCT pair FROM votes WHERE voter = ?"
        with self._connection() as connection:
            return {row[0] for row in connection.execute(query, (voter,))}

    def all(self) -> list[Vote]:
        """Every answer."""
        query = "SELECT voter, pair, question, choice FROM votes ORDER BY voter, pair, question"
        with self._connection() as connection:
            return [Vote(*row) for row in connection.execute(query)]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=TIMEOUT_S)) as connection, connection:
            yield connection
