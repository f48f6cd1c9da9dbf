"""The thread that plays journals to MLflow, so that training never waits for a server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dreamfleet.tracking.base import without_password
from dreamfleet.tracking.journal import ROWS_AGE_S, Journal
from dreamfleet.tracking.store import MlflowStore, Refused, Unreachable

Notify = Callable[[str], None]
PERIOD_S = 1.0
FIRST_RETRY_S, LAST_RETRY_S = 3.0, 60.0
ASK_AGAIN_S = 10.0
FLUSH_COMMAND = "dreamfleet runs --flush"


class Player:
    """Plays journals of one tracking URI, one record after the other."""

    def __init__(self, uri: str, notify: Notify, *, create: bool = True) -> None:
        self.uri = uri
        self.sent = 0  # records
        self._notify, self._create = notify, create
        self._store: MlflowStore | None = None
        self._complained: set[str] = set()

    def play(self, journal: Journal, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Send all that is in the journal.

        Raises:
            Unreachable: MLflow takes no records now; what it took is marked.
        """
        while not should_stop() and (records := journal.next_records()):
            if self._store is None:
                self._store = MlflowStore.connect(self.uri, create=self._create)
            for record, mark in records:
                try:
                    self._store.send(journal, record)
                except Refused as error:
                    self._refuse(journal, record, str(error))
                journal.mark_sent(mark)
                self.sent += 1

    def _refuse(self, journal: Journal, record: dict[str, object], reason: str) -> None:
        journal.reject(record, reason)
        if journal.handle.key not in self._complained:
            self._complained.add(journal.handle.key)
            self._notify(
                f"MLflow refused a record of this run ({record.get('op')}: {reason}); "
                f"training goes on; refused records are kept in {journal.folder}"
            )


class Sender:
    """Sends the journals of one tracker in the background."""

    def __init__(self, uri: str, notify: Notify, *, create: bool = True) -> None:
        self.is_down = False
        self._place, self._notify = without_password(uri), notify
        self._player = Player(uri, notify, create=create)
        self._journals: list[Journal] = []
        self._change = threading.Condition()
        self._stopped = False
        self._told = self._told_lost = False
        self._next_try, self._pause = 0.0, FIRST_RETRY_S
        self._tries, self._last_try = 0, 0.0
        self._thread = threading.Thread(target=self._loop, name="dreamfleet-tracking", daemon=True)
        self._thread.start()

    def add(self, journal: Journal) -> None:
        with self._change:
            self._journals.append(journal)
            self._change.notify_all()

    def wake(self) -> None:
        with self._change:
            self._change.notify_all()

    def wait_until(
        self, done: Callable[[], bool], timeout_s: float, *, ask_again: bool = False
    ) -> bool:
        """Wait for `done` until `timeout_s` after the last sign of life; not while MLflow is down.

        With `ask_again` a server that was down some time ago is tried once more now.
        """
        seen, deadline = self._player.sent, time.monotonic() + timeout_s
        asking = self._ask_again() if ask_again else None
        self.wake()
        while not done():
            if self._stopped or (self.is_down and self._tries != asking):
                return done()
            if self._player.sent != seen:
                seen, deadline = self._player.sent, time.monotonic() + timeout_s
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)  # a Ctrl-C inside `Condition.wait` can come out as another error
        return True

    def _ask_again(self) -> int | None:
        """The number of tries so far, where another one is due at once; else None."""
        with self._change:
            if not self.is_down or time.monotonic() - self._last_try < ASK_AGAIN_S:
                return None
            self._next_try = 0.0
            return self._tries

    def tell_kept(self, reason: str, folder: object) -> None:
        """The one line about records that stay on disk."""
        if not self._told:
            self._told = True
            self._notify(
                f"MLflow at {self._place}: {reason}; training goes on. Records are kept in "
                f"{folder} and sent with the next run, or by `{FLUSH_COMMAND}`"
            )

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the thread and let other processes send what is left."""
        with self._change:
            self._stopped = True
            self._change.notify_all()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            for journal in self._journals:
                journal.release()
            self._journals.clear()

    def _loop(self) -> None:
        while not self._stopped:
            with self._change:
                self._change.wait(PERIOD_S if self.is_down or not self._has_work() else 0.0)
                journals = list(self._journals)
            for journal in journals:
                journal.flush(ROWS_AGE_S)
            if time.monotonic() >= self._next_try:
                self._play_all(journals)
            self._tell_lost(journals)
            with self._change:
                self._change.notify_all()

    def _has_work(self) -> bool:
        return any(journal.pending_bytes > 0 for journal in self._journals)

    def _play_all(self, journals: list[Journal]) -> None:
        for journal in journals:
            try:
                self._player.play(journal, lambda: self._stopped)
            except Unreachable as error:
                self._went_down(str(error), journal)
                return
            except OSError as error:  # the spool itself
                self._went_down(f"the spool cannot be read ({error})", journal)
                return
            if journal.closed and journal.is_sent:
                self._drop(journal)
        if journals:
            self._came_back()

    def _drop(self, journal: Journal) -> None:
        journal.release()
        with self._change:
            self._journals.remove(journal)

    def _went_down(self, reason: str, journal: Journal) -> None:
        self.is_down = True
        self._tries, self._last_try = self._tries + 1, time.monotonic()
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LAST_RETRY_S)
        self.tell_kept(reason, journal.folder.parent)

    def _came_back(self) -> None:
        if self.is_down:
            self._notify(f"MLflow at {self._place} answers again; the kept records have been sent")
            self._told = False
        self.is_down = False
        self._next_try, self._pause = 0.0, FIRST_RETRY_S

    def _tell_lost(self, journals: list[Journal]) -> None:
        if not self._told_lost and any(journal.lost for journal in journals):
            self._told_lost = True
            place = journals[0].folder.parent
            self._notify(f"{place} some MLflow records could not be kept there and are lost")
