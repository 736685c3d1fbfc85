"""The tables of the store, as SQLAlchemy knows them. Ids are text, times seconds since 1970, values JSON in text.

`migrations/` holds what led here, one file a change; a test compares both.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text, TypeDecorator


class Words(TypeDecorator[str]):
    """What a person typed. No database keeps half a character, and PostgreSQL no NUL: a sign stands in their place."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """The text as it can be kept."""
        return value and value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


metadata = MetaData()

about = Table(
    "about", metadata,
    Column("id", String(32), primary_key=True),  # of this database; it has one row
)  # fmt: skip

sessions = Table(
    "sessions", metadata,
    Column("id", String(64), primary_key=True),
    Column("owner", String(64), nullable=False, default="", index=True),  # whose list it stands in
    Column("name", Words, nullable=False, default=""),
    Column("model", Text, nullable=False, default=""),
    Column("cursor", Integer, nullable=False, default=0),  # number of the action in force; 0: before the first
    Column("made", Integer, nullable=False, default=0),  # edits ever made here; the next one is called made + 1
    Column("created", Float, nullable=False),
    Column("used", Float, nullable=False, index=True),
    Column("deleted", Float),  # when it was put into the bin
    Column("draft", Text, nullable=False, default="{}"),  # the half-filled form
)  # fmt: skip

edits = Table(
    "edits", metadata,
    Column("id", String(32), primary_key=True),  # of the job that made it
    Column("session", String(64), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("blob", String(64), nullable=False, index=True),  # address of its patch
    Column("standing", Text, nullable=False),  # what was in place when it was computed: [[edit, strength] ...]
    Column("reports", Text, nullable=False),  # one a request; packed, see `store`
    Column("summary", Text, nullable=False),  # what a history row shows of them
    Column("note", Words, nullable=False, default=""),
    Column("at", Float, nullable=False),
)  # fmt: skip

actions = Table(
    "actions", metadata,
    Column("session", String(64), ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("said", Words, nullable=False),  # what the undo button calls it
    Column("stack", Text, nullable=False),  # afterwards
    Column("at", Float, nullable=False),
)  # fmt: skip

readings = Table(
    "readings", metadata,
    Column("session", String(64), ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(16), primary_key=True),  # "view", "checkup"
    Column("print", String(96), primary_key=True),  # of what was read, and of what was in place
    Column("result", Text, nullable=False),
    Column("at", Float, nullable=False),
)  # fmt: skip

jobs = Table(
    "jobs", metadata,
    Column("id", String(32), primary_key=True),
    Column("session", String(64), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("methods", Text, nullable=False),
    Column("work", Text, nullable=False, default=""),  # what was asked, to be run again; packed, "" when it cannot be
    Column("ended", Boolean, nullable=False, default=False),
    Column("at", Float, nullable=False),
)  # fmt: skip

shares = Table(
    "shares", metadata,
    Column("id", String(64), primary_key=True),
    Column("session", String(64), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False),
    Column("title", Words, nullable=False),
    Column("model", Text, nullable=False),
    Column("content", Text, nullable=False),  # what a visitor sees, frozen
    Column("at", Float, nullable=False),
)  # fmt: skip
Index("shares_of_session", shares.c.session)
