"""The database behind the store: opened, migrated, and, when its file is damaged, set aside. Knows no session.

SQLite in the data folder unless `DATABASE_URL` names another. Writing takes the write lock from the start, so two
writers wait for each other instead of failing half-way; readers never wait (write-ahead log).
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DatabaseError, OperationalError

from editcore.errors import EngineError
from editcore.settings import chosen

FILE = "editcore.db"
_DAMAGED = ("file is not a database", "malformed", "disk image")
logger = logging.getLogger(__name__)


def url_of(home: Path) -> str:
    """Where the database is: as the settings say, else a file in the data folder."""
    named = chosen().database_url
    return named.get_secret_value() if named else f"sqlite:///{home / FILE}"


class Database:
    """Connections to one migrated database. Safe to share between threads."""

    def __init__(self, home: Path) -> None:
        self._home, self._url = home, url_of(home)
        self.note = ""  # what a person should know about how it was opened
        home.mkdir(parents=True, exist_ok=True)
        try:
            self._engine = self._open()
        except DatabaseError as error:
            if not (self.is_file and any(sign in str(error) for sign in _DAMAGED)):
                raise explained(error) from error
            self.note = self._set_aside()
            self._engine = self._open()

    @property
    def is_file(self) -> bool:
        """True for SQLite in the data folder."""
        return self._url.startswith("sqlite:///")

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one state of the database."""
        with self._explaining(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction: everything in the block is written, or nothing."""
        writer = self._engine.execution_options(writing=True)
        with self._explaining(), writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except DatabaseError as error:
            raise explained(error) from error

    def _open(self) -> sa.Engine:
        arguments = {"timeout": chosen().database_patience} if self.is_file else {}
        engine = sa.create_engine(self._url, connect_args=arguments)
        if self.is_file:
            sa.event.listen(engine, "connect", _prepare)
            sa.event.listen(engine, "begin", _begin)
        try:
            with engine.execution_options(writing=True).begin() as connection:
                self._check(connection)
                _migrate(connection)
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _check(self, connection: sa.Connection) -> None:
        """Raises DatabaseError when the file is damaged anywhere."""
        if self.is_file and (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
            raise DatabaseError("quick_check", None, sqlite3.DatabaseError(f"disk image is malformed: {found}"))

    def _set_aside(self) -> str:
        mark = secrets.token_hex(4)
        for suffix in ("", "-wal", "-shm"):
            path = self._home / f"{FILE}{suffix}"
            if path.exists():
                path.replace(self._home / f"damaged-{mark}-{FILE}{suffix}")
        told = (
            f"The stored sessions could not be read. The file was kept as damaged-{mark}-{FILE}; a new one was begun."
        )
        logger.error(told)
        return told


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _migrate(connection: sa.Connection) -> None:
    """Bring the tables up to date; a database that is up to date is left alone."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    command.upgrade(config, "head")


def explained(error: DatabaseError) -> EngineError:
    """A database's complaint in words."""
    text = str(error.orig).lower()
    logger.error("database: %s", error)
    if isinstance(error, OperationalError) and ("locked" in text or "busy" in text):
        seen, try_ = "The store of sessions is in use by another program.", "Try again in a moment."
    elif "full" in text:
        seen, try_ = "The session could not be saved: no space left on the disk.", "Free space and try again."
    elif "readonly" in text or "unable to open" in text:
        seen = "The data folder cannot be written."
        try_ = "Set EDITCORE_HOME to a folder that can be, and start again."
    else:
        seen, try_ = "The store of sessions does not answer.", "Try again; the log has the details."
    return EngineError(seen, "Nothing was changed.", try_)
