"""What an edit did, shown: the sentence, the scores, the charts, a table behind each and files to take away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import charts, fold, resources, tables
from dashboard.made import Picture
from dashboard.text import changed_words as diff
from dashboard.text import counted, duration, marked, percent, plain, shorten, size, visible
from editcore.records import EditReport, ProbeResult
from editcore.words import FORM_WORDS

_MEASURES = {"mean": "Per token", "joint": "Whole answer"}
_EXPLAINED = {
    "mean": "Per token: the geometric mean over the answer's tokens, so short and long answers compare.",
    "joint": "Whole answer: the product over its tokens; long answers score lower by nature.",
}
_PERCENT = st.column_config.NumberColumn
CHART: dict[str, Any] = {"displaylogo": False, "modeBarButtons": [["toImage"]]}


def show(report: EditReport, judged: bool = True, switch: Callable[[], None] = lambda: None) -> None:
    """The whole result, most important first.

    Args:
        judged: the report is of the edit itself, so its verdict and advice belong to it.
        switch: draws what chooses the model that answers, above everything that depends on it.
    """
    if judged and not report.took:
        st.warning(
            f"**The edit did not take.** {plain(report.advice)}" if report.advice else "**The edit did not take.**",
            icon=":material/report:",
        )
    with st.container(key="sentence"):
        st.subheader(plain(_without_verdict(report)), anchor=False)
    if report.took and report.advice:
        st.info(plain(report.advice), icon=":material/lightbulb:")
    for warning in report.warnings:
        st.caption(f":material/info: {plain(warning)}")
    if any(result.probe.kind in ("raw", "chat") for result in report.probes):
        st.caption(f":material/forum: Edited and read as **{FORM_WORDS[report.request.form]}**.")
    switch()
    _tiles(report)
    _answers(report)
    _next_tokens(report)
    _continuations(report)
    fold.drawn("How it was done, and the whole report", "how", lambda: _how(report))


def fetch_ahead() -> None:
    """Draws nothing, so that the browser has fetched what draws charts (5 MB) before the first one is wanted."""
    with st.container(key="ahead"):
        st.html("<style>.st-key-ahead { display: none; }</style>")
        st.plotly_chart(
            resources.made().of(tables.NO_SHIFTS, "mean", lambda: Picture(charts.dumbbell(tables.NO_SHIFTS))),
            key="nothing", config=CHART,
        )  # fmt: skip


def _any_held_out(report: EditReport) -> bool:
    return any(result.probe.held_out for result in report.probes)


def _without_verdict(report: EditReport) -> str:
    """The sentence; the verdict that opens it for a failed edit already stands in the warning above."""
    return report.sentence.removeprefix("The edit did not take. ") if not report.took else report.sentence


def _tiles(report: EditReport) -> None:
    rows = resources.made().of(
        report, "tiles", lambda: tables.tiles(report.scores, report.probes).to_dict("records")
    )  # fmt: skip
    with st.container(key="tiles", gap="xsmall"):
        for start in range(0, len(rows), 2):  # two beside each other fit a phone and a column
            with st.container(horizontal=True, gap="xsmall"):
                for row in rows[start : start + 2]:
                    with st.container(border=True, width="stretch", height="stretch", gap=None):
                        st.caption(f"**{row['name']}**")
                        st.subheader(_headline(row), anchor=False)
                        st.caption(row["meaning"])
    fold.drawn("Table behind the scores", "scores", lambda: table(tables.score_list(report.scores), "scores"))


def _headline(row: dict[str, Any]) -> str:
    if pd.isna(row["right"]):
        return percent(row["share"])
    return f"{row['right']} of {row['of']}"


def _answers(report: EditReport) -> None:
    st.markdown("##### How likely each answer is, before and after")
    measure = st.segmented_control(
        "Probability", list(_MEASURES), key="measure", format_func=_MEASURES.__getitem__, default="mean",
        required=True, label_visibility="collapsed", persist_state="session",
    )  # fmt: skip
    held = " ◆ marks wordings the model never saw with this fact." if _any_held_out(report) else ""
    st.caption(f"{_EXPLAINED[measure]} ○ before, ● after.{held}")
    st.plotly_chart(
        resources.made().of(report, measure, lambda: Picture(charts.dumbbell(tables.shifts(report), measure))),
        key="dumbbell", config=CHART,
        alt="Probability of the corrected and the old answer before and after the edit, for every prompt",
    )  # fmt: skip
    shown_as = shares("before", "after", "before_joint", "after_joint")
    fold.drawn("Table behind this chart", "answers",
               lambda: table(tables.shifts(report).drop(columns="index"), "answers", shown_as))  # fmt: skip


def _next_tokens(report: EditReport) -> None:
    st.markdown("##### What comes next, token by token")
    results = tables.ordered(report.probes)
    index = st.selectbox(
        "Which prompt to look at", range(len(results)), key="token_prompt", label_visibility="collapsed",
        format_func=lambda i: visible(results[i].probe.prompt),
    )  # fmt: skip
    result: ProbeResult = results[index if index is not None and index < len(results) else 0]
    frame = tables.next_tokens(result)
    st.dataframe(
        frame, hide_index=True, row_height=30, key="tokens", placeholder="n/a",
        alt="Most likely next tokens before and after the edit",
        column_config={
            "rank": st.column_config.NumberColumn("#", width=36), "before": "Before",
            "p_before": st.column_config.NumberColumn("p", format="percent"), "after": "After",
            "p_after": st.column_config.NumberColumn("p", format="percent"), "movement": "Moved",
        },
    )  # fmt: skip
    st.caption("· stands for a space. ▲ ▼: how far the right-hand token moved up or down; new: it was not listed.")
    downloads(frame, "next-tokens")


def _continuations(report: EditReport) -> None:
    st.markdown("##### What it writes on its own")
    lines = resources.made().of(report, "lines", lambda: _lines(tables.continuations(report)))
    same = sum(words.startswith("=") for _, words in lines)
    with st.container(key="continuations", gap="small"):
        for head, words in lines:
            with st.container(gap=None):
                st.caption(head)
                st.markdown(words)
    st.caption(f"○ before, ● after, = unchanged ({same} of {len(lines)}). Changed words are marked.")
    fold.drawn("Table behind the continuations", "continuations",
               lambda: table(tables.continuations(report), "continuations"))  # fmt: skip


def _lines(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Of every prompt: what it is, and what was written before and after."""
    found = []
    for row in frame.to_dict("records"):
        before, after = diff(row["before"], row["after"])
        head = f"{tables.GROUPS[row['kind']]} · {'◆ ' if row['held_out'] else ''}{plain(row['prompt'])}"
        both = f"○ {marked(before, 'gray')}  \n● {marked(after, 'orange')}"
        found.append((head, both if row["changed"] else f"= {marked(after, 'gray')}"))
    return found


def _how(report: EditReport) -> None:
    patch = report.patch
    st.text(
        f"{report.method} on {report.model}, subject “{report.subject or 'none'}”, "
        f"the prompt read as {FORM_WORDS[report.request.form]}\n"
        f"changed: {shorten(', '.join(patch.modules), 300) or 'no matrix'}\n"
        f"size {size(patch.bytes)}, rank {'full' if patch.rank is None else patch.rank}, "
        f"{percent(patch.relative_norm)} of the norm of the edited weights\n"
        f"edit {duration(report.seconds.edit)}, measuring {duration(report.seconds.measure)}, "
        f"preparation {duration(report.seconds.prepare)}, peak memory {size(report.peak_memory)} over the model"
    )
    st.dataframe(tables.effective(report.settings), hide_index=True, alt="Settings in force")
    st.download_button(
        "Whole report (JSON)", lambda: tables.to_json(report), "edit-report.json", "application/json",
        key="report-json", on_click="ignore", icon=":material/download:",
    )  # fmt: skip


def shares(*columns: str) -> dict[str, object]:
    """These columns as percentages."""
    return {name: _PERCENT(name.replace("_", " "), format="percent") for name in columns}


def table(frame: pd.DataFrame, name: str, config: dict[str, object] | None = None) -> None:
    """A frame with its downloads, as it stands behind every chart."""
    st.dataframe(frame, hide_index=True, placeholder="n/a", column_config=config, alt=f"Table of {name}")
    downloads(frame, name)


def downloads(frame: pd.DataFrame, name: str) -> None:
    """CSV and JSON of a frame."""
    kinds: tuple[tuple[str, Callable[[pd.DataFrame], bytes], str], ...] = (
        ("csv", tables.to_csv, "text/csv"), ("json", tables.to_json, "application/json"),
    )  # fmt: skip
    with st.container(horizontal=True, gap="small"):
        for suffix, build, mime in kinds:
            st.download_button(
                suffix.upper(), lambda build=build: build(frame), f"{name}.{suffix}", mime, key=f"{name}-{suffix}",
                on_click="ignore", icon=":material/download:",
            )  # fmt: skip


def checks_line(paraphrases: int, probes: int) -> str:
    """ "4 paraphrases, 8 unrelated prompts"."""
    return f"{counted(paraphrases, 'paraphrase')}, {counted(probes, 'unrelated prompt')}"
