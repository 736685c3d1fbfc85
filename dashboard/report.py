"""A report to pass on: one HTML file with every edit, its scores, charts and tables; JSON and CSV of every number.

The file holds no script and asks the network for nothing, and forbids both to any reader's browser. All text goes
through `visible` and is escaped; it reads in light and dark, on paper too.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from dashboard import charts, tables
from dashboard.drawing import svg
from dashboard.text import counted, duration, percent, size, visible
from editcore import __version__
from editcore.records import AnswerScore, EditReport, ModelInfo, to_plain
from editcore.words import FORM_WORDS

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
NOTICE = "An edited model states things its makers did not. The answers below were put there, right or wrong."
LONG = 24  # characters from which a cell is kept wide
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1d2733; --soft: #5b6b7f; --line: #d8dee6; --raised: #f5f7fa;
  --after: #b34e07; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --ground: #12171d; --ink: #e6ebf1; --soft: #9fb0c3; --line: #2f3a46;
  --raised: #1a212a; --after: #f08a3c; --bad: #ff8a80 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 880px; padding: 24px 16px 64px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px } h2 { font-size: 1.25rem; margin: 0 0 4px }
h3 { font-size: 1rem; margin: 24px 0 4px } p { margin: 4px 0 12px } .soft { color: var(--soft); font-size: .9rem }
article { border-top: 2px solid var(--line); padding-top: 24px; margin-top: 40px } .sentence { font-size: 1.1rem }
.warning { border-left: 4px solid var(--bad); padding: 4px 12px; background: var(--raised) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 8px; margin: 12px 0 }
.tiles div { border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px }
.tiles strong { display: block; font-size: 1.3rem } .tiles span { color: var(--soft); font-size: .85rem }
.wide { overflow-x: auto } svg { display: block; width: 100%; max-width: 600px; height: auto;
  fill: currentColor }
svg .grid { stroke: var(--line) } svg text { white-space: pre }
table { border-collapse: collapse; font-size: .85rem; width: 100%; overflow-wrap: break-word }
th, td { max-width: 36ch; border-bottom: 1px solid var(--line); padding: 4px 12px 4px 0; text-align: left;
  vertical-align: top }
td.long { min-width: 22ch } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
summary { cursor: pointer; color: var(--after); margin: 12px 0 } a { color: var(--after) }
@media print { details::details-content { content-visibility: visible } article { break-before: page } }
"""


def report_html(title: str, model: ModelInfo | str, edits: Sequence[EditReport]) -> str:
    """The whole report as one file.

    Args:
        title: what people call it.
        model: the model as it was loaded, or only its name.
        edits: in the order they were made.
    """
    body = [
        f"<h1>{_text(title)}</h1>", f'<p class="soft">{_model(model)}</p>', f'<p class="warning">{NOTICE}</p>',
        _contents(edits) if len(edits) > 1 else "",
        *(_article(number, report) for number, report in enumerate(edits, 1)),
        f'<p class="soft">Made with editcore {__version__}. ○ before, ● after; probabilities are per token (geometric'
        " mean over the answer's tokens). ◆ marks wordings the model never saw with the fact.</p>",
    ]  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><meta name="referrer" content="no-referrer">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def report_json(title: str, model: ModelInfo | str, edits: Sequence[EditReport]) -> bytes:
    """The same as JSON: every field of every report; a number that is not finite is null."""
    plain = {"title": title, "model": to_plain(model), "editcore": __version__, "edits": [to_plain(e) for e in edits]}
    return tables.to_json(plain)


def report_csv(edits: Sequence[EditReport]) -> bytes:
    """Every number as a row; a cell a spreadsheet would run as a formula is defused.

    Columns: edit (from 1), method, prompt, target, kind ("scores", "patch", "seconds", or the kind of probe), probe
    (its prompt), answer, figure, before, after. What has no before stands under after.
    """
    rows = [row for number, report in enumerate(edits, 1) for row in _numbers(number, report)]
    names = ["edit", "method", "prompt", "target", "kind", "probe", "answer", "figure", "before", "after"]
    return tables.to_csv(pd.DataFrame(rows, columns=names))


def report_files(title: str, model: ModelInfo | str, edits: Sequence[EditReport]) -> dict[str, bytes]:
    """The three files, by name."""
    return {
        "report.html": report_html(title, model, edits).encode("utf-8", errors="replace"),
        "report.json": report_json(title, model, edits),
        "report.csv": report_csv(edits),
    }


def _text(value: Any) -> str:
    return html.escape(visible(str(value)), quote=True)


def _model(model: ModelInfo | str) -> str:
    if isinstance(model, str):
        return f"Model: {_text(model)}"
    return _text(
        f"Model: {model.name}, {model.architecture}, {model.parameters / 1e6:,.1f} million parameters, {model.dtype} on"
        f" {model.device}, fingerprint {model.fingerprint}"
    )


def _contents(edits: Sequence[EditReport]) -> str:
    frame = pd.DataFrame([
        {"#": f"#{number}", "prompt": r.request.prompt, "answer": r.request.target, "method": r.method,
         "took": "yes" if r.took else "no", **{name: _share(getattr(r.scores, name)) for name in
                                               ("reliability", "generality", "locality", "s")}}
        for number, r in enumerate(edits, 1)
    ])  # fmt: skip
    return f"<h3>{counted(len(edits), 'edit')}</h3>{_table(frame)}"


def _article(number: int, report: EditReport) -> str:
    figure = tables.shifts(report)
    title = "Probability of each answer before and after the edit, for every prompt"
    chart = f'<div class="wide">{svg(charts.dumbbell(figure), title)}</div>' if len(figure) else ""
    notes = "".join(f'<p class="soft">{_text(note)}</p>' for note in (report.advice, *report.warnings) if note)
    return "".join((
        f'<article id="edit-{number}"><h2>{number}. {_text(report.request.prompt)}</h2>',
        f'<p class="sentence">{_text(report.sentence)}</p>', notes, _tiles(report),
        '<h3>How likely each answer is</h3><p class="soft">○ before, ● after</p>',
        chart,
        _details("Table behind this chart", figure.drop(columns="index", errors="ignore")),
        _details("What it writes on its own", tables.continuations(report)),
        _details("Next tokens", _next(report)),
        _details("Every score", tables.score_list(report.scores)),
        _details("How it was done", pd.DataFrame(_how(report), columns=["what", "value"])), "</article>",
    ))  # fmt: skip


def _tiles(report: EditReport) -> str:
    cells = []
    for row in tables.tiles(report.scores, report.probes).to_dict("records"):
        head = percent(row["share"]) if pd.isna(row["right"]) else f"{row['right']} of {row['of']}"
        cells.append(f"<div>{row['name']}<strong>{head}</strong><span>{row['meaning']}</span></div>")
    return f'<div class="tiles">{"".join(cells)}</div>'


def _next(report: EditReport) -> pd.DataFrame:
    """The most likely next tokens behind every prompt, side by side."""
    frames = [tables.next_tokens(result).assign(prompt=result.probe.prompt) for result in tables.ordered(report.probes)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _how(report: EditReport) -> list[tuple[str, str]]:
    patch, seconds = report.patch, report.seconds
    rows = [
        ("method", report.method), ("subject", report.subject or "none"),
        ("the prompt is read as", FORM_WORDS[report.request.form]),
        ("changed", ", ".join(patch.modules) or "no matrix"), ("size", size(patch.bytes)),
        ("rank", "full" if patch.rank is None else str(patch.rank)), ("norm of the change", f"{patch.norm:.4g}"),
        ("share of the norm of the edited weights", percent(patch.relative_norm)),
        ("seconds", f"edit {duration(seconds.edit)}, measuring {duration(seconds.measure)},"
                    f" preparation {duration(seconds.prepare)}"),
        ("peak memory over the model", size(report.peak_memory)),
    ]  # fmt: skip
    settings = tables.effective(report.settings)
    return rows + [(f"setting {row['setting']}", row["value"]) for row in settings.to_dict("records")]


def _details(name: str, frame: pd.DataFrame) -> str:
    return f"<details><summary>{name}</summary>{_table(frame)}</details>" if len(frame) else ""


def _table(frame: pd.DataFrame) -> str:
    cells: Callable[[Mapping[str, Any]], str] = lambda row: "".join(_cell(name, row[name]) for name in frame.columns)  # noqa: E731
    heads = "".join(f"<th>{_text(str(name).replace('_', ' '))}</th>" for name in frame.columns)
    rows = "".join(f"<tr>{cells(row)}</tr>" for row in frame.to_dict("records"))
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str) and name == "#":
        return f'<td><a href="#edit-{value[1:]}">{value}</a></td>'
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        return f'<td class="number">{"n/a" if math.isnan(value) else f"{value:.4g}"}</td>'
    shown = "n/a" if value is None or value is pd.NA else str(value)
    return f"<td{' class=long' if len(shown) > LONG else ''}>{_text(shown)}</td>"


def _share(value: float | None) -> str:
    return "n/a" if value is None or math.isnan(value) else f"{value:.2f}"


def _numbers(number: int, report: EditReport) -> Iterator[tuple[Any, ...]]:
    """The rows of one edit, see `report_csv`."""
    head = (number, report.method, report.request.prompt, report.request.target)
    plain = to_plain(report)
    for kind in ("scores", "patch", "seconds"):
        for name, value in plain[kind].items():
            if value is None or isinstance(value, int | float):
                yield (*head, kind, "", "", name, None, value)
    yield (*head, "scores", "", "", "took", None, report.took)
    yield (*head, "patch", "", "", "peak_memory", None, report.peak_memory)
    for result in tables.ordered(report.probes):
        at = (*head, result.probe.kind, result.probe.prompt)
        for role in ("new", "old"):
            before, after = getattr(result.before, role), getattr(result.after, role)
            yield from ((*at, *row) for row in _answer(before, after, role))
        yield (*at, "", "kl", None, result.kl)
        yield (*at, "", "moved", None, result.moved)
        for side, reading in (("before", result.before), ("after", result.after)):
            for place, (token, share) in enumerate(reading.top, 1):
                pair = (share, None) if side == "before" else (None, share)
                yield (*at, token, f"next token {place} {side}", *pair)


def _answer(before: AnswerScore | None, after: AnswerScore | None, role: str) -> Iterator[tuple[Any, ...]]:
    one, other = to_plain(before) or {}, to_plain(after) or {}
    text = one.get("text") or other.get("text") or ""
    for name in ("mean", "joint", "rank", "exact", "token_accuracy", "tokens"):
        if one or other:
            yield (text, f"{role} answer: {name}", one.get(name), other.get(name))
