"""What the embedded model believes, to be searched; one click puts a fact into the form."""

from __future__ import annotations

from typing import Any

import streamlit as st

from dashboard import answers, frame, resources, state, tables
from dashboard.text import message
from editcore.errors import EditcoreError
from editcore.records import ModelInfo
from editcore.suggest import question, search
from editcore.world.facts import Fact, load_world

_SHOWN = 12
_PICK = "pick:{}"


@st.fragment
def browser(model: ModelInfo | None, busy: bool) -> None:
    """Search box and table. While the model is busy the facts are shown without its probabilities."""
    if state.take("picked_now"):
        st.rerun()
    world = load_world()
    st.caption(
        f"{len(world.facts):,} facts as of mid-2019. Search for a name or a relation, then click a row to question it."
    )
    query = st.text_input(
        "Search", key=state.SEARCH, type="search", live="300ms", placeholder="e.g. Germany, Picasso, currency",
        label_visibility="collapsed",
    )  # fmt: skip
    answers.begin_part()
    found = search(query or "", world, _SHOWN)
    if not found:
        st.caption("Nothing found. Try a country, a city, a person, a company, a book, a film or an element.")
        return
    probabilities = _probabilities(found, model, busy)
    rows = [(f.subject, f.label, f.object, p) for f, p in zip(found, probabilities, strict=True)]
    key = _PICK.format(state.digest([query, state.value("_picks", 0)]))
    st.dataframe(
        tables.beliefs(rows), key=key, hide_index=True, on_select=pick, selection_mode="single-cell", row_height=32,
        height=32 * (len(rows) + 1) + 3,
        alt="Facts the model was taught, with its own probability of each answer", placeholder="",
        column_config={
            "fact": "Fact", "answer": "It answers",
            "probability": st.column_config.ProgressColumn("Sure", format="percent", min_value=0, max_value=1,
                                                           color="gray", width=110),
        },
    )  # fmt: skip
    state.offer(key, [(question(f, world), "") for f in found])
    frame.await_answers("believe")


def pick() -> None:
    """A row was clicked: its question goes into the form."""
    state.pick_offered()


def _probabilities(found: tuple[Fact, ...], model: ModelInfo | None, busy: bool) -> list[float | None]:
    """The model's probability of each fact's answer; None where it cannot be asked now."""
    if model is None or busy:
        return [None] * len(found)
    world = load_world()
    prompts, objects = [question(f, world) for f in found], [[f.object] for f in found]
    ask = resources.engine().ask
    try:
        told: list[dict[str, Any]] | None = answers.asked(
            "believe", [model.fingerprint, prompts, objects],
            lambda: ask("believe", resources.PATIENCE, prompts=prompts, answers=objects), lasting=True,
        )  # fmt: skip
    except EditcoreError as error:
        st.caption(f"The probabilities could not be read: {message(str(error))}")
        return [None] * len(found)
    return [row["candidates"][0] for row in told] if told else [None] * len(found)
