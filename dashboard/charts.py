"""Frames in, plotly figures out. Pure: no page, no model, no files.

Before is always an open slate circle, after a filled orange one: told apart without colour, and at least 3.5 : 1
against both page grounds.
"""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dashboard.tables import GROUPS
from dashboard.text import chart_text, percent, shorten

BEFORE = "#6B7F99"
AFTER = "#D9620F"
MEASURES = {"mean": ("before", "after"), "joint": ("before_joint", "after_joint")}
_LABEL_WIDTH = 50  # characters; what a 390 px screen holds
_ANSWER_WIDTH = 15
_HEAD, _PROMPT, _ROW, _GAP = 30, 21, 19, 7  # pixels


def dumbbell(frame: pd.DataFrame, measure: str = "mean") -> go.Figure:
    """Probability of the corrected and of the old answer, before -> after, for every prompt.

    Args:
        frame: `tables.shifts`.
        measure: "mean" (per-token geometric mean) or "joint" (product over the answer's tokens).
    """
    before, after = MEASURES[measure]
    places, notes, height = _layout(frame)
    figure = go.Figure()
    rows = frame.assign(y=places, hover=_hovers(frame, before, after)) if len(frame) else frame.assign(y=[], hover=[])
    line_x: list[float | None] = []
    line_y: list[float | None] = []
    for row in rows.to_dict("records"):
        if _number(row[before]) and _number(row[after]):
            line_x += [row[before], row[after], None]
            line_y += [row["y"], row["y"], None]
    figure.add_scatter(
        x=line_x, y=line_y, mode="lines", line={"color": AFTER, "width": 2}, opacity=0.55,
        hoverinfo="skip", showlegend=False, name="change",
    )  # fmt: skip
    figure.add_scatter(
        x=_drawn(rows[before]), y=rows["y"], mode="markers", name="before",
        marker={"symbol": "circle-open", "size": 11, "color": BEFORE, "line": {"width": 2.5, "color": BEFORE}},
        customdata=rows["hover"], hovertemplate="%{customdata}<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    figure.add_scatter(
        x=_drawn(rows[after]), y=rows["y"], mode="markers", name="after",
        marker={"symbol": "circle", "size": 9, "color": AFTER},
        customdata=rows["hover"], hovertemplate="%{customdata}<extra></extra>", cliponaxis=False,
    )  # fmt: skip
    _mark_missing(figure, rows, before, after)
    for y, text, bold in notes:
        figure.add_annotation(
            x=0, xref="paper", xanchor="left", y=y, yanchor="middle", text=f"<b>{text}</b>" if bold else text,
            showarrow=False, align="left", font={"size": 13 if bold else 12}, xshift=-104,
        )  # fmt: skip
    _axes(figure, rows, height)
    return figure


def _layout(frame: pd.DataFrame) -> tuple[list[float], list[tuple[float, str, bool]], float]:
    """Where everything sits, in pixels from the top: each row's y, the notes (y, text, heading?), the total height."""
    places: list[float] = []
    notes: list[tuple[float, str, bool]] = []
    y, group, prompt = 0.0, None, None
    for row in frame.to_dict("records"):
        if row["kind"] != group:
            group, prompt = row["kind"], None
            notes.append((y + _HEAD / 2 + 3, chart_text(GROUPS[group].split(":")[0] + " – "
                                                        + GROUPS[group].split(": ")[-1]), True))  # fmt: skip
            y += _HEAD + 4
        if row["index"] != prompt:
            y += 0 if prompt is None else _GAP
            prompt = row["index"]
            held = "◆ " if row["held_out"] else ""
            notes.append((y + _PROMPT / 2, held + chart_text(shorten(row["prompt"], _LABEL_WIDTH - len(held))), False))
            y += _PROMPT
        places.append(y + _ROW / 2)
        y += _ROW
    return places, notes, y + _GAP


def _axes(figure: go.Figure, rows: pd.DataFrame, height: float) -> None:
    figure.update_layout(
        height=int(height) + 74, margin={"l": 108, "r": 18, "t": 34, "b": 40},
        legend={"orientation": "h", "xref": "container", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom",
                "itemclick": False, "itemdoubleclick": False},
        hovermode="closest", dragmode=False,
    )  # fmt: skip
    figure.update_xaxes(
        range=[-0.02, 1.02], tickvals=[0, 0.25, 0.5, 0.75, 1], ticktext=["0 %", "25 %", "50 %", "75 %", "100 %"],
        side="bottom", zeroline=False, fixedrange=True,
    )  # fmt: skip
    labels = [chart_text(shorten(answer, _ANSWER_WIDTH)) for answer in rows["answer"]] if len(rows) else []
    figure.update_yaxes(
        range=[height, 0], tickvals=list(rows["y"]), ticktext=labels, showgrid=False, zeroline=False, fixedrange=True,
        automargin=False, tickfont={"size": 12},
    )  # fmt: skip


def _hovers(frame: pd.DataFrame, before: str, after: str) -> list[str]:
    return [
        "<br>".join((
            chart_text(row["prompt"]),
            f"{'corrected' if row['role'] == 'new' else 'old'} answer: {chart_text(row['answer'])}",
            f"before {percent(row[before])} → after {percent(row[after])}",
            f"rank of its first token: {row['rank_before']} → {row['rank_after']}",
            *(("held out: a wording the model never saw with this fact",) if row["held_out"] else ()),
        ))
        for row in frame.to_dict("records")
    ]  # fmt: skip


def _mark_missing(figure: go.Figure, rows: pd.DataFrame, before: str, after: str) -> None:
    """A value that is not a number is written, never drawn as zero."""
    for row in rows.to_dict("records"):
        missing = [name for name, column in (("before", before), ("after", after)) if not _number(row[column])]
        if missing:
            figure.add_annotation(
                x=0.5, y=row["y"], text=f"{' and '.join(missing)}: n/a", showarrow=False, font={"size": 11}
            )


def _drawn(values: pd.Series) -> list[float | None]:
    return [v if _number(v) else None for v in values]


def _number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)
