"""Sessions on disk: an append-only log of edits and resets beside the patch folders. Knows files, no model, no thread.

Layout under home: sessions/<id>/log.jsonl with rows {"kind": "edit", "patch": relative folder, "report": {...}} and
{"kind": "reset"}; sessions/<id>/patches/<job>/ holds what the desk wrote. Commit has two steps: the patch is written
to a scratch folder, flushed and renamed; then its row is appended and flushed. A crash between the two leaves a patch
nobody refers to; a crash inside the second leaves a half row, which is ignored and overwritten.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from editcore.engine import wire
from editcore.errors import BadRequest, EngineError
from editcore.records import EditReport, from_plain, to_plain

_SESSION = re.compile(r"[A-Za-z0-9_-]{16,64}")
_REMEMBERED = 256  # sessions whose log is kept parsed
logger = logging.getLogger(__name__)


def home_dir() -> Path:
    """The folder that holds sessions and logs: $EDITCORE_HOME, else the platform's user data folder."""
    chosen = os.environ.get("EDITCORE_HOME")
    return Path(chosen) if chosen else Path(platformdirs.user_data_dir("editcore"))


def new_session() -> str:
    """A fresh session id that cannot be guessed (128 random bits)."""
    return secrets.token_urlsafe(16)


def check_session(session: str) -> str:
    """The id itself, when it looks like one; only then may it name a folder.

    Raises:
        BadRequest: it does not.
    """
    if not isinstance(session, str) or not _SESSION.fullmatch(session):
        raise BadRequest(
            "This is not a session.", "A session is 16 to 64 letters, digits, - or _.", "Start a new session."
        )
    return session


@dataclass(frozen=True, slots=True)
class Edit:
    """One committed edit."""

    job: str  # the job that made it; also the name of its folder
    folder: Path  # where its patch is
    report: EditReport  # with `patch.path` set to `folder`


class SessionStore:
    """All sessions under one home folder. Safe to share between threads."""

    def __init__(self, home: Path) -> None:
        self._root = home / "sessions"
        self._lock = threading.RLock()
        self._parsed: OrderedDict[str, tuple[tuple[int, int], tuple[Edit | None, ...]]] = OrderedDict()

    def applied(self, session: str) -> tuple[Edit, ...]:
        """The edits in force, oldest first: none, or the latest one since the last reset.

        Raises:
            EngineError: the log was damaged; it has been set aside, and the next call finds an empty session.
        """
        rows = self._rows(session)
        return (rows[-1],) if rows and rows[-1] is not None else ()

    def committed(self, session: str, job: str) -> EditReport | None:
        """The report of one job, if its row was written."""
        return next((row.report for row in self._rows(session) if row is not None and row.job == job), None)

    def scratch(self, session: str, job: str) -> Path:
        """A fresh empty folder for one job; what earlier, broken jobs of the session left behind is removed."""
        folder = self._folder(session)
        for stale in folder.glob("scratch-*"):
            shutil.rmtree(stale, ignore_errors=True)
        path = folder / f"scratch-{job}"
        path.mkdir(parents=True)
        return path

    def discard(self, session: str, job: str) -> None:
        """Remove the scratch folder of one job, if there is one."""
        shutil.rmtree(self._folder(session) / f"scratch-{job}", ignore_errors=True)

    def commit(self, session: str, job: str, report: EditReport) -> Edit:
        """Keep what is in the scratch folder of this job, then its row.

        Raises:
            OSError: the disk refused; no row and no patch is left behind.
        """
        folder = self._folder(session)
        scratch, kept = folder / f"scratch-{job}", folder / "patches" / job
        kept.parent.mkdir(exist_ok=True)
        for path in sorted(scratch.rglob("*")):
            if path.is_file():
                _flush(path)
        os.replace(scratch, kept)
        try:
            _flush_folder(kept.parent)
            stored = replace(report, patch=replace(report.patch, path=None))  # the folder may move with its home
            self._append(session, {"kind": "edit", "patch": f"patches/{job}", "report": to_plain(stored)})
        except BaseException:
            shutil.rmtree(kept, ignore_errors=True)
            raise
        return Edit(job, kept, _placed(stored, kept))

    def reset(self, session: str) -> None:
        """Append a reset row; nothing is written when nothing is applied.

        Raises:
            OSError: the disk refused; the session is as before.
        """
        if self.applied(session):
            self._append(session, {"kind": "reset"})

    def _folder(self, session: str) -> Path:
        return self._root / check_session(session)

    def _append(self, session: str, row: Mapping[str, Any]) -> None:
        data = wire.dumps(row)
        folder = self._folder(session)
        with self._lock:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder / "log.jsonl", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
            try:
                end = _end_of_rows(handle)
                os.ftruncate(handle, end)
                os.lseek(handle, end, os.SEEK_SET)
                try:
                    _write_all(handle, data)
                    os.fsync(handle)
                except BaseException:
                    os.ftruncate(handle, end)
                    raise
            finally:
                os.close(handle)
                self._parsed.pop(session, None)
            _flush_folder(folder)

    def _rows(self, session: str) -> tuple[Edit | None, ...]:
        """One entry a row: an edit, or None for a reset."""
        folder = self._folder(session)
        log = folder / "log.jsonl"
        with self._lock:
            try:
                stat = log.stat()
                version = (stat.st_mtime_ns, stat.st_size)
                known = self._parsed.get(session)
                if known and known[0] == version:
                    self._parsed.move_to_end(session)
                    return known[1]
                lines = log.read_bytes().split(b"\n")[:-1]  # what follows the last newline is a half row
            except FileNotFoundError:
                return ()
            try:
                rows = tuple(_parse(line, folder) for line in lines)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._set_aside(log) from error
            self._parsed[session] = (version, rows)
            while len(self._parsed) > _REMEMBERED:
                self._parsed.popitem(last=False)
            return rows

    def _set_aside(self, log: Path) -> EngineError:
        aside = log.with_name(f"log.damaged-{secrets.token_hex(4)}.jsonl")
        os.replace(log, aside)
        logger.warning("damaged session log kept as %s", aside)
        return EngineError(
            "The stored log of this session is damaged.",
            "It was set aside, and the session starts again from the unedited model.",
            "Apply the edit again.",
        )


def _parse(line: bytes, folder: Path) -> Edit | None:
    row = wire.loads(line)
    if row["kind"] == "reset":
        return None
    if row["kind"] != "edit" or not re.fullmatch(r"patches/[A-Za-z0-9_-]+", row["patch"]):
        raise ValueError("not a row of a session log")
    kept = folder / row["patch"]
    return Edit(kept.name, kept, _placed(from_plain(EditReport, row["report"]), kept))


def _placed(report: EditReport, folder: Path) -> EditReport:
    return replace(report, patch=replace(report.patch, path=str(folder)))


def _end_of_rows(handle: int) -> int:
    """Offset just after the last complete row, bytes."""
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(0)
        return file.read().rfind(b"\n") + 1


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    """Make a rename or a new file survive a power cut; Windows has no such call and needs none."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
