"""Expanders whose content is drawn when they are open: a closed one costs next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from dashboard import state


def box(label: str, key: str, icon: str | None = None) -> Any:
    """An expander that knows whether it is `open`, and stays so when its label changes.

    Args:
        key: names it; the framework takes one with another label for another one.
    """
    labelled, expanded, stands = state.value(f"_fold:{key}", (label, False, False))
    if label != labelled:
        expanded = stands
    made = st.expander(label, expanded, key=f"fold:{key}", icon=icon, on_change="rerun")
    state.leave(f"fold:{key}", (label, expanded, bool(made.open)))
    return made


def drawn(label: str, key: str, draw: Callable[[], None], icon: str | None = None) -> None:
    """An expander, and `draw()` in it once it is open."""
    made = box(label, key, icon)
    if made.open:
        with made:
            draw()
