"""The page's table of contents. Start it with `streamlit run dashboard/app.py`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard import door, resources
from dashboard.text import message
from editcore.errors import EditcoreError

_VIEWS = Path(__file__).parent / "views"  # not "pages": a folder of that name would be served before this file is read
SHARED = "Shared results"

st.set_page_config(page_title="editcore", page_icon="✏️", layout="wide")
page = st.navigation(
    [
        st.Page(_VIEWS / "edit.py", title="Edit", icon=":material/edit:", default=True),
        st.Page(_VIEWS / "compare.py", title="Compare", icon=":material/compare_arrows:"),
        st.Page(_VIEWS / "sessions.py", title="Your sessions", icon=":material/history:"),
        st.Page(_VIEWS / "shared.py", title=SHARED, visibility="hidden"),
    ],
    position="top",
)
with resources.turns().taken():
    if door.opens(shared=page.title == SHARED):
        try:
            page.run()
        except EditcoreError as error:  # what a page could do nothing about, such as a store that cannot be reached
            st.error(message(str(error)), icon=":material/error:")
        door.way_out()
