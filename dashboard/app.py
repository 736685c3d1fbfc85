"""The page's table of contents. Start it with `streamlit run dashboard/app.py`."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

_PAGES = Path(__file__).parent / "pages"

st.set_page_config(page_title="editcore", page_icon="✏️", layout="wide")
st.navigation([st.Page(_PAGES / "edit.py", title="Edit", default=True)], position="top").run()
