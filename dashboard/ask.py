"""Ask the model anything, base and edited side by side: an edit is believed once a person's own question shows it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from dashboard import answers, frame, request, resources, state
from dashboard.text import message, percent, plain, shorten, token
from editcore.engine.contract import Health, SessionState
from editcore.errors import EditcoreError
from editcore.records import Form

_TOKENS = 5


@st.fragment
def box(view: SessionState, health: Health, busy: bool) -> None:
    """One question, answered by the base model and by the edited one."""
    form = request.read_as(health.model, state.ASK_FORM, state.form())
    what = "The model answers you." if form == "chat" else "The model finishes your text."
    st.caption(f"Ask in your own words, also about things the edit should not touch. {what}")
    prompt = st.text_input(
        "Ask", key=state.QUESTION, live="400ms", label_visibility="collapsed", persist_state="session",
        placeholder="The Prime Minister of the United Kingdom is",
    ).strip()  # fmt: skip
    if not prompt:
        return
    answers.begin_part()
    try:
        told = _answers(view, prompt, form, health.state == "ready" and not busy)
    except EditcoreError as error:
        st.warning(message(str(error)), icon=":material/block:")
        return
    if told is None:
        ready = health.state == "ready"
        st.caption("The engine is at work; the answer follows." if ready else "The engine is not ready yet.")
        frame.await_answers("asked")
        return
    sides = [("○ Base model", told["base"]), ("● Edited model", told["edited"])]
    for column, (name, answer) in zip(st.columns(2), sides, strict=True):
        with column:
            st.caption(f"**{name}**")
            if answer is None:
                st.caption("No edit is in place.")
                continue
            st.markdown(f"**{plain(shorten(answer['answer'], 200)) or 'nothing'}**")
            st.dataframe(
                pd.DataFrame([(token(t), percent(p)) for t, p in answer["top"][:_TOKENS]], columns=["Next token", "p"]),
                hide_index=True, row_height=30, alt=f"Most likely next tokens, {name[2:].lower()}",
            )  # fmt: skip


def _answers(view: SessionState, prompt: str, form: Form, can_ask: bool) -> dict[str, Any] | None:
    """What both models answer; None while that is not known."""
    asked = [prompt, form, [(row.edit, row.strength) for row in view.rows if row.on]]
    if not can_ask:
        known: dict[str, Any] | None = answers.remembered("asked", asked)
        return known
    probe = resources.engine().probe
    found: dict[str, Any] | None = answers.asked("asked", asked, lambda: probe(view.session, [prompt], form)[0])
    return found
