"""The shelf of sessions: listed, named, copied, thrown away and taken back; drafts and share links. Knows no model.

What is kept, and for how long: a session with edits stays until it is deleted; a deleted one can be taken back for
`bin_days`; one without an edit goes `empty_days` after its last use; an edit that was undone, and that redo cannot
bring back because something else was done since, goes `bin_days` after it was made; a patch or scratch folder nobody
refers to goes after a day. How many days those are is a setting.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from editcore.errors import BadRequest
from editcore.home import check_session, new_session
from editcore.settings import chosen
from editcore.store.store import Store
from editcore.store.tables import actions, edits, jobs, readings, sessions, shares

DAY = 86_400.0  # seconds
JOB_DAYS = 7
LOCAL = "this computer"  # the owner of sessions on a page that only this computer can open
LONGEST_NAME = 120  # characters
LONGEST_DRAFT = 500_000  # characters
NAMED = 3  # corrected answers that stand for a name
_HEAD = ("id", "name", "model", "used", "deleted")  # of a session, for its line in the list
_LINK = re.compile(r"s[A-Za-z0-9_-]{24}")


@dataclass(frozen=True, slots=True)
class Listed:
    """A session in the list."""

    session: str
    name: str  # as given by a person, else the first corrected answers
    model: str
    edits: int  # in its stack
    used: float  # last change, seconds since 1970
    deleted: float | None  # when it was put into the bin


@dataclass(frozen=True, slots=True)
class Shared:
    """What a share link shows, frozen when it was made."""

    title: str
    model: str
    at: float  # seconds since 1970
    content: Mapping[str, Any]


class Library:
    """The sessions of one store."""

    def __init__(self, store: Store) -> None:
        self._store, self._database = store, store.database

    @property
    def note(self) -> str:
        """What a person should know about how the store was opened."""
        return self._store.note

    def sessions(self, owner: str, deleted: bool = False, most: int = 200) -> tuple[Listed, ...]:
        """An owner's sessions that hold an edit or a name, latest use first."""
        filled = sa.exists().where(edits.c.session == sessions.c.id)
        binned = sessions.c.deleted.is_not(None) if deleted else sessions.c.deleted.is_(None)
        here = sa.and_(actions.c.session == sessions.c.id, actions.c.number == sessions.c.cursor)
        wanted = (
            sa.select(*(sessions.c[name] for name in _HEAD), actions.c.stack)
            .outerjoin(actions, here)
            .where(sessions.c.owner == owner, binned, sa.or_(filled, sessions.c.name != ""))
            .order_by(sessions.c.used.desc())
            .limit(most)
        )
        with self._database.reading() as at:
            rows = at.execute(wanted).all()
            stacks = [[place[0] for place in json.loads(row.stack or "[]")] for row in rows]
            answers = _answers(at, [edit for stack in stacks for edit in stack[:NAMED]])
        return tuple(_listed(row, stack, answers) for row, stack in zip(rows, stacks, strict=True))

    def owner(self, session: str) -> str:
        """Whose list the session stands in; "" for an unknown one."""
        with self._database.reading() as at:
            found = at.execute(sa.select(sessions.c.owner).where(sessions.c.id == check_session(session))).scalar()
        return found or ""

    def claim(self, session: str, owner: str) -> None:
        """Put the session into an owner's list, unless it stands in one."""
        with self._database.writing() as at:
            at.execute(sessions.update().where(sessions.c.id == check_session(session), sessions.c.owner == "").values(
                owner=owner))  # fmt: skip

    def rename(self, session: str, name: str) -> None:
        """Give the session a name.

        Raises:
            BadRequest: the name is too long.
        """
        if len(name) > LONGEST_NAME:
            raise BadRequest(f"The name has {len(name)} characters.", f"At most {LONGEST_NAME} fit.", "Shorten it.")
        self._set(session, name=name.strip())

    def delete(self, session: str) -> None:
        """Put the session into the bin; see the module for how long it stays there."""
        self._set(session, deleted=time.time())

    def restore(self, session: str) -> None:
        """Take the session out of the bin."""
        self._set(session, deleted=None)

    def _set(self, session: str, **values: Any) -> None:
        with self._database.writing() as at:
            at.execute(sessions.update().where(sessions.c.id == check_session(session)).values(**values))

    def duplicate(self, session: str) -> str:
        """A copy with its whole history under a new id, which is returned; patches are shared.

        Raises:
            BadRequest: there is no such session.
        """
        copy, now = new_session(), time.time()
        with self._database.writing() as at:
            head = at.execute(sa.select(sessions).where(sessions.c.id == check_session(session))).first()
            if head is None:
                raise BadRequest("There is nothing to copy in this session yet.", "", "Apply an edit first.")
            name = f"{head.name or 'Session'} (copy)"
            at.execute(
                sessions.insert().values(**{**head._mapping, "id": copy, "name": name, "created": now, "used": now})
            )
            fresh = {}
            for row in at.execute(sa.select(edits).where(edits.c.session == session).order_by(edits.c.number)).all():
                fresh[row.id] = secrets.token_hex(8)
                standing = [[fresh.get(e, e), s] for e, s in json.loads(row.standing)]
                values = {**row._mapping, "id": fresh[row.id], "session": copy, "standing": json.dumps(standing)}
                at.execute(edits.insert().values(**values))
            for row in at.execute(sa.select(actions).where(actions.c.session == session)).all():
                stack = [[fresh.get(e, e), on, s] for e, on, s in json.loads(row.stack)]
                at.execute(actions.insert().values(**{**row._mapping, "session": copy, "stack": json.dumps(stack)}))
        return copy

    # drafts and links ------------------------------------------------------------------------------------------

    def keep_draft(self, session: str, owner: str, draft: Mapping[str, Any]) -> None:
        """Keep a half-filled form; the session is made when it is not there. Too long a draft is not kept."""
        text, now = json.dumps(draft), time.time()
        if len(text) > LONGEST_DRAFT:
            return
        with self._database.writing() as at:
            mine = sessions.c.id == check_session(session)
            if at.execute(sessions.update().where(mine).values(draft=text)).rowcount == 0:
                at.execute(sessions.insert().values(
                    id=session, owner=owner, name="", model="", cursor=0, made=0, created=now, used=now, draft=text
                ))  # fmt: skip

    def draft(self, session: str) -> dict[str, Any]:
        """The half-filled form of a session, or nothing."""
        with self._database.reading() as at:
            found = at.execute(sa.select(sessions.c.draft).where(sessions.c.id == check_session(session))).scalar()
        draft: dict[str, Any] = json.loads(found) if found else {}
        return draft

    def share(self, session: str, title: str, content: Mapping[str, Any]) -> str:
        """Freeze what a visitor may see under a new, unguessable id; nothing leads from it to the session."""
        link = "s" + secrets.token_urlsafe(18)
        with self._database.writing() as at:
            model = at.execute(sa.select(sessions.c.model).where(sessions.c.id == check_session(session))).scalar()
            if model is None:
                raise BadRequest("There is nothing to share in this session yet.", "", "Apply an edit first.")
            at.execute(shares.insert().values(
                id=link, session=session, title=title, model=model, content=json.dumps(content), at=time.time()
            ))  # fmt: skip
        return link

    def shared(self, link: str) -> Shared | None:
        """What a link shows; None for an unknown or withdrawn one, without a hint which."""
        if not _LINK.fullmatch(link):
            return None
        live = sa.select(shares).join(sessions, sessions.c.id == shares.c.session)
        with self._database.reading() as at:
            row = at.execute(live.where(shares.c.id == link, sessions.c.deleted.is_(None))).first()
        return None if row is None else Shared(row.title, row.model, row.at, json.loads(row.content))

    def withdraw(self, session: str) -> int:
        """Make all links of a session lead nowhere; returns how many there were."""
        with self._database.writing() as at:
            return int(at.execute(shares.delete().where(shares.c.session == check_session(session))).rowcount)

    # tidying ---------------------------------------------------------------------------------------------------

    def prune(self, now: float | None = None) -> tuple[int, int]:
        """Apply the rule of this module; returns how many sessions and how many folders went."""
        now, limits = time.time() if now is None else now, chosen()
        filled = sa.select(edits.c.session)
        old_bin = sessions.c.deleted < now - limits.bin_days * DAY
        old_empty = sa.and_(sessions.c.used < now - limits.empty_days * DAY, sessions.c.id.not_in(filled))
        with self._database.writing() as at:
            gone = list(at.execute(sa.select(sessions.c.id).where(sa.or_(old_bin, old_empty))).scalars())
            for table in (actions, edits, readings, shares):
                at.execute(table.delete().where(table.c.session.in_(gone)))
            at.execute(sessions.delete().where(sessions.c.id.in_(gone)))
            for edit in _abandoned(at, now - limits.bin_days * DAY):
                at.execute(edits.delete().where(edits.c.id == edit))
            at.execute(jobs.delete().where(jobs.c.at < now - JOB_DAYS * DAY))
            wanted = set(at.execute(sa.select(edits.c.blob)).scalars())
        return len(gone), self._store.blobs.sweep(wanted, now)


def _listed(row: Any, stack: Sequence[str], answers: Mapping[str, str]) -> Listed:
    name = row.name or ", ".join(answers[edit] for edit in stack[:NAMED]) or "No edit in place"
    return Listed(row.id, name, row.model, len(stack), row.used, row.deleted)


def _answers(at: sa.Connection, wanted: Sequence[str]) -> dict[str, str]:
    """The corrected answer of each of these edits."""
    told = sa.select(edits.c.id, edits.c.summary).where(edits.c.id.in_(wanted))
    return {edit: json.loads(summary)["target"] for edit, summary in at.execute(told)}


def _abandoned(at: sa.Connection, before: float) -> list[str]:
    """Edits made before then that no action of their session names any more, so that neither undo nor redo can."""
    old = edits.c.at < before
    stacks = sa.select(actions.c.stack).where(actions.c.session.in_(sa.select(edits.c.session).where(old)))
    named = {place[0] for stack in at.execute(stacks).scalars() for place in json.loads(stack)}
    return [edit for edit in at.execute(sa.select(edits.c.id).where(old)).scalars() if edit not in named]
