"""A plotly figure as a still picture: SVG that needs no script and no network. Knows what `charts.dumbbell` draws.

Scatter traces (lines, open and filled circles), annotations, the ticks of both axes. Colours other than those of the
marks come from the page around it: text is `currentColor`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

WIDTH = 440  # of the plot with its margins, in the picture's own units; the page scales it
EDGE = 24  # room to the left, for labels longer than their margin
_TAG = re.compile(r"<b>(.*?)</b>", re.DOTALL)


def svg(figure: go.Figure, title: str) -> str:
    """The figure as an `<svg>` element.

    Args:
        title: what it shows, for those who hear it.
    """
    layout = figure.layout
    margin, height = layout.margin, float(layout.height)
    left, right, top, bottom = float(margin.l), WIDTH - float(margin.r), float(margin.t), height - float(margin.b)
    x0, x1 = layout.xaxis.range
    y0, y1 = layout.yaxis.range  # y0 at the bottom

    def x(value: float) -> float:
        return left + (value - x0) / (x1 - x0) * (right - left)

    def y(value: float) -> float:
        return bottom - (value - y0) / (y1 - y0) * (bottom - top) if y1 != y0 else top

    pieces = [*_grid(layout, x, y, top, bottom)]
    for trace in figure.data:
        pieces += _lines(trace, x, y) if trace.mode == "lines" else _marks(trace, x, y)
    for note in layout.annotations:
        at = left + float(note.x) * (right - left) if note.xref == "paper" else x(float(note.x))
        pieces.append(_text(at + float(note.xshift or 0), y(float(note.y)), note.text, note.font.size or 12,
                            "start" if note.xanchor == "left" else "middle"))  # fmt: skip
    box = f"{-EDGE} {top - 8:g} {WIDTH + EDGE} {height - top + 8:g}"
    said = html.escape(title, quote=True)
    return f'<svg viewBox="{box}" role="img" aria-label="{said}">{"".join(pieces)}</svg>'


def _grid(layout: Any, x: Any, y: Any, top: float, bottom: float) -> Iterator[str]:
    for value, text in zip(layout.xaxis.tickvals, layout.xaxis.ticktext, strict=True):
        yield f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{top:g}" y2="{bottom:g}"/>'
        yield _text(x(value), bottom + 16, text, 12, "middle")
    for value, text in zip(layout.yaxis.tickvals or (), layout.yaxis.ticktext or (), strict=True):
        yield _text(x(layout.xaxis.range[0]) - 8, y(value), text, 12, "end")


def _lines(trace: Any, x: Any, y: Any) -> Iterator[str]:
    """Segments between pairs; a None ends one."""
    places = list(zip(trace.x or (), trace.y or (), strict=True))
    for (ax, ay), (bx, by) in zip(places, places[1:], strict=False):
        if ax is not None and bx is not None:
            yield (
                f'<line x1="{x(ax):.1f}" y1="{y(ay):.1f}" x2="{x(bx):.1f}" y2="{y(by):.1f}" stroke="{trace.line.color}"'
                f' stroke-width="{trace.line.width:g}" stroke-opacity="{trace.opacity or 1:g}"/>'
            )


def _marks(trace: Any, x: Any, y: Any) -> Iterator[str]:
    marker, hovers = trace.marker, trace.customdata if trace.customdata is not None else [""] * len(trace.x)
    radius = float(marker.size) / 2
    paint = (
        f'fill="none" stroke="{marker.line.color}" stroke-width="{marker.line.width:g}"'
        if marker.symbol == "circle-open"
        else f'fill="{marker.color}"'
    )
    for at, place, hover in zip(trace.x, trace.y, hovers, strict=True):
        if at is not None and at == at:
            said = str(hover).replace("<br>", "\n")
            yield f'<circle cx="{x(at):.1f}" cy="{y(place):.1f}" r="{radius:g}" {paint}><title>{said}</title></circle>'


def _text(x: float, y: float, text: str, size: float, anchor: str) -> str:
    """A label; `charts` has escaped what people wrote, and its own bold is the only tag."""
    bold = _TAG.fullmatch(text)
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" dy="0.35em" font-size="{size:g}" text-anchor="{anchor}"{weight}>'
        f"{bold[1] if bold else text}</text>"
    )
