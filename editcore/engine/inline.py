"""The engine in this process, its work on a thread: for tests and command lines. Loads torch only if the desk does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from editcore.engine import wire
from editcore.engine.contract import Health, JobState, Plans, SessionState
from editcore.engine.queue import DeskLike
from editcore.engine.room import Room
from editcore.engine.sessions import SessionStore, home_dir
from editcore.errors import EngineError
from editcore.records import EditRequest, MethodInfo

OpenDesk = Callable[[str, Path], DeskLike]
PROBE_TIMEOUT = 60.0  # seconds


class InlineEngine:
    """`Engine` without a second process.

    Args:
        model: name of the model to load.
        home: folder of the sessions; None: `home_dir()`.
        open_desk: makes the desk from model name and home; None: the real one.
    """

    def __init__(self, model: str = "world-2019", home: Path | None = None, open_desk: OpenDesk | None = None) -> None:
        folder, self._name = home or home_dir(), model
        self._room = Room(lambda: (open_desk or _real_desk())(model, folder), SessionStore(folder))
        self._room.start()
        self._closed = False

    def health(self) -> Health:
        """See `Engine.health`."""
        return self._room.health()

    def methods(self) -> tuple[MethodInfo, ...]:
        """See `Engine.methods`."""
        from editcore.engine.menu import method_menu  # late: that module is also run as a program

        return method_menu(self._name)

    def ask(self, name: str, timeout: float = 20, **arguments: Any) -> Any:
        """See `Engine.ask`."""
        return wait(self._room.ask(name, wire.plain(arguments), timeout), name, timeout, self._room.health)

    def submit(self, session: str, request: EditRequest, method: str, settings: Mapping[str, Any], key: str) -> str:
        """See `Engine.submit`."""
        return self._room.submit("edit", session, request, [(method, settings)], key)

    def compare(self, session: str, request: EditRequest, methods: Plans, key: str) -> str:
        """See `Engine.compare`."""
        return self._room.submit("comparison", session, request, methods, key)

    def prepare(self, session: str, method: str, examples: Mapping[str, Any], key: str) -> str:
        """See `Engine.prepare`."""
        return self._room.submit("preparation", session, None, [(method, examples)], key)

    def poll(self, job: str, after: int = 0) -> JobState:
        """See `Engine.poll`."""
        return self._room.poll(job, after)

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        self._room.cancel(job)

    def session(self, session: str) -> SessionState:
        """See `Engine.session`."""
        return self._room.session(session)

    def reset(self, session: str) -> None:
        """See `Engine.reset`."""
        self._room.reset(session)

    def probe(self, session: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
        """See `Engine.probe`."""
        answer = self._room.probe(session, prompts, PROBE_TIMEOUT)
        result: list[dict[str, Any]] = wait(answer, "probe", PROBE_TIMEOUT, self._room.health)
        return result

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._closed:
            self._closed = True
            self._room.drain(finish=0.0, stop=5.0)


def wait(
    answer: Future[Any], name: str, timeout: float, health: Callable[[], Health], until: float | None = None
) -> Any:
    """The answer, or an EngineError that says what the engine is busy with; `until` is a monotonic time."""
    try:
        return answer.result(timeout if until is None else max(0.0, until - time.monotonic()))
    except FutureTimeout as error:
        answer.cancel()
        busy = health().busy
        raise EngineError(
            f"{name!r} was not answered within {timeout:g} s.",
            f"The engine is busy ({busy})." if busy else "",
            "Try again when it is free, or cancel the edit that runs.",
        ) from error


def _real_desk() -> OpenDesk:
    from editcore.engine.desk import open_desk  # late: this is where torch comes in

    return open_desk
