"""What a run tells its user: stages with a bar, and lines of text."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.progress import Progress as RichBars

REPEATED_AFTER = 6  # times as long as what is new waits in a log


class Stage(Protocol):
    """One bar."""

    def update(self, done: int, note: str = "") -> None:
        """`done` units of the stage's total are ready; `note` is a short text beside the bar."""


class Board(Protocol):
    """A table that changes."""

    def show(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        """What is so now: a line above, and the rows."""


class Progress(Protocol):
    """Where a run's progress goes. Methods are called from one thread at a time."""

    def stage(self, title: str, total: int | None) -> contextlib.AbstractContextManager[Stage]:
        """A stage with `total` units, or an unknown number of them."""

    def board(self, columns: Sequence[str]) -> contextlib.AbstractContextManager[Board]:
        """A table of many things that go on at once; a log gets its title now and then."""

    def info(self, text: str) -> None:
        """One line for the user."""

    def warn(self, text: str) -> None:
        """One line that the user should act on."""


class _SilentStage:
    def update(self, done: int, note: str = "") -> None:
        pass


class _SilentBoard:
    def show(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        pass


class SilentProgress:
    """Says nothing."""

    @contextlib.contextmanager
    def board(self, columns: Sequence[str]) -> Iterator[Board]:
        yield _SilentBoard()

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Stage]:
        yield _SilentStage()

    def info(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


class ConsoleProgress:
    """Bars on a terminal, a line now and then into a log."""

    def __init__(self, console: Console | None = None, log_every_s: float = 10.0) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._log_every_s = log_every_s

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Stage]:
        if not self._console.is_terminal:
            stage = _LoggedStage(self._console, title, total, self._log_every_s)
            yield stage
            stage.close()
            return
        from rich import progress

        columns = (
            progress.TextColumn("{task.description:<24}"),
            progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[note]}"),
        )
        with progress.Progress(*columns, console=self._console) as bars:
            yield _BarStage(bars, title, total)

    @contextlib.contextmanager
    def board(self, columns: Sequence[str]) -> Iterator[Board]:
        if not self._console.is_terminal:
            yield _LoggedBoard(self._console, self._log_every_s)
            return
        from rich.live import Live

        with Live(console=self._console, refresh_per_second=4) as live:
            yield _LiveBoard(live, columns)

    def info(self, text: str) -> None:
        self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self._console.print(f"warning: {text}", style="yellow", markup=False)


class _BarStage:
    def __init__(self, bars: RichBars, title: str, total: int | None) -> None:
        self._bars = bars
        self._task = bars.add_task(title, total=total, note="")

    def update(self, done: int, note: str = "") -> None:
        self._bars.update(self._task, completed=done, note=note)


class _LoggedStage:
    def __init__(self, console: Console, title: str, total: int | None, every_s: float) -> None:
        self._console, self._title, self._total, self._every_s = console, title, total, every_s
        self._started = self._last = time.monotonic()
        self._done, self._note = 0, ""

    def update(self, done: int, note: str = "") -> None:
        self._done, self._note = done, note
        if time.monotonic() - self._last >= self._every_s:
            self._last = time.monotonic()
            self._print()

    def close(self) -> None:
        self._print()

    def _print(self) -> None:
        count = f"{self._done}/{self._total}" if self._total is not None else str(self._done)
        seconds = time.monotonic() - self._started
        self._console.print(
            f"{self._title}: {count} in {seconds:.0f} s {self._note}".rstrip(), markup=False
        )


class _LiveBoard:
    def __init__(self, live: Live, columns: Sequence[str]) -> None:
        self._live, self._columns = live, columns

    def show(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(
            title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
        )
        for column in self._columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*map(escape, row))
        self._live.update(table)


class _LoggedBoard:
    def __init__(self, console: Console, every_s: float) -> None:
        self._console, self._every_s = console, every_s
        self._last, self._said = 0.0, ""

    def show(self, title: str, rows: Sequence[Sequence[str]]) -> None:
        wait_s = self._every_s * (REPEATED_AFTER if title == self._said else 1)
        if time.monotonic() - self._last >= wait_s:
            self._last, self._said = time.monotonic(), title
            self._console.print(title, markup=False)
