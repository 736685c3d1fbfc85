"""Your sessions: the stored ones, the latest first; opened, named, copied, thrown away and taken back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import streamlit as st

from dashboard import resources, state
from dashboard.text import counted, duration, message, plain
from editcore.errors import EditcoreError
from editcore.home import new_session
from editcore.settings import chosen
from editcore.store import Listed

PAGE, SHOWN = 25, "_sessions_shown"  # sessions listed at a time, and how many are


def main() -> None:
    """The list, then the bin."""
    session = state.open_session("sessions")
    owner = resources.owner(session)
    library = resources.library()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("### Your sessions", width="stretch")
        if st.button("New session", key="new", icon=":material/add:", type="primary"):
            fresh = new_session()
            library.keep_draft(fresh, owner, {})
            go(fresh)
    st.sidebar.markdown("##### What is kept")
    kept = chosen()
    st.sidebar.caption(
        f"A session with edits stays until you delete it; a deleted one can be taken back for {kept.bin_days} days. "
        f"One without an edit goes {kept.empty_days} days after its last use."
    )
    shown = int(state.value(SHOWN, PAGE))
    found = library.sessions(owner, most=shown + 1)
    if not found:
        st.info("No session holds an edit yet. Apply one on the page Edit, and its session appears here.")
    for listed in found[:shown]:
        row(listed, session)
    if len(found) > shown:
        st.button("Show more", key="more", type="tertiary", icon=":material/expand_more:",
                  on_click=state.set_widget, args=(SHOWN, shown + PAGE))  # fmt: skip
    binned = library.sessions(owner, deleted=True)
    if binned:
        with st.expander(f"Deleted: {counted(len(binned), 'session')}"):
            for listed in binned:
                with st.container(horizontal=True, vertical_alignment="center"):
                    st.markdown(plain(listed.name), width="stretch")
                    st.button("Take back", key=f"back:{listed.session}", icon=":material/restore_from_trash:",
                              on_click=attempt, args=(lambda one=listed: library.restore(one.session),))  # fmt: skip


def row(listed: Listed, here: str) -> None:
    """One session with what can be done to it."""
    line: Any = {"horizontal": True, "vertical_alignment": "center", "gap": "small"}
    with st.container(border=True, key=f"session:{listed.session}", **line):
        with st.container(width="stretch", gap=None):
            mine = " :gray-badge[open now]" if listed.session == here else ""
            st.markdown(f"**{plain(listed.name)}**{mine}")
            ago = duration(max(1.0, time.time() - listed.used))
            st.caption(f"{counted(listed.edits, 'edit')} on {plain(listed.model)}, changed {ago} ago")
        if st.button("Open", key=f"open:{listed.session}", icon=":material/open_in_new:"):
            go(listed.session)
        box = st.popover("", icon=":material/more_horiz:", type="tertiary", key=f"menu:{listed.session}",
                         on_change="rerun", help="Rename, copy, delete")  # fmt: skip
        if box.open:
            with box:
                menu(listed)


def menu(listed: Listed) -> None:
    """What else can be done to a session."""
    library, name = resources.library(), f"name:{listed.session}:{listed.name}"
    st.text_input("Name", listed.name, key=name, max_chars=120, on_change=attempt,
                  args=(lambda: library.rename(listed.session, state.text(name)),))  # fmt: skip
    st.button("Copy", key=f"copy:{listed.session}", icon=":material/content_copy:", width="stretch",
              on_click=attempt, args=(lambda: library.duplicate(listed.session), "Copied."))  # fmt: skip
    st.button("Delete", key=f"delete:{listed.session}", icon=":material/delete:", width="stretch",
              on_click=attempt, args=(lambda: library.delete(listed.session),
                                      "Deleted. It can be taken back below."))  # fmt: skip


def attempt(act: Callable[[], object], done: str = "") -> None:
    """Do it, or say why not."""
    try:
        act()
    except EditcoreError as error:
        st.toast(message(str(error)), icon=":material/error:")
        return
    if done:
        st.toast(done, icon=":material/check:")


def go(session: str) -> None:
    """Open a session on the page Edit."""
    state.switch("views/edit.py", session)


main()
