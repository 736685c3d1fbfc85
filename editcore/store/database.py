"""The database behind the store: opened, migrated, and, when its file is damaged, set aside. Knows no session.

SQLite in the data folder unless `DATABASE_URL` names a PostgreSQL. Writing takes the write lock from the start, so two
writers wait for each other instead of failing half-way; readers never wait (SQLite: the write-ahead log; PostgreSQL: an
advisory lock for writers, one snapshot for every reader).
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
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError

from editcore.errors import EngineError
from editcore.settings import chosen
from editcore.store.tables import about

FILE = "editcore.db"
_DAMAGED = ("file is not a database", "malformed", "disk image")
_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")  # as people write it
_BUSY = ("locked", "busy", "lock timeout", "queuepool limit")
_AWAY = ("connection", "connect to", "could not translate", "password authentication", "does not exist", "shut")
_LONGEST_IDLE = 60_000  # milliseconds between two statements of a writer
_WRITERS = 0x65646974  # the advisory lock of those who write: "edit" in letters
logger = logging.getLogger(__name__)


def url_of(home: Path) -> sa.URL:
    """Where the database is: as the settings say, else a file in the data folder.

    Raises:
        EngineError: the settings name something that is no SQLite and no PostgreSQL.
    """
    named = chosen().database_url
    try:
        url = sa.make_url(named.get_secret_value() if named else f"sqlite:///{home / FILE}")
    except (sa.exc.ArgumentError, ValueError):
        raise _unusable("DATABASE_URL cannot be read.") from None  # its text may hold a password
    if url.drivername in _POSTGRES:
        return url.set(drivername=_POSTGRES[-1])
    if url.drivername != "sqlite" or not url.database:
        raise _unusable(f"DATABASE_URL names {url.drivername[:40]!r}.")
    return url


def connected(url: sa.URL) -> sa.Engine:
    """An engine for that database; it has not connected yet.

    Raises:
        EngineError: its driver is not installed.
    """
    patience = chosen().database_patience
    if url.drivername == "sqlite":
        return sa.create_engine(url, connect_args={"timeout": patience}, hide_parameters=True)
    try:
        return sa.create_engine(
            url, connect_args={"connect_timeout": max(2, round(patience))}, pool_pre_ping=True, hide_parameters=True
        )
    except ImportError as error:
        raise EngineError(
            "DATABASE_URL names a PostgreSQL, but psycopg, which speaks to it, is not installed.",
            "",
            'Install it with `pip install "editcore[postgres]"`, or leave DATABASE_URL out.',
        ) from error


class Database:
    """Connections to one migrated database. Safe to share between threads."""

    def __init__(self, home: Path) -> None:
        self._home, self._url = home, url_of(home)
        self.note = ""  # what a person should know about how it was opened
        self._id = ""  # its own, whatever it is reached by
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
        """True for SQLite."""
        return self._url.drivername == "sqlite"

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A connection that sees one state of the database."""
        with self._explaining(), self._readers.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction: everything in the block is written, or nothing."""
        with self._explaining(), self._writers.begin() as connection:
            yield connection

    @property
    def folder(self) -> str:
        """Name of the folder its patches are in: two databases of one data folder never sweep up each other's."""
        return "patches" if self._owns_file else f"patches-{self._id}"

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    @property
    def _owns_file(self) -> bool:
        return self.is_file and Path(str(self._url.database)) == self._home / FILE

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, sa.exc.TimeoutError) as error:
            raise explained(error) from error

    def _open(self) -> sa.Engine:
        engine = connected(self._url)
        if self.is_file:
            sa.event.listen(engine, "connect", _prepare)
        sa.event.listen(engine, "begin", _begin_file if self.is_file else _begin_served)
        self._writers = engine.execution_options(writing=True)
        snapshot = {} if self.is_file else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._readers = engine.execution_options(**snapshot)
        try:
            with self._writers.begin() as connection:
                self._check(connection)
                _migrate(connection)
                self._id = str(connection.execute(sa.select(about.c.id)).scalar_one())
        except BaseException:
            engine.dispose()
            raise
        return engine

    def _check(self, connection: sa.Connection) -> None:
        """Raises DatabaseError when the file is damaged anywhere."""
        if self.is_file and (found := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()) != "ok":
            raise DatabaseError("quick_check", None, sqlite3.DatabaseError(f"disk image is malformed: {found}"))

    def _set_aside(self) -> str:
        """Keep the damaged file, and the patches it names: the new database would sweep them up."""
        mark, file = secrets.token_hex(4), Path(str(self._url.database))
        for suffix in ("", "-wal", "-shm"):
            path = file.with_name(file.name + suffix)
            if path.exists():
                path.replace(file.with_name(f"damaged-{mark}-{path.name}"))
        if self._owns_file and (self._home / "patches").exists():
            (self._home / "patches").replace(self._home / f"damaged-{mark}-patches")
        told = (
            f"The stored sessions could not be read. The file was kept as damaged-{mark}-{file.name}, its patches "
            "beside it; a new one was begun."
        )
        logger.error(told)
        return told


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says so
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_file(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("writing")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _begin_served(connection: sa.Connection) -> None:
    """A writer waits for the others, as long as a writer of a file would; one that hangs is thrown out."""
    if connection.get_execution_options().get("writing"):
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(1000 * chosen().database_patience)}")
        connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {_LONGEST_IDLE}")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def _migrate(connection: sa.Connection) -> None:
    """Bring the tables up to date; a database that is up to date is left alone."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    command.upgrade(config, "head")


def explained(error: DBAPIError | sa.exc.TimeoutError) -> EngineError:
    """A database's complaint in words."""
    text = str(getattr(error, "orig", error)).lower()
    logger.error("database: %s", error)
    if any(sign in text for sign in _BUSY) and isinstance(error, OperationalError | sa.exc.TimeoutError):
        seen, try_ = "The store of sessions is in use by another program.", "Try again in a moment."
    elif "full" in text or "no space" in text:
        seen, try_ = "The session could not be saved: no space left on the disk.", "Free space and try again."
    elif "disk i/o error" in text:
        seen, try_ = "The session could not be saved: the disk refused.", "Look at the disk, and try again."
    elif "readonly" in text or "unable to open" in text:
        seen = "The data folder cannot be written."
        try_ = "Set EDITCORE_HOME to a folder that can be, and start again."
    elif "read-only transaction" in text or "permission denied" in text:
        seen, try_ = "The database of sessions cannot be written.", "Let the user named in DATABASE_URL write to it."
    elif getattr(error, "connection_invalidated", False) or any(sign in text for sign in _AWAY):
        seen = "The database of sessions cannot be reached."
        try_ = "Start it, or mend DATABASE_URL, and try again; the log has the details."
    else:
        seen, try_ = "The store of sessions does not answer.", "Try again; the log has the details."
    return EngineError(seen, "Nothing was changed.", try_)


def _unusable(seen: str) -> EngineError:
    return EngineError(
        seen, "postgresql://user:password@host/name, or sqlite:////folder/file was wanted.", "Mend it, or leave it out."
    )
