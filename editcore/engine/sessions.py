"""What an engine says about sessions and does to them without the model. Knows the store; knows no worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from editcore import history
from editcore.admission import HUB_ID
from editcore.assets import WORLD_NAME
from editcore.engine.contract import AGAIN, LOCATE, JobKind, Plans, SessionState
from editcore.errors import EngineBusy
from editcore.history import Base, Move
from editcore.home import check_session
from editcore.opened import recalled_opening
from editcore.records import Checkup, EditReport, EditRequest, Opening, from_plain, to_plain
from editcore.remade import Remade
from editcore.store import Library, Store
from editcore.store.store import Job

_INTERRUPTED: dict[str, str] = {
    "edit": "An edit was interrupted when the program stopped; nothing of it was kept.",
    "comparison": "A comparison was interrupted when the program stopped.",
    "preparation": "A training was interrupted when the program stopped. "
    "Start it again with the same examples to go on.",
    "recomputation": "Computing edits again was interrupted when the program stopped; the history is as it was.",
    "adoption": "Bringing a file in was interrupted when the program stopped; nothing of it was kept. Give it again.",
    "export": "An export was interrupted when the program stopped; nothing was written.",
}
_FINDING = "Finding out where to edit was interrupted when the program stopped. Start it again."
CHECKUP, REMADE = "checkup", "remade"  # what their readings are called in the store


class StoredSessions:
    """`contract.Sessions` over a store.

    Args:
        unfinished: the job of a session that is queued or running, if there is one.
    """

    def __init__(self, store: Store, unfinished: Callable[[str], str | None]) -> None:
        self._store, self._unfinished = store, unfinished
        self._library = Library(store)
        self._cut = store.unended()

    @property
    def library(self) -> Library:
        """See `Sessions.library`."""
        return self._library

    def state(self, session: str) -> SessionState:
        """See `Sessions.state`."""
        job = self._unfinished(session)  # before the history: an edit that ends now is in one of them
        seen, cut = self._store.history(session), self._store.interrupted(session, self._cut)
        return SessionState(
            session, seen.rows, seen.undo, seen.redo, job, seen.edited, seen.name,
            _interrupted(cut) if cut else "", cut.id if cut and cut.work else "", seen.base,
        )  # fmt: skip

    def dismiss(self, session: str) -> None:
        """See `Sessions.dismiss`."""
        cut = self._store.interrupted(check_session(session), self._cut)
        if cut:
            self._store.end_job(cut.id)

    def asked(self, session: str, job: str) -> tuple[JobKind, list[EditRequest], Plans]:
        """What was asked in a job that was interrupted or lost. Raises BadRequest: see `Store.asked`."""
        found = self._store.asked(session, job)
        kind: JobKind = found.kind
        requests = [from_plain(EditRequest, request) for request in found.work["requests"]]
        return kind, requests, [(method, settings) for method, settings in found.work["plans"]]

    def reports(self, session: str, edit: str) -> tuple[EditReport, ...]:
        """See `Sessions.reports`."""
        return self._store.edit(session, edit).reports

    def opening(self, base: Base) -> Opening | None:
        """See `Sessions.opening`."""
        known = recalled_opening(self._store.home, base.fingerprint)
        named = base.model == WORLD_NAME or HUB_ID.fullmatch(base.model)
        return known or (Opening(base.model) if named else None)

    def move(self, session: str, move: Move) -> SessionState:
        """See `Sessions.move`."""
        self._check_free(session)
        self._store.move(session, move)
        return self.state(session)

    def undo(self, session: str) -> SessionState:
        """See `Sessions.undo`."""
        self._check_free(session)
        self._store.undo(session)
        return self.state(session)

    def redo(self, session: str) -> SessionState:
        """See `Sessions.redo`."""
        self._check_free(session)
        self._store.redo(session)
        return self.state(session)

    def annotate(self, session: str, edit: str, note: str) -> None:
        """See `Sessions.annotate`."""
        self._store.annotate(session, edit, note)

    def course(self, session: str) -> tuple[tuple[int, Checkup], ...]:
        """See `Sessions.course`."""
        stack, found = self._store.stack(session), []
        for last, row in enumerate(self._store.history(session).rows, 1):
            if not (row.on and row.strength > 0):
                continue
            told = self._store.reading(session, CHECKUP, history.print_of(history.in_place(stack[:last])))
            if told is not None:
                found.append((row.number, from_plain(Checkup, told)))
        return tuple(found)

    def remade(self, session: str, edit: str) -> tuple[Remade, ...]:
        """See `Sessions.remade`."""
        told = self._store.reading(session, REMADE, job_of(edit)) or ()
        return tuple(from_plain(Remade, one) for one in told)

    def _check_free(self, session: str) -> None:
        job = self._unfinished(session)
        if job:
            raise EngineBusy(
                f"A job of this session is unfinished (job {job}).", "", "Wait for it or cancel it, then change it."
            )


def _interrupted(cut: Job) -> str:
    """What is said of a job that was cut off when the program stopped."""
    return _FINDING if LOCATE in cut.methods else _INTERRUPTED[cut.kind]


def job_of(edit: str) -> str:
    """The job that made an edit; those of a job that makes several are numbered behind it."""
    return edit.partition("-")[0]


def to_be_noted(kind: JobKind, requests: Sequence[EditRequest], plans: Plans) -> Any:
    """What a job is asked, as plain data for `StoredSessions.asked`; None when it cannot be run again."""
    if kind not in AGAIN:
        return None
    asked = [to_plain(request) for request in requests]
    return {"requests": asked, "plans": [[method, dict(settings)] for method, settings in plans]}


def print_of_view(edit: str, request: int, which: str, standing: tuple[tuple[str, float], ...]) -> str:
    """The name of a view in the store: what was read, and with what in place."""
    return f"{edit}.{request}.{which}.{history.print_of(standing)}"
