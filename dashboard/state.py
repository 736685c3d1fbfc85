"""What one visitor's page remembers between two runs. The only file that touches st.session_state and the URL.

Widgets use the keys named here. Only small values are kept: ids, texts, rows; never a report, never a tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import time
from typing import Any, NoReturn

import pandas as pd
import streamlit as st

from dashboard import resources, tables
from editcore.engine.contract import JobKind
from editcore.records import EditRequest, Form, Probe, from_plain, to_plain

PROMPT, TARGET, SUBJECT, METHOD, METHODS = "prompt", "target", "subject", "method", "methods"
EXAMPLE, NEAREST, PANE, SEARCH, PICKED = "example", "nearest", "pane", "search", "picked"
QUESTION = "question"
RESULT, BELIEFS, ASK = "Result", "What it believes", "Ask it"
DEFAULT_METHOD = "rome"
FORM, ASK_FORM = "form", "ask_form"  # whether a prompt is read as a chat or as it is
_FORM = (PROMPT, TARGET, SUBJECT, METHOD, FORM)
_JOBS: dict[JobKind, str] = {
    "edit": "_job", "comparison": "_comparison", "preparation": "_preparation", "export": "_export",
}  # fmt: skip
_FILL_HOLDS = 2.0  # seconds, in which nobody types the old texts again
_CLICK_HOLDS = 120.0  # seconds an unanswered click waits for its answer
_ID = re.compile(r"[A-Za-z0-9_-]{16,64}")
_READ, _NAMED = ("session", "link"), 5  # what pages read of the address; most names told of what they do not


def open_session(page: str) -> str:
    """The session named in the URL, or a fresh one put there; on the first run the half-filled form comes back.

    Args:
        page: its name. Widgets keep their values from page to page; the two tables of rows are put back here.
    """
    given = st.query_params.get("session", "")
    _tidy_address(given)
    session = given if _ID.fullmatch(given) else st.session_state.get("_session") or secrets.token_urlsafe(16)
    if given != session:
        st.query_params["session"] = session
    if st.session_state.get("_session") != session:
        st.session_state["_session"] = session
        _restore(resources.drafts().find(session))
    elif st.session_state.get("_page") != page:
        take("clicks")
        _restore_rows(resources.drafts().find(session).get("rows"))
    st.session_state["_page"] = page
    _keep_filled()
    return str(session)


def _tidy_address(session: str) -> None:
    """Take out of the address what no page reads, and remember its names."""
    repeated = [name for name in _READ if len(st.query_params.get_all(name)) > 1]
    wrong = ["session"] if session and not _ID.fullmatch(session) else []
    unknown = [name for name in st.query_params if name not in _READ]
    for name in unknown:
        del st.query_params[name]
    if names := list(dict.fromkeys([*unknown, *repeated, *wrong])):
        told = ", ".join(name[:40] for name in names[:_NAMED])
        told += f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        st.session_state["_ignored"] = f"The page's address held what it does not understand: {told}. Ignored."


def ignored() -> str:
    """What was wrong in the address, in a sentence; "" for nothing."""
    return str(st.session_state.get("_ignored", ""))


def link() -> str:
    """The share link in the URL; "" for none."""
    return str(st.query_params.get("link", ""))


def addressed() -> bool:
    """True when the address names a session or a link."""
    return any(name in st.query_params for name in _READ)


def is_in() -> bool:
    """True when this visitor has given the password."""
    return bool(st.session_state.get("_in"))


def come_in() -> None:
    """The password was right; it is not asked for again before the page is reloaded."""
    leave("in")


def switch(page: str, session: str) -> NoReturn:
    """Go to another page and session."""
    st.switch_page(page, query_params={"session": session})


def start_session() -> None:
    """Go on in a fresh session with what is typed; for callbacks only."""
    fresh = secrets.token_urlsafe(16)
    resources.drafts().keep(fresh, {name: text(name) for name in (PROMPT, TARGET, METHOD)})
    go_to(fresh)


def go_to(session: str) -> None:
    """Go on in a session there is; for callbacks only."""
    st.query_params["session"] = session


def see_model(fingerprint: str) -> bool:
    """Note which model is under the page, "" while that is not known; True when it is another one than before."""
    before = st.session_state.get("_model", "")
    changed = bool(before and fingerprint and before != fingerprint)
    st.session_state.update({"_model": fingerprint or before, "_model_changed": changed})
    return changed


def model_changed() -> bool:
    """True in the run that sees another model than the one before it."""
    return bool(st.session_state.get("_model_changed"))


def _restore(draft: dict[str, Any]) -> None:
    take("clicks")
    st.session_state["_model"] = draft.get("model") or st.session_state.get("_model", "")
    for name in _FORM:
        st.session_state[name] = draft.get(name, DEFAULT_METHOD if name == METHOD else "")
    st.session_state["_auto_subject"] = draft.get("auto_subject", "")
    if draft.get("methods") is not None:
        st.session_state[METHODS] = draft["methods"]
    for kind, name in _JOBS.items():
        st.session_state[name] = draft.get(kind, "")
    st.session_state["_attempt"] = draft.get("attempt") or secrets.token_hex(8)
    for name, value in draft.get("settings", {}).items():
        st.session_state[name] = value
    if draft.get("rows"):
        _restore_rows(draft["rows"])
    else:
        forget_rows()  # those of the session before


def _restore_rows(rows: dict[str, Any] | None) -> None:
    if rows:
        _put_rows(
            [from_plain(Probe, p) for p in rows["paraphrases"]], [from_plain(Probe, p) for p in rows["probes"]],
            rows["basis"], rows["yours"],
        )  # fmt: skip


def keep_draft(paraphrases: tuple[Probe, ...], probes: tuple[Probe, ...]) -> None:
    """Remember the form beyond a reload."""
    settings = {k: v for k, v in st.session_state.items() if isinstance(k, str) and k.startswith("set:")}
    rows = {"paraphrases": [to_plain(p) for p in paraphrases], "probes": [to_plain(p) for p in probes],
            "basis": basis(), "yours": rows_edited()}  # fmt: skip
    form = {name: st.session_state.get(name, "") for name in _FORM}
    resources.drafts().keep(st.session_state["_session"], {
        **form, **{kind: job(kind) for kind in _JOBS}, "auto_subject": st.session_state.get("_auto_subject", ""),
        "methods": st.session_state.get(METHODS), "attempt": attempt(), "settings": settings, "rows": rows,
        "model": st.session_state.get("_model", ""),
    })  # fmt: skip


def text(name: str) -> str:
    """What stands in a text field of the form."""
    return str(st.session_state.get(name) or "")


def form(name: str = FORM) -> Form:
    """What was chosen for the prompt to be read as; "raw" where the model has no other form."""
    return "chat" if st.session_state.get(name) == "chat" else "raw"


def value(name: str, default: Any = None) -> Any:
    """What stands in any widget."""
    return st.session_state.get(name, default)


def known(name: str) -> bool:
    """True when the widget has a value already."""
    return name in st.session_state


def fill(prompt: str, target: str) -> None:
    """Put a question into the form; what was found for the last one is forgotten. For callbacks only."""
    st.session_state["_fill"] = ((text(PROMPT), text(TARGET)), (prompt, target), time.monotonic())
    _put_question(prompt, target)
    forget_rows()
    st.session_state.pop("_error", None)


def _put_question(prompt: str, target: str) -> None:
    st.session_state.update({PROMPT: prompt, TARGET: target, SUBJECT: "", "_auto_subject": "", "_proposed": ""})


def _keep_filled() -> None:
    """What the browser sent before it heard of the last fill holds the texts from before: the fill wins."""
    before, filled, at = st.session_state.get("_fill", (None, None, 0.0))
    if before is None or time.monotonic() - at > _FILL_HOLDS:
        return
    if (text(PROMPT), text(TARGET)) == before != filled:
        _put_question(*filled)


def adopt(request: EditRequest, method: str) -> None:
    """The form shows this request and method from now on; a form that does so already keeps its rows."""
    st.session_state.update({METHOD: method, FORM: request.form})
    if (text(PROMPT).strip(), text(TARGET).strip()) == (request.prompt, request.target):
        return
    fill(request.prompt, request.target)
    found = request.subject or ""
    basis_ = digest([request.prompt, request.target, None])
    st.session_state.update({SUBJECT: found, "_auto_subject": found, "_proposed": basis_})
    _put_rows(list(request.paraphrases), list(request.probes), basis_, yours=True)


def leave(name: str, note: Any = True) -> None:
    """Leave a one-time note for `take`."""
    st.session_state[f"_{name}"] = note


def take(name: str) -> Any:
    """A one-time note: read and gone."""
    return st.session_state.pop(f"_{name}", None)


def set_widget(name: str, content: Any) -> None:
    """Set a widget before it is drawn."""
    st.session_state[name] = content


def proposed_for() -> str:
    """What the subject was last proposed for."""
    return str(st.session_state.get("_proposed", ""))


def propose_subject(found: str | None, for_what: str) -> None:
    """Put the subject found without help into its field, unless a person wrote there what still fits the prompt."""
    current, auto = text(SUBJECT), st.session_state.get("_auto_subject", "")
    if current == auto or current not in text(PROMPT):
        st.session_state[SUBJECT] = found or ""
    st.session_state["_auto_subject"], st.session_state["_proposed"] = found or "", for_what


def corrected_subject() -> str | None:
    """The subject a person wrote, when it fits the prompt; None when it is the found one, or empty."""
    current = text(SUBJECT).strip()
    written = current and current != st.session_state.get("_auto_subject")
    return current if written and current in text(PROMPT) else None


# The two editable tables: their start rows, a number that renews the widgets, and what they were proposed for.


def tables_shown() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Start rows of the paraphrase and of the probe table; what the widgets add is kept by the widgets."""
    if "_rows" not in st.session_state:
        st.session_state["_rows"] = (tables.paraphrase_rows(()), tables.probe_rows(()))
    found: tuple[pd.DataFrame, pd.DataFrame] = st.session_state["_rows"]
    return found


def table_keys() -> tuple[str, str]:
    """Widget keys of the two tables; new rows come with new keys."""
    version = st.session_state.get("_version", 0)
    return f"paraphrases:{version}", f"probes:{version}"


def basis() -> str:
    """The prompt and answer the shown rows were proposed for."""
    return str(st.session_state.get("_basis", ""))


def rows_edited() -> bool:
    """True when a person changed a row."""
    edits = (st.session_state.get(key) or {} for key in table_keys())
    return bool(st.session_state.get("_yours")) or any(
        any(edit.get(part) for part in ("edited_rows", "added_rows", "deleted_rows")) for edit in edits
    )


def drop_pasted(most: int) -> int:
    """Take rows out again when more than `most` were added to a table at once: the table would be busy with them for
    minutes. Returns how many went from the tables that are shown."""
    added = sum(len((st.session_state.get(key) or {}).get("added_rows", ())) for key in table_keys())
    if added > most:
        st.session_state["_version"] = st.session_state.get("_version", 0) + 1
        st.session_state["_dropped"] = (table_keys(), added)
    keys, count = st.session_state.get("_dropped", ((), 0))
    return int(count) if keys == table_keys() else 0


def put_rows(paraphrases: list[Probe], probes: list[Probe], for_what: str) -> None:
    """Show freshly proposed rows."""
    _put_rows(paraphrases, probes, for_what, yours=False)


def _put_rows(paraphrases: list[Probe], probes: list[Probe], for_what: str, yours: bool) -> None:
    st.session_state["_rows"] = (tables.paraphrase_rows(paraphrases), tables.probe_rows(probes))
    st.session_state["_version"] = st.session_state.get("_version", 0) + 1
    st.session_state["_basis"], st.session_state["_yours"] = for_what, yours


def forget_rows() -> None:
    """Empty the tables, so that the next run proposes rows again."""
    _put_rows([], [], "", yours=False)


# Jobs, errors and questions already answered.


def job(kind: JobKind) -> str:
    """The job of this kind the page looks at; "" for none."""
    return str(st.session_state.get(_JOBS[kind], ""))


def watch(job_id: str, kind: JobKind) -> None:
    """Look at this job from now on."""
    st.session_state[_JOBS[kind]] = job_id
    if job_id:
        st.session_state["_notices"] = []
    if job_id and kind == "edit":
        st.session_state[PANE] = RESULT


def notices(*told: str) -> list[str]:
    """What a visitor should know and has not sent away by the next edit; each text is told once a visit."""
    kept: list[str] = st.session_state.setdefault("_notices", [])
    before: list[str] = st.session_state.setdefault("_told", [])
    fresh = [text for text in told if text and text not in before]
    st.session_state.update({"_notices": [*kept, *fresh], "_told": [*before, *fresh]})
    return [*kept, *fresh]


def show_edit(edit: str) -> None:
    """Show the result of this edit from now on; "": of the latest one."""
    st.session_state["_shown"] = edit
    st.session_state[PANE] = RESULT
    if st.session_state.get("_page") == "comparison":
        leave("kept")


def forget_shown() -> None:
    """Show the latest edit again."""
    st.session_state["_shown"] = ""


def shown_edit() -> str:
    """The edit a person chose to see; "": none."""
    return str(st.session_state.get("_shown", ""))


def attempt(button: str = "") -> str:
    """A token that stays the same until an edit has ended: with it, a double click is one job, and so is an unanswered
    click on `button`, however often it is answered."""
    noted = st.session_state.get("_clicks", {}).get(button)
    return str(noted[1] if noted else st.session_state.setdefault("_attempt", secrets.token_hex(8)))


def next_attempt() -> None:
    """The next click is a new edit, even with the same form."""
    st.session_state["_attempt"] = secrets.token_hex(8)


# Clicks that have to be answered. The run that a click starts asks the engine before it comes to the button; when it is
# cut off there by the next one, the framework forgets the click.


def click(button: str) -> None:
    """Note a click until it is `answered`. For callbacks, which run before anything can be cut off."""
    st.session_state.setdefault("_clicks", {})[button] = (form_print(), attempt(), time.monotonic())


def clicked(button: str) -> str:
    """Of an unanswered click: "now", or "changed" when the form says something else since; "": there is none."""
    seen, _, at = st.session_state.get("_clicks", {}).get(button, ("", "", -math.inf))
    if time.monotonic() - at >= _CLICK_HOLDS:
        return ""
    return "now" if seen == form_print() else "changed"


def answered(button: str) -> None:
    """The click has become a job, or a message."""
    st.session_state.get("_clicks", {}).pop(button, None)


def first_look(job_id: str, at: str) -> bool:
    """True the first time this job is looked at there."""
    first = st.session_state.get(f"_looked:{at}") != job_id
    st.session_state[f"_looked:{at}"] = job_id
    return first


def remember_error(kind: str, message: str, button: str = "") -> None:
    """Keep an error until the form changes or the next click; `button` is what was clicked."""
    st.session_state["_error"] = (kind, message, button, form_print())


def error() -> tuple[str, str, str]:
    """(kind, message, button) of the last refused click while the form still says the same; else three empty texts."""
    kind, message, button, seen = st.session_state.get("_error", ("", "", "", ""))
    return (kind, message, button) if message and seen == form_print() else ("", "", "")


def forget_error() -> None:
    """The next click starts clean."""
    st.session_state.pop("_error", None)


def form_print() -> str:
    """A short print of everything typed; a subject that was found without help is not."""
    settings = {k: v for k, v in st.session_state.items() if isinstance(k, str) and k.startswith("set:")}
    typed = [text(PROMPT), text(TARGET), text(METHOD)]
    own = "" if text(SUBJECT) == st.session_state.get("_auto_subject", "") else text(SUBJECT)
    return digest([typed, own, value(METHODS), settings])


def digest(content: Any) -> str:
    """A short print of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:24]


def kept() -> dict[str, Any]:
    """What `answers` keeps for this visitor."""
    found: dict[str, Any] = st.session_state.setdefault("_answers", {})
    return found


# The browser of beliefs: what its rows would fill in, and the click on one.


def offer(key: str, rows: list[tuple[str, str]]) -> None:
    """The table under `key` offers these (prompt, answer) rows."""
    st.session_state["_offer"] = (key, rows)


def pick_offered() -> None:
    """Fill the form from the clicked cell's row; the table then forgets the click, so the same row works again."""
    key, rows = st.session_state.get("_offer", ("", []))
    selection = (st.session_state.get(key) or {}).get("selection", {})
    places = [cell[0] for cell in selection.get("cells", [])] or list(selection.get("rows", []))
    if places and 0 <= places[0] < len(rows):
        fill(*rows[places[0]])
        st.session_state["_picks"] = st.session_state.get("_picks", 0) + 1
        st.session_state["_picked_now"] = True
