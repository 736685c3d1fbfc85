"""The engine in this process, its work on a thread: for tests and command lines. Loads torch only if the desk does."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from pathlib import Path
from typing import Any

from editcore.admission import admitted
from editcore.engine import wire
from editcore.engine.contract import Health, JobState, Plans
from editcore.engine.hands import OpenDesk
from editcore.engine.room import Room
from editcore.engine.sessions import StoredSessions
from editcore.engine.upload import unpacked
from editcore.errors import EngineBusy, EngineError
from editcore.home import check_session, home_dir
from editcore.records import EditReport, EditRequest, Form, MethodInfo, Opening, from_plain, to_plain
from editcore.settings import chosen
from editcore.store import Store

PROBE_TIMEOUT = 60.0  # seconds


class OneModel:
    """What an engine says of the model it has open, without asking it."""

    _opening: Opening

    def methods(self) -> tuple[MethodInfo, ...]:
        """See `Engine.methods`."""
        from editcore.engine.menu import method_menu  # late: that module is also run as a program

        return method_menu(self._opening.model)

    @property
    def opening(self) -> Opening:
        """See `Engine.opening`."""
        return self._opening


class InlineEngine(OneModel):
    """`Engine` without a second process.

    Args:
        model: name of the model to load.
        home: folder of the sessions; None: `home_dir()`.
        open_desk: makes the desk from an opening and home, and says how far it is; None: the real one.
    """

    def __init__(self, model: str = "world-2019", home: Path | None = None, open_desk: OpenDesk | None = None) -> None:
        self._home, self._opening, self._open_desk = home or home_dir(), Opening(model), open_desk
        self._store = Store(self._home)
        self._begin()
        self._sessions = StoredSessions(self._store, lambda session: self._room.unfinished(session))
        self._closed = False

    def _begin(self) -> None:
        opening, home = self._opening, self._home
        self._room = Room(lambda say: (self._open_desk or _real_desk())(opening, home, say), self._store)
        self._room.start()

    def health(self) -> Health:
        """See `Engine.health`."""
        return self._room.health()

    def open(self, opening: Opening) -> None:
        """See `Engine.open`."""
        opening = replace(opening, model=admitted(opening.model.strip(), chosen()))
        if count := self._room.under_way():
            raise still_busy(count)
        if self._room.health().state == "ready":
            self.ask("look", PROBE_TIMEOUT, **to_plain(opening))
        self._room.drain(finish=0.0, stop=5.0)
        self._room.join(5.0)
        self._opening = opening
        self._begin()

    def ask(self, name: str, timeout: float = 20, **arguments: Any) -> Any:
        """See `Engine.ask`."""
        return wait(self._room.ask(name, wire.plain(arguments), timeout), name, timeout, self._room.health)

    @property
    def sessions(self) -> StoredSessions:
        """See `Engine.sessions`."""
        return self._sessions

    def submit(
        self, session: str, requests: Sequence[EditRequest], method: str, settings: Mapping[str, Any], key: str
    ) -> str:
        """See `Engine.submit`."""
        return self._room.submit("edit", session, requests, [(method, settings)], key)

    def compare(self, session: str, request: EditRequest, methods: Plans, key: str) -> str:
        """See `Engine.compare`."""
        return self._room.submit("comparison", session, [request], methods, key)

    def prepare(self, session: str, method: str, examples: Mapping[str, Any], key: str) -> str:
        """See `Engine.prepare`."""
        return self._room.submit("preparation", session, [], [(method, examples)], key)

    def recompute(self, session: str, edit: str, key: str) -> str:
        """See `Engine.recompute`."""
        return self._room.submit("recomputation", session, [], [("", {"edit": edit})], key)

    def again(self, session: str, job: str, key: str) -> str:
        """See `Engine.again`."""
        kind, requests, plans = self._sessions.asked(session, job)
        return self._room.submit(kind, session, requests, plans, key)

    def adopt(self, session: str, data: bytes, name: str, request: EditRequest | None, key: str) -> str:
        """See `Engine.adopt`."""
        source, requests = unpacked(data, name, self._home), [request] if request else []
        return self._room.submit("adoption", session, requests, [(name, {"source": str(source)})], key)

    def export(self, session: str, format: str, options: Mapping[str, Any], key: str) -> str:
        """See `Engine.export`."""
        return self._room.submit("export", session, [], [(format, options)], key)

    def view(self, session: str, edit: str, which: str, request: int = 0) -> EditReport:
        """See `Engine.view`."""
        answer = self._room.view(check_session(session), edit, which, request, PROBE_TIMEOUT)
        return from_plain(EditReport, wait(answer, "view", PROBE_TIMEOUT, self._room.health))

    def poll(self, job: str, after: int = 0) -> JobState:
        """See `Engine.poll`."""
        return self._room.poll(job, after)

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        self._room.cancel(job)

    def probe(self, session: str, prompts: Sequence[str], form: Form = "raw") -> list[dict[str, Any]]:
        """See `Engine.probe`."""
        answer = self._room.probe(session, prompts, form, PROBE_TIMEOUT)
        result: list[dict[str, Any]] = wait(answer, "probe", PROBE_TIMEOUT, self._room.health)
        return result

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._closed:
            self._closed = True
            self._room.drain(finish=0.0, stop=5.0)
            self._store.close()


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


def still_busy(jobs: int) -> EngineBusy:
    """Why another model cannot be opened now.

    Args:
        jobs: that are queued, running or being handed over.
    """
    seen = f"{jobs} {'job is' if jobs == 1 else 'jobs are'} queued or running on the model that is open."
    return EngineBusy(
        seen if jobs else "Another model is being opened already.",
        "It is opened when nothing is under way, here or for anybody else." if jobs else "",
        "Wait until they are done, or cancel them." if jobs else "Wait until it is there.",
    )


def _real_desk() -> OpenDesk:
    from editcore.engine.desk import open_desk  # late: this is where torch comes in

    return open_desk
