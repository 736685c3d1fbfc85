"""Frames in, plotly figures out. Pure: no page, no model, no files.

Before is always an open slate circle, after a filled orange one: told apart without colour, and at least 3.5 : 1
against both page grounds.
"""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from dashboard.tables import HEADINGS
from dashboard.text import chart_text, percent, shorten

BEFORE = "#6B7F99"
AFTER = "#D9620F"
MEASURES = {"mean": ("before", "after"), "joint": ("before_joint", "after_joint")}
_LABEL_WIDTH = 50  # characters; what a 390 px screen holds
_ANSWER_WIDTH = 15
_FAINT = "rgba(107, 127, 153, 0.5)"  # BEFORE, behind everything else
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
    headed = [
        {"x": 0, "xref": "paper", "xanchor": "left", "y": y, "yanchor": "middle", "align": "left", "xshift": -104,
         "text": f"<b>{text}</b>" if bold else text, "showarrow": False, "font": {"size": 13 if bold else 12}}
        for y, text, bold in notes
    ]  # fmt: skip
    figure.update_layout(annotations=[*_missing(rows, before, after), *headed])  # at once: one by one takes 40 ms
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
            notes.append((y + _HEAD / 2 + 3, HEADINGS[group], True))
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
        height=int(height) + 74, margin={"l": 108, "r": 24, "t": 34, "b": 40, "autoexpand": False},
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


def _missing(rows: pd.DataFrame, before: str, after: str) -> list[dict[str, object]]:
    """A value that is not a number is written, never drawn as zero."""
    found = (
        (row["y"], [name for name, column in (("before", before), ("after", after)) if not _number(row[column])])
        for row in rows.to_dict("records")
    )
    return [
        {"x": 0.5, "y": y, "text": f"{' and '.join(names)}: n/a", "showarrow": False, "font": {"size": 11}}
        for y, names in found
        if names
    ]


def _drawn(values: pd.Series) -> list[float | None]:
    return [v if _number(v) else None for v in values]


def _number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


# Several methods beside each other.


def scatter(points: pd.DataFrame) -> go.Figure:
    """Generality against locality, one mark a method: filled where the edit took, a cross where it did not.

    Args:
        points: `compared.points`. Methods at the same place share one mark and one label.
    """
    figure = go.Figure()
    for text, x, y in (
        ("changes the fact,<br>and only the fact", 1, 1), ("other answers<br>move too", 0, 1),
        ("only this<br>wording", 1, 0), ("neither", 0, 0),
    ):  # fmt: skip
        figure.add_annotation(
            x=x, y=y, text=text, showarrow=False, xanchor="right" if x else "left", align="right" if x else "left",
            yanchor="bottom", yshift=10, xshift=0 if y else 14 - 28 * x, opacity=0.65, font={"size": 11},
        )  # fmt: skip
    for took, symbol, name in ((True, "circle", "the edit took"), (False, "x", "it did not")):
        rows = points[points["took"] == took] if len(points) else points
        if not len(rows):
            continue
        figure.add_scatter(
            x=rows["locality"], y=rows["generality"], mode="markers", name=name, cliponaxis=False,
            marker={"symbol": symbol, "size": 13, "color": AFTER if took else BEFORE},
            error_x=_bars(rows, "locality"), error_y=_bars(rows, "generality"),
            customdata=[_place_hover(row) for row in rows.to_dict("records")],
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    _name_places(figure, points)
    figure.update_layout(
        height=430, margin={"l": 56, "r": 24, "t": 64, "b": 68, "autoexpand": False}, hovermode="closest",
        dragmode=False, showlegend=True,
        legend={"orientation": "h", "xref": "container", "x": 0, "xanchor": "left", "y": 1, "yref": "container",
                "yanchor": "top", "itemclick": False, "itemdoubleclick": False},
    )  # fmt: skip
    share = {"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0 %", "25 %", "50 %", "75 %", "100 %"],
             "range": [-0.04, 1.04], "zeroline": False, "fixedrange": True}  # fmt: skip
    figure.update_xaxes(title={"text": "Locality: unrelated prompts that stayed", "standoff": 12}, **share)
    figure.update_yaxes(title="Generality: paraphrases that changed", **share)
    return figure


def _bars(rows: pd.DataFrame, score: str) -> dict[str, object]:
    """Wilson's interval as error bars, thin enough to leave the marks in front."""
    return {
        "type": "data", "symmetric": False, "array": rows[f"{score}_high"] - rows[score],
        "arrayminus": rows[score] - rows[f"{score}_low"], "thickness": 1, "width": 4, "color": _FAINT,
    }  # fmt: skip


def _place_hover(row: dict[str, object]) -> str:
    parts = [f"<b>{chart_text(str(row['method']))}</b>{'' if row['took'] else ': the edit did not take'}"]
    for score in ("generality", "locality"):
        share, of, low, high = (row[f"{score}{part}"] for part in ("", "_of", "_low", "_high"))
        parts.append(
            f"{score}: {round(share * of)} of {of}, {percent(share)} (95 %: {percent(low)} to {percent(high)})"  # type: ignore[arg-type, operator]
        )
    return "<br>".join(parts)


def _name_places(figure: go.Figure, points: pd.DataFrame) -> None:
    """A label and a line to each mark; methods at one place share one, and no two stand at the same height."""
    if not len(points):
        return
    lowest = 1.0
    places = points.groupby(["generality", "locality"])  # from the middle outwards: no line crosses a label
    for (y, x), group in sorted(places, key=lambda place: (-place[0][0], abs(place[0][1] - 0.5))):
        height = 0.065 * len(group) + 0.03
        place = max(min(y - 0.07, lowest), 0.12 + height / 2 if y < 0.2 else 0.0)
        lowest = place - height
        right = x > 0.5
        figure.add_annotation(
            x=x, y=y, ax=x - 0.16 if right else x + 0.16, ay=place - height / 2, axref="x", ayref="y",
            text="<br>".join(f"<b>{chart_text(m)}</b>" for m in group["method"]), showarrow=True, arrowhead=0,
            arrowwidth=1, arrowcolor=BEFORE, standoff=8, xanchor="right" if right else "left",
            align="right" if right else "left", font={"size": 12},
        )  # fmt: skip


def multiples(lanes: pd.DataFrame) -> go.Figure:
    """Every probe before -> after, a panel a method, all on one axis.

    Args:
        lanes: `compared.lanes`.
    """
    figure = go.Figure()
    rows, notes, ticks, height = _panels(lanes)
    line_x: list[float | None] = []
    line_y: list[float | None] = []
    for row in rows.to_dict("records"):
        if _number(row["before"]) and _number(row["after"]):
            line_x += [row["before"], row["after"], None]
            line_y += [row["y"], row["y"], None]
    hover = [
        f"<b>{chart_text(r['method'])}</b><br>{chart_text(r['prompt'])}<br>{chart_text(r['answer'])}: "
        f"{percent(r['before'])} → {percent(r['after'])}"
        for r in rows.to_dict("records")
    ]
    shared = {"y": rows["y"], "mode": "markers", "customdata": hover, "cliponaxis": False,
              "hovertemplate": "%{customdata}<extra></extra>"}  # fmt: skip
    figure.add_scatter(
        x=line_x, y=line_y, mode="lines", line={"color": AFTER, "width": 1.5}, opacity=0.5, hoverinfo="skip",
        showlegend=False, name="change",
    )  # fmt: skip
    figure.add_scatter(
        x=_drawn(rows["before"]), name="before", **shared,
        marker={"symbol": "circle-open", "size": 7, "color": BEFORE, "line": {"width": 1.8, "color": BEFORE}},
    )  # fmt: skip
    figure.add_scatter(
        x=_drawn(rows["after"]), name="after", **shared, marker={"symbol": "circle", "size": 6, "color": AFTER}
    )
    headed = [
        {"x": 0, "xref": "paper", "xanchor": "left", "y": y, "yanchor": "middle", "text": f"<b>{text}</b>",
         "showarrow": False, "xshift": -90, "font": {"size": 13}}
        for y, text in notes
    ]  # fmt: skip
    figure.update_layout(annotations=headed)
    _axes(figure, rows.assign(answer=""), height)
    figure.update_layout(margin={"l": 92, "t": 62, "b": 12}, legend={"yref": "container", "y": 1, "yanchor": "top"})
    figure.update_xaxes(side="top")
    figure.update_yaxes(tickvals=[y for y, _ in ticks], ticktext=[text for _, text in ticks])
    return figure


def _panels(
    lanes: pd.DataFrame,
) -> tuple[pd.DataFrame, list[tuple[float, str]], list[tuple[float, str]], float]:
    """Where everything sits, in pixels from the top: rows with their y, method names, lane names, the height."""
    most = max((len(group) for _, group in lanes.groupby("method", sort=False)), default=1) if len(lanes) else 1
    step = min(8.0, max(1.5, 110 / most))
    places: list[float] = []
    notes: list[tuple[float, str]] = []
    ticks: list[tuple[float, str]] = []
    y = 0.0
    for method, panel in lanes.groupby("method", sort=False):
        notes.append((y + 12, chart_text(str(method))))
        y += 28
        for lane, group in panel.groupby("lane", sort=False):
            ticks.append((y + step * len(group) / 2, str(lane)))
            places += [y + step * (i + 0.5) for i in range(len(group))]
            y += step * len(group) + 9
        y += 6
    ordered = lanes.assign(y=places) if len(lanes) else lanes.assign(y=[])
    return ordered, notes, ticks, y


# A session over its edits.


def health_lines(frame: pd.DataFrame, since: int | None = None) -> go.Figure:
    """How a session fares from edit to edit: what holds and what stayed above, perplexity below.

    Lines differ in dash and mark as well as in colour; a reading that is missing leaves a gap.

    Args:
        frame: `course.course_rows`: edit (number), retention and unmoved (percent or None), perplexity (times the base
            model's).
        since: the number of the edit a warning names; marked in both panels.
    """
    figure = go.Figure()
    places = list(range(len(frame)))
    hover = [_health_hover(row) for row in frame.to_dict("records")]
    for column, name, axis, line, marker in _HEALTH:
        figure.add_scatter(
            x=places, y=[v if _number(v) else None for v in frame[column].tolist()] if places else [], name=name,
            mode="lines+markers" if len(frame) <= _MOST_MARKED else "lines", yaxis=axis, line=line, marker=marker,
            customdata=hover, hovertemplate="%{customdata}<extra></extra>", cliponaxis=False, connectgaps=False,
        )  # fmt: skip
    numbers = frame["edit"].tolist() if places else []
    if since in numbers:
        figure.add_shape(
            type="line", xref="x", yref="paper", x0=numbers.index(since), x1=numbers.index(since), y0=0, y1=1,
            line={"color": _FAINT, "width": 1.5, "dash": "dot"},
        )  # fmt: skip
        figure.add_annotation(
            x=numbers.index(since), y=1, yref="paper", yanchor="bottom", text=f"since edit {since}", showarrow=False,
            font={"size": 11},
        )  # fmt: skip
    _health_axes(figure, numbers, [v for v in (frame["perplexity"].tolist() if places else []) if _number(v)])
    return figure


_MOST_MARKED = 40  # edits; beyond that marks would touch
_HEALTH = (
    ("retention", "edits that hold", "y", {"color": AFTER, "width": 2}, {"symbol": "circle", "size": 7}),
    ("unmoved", "unrelated answers that stayed", "y", {"color": BEFORE, "width": 2, "dash": "dash"},
     {"symbol": "square-open", "size": 8, "line": {"width": 1.5}}),
    ("perplexity", "perplexity of plain text", "y2", {"color": BEFORE, "width": 1.5, "dash": "dot"},
     {"symbol": "diamond", "size": 6}),
)  # fmt: skip


def _health_hover(row: dict[str, object]) -> str:
    def share(value: object) -> str:
        return f"{value:.0f} %" if isinstance(value, int | float) and _number(value) else "n/a"

    times = row["perplexity"]
    return "<br>".join((
        f"<b>after edit {row['edit']}</b>",
        f"edits that hold: {share(row['retention'])}",
        f"unrelated answers that stayed: {share(row['unmoved'])}",
        f"perplexity of plain text: {times:.2f} × the base model's" if isinstance(times, float) else "perplexity: n/a",
    ))  # fmt: skip


def _health_axes(figure: go.Figure, numbers: list[int], ratios: list[float]) -> None:
    """One axis of edits, percent above, the ratio below: on a log scale once it is far from 1."""
    step = max(1, -(-len(numbers) // 10))
    figure.update_xaxes(
        tickvals=list(range(0, len(numbers), step)), ticktext=[str(n) for n in numbers[::step]],
        title={"text": "after edit", "font": {"size": 12}}, range=[-0.5, max(1, len(numbers)) - 0.5], anchor="y2",
        zeroline=False, showgrid=False, fixedrange=True,
    )  # fmt: skip
    low, high = min([1.0, *ratios]), max([1.5, *ratios])
    wide = high > 10
    span = [math.log10(low * 0.9), math.log10(high * 1.1)] if wide else [max(0.0, low - 0.1), high * 1.05]
    ticks = [10**n for n in range(int(math.log10(high)) + 1)] if wide else [1, high if high < 2 else int(high)]
    figure.update_layout(
        height=300, margin={"l": 52, "r": 16, "t": 56, "b": 44}, dragmode=False, hovermode="closest", showlegend=True,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top",
                "itemclick": False, "itemdoubleclick": False},
        yaxis={"domain": [0.38, 1], "range": [-4, 104], "tickvals": [0, 50, 100], "ticktext": ["0 %", "50 %", "100 %"],
               "zeroline": False, "fixedrange": True},
        yaxis2={"domain": [0, 0.26], "range": span, "type": "log" if wide else "linear", "tickvals": ticks,
                "ticktext": [f"{tick:,.0f} ×" if tick >= 10 else f"{tick:.2g} ×" for tick in ticks],
                "zeroline": False, "fixedrange": True},
    )  # fmt: skip
