"""What a share link shows: stored results, read-only. Asks no engine, and leads to no session."""

from __future__ import annotations

from datetime import UTC, datetime

import streamlit as st

from dashboard import resources, results, state
from dashboard.frame import model_words
from dashboard.text import plain, shorten
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
    st.caption(f"Results as they were on {when:%d %B %Y, %H:%M} UTC, each measured when its edit was made.")
    every = [(edit, report) for edit, reports in rows for report in reports]
    index = st.selectbox(
        "Edit", range(len(every)), key="shared-edit",
        format_func=lambda i: f"#{every[i][0]['number']} {shorten(every[i][1].request.prompt, 60)} "
                              f"→ {every[i][1].request.target}",
    ) if len(every) > 1 else 0  # fmt: skip
    results.show(every[int(index or 0)][1])
    state.forget_error()


main()
