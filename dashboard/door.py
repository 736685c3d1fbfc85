"""Who is let in: everybody, whoever knows the password, whoever a login service knows. Asks no engine and no store."""

from __future__ import annotations

import math

import streamlit as st

from dashboard import resources, state
from dashboard.text import message, plain, shorten
from editcore.errors import EditcoreError
from editcore.settings import chosen


def opens(shared: bool) -> bool:
    """True when this visitor may see the page; else what is asked of him instead has been drawn.

    Args:
        shared: the page shows a share link.
    """
    try:
        limits = chosen()
        resources.model_name()
        login = resources.has_login()
    except EditcoreError as error:
        st.error(message(str(error)), icon=":material/error:")
        return False
    if shared and limits.public_links:
        return True
    if login and not st.user.get("is_logged_in"):
        st.subheader("Log in to open this page.", anchor=False)
        if state.addressed():  # the login service sends everybody back to the front page
            st.caption("You asked for one session or link. Open its address once more when you are logged in.")
        st.button("Log in", key="login", type="primary", on_click=st.login)
        return False
    if limits.password is None or state.is_in():
        return True
    return _asked(limits.password.get_secret_value())


def way_out() -> None:
    """For whoever is logged in: as whom, and the button that ends it."""
    if not (resources.has_login() and st.user.get("is_logged_in")):
        return
    with st.sidebar, st.container(horizontal=True, vertical_alignment="center", key="way-out"):
        st.caption(plain(shorten(str(st.user.get("email") or st.user.get("name") or "Logged in"), 40)), width="stretch")
        st.button("Log out", key="logout", type="tertiary", icon=":material/logout:", on_click=st.logout)


def _asked(wanted: str) -> bool:
    """The form; True is never returned by it, the next run is let in."""
    st.subheader("This page asks for a password.", anchor=False)
    with st.form("door", clear_on_submit=True, border=False, width=360):
        given = st.text_input("Password", type="password", key="given", max_chars=1_000)
        sent = st.form_submit_button("Open", key="open")
    if not sent or not given:
        return False
    tries = resources.tries()
    if tries.right(given, wanted):
        state.come_in()
        st.rerun()
    wait = math.ceil(tries.wait())
    st.error(f"It was not opened. The next try is looked at in {wait} s.", icon=":material/lock:")
    return False
