"""Sessions that last: their edits, what was done to them, how to take it back. Knows the database, no model, no page.

An edit is kept in two steps: its patch is flushed and renamed to the hash of its content, then one transaction writes
its row and the new stack. A crash between the two leaves a patch nobody refers to, swept up after a day.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from editcore import history
from editcore.errors import BadRequest
from editcore.history import Base, Move, Place, Row, Stack
from editcore.home import check_session
from editcore.records import EditReport, Scores, from_plain, to_plain
from editcore.store.blobs import Blobs
from editcore.store.database import Database
from editcore.store.tables import actions, edits, jobs, readings, sessions


@dataclass(frozen=True, slots=True)
class Edit:
    """One committed edit."""

    id: str  # of the job that made it
    number: int
    folder: Path  # where its patch is
    reports: tuple[EditReport, ...]  # with `patch.path` set to `folder`
    standing: tuple[tuple[str, float], ...]  # edits and strengths in place when it was computed
    note: str


@dataclass(frozen=True, slots=True)
class Made:
    """An edit whose patch is in its scratch folder, about to be committed."""

    id: str  # of its job, or derived from it
    reports: tuple[EditReport, ...]  # one a request
    standing: tuple[tuple[str, float], ...]  # edits and strengths it was computed on

    def columns(self) -> dict[str, Any]:
        """What its row says by itself."""
        told = dict(history.summary(self.reports))
        return {
            "id": self.id, "note": "", "standing": _text([list(pair) for pair in self.standing]),
            "reports": _packed([to_plain(_placed(report, None)) for report in self.reports]),
            "summary": _text({**told, "scores": to_plain(told["scores"])}),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class History:
    """A session as of now."""

    session: str
    name: str
    model: str
    rows: tuple[Row, ...]  # the stack, oldest first
    undo: str  # what undo would take back, in words; "": nothing
    redo: str  # what redo would do again; "": nothing
    edited: bool  # the session's model differs from the base
    base: Base | None = None  # of the edits in the stack; None: there are none


@dataclass(frozen=True, slots=True)
class Job:
    """A job that did not come to its end."""

    id: str
    kind: Any  # a `JobKind`
    methods: tuple[str, ...]  # one, or those of a comparison
    work: Any  # what was asked, as plain data; None: it cannot be run again


class Store:
    """All sessions under one data folder, or in one database. Safe to share between threads and processes."""

    def __init__(self, home: Path) -> None:
        self.home, self.database = home, Database(home)
        self.blobs = Blobs(home, self.database.folder)

    @property
    def note(self) -> str:
        """What a person should know about how the store was opened."""
        return self.database.note

    def close(self) -> None:
        """Give the database back."""
        self.database.close()

    # reading ---------------------------------------------------------------------------------------------------

    def history(self, session: str) -> History:
        """The session as of now; an unknown one is empty."""
        check_session(session)
        with self.database.reading() as at:
            head = at.execute(sa.select(sessions).where(sessions.c.id == session)).first()
            if head is None:
                return History(session, "", "", (), "", "", False)
            near = {n: said for n, said in _actions_near(at, session, head.cursor)}
            stack = _stack(at, session, head.cursor)
            found, base = _rows(at, stack), self._base(at, stack, head.model)
        undo, redo = near.get(head.cursor, ""), near.get(head.cursor + 1, "")
        return History(session, head.name, head.model, found, undo, redo, bool(history.in_place(stack)), base)

    def stack(self, session: str) -> Stack:
        """What is in place, and what is switched off."""
        with self.database.reading() as at:
            cursor = at.execute(sa.select(sessions.c.cursor).where(sessions.c.id == check_session(session))).scalar()
            return _stack(at, session, cursor or 0)

    def base(self, session: str) -> Base | None:
        """The model that the edits of the stack were made on, switched on or off; None: there are none."""
        with self.database.reading() as at:
            head = at.execute(sa.select(sessions).where(sessions.c.id == check_session(session))).first()
            return None if head is None else self._base(at, _stack(at, session, head.cursor), head.model)

    def _base(self, at: sa.Connection, stack: Stack, model: str) -> Base | None:
        if not stack:
            return None
        blob = at.execute(sa.select(edits.c.blob).where(edits.c.id == stack[0].edit)).scalar_one()
        name, fingerprint = self.blobs.base(blob)
        return Base(name or model, fingerprint)

    def standing(self, session: str) -> list[tuple[Path, float]]:
        """The patches that count, with their strength, oldest first."""
        return self.placed(history.in_place(self.stack(session)))

    def placed(self, wanted: Sequence[tuple[str, float]]) -> list[tuple[Path, float]]:
        """Where the patches of these edits are."""
        with self.database.reading() as at:
            found = at.execute(sa.select(edits.c.id, edits.c.blob).where(edits.c.id.in_([e for e, _ in wanted])))
            blobs = {row.id: row.blob for row in found}
        return [(self.blobs.path(blobs[edit]), strength) for edit, strength in wanted]

    def edit(self, session: str, edit: str) -> Edit:
        """One edit of a session, also one that was undone.

        Raises:
            BadRequest: there is none of that id.
        """
        with self.database.reading() as at:
            row = at.execute(
                sa.select(edits).where(edits.c.id == edit, edits.c.session == check_session(session))
            ).first()
        if row is None:
            raise BadRequest("There is no such edit in this session.", "", "Open the history again.")
        folder = self.blobs.path(row.blob)
        reports = tuple(_placed(from_plain(EditReport, r), folder) for r in _unpacked(row.reports))
        standing = tuple((str(e), float(s)) for e, s in json.loads(row.standing))
        return Edit(row.id, row.number, folder, reports, standing, row.note)

    def committed(self, job: str) -> str:
        """The last edit made by this job that was written; "": none."""
        mine = sa.or_(edits.c.id == job, edits.c.id.startswith(f"{job}-", autoescape=True))
        with self.database.reading() as at:
            return str(at.execute(sa.select(edits.c.id).where(mine).order_by(edits.c.number.desc())).scalar() or "")

    # changing --------------------------------------------------------------------------------------------------

    def commit(
        self, session: str, made: Sequence[Made], said: str = "",
        instead: Stack | None = None, places: Sequence[tuple[bool, float]] = (),
    ) -> list[Edit]:  # fmt: skip
        """Keep the patches in the scratch folders of these edits, then their rows and the stack with them on top.

        Args:
            said: what the one action is called that adds them; "": after the first.
            instead: the stack they are put on; None: the one in force.
            places: whether and how strongly each counts; left out: as computed.

        Raises:
            OSError, EngineError: the disk refused; no row is left behind.
        """
        check_session(session)
        rows = [{**edit.columns(), "blob": self.blobs.keep(edit.id)} for edit in made]
        now = time.time()
        with self.database.writing() as at:
            cursor, number = _opened(at, session, made[0].reports[0].model, now)
            stack = _stack(at, session, cursor) if instead is None else instead
            for row in rows:
                number += 1
                at.execute(edits.insert().values(session=session, number=number, at=now, **row))
            settled = places or [(True, 1.0)] * len(made)
            stack += tuple(Place(e.id, on, strength) for e, (on, strength) in zip(made, settled, strict=True))
            words = said or f"apply #{number} {_short(made[0].reports[0].request.target)}"
            _act(at, session, cursor, words, stack, now)
            at.execute(sessions.update().where(sessions.c.id == session).values(made=number))
        return [self.edit(session, edit.id) for edit in made]

    def move(self, session: str, move: Move) -> History:
        """Toggle, scale, remove, reorder or reset; nothing is written when nothing changes.

        Raises:
            BadRequest: see `history.moved`.
        """
        check_session(session)
        now = time.time()
        with self.database.writing() as at:
            cursor = _cursor(at, session)
            before = _stack(at, session, cursor)
            after = history.moved(before, move)
            if after != before:
                _act(at, session, cursor, history.said(move, _name(at, move.edit)), after, now)
        return self.history(session)

    def undo(self, session: str) -> History:
        """Take the last action back; at the beginning, nothing happens."""
        return self._step(session, -1)

    def redo(self, session: str) -> History:
        """Do the action again that was taken back last; when there is none, nothing happens."""
        return self._step(session, 1)

    def _step(self, session: str, by: int) -> History:
        check_session(session)
        with self.database.writing() as at:
            cursor = _cursor(at, session) + by
            there = sa.select(actions.c.number).where(actions.c.session == session, actions.c.number == cursor)
            if cursor == 0 or at.execute(there).first() is not None:
                at.execute(sessions.update().where(sessions.c.id == session).values(cursor=cursor, used=time.time()))
        return self.history(session)

    def annotate(self, session: str, edit: str, note: str) -> None:
        """Write a person's own words beside an edit."""
        self.edit(session, edit)
        with self.database.writing() as at:
            at.execute(edits.update().where(edits.c.id == edit).values(note=note[:2000]))

    # what was read, and what was under way ---------------------------------------------------------------------

    def reading(self, session: str, kind: str, print_: str) -> Any:
        """What was read before under this name, as plain data; None: nothing."""
        with self.database.reading() as at:
            found = at.execute(
                sa.select(readings.c.result).where(
                    readings.c.session == session, readings.c.kind == kind, readings.c.print == print_
                )
            ).scalar()
        return None if found is None else json.loads(found)

    def remember(self, session: str, kind: str, print_: str, result: Any) -> None:
        """Keep what was read; a session that does not exist yet remembers nothing."""
        with self.database.writing() as at:
            if at.execute(sa.select(sessions.c.id).where(sessions.c.id == session)).first() is None:
                return
            at.execute(readings.delete().where(
                readings.c.session == session, readings.c.kind == kind, readings.c.print == print_
            ))  # fmt: skip
            at.execute(readings.insert().values(
                session=session, kind=kind, print=print_, result=_text(result), at=time.time()
            ))  # fmt: skip

    def begin_job(self, session: str, job: str, kind: str, methods: Sequence[str], work: Any = None) -> None:
        """Note that a job was taken on, so that a page that comes back later can say what became of it.

        A job of this session that was cut off has been told of by now.

        Args:
            work: what was asked, as plain data, if it can be run again.
        """
        with self.database.writing() as at:
            at.execute(jobs.update().where(jobs.c.session == session).values(ended=True, work=""))
            at.execute(jobs.insert().values(
                id=job, session=session, kind=kind, methods=json.dumps(list(methods)), ended=False, at=time.time(),
                work="" if work is None else _packed(work),
            ))  # fmt: skip

    def end_job(self, job: str, lost: bool = False) -> None:
        """Note that a job has ended, however it did; of one that was lost, what was asked is kept."""
        with self.database.writing() as at:
            at.execute(jobs.update().where(jobs.c.id == job).values(ended=True, **({} if lost else {"work": ""})))

    def unended(self) -> frozenset[str]:
        """The jobs of all sessions that have not ended. When a program starts, those were cut off."""
        with self.database.reading() as at:
            return frozenset(at.execute(sa.select(jobs.c.id).where(jobs.c.ended.is_(False))).scalars())

    def interrupted(self, session: str, cut: Container[str]) -> Job | None:
        """The job of this session among those cut off, until another begins or it is ended; None: none, or it made its
        edit."""
        unended = sa.select(jobs).where(jobs.c.session == session, jobs.c.ended.is_(False)).order_by(jobs.c.at.desc())
        with self.database.reading() as at:
            found = [row for row in at.execute(unended) if row.id in cut]
        return next((_job(row) for row in found if not self.committed(row.id)), None)

    def asked(self, session: str, job: str) -> Job:
        """A job of this session that was interrupted or lost, with what was asked.

        Raises:
            BadRequest: there is none of that id that could be run again.
        """
        wanted = sa.select(jobs).where(jobs.c.id == job, jobs.c.session == check_session(session))
        with self.database.reading() as at:
            row = at.execute(wanted).first()
        if row is None or not row.work:
            raise BadRequest("This cannot be run again from here.", "", "Start it again from the form.")
        return _job(row)


def _job(row: Any) -> Job:
    return Job(row.id, row.kind, tuple(json.loads(row.methods)), _unpacked(row.work) if row.work else None)


def _cursor(at: sa.Connection, session: str) -> int:
    return int(at.execute(sa.select(sessions.c.cursor).where(sessions.c.id == session)).scalar() or 0)


def _opened(at: sa.Connection, session: str, model: str, now: float) -> tuple[int, int]:
    """Cursor and number of edits of a session, which is made when it is not there."""
    row = at.execute(sa.select(sessions).where(sessions.c.id == session)).first()
    if row is None:
        at.execute(sessions.insert().values(
            id=session, owner="", name="", model=model, cursor=0, made=0, created=now, used=now, draft="{}"
        ))  # fmt: skip
        return 0, 0
    at.execute(sessions.update().where(sessions.c.id == session).values(model=model, deleted=None))
    return int(row.cursor), int(row.made)


def _stack(at: sa.Connection, session: str, cursor: int) -> Stack:
    if cursor == 0:
        return ()
    found = at.execute(
        sa.select(actions.c.stack).where(actions.c.session == session, actions.c.number == cursor)
    ).scalar_one()
    return history.revived(json.loads(found))


def _actions_near(at: sa.Connection, session: str, cursor: int) -> list[tuple[int, str]]:
    near = sa.select(actions.c.number, actions.c.said).where(
        actions.c.session == session, actions.c.number.in_((cursor, cursor + 1))
    )
    return [(int(n), str(said)) for n, said in at.execute(near)]


def _act(at: sa.Connection, session: str, cursor: int, said: str, stack: Stack, now: float) -> None:
    """Write an action behind the cursor; what had been undone cannot be redone any more."""
    at.execute(actions.delete().where(actions.c.session == session, actions.c.number > cursor))
    at.execute(actions.insert().values(
        session=session, number=cursor + 1, said=said, stack=json.dumps(history.plain(stack)), at=now
    ))  # fmt: skip
    at.execute(sessions.update().where(sessions.c.id == session).values(cursor=cursor + 1, used=now))


def _rows(at: sa.Connection, stack: Stack) -> tuple[Row, ...]:
    wanted = [place.edit for place in stack]
    columns = (edits.c.id, edits.c.number, edits.c.summary, edits.c.standing, edits.c.note, edits.c.at)
    found = {row.id: row for row in at.execute(sa.select(*columns).where(edits.c.id.in_(wanted)))}
    rows = []
    for place in stack:
        row = found[place.edit]
        told = json.loads(row.summary)
        told["scores"] = from_plain(Scores, told["scores"])
        standing = tuple((str(e), float(s)) for e, s in json.loads(row.standing))
        rows.append(Row(
            edit=row.id, number=row.number, note=row.note, at=row.at, on=place.on, strength=place.strength,
            shifted=standing != history.beneath(stack, place.edit), **told,
        ))  # fmt: skip
    return tuple(rows)


def _name(at: sa.Connection, edit: str) -> str:
    row = at.execute(sa.select(edits.c.number, edits.c.summary).where(edits.c.id == edit)).first()
    return "" if row is None else f"#{row.number} {_short(json.loads(row.summary)['target'])}"


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _placed(report: EditReport, folder: Path | None) -> EditReport:
    return replace(report, patch=replace(report.patch, path=None if folder is None else str(folder)))


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _packed(value: Any) -> str:
    """JSON, compressed and put into letters: a report repeats itself, and takes a third of its length."""
    return base64.b64encode(zlib.compress(_text(value).encode())).decode()


def _unpacked(text: str) -> Any:
    """The inverse of `_packed`; plain JSON is read too."""
    return json.loads(text if text.startswith("[") else zlib.decompress(base64.b64decode(text)))
