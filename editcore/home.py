"""The data folder, and the ids of sessions: the only strings from outside that may name something in it."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

import platformdirs

from editcore.errors import BadRequest

_SESSION = re.compile(r"[A-Za-z0-9_-]{16,64}")


def home_dir() -> Path:
    """The folder that holds sessions, patches and logs: $EDITCORE_HOME, else the platform's user data folder."""
    chosen = os.environ.get("EDITCORE_HOME")
    return Path(chosen) if chosen else Path(platformdirs.user_data_dir("editcore"))


def new_session() -> str:
    """A fresh session id that cannot be guessed (128 random bits)."""
    return secrets.token_urlsafe(16)


def check_session(session: str) -> str:
    """The id itself, when it looks like one.

    Raises:
        BadRequest: it does not.
    """
    if not isinstance(session, str) or not _SESSION.fullmatch(session):
        raise BadRequest(
            "This is not a session.", "A session is 16 to 64 letters, digits, - or _.", "Start a new session."
        )
    return session
