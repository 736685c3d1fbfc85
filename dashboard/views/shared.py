"""What a share link shows: stored results, read-only. Asks no engine, and leads to no session."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from dashboard import resources, results, state
from dashboard.frame import model_words
from dashboard.text import percent, plain, shorten
from editcore.records import EditReport, ModelInfo, from_plain


def main() -> None:
    """The frozen results, one edit at a time."""
    found = resources.library().shared(state.link())
    if found is None:
        st.subheader("There is nothing at this address.", anchor=False)
        st.caption("The link is not complete, or it was withdrawn.")
        return
    rows = [(row["edit"], tuple(from_plain(EditReport, r) for r in row["reports"])) for row in found.content["rows"]]
    model = found.content["model"]
    when = datetime.fromtimestamp(found.at, UTC)
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="header"):
        st.markdown("**editcore**", width="content")
        st.badge("Read-only", icon=":material/visibility:", color="gray")
        st.caption(plain(model_words(from_plain(ModelInfo, model)) if model else found.model), width="content")
    st.markdown(f"### {plain(found.title)}")
    st.caption("Somebody corrected what this language model believes; this is what each correction changed. Results as "
               f"they were on {when:%d %B %Y, %H:%M} UTC, each measured when its edit was made.")  # fmt: skip
    every = [(edit, report) for edit, reports in rows for report in reports]
    index = st.selectbox(
        "Edit", range(len(every)), key="shared-edit",
        format_func=lambda i: f"#{every[i][0]['number']} {shorten(every[i][1].request.prompt, 60)} "
                              f"→ {every[i][1].request.target}{counting(every[i][0])}",
    ) if len(every) > 1 else 0  # fmt: skip
    results.show(every[int(index or 0)][1], switch=answering)
    state.forget_error()


def counting(row: Mapping[str, Any]) -> str:
    """How an edit counted when the link was made, unless that was as computed."""
    if not row["on"]:
        return " (switched off)"
    return "" if row["strength"] == 1 else f" (at {percent(row['strength'])})"


def answering() -> None:
    """Which models the charts lead from and to."""
    st.caption("○ the model without this edit, ● with it; what was in place when it was made counts in both.")


main()
