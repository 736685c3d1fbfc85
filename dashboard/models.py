"""Another model for the page: what is at hand, what a person names, and what becomes of edits made on the old one.

The model is everybody's, so only a page that only this computer can open offers it. Knows the engine's door alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard import answers, resources, state
from dashboard.text import message, plain, size
from editcore.admission import NOT_ALLOWED
from editcore.assets import WORLD_NAME
from editcore.engine.contract import Health, SessionState
from editcore.errors import EditcoreError
from editcore.history import Base
from editcore.records import ModelInfo, Opening
from editcore.settings import chosen

POPOVER, PICK, NAME, REVISION = "models", "model:pick", "model:name", "model:revision"
DTYPE, DEVICE, SPREAD, OPEN = "model:dtype", "model:device", "model:spread", "model:open"
_ELSE = "another"  # the choice that is none of the list
_FORMATS = ("", "float32", "bfloat16", "float16")
_TALL = 340  # pixels of a long list
_MANY = 6  # models make a list long
Choice = Mapping[str, Any]  # one of `picker.at_hand`, as plain data


def corner(view: SessionState, health: Health) -> None:
    """The button in the line on top, and what it opens; nothing where others can open the page too."""
    if not resources.is_local():
        return
    box = st.popover("Change model", key=POPOVER, type="tertiary", icon=":material/swap_horiz:", on_change="rerun")
    if not box.open:
        answers.forget("models", "models anywhere")  # so that it is looked anew the next time
        return
    with box, st.container(key="model-form", gap="small", width=440):
        _form(view, health)


def _form(view: SessionState, health: Health) -> None:
    st.caption("Opens it for everybody on this page. Edits stay with their model.")
    place = st.container(gap="small")  # what is at hand depends on where it would be put, which is asked below
    named, revision = st.container(gap="small"), ""
    beside = st.container(horizontal=True, gap="small")
    spread = st.toggle("Spread over several GPUs", key=SPREAD, help="For a model larger than one GPU")
    with beside:
        dtype = st.selectbox("Number format", _FORMATS, key=DTYPE, format_func=_format_words)
        device = st.text_input("Device", key=DEVICE, placeholder="chosen for you", disabled=spread, max_chars=20,
                               help="cpu, cuda, cuda:0 ...").strip()  # fmt: skip
    placed = {"device": "" if spread else device, "dtype": dtype, "device_map": "auto" if spread else ""}
    with place:
        picked = _list(_at_hand(health, placed))
    name = str(picked["name"]) if picked else ""
    if picked is None:
        with named, st.container(horizontal=True, gap="small"):
            name = st.text_input("Hub id or folder", key=NAME, placeholder="gpt2", max_chars=1_000).strip()
            revision = st.text_input("Revision", key=REVISION, placeholder="main", max_chars=200, width=130,
                                     help="Branch, tag or commit of a hub id").strip()  # fmt: skip
    else:
        revision = str(picked["revision"])
        _room(picked)
    opening = Opening(name, revision, **placed)
    trouble, asked = state.value("_not_opened", ("", None))
    if trouble and asked == opening:
        st.error(message(trouble), icon=":material/error:")
    same = health.state == "ready" and picked is not None and _is_open(picked, placed)
    st.button("It is open" if same else "Open it", key=OPEN, type="primary", icon=":material/open_in_new:",
              disabled=same or not name, on_click=switch, args=(opening, view), width="stretch")  # fmt: skip


def _format_words(dtype: str) -> str:
    return dtype or (f"{chosen().dtype}, as set" if chosen().dtype not in ("", "auto") else "Chosen for you")


def _at_hand(health: Health, placed: Mapping[str, str]) -> Sequence[Choice] | None:
    """The models on this machine; None while that is being asked, or when nobody can be asked."""
    if health.state != "ready" or health.model is None:
        return [{"name": WORLD_NAME, "shown": WORLD_NAME, "revision": "", "refs": [], "problem": "", "disk": None}]
    ask, asked = resources.engine().ask, [health.model.fingerprint, dict(placed)]
    name = "models" if any(placed.values()) else "models anywhere"
    try:
        found: Sequence[Choice] | None = answers.asked(name, asked, lambda: ask("models", resources.PATIENCE, **placed))
    except EditcoreError as error:
        st.error(message(str(error)), icon=":material/error:")
        return _at_hand(health, {}) if any(placed.values()) else None  # a place that is none hides no model
    if found is None:
        st.caption(":material/hourglass_top: Looking which models are on this machine.")
    return found


def _list(found: Sequence[Choice] | None) -> Choice | None:
    """What was picked of the models at hand; None: another one."""
    at_hand = {f"{one['name']}@{one['revision']}": one for one in found or ()}
    if not at_hand:
        return None
    names = [*at_hand, _ELSE]
    if state.value(PICK) not in names:
        state.set_widget(PICK, next((name for name, one in at_hand.items() if _is_open(one)), names[0]))
    with st.container(height=_TALL if len(at_hand) > _MANY else "content", border=False, key="model-list"):
        picked = st.radio(
            "On this machine", names, key=PICK, format_func=lambda n: _title(at_hand[n]) if n in at_hand else "Another",
            captions=[*(plain(_about(one)) for one in at_hand.values()), "By its hub id, or in an allowed folder"],
        )  # fmt: skip
    return at_hand.get(str(picked))


def _title(one: Choice) -> str:
    refs = [ref for ref in one["refs"] if ref != "main"]
    at = refs[0] if refs and "main" not in one["refs"] else "" if "main" in one["refs"] else one["revision"][:7]
    name = plain(f"{one['shown']} at {at}" if at else str(one["shown"]))
    return f"{name} :gray-badge[open now]" if _is_open(one) else name


def _is_open(one: Choice, placed: Mapping[str, str] | None = None) -> bool:
    """True for the model that is open, there and in this format; one asked for without a revision is its "main"."""
    now = resources.engine().opening
    revisions = (one["revision"], "") if "main" in one["refs"] else (one["revision"],)
    there = placed is None or all(getattr(now, name) == value for name, value in placed.items())
    return now.model == one["name"] and now.revision in revisions and there


def _about(one: Choice) -> str:
    """Size, and whether it fits, in a line."""
    if one["disk"] is None:
        return "It comes with this page"
    if one["problem"]:
        return str(one["problem"])
    fits = "" if one["fits"] else "does not fit: "
    needs = f"{fits}needs {size(one['needed'])} of {size(one['free'])} free in {one['dtype']}"
    return f"{size(one['disk'])} on disk, {needs}"


def _room(one: Choice) -> None:
    """What is missing for a model that does not fit, and what would help."""
    if one["problem"] or one["disk"] is None or one["fits"]:
        return
    short = size(one["needed"] - one["free"])
    others = [name for name in one["formats"] if name != one["dtype"]]
    remedy = f"It fits in {' or '.join(others)}." if others else "It fits in no number format."
    st.warning(f"{short} of memory are missing on {plain(one['device'])}. {remedy}", icon=":material/memory:")


def switch(opening: Opening, view: SessionState) -> None:
    """Open it, and go on in a new session where this one holds something of the old model; for callbacks only."""
    state.leave("not_opened", ("", None))
    try:
        resources.open_model(opening)
    except EditcoreError as error:
        allowed = _folders_allowed(opening.model) if NOT_ALLOWED in str(error) else ""
        state.leave("not_opened", (f"{error} {allowed}".strip(), opening))
        return
    state.set_widget(POPOVER, False)
    if view.rows or view.undo or view.redo:
        state.leave("left_behind", (view.session, view.base.model if view.base else ""))
        state.start_session()


def _folders_allowed(name: str) -> str:
    """For somebody who named a folder: which may be opened. Only whoever sits at this computer reads it."""
    if not name.startswith((".", "/", "~")):
        return ""
    return (
        f"Allowed now: folders within {', '.join(chosen().model_roots)}."
        if chosen().model_roots
        else "Allowed now: no folder."
    )


# A session on another model than its own.


def left_behind(view: SessionState) -> None:
    """In a session without edits, the way back to one whose edits stayed with another model."""
    session, model = state.value("_left_behind", ("", ""))
    if session and session != view.session and not view.rows:
        st.button(f"Your edits on {plain(model)}" if model else "Your edits", key="left-behind", type="tertiary",
                  icon=":material/undo:", on_click=state.go_to, args=(session,))  # fmt: skip


def strangers(base: Base, model: ModelInfo) -> None:
    """Says that the session's edits belong to another model, with the ways out."""
    other = "other weights of " if base.model == model.name else ""
    with st.container(key="strangers", gap="xsmall"):
        st.warning(f"These edits were made on {other}{plain(base.model)}; this page has {plain(model.name)} open. "
                   "Nothing can be added to them here.", icon=":material/info:")  # fmt: skip
        with st.container(horizontal=True, gap="small"):
            st.button("New session", key="new-session", icon=":material/add:", on_click=state.start_session)
            known = resources.engine().sessions.opening(base) if resources.is_local() else None
            if known:
                st.button(f"Open {plain(base.model)} again", key="open-again", icon=":material/swap_horiz:",
                          on_click=back, args=(known,))  # fmt: skip


def embedded_again() -> None:
    """After a model that could not be loaded: one click back to the one that is always there."""
    if resources.is_local() and resources.engine().opening.model != WORLD_NAME:
        st.button(f"Open {WORLD_NAME}", key="open-embedded", icon=":material/swap_horiz:", on_click=back,
                  args=(Opening(WORLD_NAME),))  # fmt: skip


def back(opening: Opening) -> None:
    """Open the model that this session belongs to; for callbacks only."""
    try:
        resources.open_model(opening)
    except EditcoreError as error:
        st.toast(message(str(error)), icon=":material/error:")
