"""An engine that works in a thread of its own; others reach it by commands between its steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from dreamfleet.engine.engine import Engine
from dreamfleet.errors import first_line

T = TypeVar("T")
BROKEN_STEPS = 3  # in a row; then it is given up
Command = tuple[Callable[[Engine], Any], "Future[Any]"]


class EngineLoop:
    """Steps an engine for as long as it has work, and waits for commands else.

    Args:
        build: makes the engine, in the thread (loading a base takes a while).
    """

    def __init__(self, build: Callable[[], Engine]) -> None:
        self._build = build
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._closed = False
        self._guard = threading.Lock()  # of what is put into the queue, and of its end
        self._failed: BaseException | None = None  # why it was not built
        self._broken_steps: list[Exception] = []  # in a row
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def call(self, command: Callable[[Engine], T]) -> Future[T]:
        """Run `command` with the engine before its next step; its result or error is the
        future's.
        """
        result: Future[T] = Future()
        with self._guard:
            if self._closed:
                result.set_exception(_closed())
            else:
                self._commands.put((command, result))
        return result

    def trouble(self) -> str:
        """Why nothing more is to be expected of it; empty while there is."""
        if self._failed is not None:
            return f"it could not be built: {first_line(self._failed)}"
        if not self._thread.is_alive():
            return "its thread has ended"
        if len(self._broken_steps) >= BROKEN_STEPS:
            return f"step after step fails: {first_line(self._broken_steps[-1])}"
        return ""

    def close(self, timeout_s: float = 60.0) -> None:
        """End after the step at work."""
        self._closed = True
        self._commands.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._work()
        finally:  # whatever ended it: nobody shall wait for ever
            with self._guard:
                self._closed = True
            while not self._commands.empty():
                if (command := self._commands.get()) is not None:
                    _answer(command[1], _closed())

    def _work(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:
            self._failed = error
            self._refuse(error)
            return
        busy = False
        while self._obey(engine, wait=not busy):
            try:
                busy = engine.step()
                if busy:
                    self._broken_steps.clear()
            except Exception as error:
                self._broken_steps = [*self._broken_steps[1 - BROKEN_STEPS :], error]
                engine.abort(error)  # nobody shall wait for ever
        engine.close()

    def _obey(self, engine: Engine, wait: bool) -> bool:
        """Carry out what was asked; False at the end."""
        while True:
            try:
                command = self._commands.get(block=wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            wait = False
            ask, result = command
            if not result.set_running_or_notify_cancel():
                continue
            try:
                result.set_result(ask(engine))
            except BaseException as error:
                result.set_exception(error)

    def _refuse(self, error: BaseException) -> None:
        """An engine that could not be built answers every command with the reason."""
        while (command := self._commands.get()) is not None:
            _answer(command[1], error)


def _closed() -> RuntimeError:
    return RuntimeError("the engine is closed")


def _answer(result: Future[Any], error: BaseException) -> None:
    if result.set_running_or_notify_cancel():
        result.set_exception(error)
