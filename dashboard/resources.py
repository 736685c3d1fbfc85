"""What all visitors share: the engine's client, what the base model believes, and forms half filled in.

The only file with cached things. Holds no model: the engine works in a process of its own.
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from dashboard.made import Made
from dashboard.questions import Questions
from dashboard.tries import Tries
from dashboard.turns import Turns
from editcore.admission import admitted
from editcore.engine.contract import Engine, Health
from editcore.errors import EditcoreError, EngineError
from editcore.home import home_dir
from editcore.records import EditReport, MethodInfo, Opening
from editcore.remade import Remade
from editcore.settings import chosen
from editcore.store import Library, Store
from editcore.store.library import LOCAL

_TURN = 0.0005  # seconds a thread keeps the interpreter: a page lets go of it with every element it sends
_DRAFTS = 200  # sessions whose half-filled form is kept
PATIENCE = 60.0  # seconds until a question to the model has failed; nobody's page waits for it


def _close(it: Engine | Questions) -> None:
    it.close()


@st.cache_resource(max_entries=1, show_spinner=False, on_release=_close)
def engine() -> Engine:
    """The door to the model this page is opened on; EDITCORE_FAKE_ENGINE="module:function" puts another one there."""
    sys.setswitchinterval(_TURN)
    fake = os.environ.get("EDITCORE_FAKE_ENGINE")
    if fake:
        module, _, function = fake.partition(":")
        made: Engine = getattr(import_module(module), function)()
        return made
    from editcore.engine import LocalEngine

    return LocalEngine(model=model_name())


def model_name() -> str:
    """The model this page is opened on.

    Raises:
        ModelError: it may not be opened here.
    """
    limits = chosen()
    return admitted(limits.model, limits)


def open_model(opening: Opening) -> None:
    """Another model for everybody. Only from a page that only this computer can open.

    Raises:
        EngineError: others can open this page too, or see `Engine.open`.
        ModelError: see `Engine.open`.
    """
    if not is_local():
        raise EngineError("Only a page that nobody else can open changes the model.", "", "Start it with another one.")
    engine().open(opening)
    methods.clear()  # their defaults follow the model


def health() -> Health:
    """How the engine is; never raises."""
    try:
        return engine().health()
    except EngineError as error:
        return Health("failed", str(error), None, 0, None, 0)


@st.cache_resource(max_entries=1, show_spinner=False)
def turns() -> Turns:
    """Who draws a page of this server now."""
    return Turns()


@st.cache_resource(max_entries=1, show_spinner=False)
def methods() -> tuple[MethodInfo, ...]:
    """The menu of methods."""
    return engine().methods()


@st.cache_resource(max_entries=1, show_spinner=False, on_release=_close)
def questions() -> Questions:
    """What is being asked of the model for the pages of this server."""
    return Questions()


@st.cache_resource(max_entries=96, show_spinner=False)
def reports(session: str, edit: str) -> tuple[EditReport, ...]:
    """What an edit did when it was made; that never changes, so it is read once."""
    return engine().sessions.reports(session, edit)


@st.cache_data(max_entries=500, show_spinner=False)
def remade(session: str, edit: str) -> tuple[Remade, ...]:
    """What computing it again changed; it is written before the edit is there, and then never changes."""
    return engine().sessions.remade(session, edit)


@st.cache_resource(max_entries=1, show_spinner=False)
def made() -> Made:
    """Tables and charts of the reports that are shown."""
    return Made()


@st.cache_resource(max_entries=1, show_spinner=False)
def library() -> Library:
    """The stored sessions and share links; reading them starts no engine."""
    if os.environ.get("EDITCORE_FAKE_ENGINE"):
        return engine().sessions.library
    return Library(Store(home_dir()))


def store_note() -> str:
    """What a person should know about how the stored sessions were opened."""
    return library().note


def owner(session: str) -> str:
    """Whose list a session stands in: everybody's on this computer, with a login the person's own; else only that of
    whoever knows one of its ids."""
    if is_local():
        return LOCAL
    if has_login() and (who := st.user.get("sub") or st.user.get("email")):
        return "user-" + sha256(str(who).encode()).hexdigest()[:32]
    return library().owner(session) or session


def is_local() -> bool:
    """True when only this computer can open the page; one that asks who comes may well stand behind a proxy."""
    if has_login() or chosen().password is not None:
        return False
    return str(st.get_option("server.address") or "") in ("127.0.0.1", "localhost", "::1")


def has_login() -> bool:
    """True when the framework's own login is set up, in its secrets file.

    Raises:
        EngineError: there is such a file, and it cannot be read: nobody is let in by mistake.
    """
    try:
        return "auth" in st.secrets
    except StreamlitSecretNotFoundError as error:
        if any(Path(file).exists() for file in st.get_option("secrets.files")):
            raise EngineError("The page's secrets file cannot be read.", "", "Mend it and start again.") from error
        return False


@st.cache_resource(max_entries=1, show_spinner=False)
def tries() -> Tries:
    """The wrong passwords of everybody."""
    return Tries()


@st.cache_data(max_entries=2000, show_spinner=False)
def claim(session: str) -> None:
    """Put a session that holds an edit into its owner's list; once is enough."""
    library().claim(session, owner(session))


class Drafts:
    """Half-filled forms by session, so that neither a reload nor a restart loses what was typed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = Lock()

    def keep(self, session: str, draft: Mapping[str, Any]) -> None:
        """Replaces what was kept for this session; written only when it says something new."""
        with self._lock:
            old = self._kept.get(session, {})
            self._kept[session] = dict(draft)
            self._kept.move_to_end(session)
            while len(self._kept) > _DRAFTS:
                self._kept.popitem(last=False)
        if old != draft and (draft.get("prompt") or old.get("prompt")):
            with suppress(EditcoreError):  # a disk that refuses must not stop anybody from typing
                library().keep_draft(session, owner(session), draft)

    def find(self, session: str) -> dict[str, Any]:
        """What was kept, or nothing."""
        with self._lock:
            if session in self._kept:
                return dict(self._kept[session])
        with suppress(EditcoreError):
            return library().draft(session)
        return {}


@st.cache_resource(max_entries=1, show_spinner=False)
def drafts() -> Drafts:
    """The half-filled forms of this server."""
    return Drafts()


# everything this file keeps
CACHED = (engine, methods, questions, turns, reports, remade, made, library, claim, drafts, tries)
