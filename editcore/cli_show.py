"""Reports and tables as the command line prints them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from editcore.records import EditReport, Scores, to_plain
from editcore.terminal import out, show_json


def show_edits(reports: Sequence[EditReport], scores: Scores, save: Path | None, as_json: bool) -> None:
    """Edits made together: one line each, then the averages."""
    first = reports[0]
    if as_json:
        return show_json({
            "model": first.model, "method": first.method, "settings": to_plain(first)["settings"],
            "patch": {**to_plain(first.patch), "path": str(save or "")}, "seconds": to_plain(first.seconds),
            "scores": to_plain(scores), "edits": [report_json(r) for r in reports],
        })  # fmt: skip
    for report in reports:
        out.print(f"{report.request.prompt} {report.sentence}", markup=False, highlight=False)
    out.print(_score_line(scores), markup=False, highlight=False, style="bold")


def report_json(report: EditReport) -> dict[str, Any]:
    """A report in the documented JSON form."""
    plain = to_plain(report)
    return {
        "model": report.model,
        "method": report.method,
        "settings": plain["settings"],
        "request": plain["request"],
        "subject": report.subject,
        "patch": plain["patch"],
        "seconds": plain["seconds"],
        "probes": [
            {
                "kind": r.probe.kind,
                "prompt": r.probe.prompt,
                "form": r.probe.form or "raw",
                "held_out": r.probe.held_out,
                "new": {"before": to_plain(r.before.new), "after": to_plain(r.after.new)},
                "old": {"before": to_plain(r.before.old), "after": to_plain(r.after.old)},
                "top_before": r.before.top,
                "top_after": r.after.top,
                "text_before": r.before.text,
                "text_after": r.after.text,
                "kl": r.kl,
                "moved": r.moved,
            }
            for r in report.probes
        ],
        "scores": plain["scores"],
        "took": report.took,
        "sentence": report.sentence,
        "advice": report.advice,
        "warnings": report.warnings,
    }


def show_report(report: EditReport) -> None:
    """The report as a person reads it."""
    from editcore.edit import percent

    out.print(report.sentence, markup=False, highlight=False, style="bold")
    for line in (report.advice, *report.warnings):
        if line:
            out.print(line, markup=False, highlight=False, style="yellow")
    table = Table(box=None)
    for heading in ("", "prompt", "new answer", "old answer", "continues"):
        table.add_column(heading, overflow="fold")
    for r in report.probes:
        new = f"{percent(r.before.new.mean)} → {percent(r.after.new.mean)}" if r.before.new and r.after.new else ""
        old = f"{percent(r.before.old.mean)} → {percent(r.after.old.mean)}" if r.before.old and r.after.old else ""
        cells = (r.probe.kind, r.probe.prompt, new, old, r.after.text.strip())
        table.add_row(*(_literal(cell) for cell in cells))
    out.print(table)
    out.print(_score_line(report.scores), markup=False, highlight=False)


def _literal(text: str) -> str:
    return text.replace("[", "\\[")


def _score_line(scores: Scores) -> str:
    names = ("reliability", "generality", "locality", "s", "generation")
    values = [(n, getattr(scores, n)) for n in names]
    return "   ".join(f"{n.upper() if n == 's' else n} {'n/a' if v is None else f'{v:.2f}'}" for n, v in values)


def show_finding(found: Any, path: Path, known: str, as_json: bool) -> None:
    """Where to edit a model: the effect by layer, and what the methods get.

    Args:
        found: a `locate.Finding`.
        path: where it was stored.
        known: whose settings this model has anyway; "": nobody's.
    """
    if as_json:
        return show_json({**to_plain(found), "source": found.source, "known": known, "path": str(path)})
    most = max(*found.effects, 1e-9)
    table = Table(box=None)
    for heading in ("layer", "effect", "±", ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for layer, (effect, error) in enumerate(zip(found.effects, found.errors, strict=True)):
        table.add_row(str(layer), f"{effect:.3f}", f"{error:.3f}", "█" * round(24 * max(0.0, effect) / most))
    out.print(table)
    lines = [
        f"{found.asked} prompts, {found.sure} the model is sure of, {found.facts} traced: their answers fall from "
        f"{found.clean:.2f} to {found.blurred:.2f} with the subject blurred. {found.why}",
        *(
            f"{method}: {', '.join(f'{name} {value}' for name, value in values.items())}"
            for method, values in found.methods.items()
        ),
        "" if found.methods else "Methods that write at the subject keep their rule of thumb, a third of the way up.",
        f"Settings of this model are known ({known}); where they name a block, it is used instead." if known else "",
        f"Kept in {path}.",
    ]
    for line in filter(None, lines):
        out.print(line, markup=False, highlight=False)


def show_bench(rows: Sequence[Any]) -> None:
    """One line a method."""
    table = Table(box=None)
    names = ("reliability", "generality", "locality", "es", "ps", "ns", "s", "generation")
    for heading in ("method", "edits", *names, "seconds", "failed"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        values = [getattr(row.scores, n) for n in names]
        cells = [f"{v:.3f}" if v is not None else "n/a" for v in values]
        table.add_row(row.method, str(row.edits), *cells, f"{row.seconds:.2f}", str(len(row.failures)))
        if row.intervals:
            sure = ["–".join(f"{end:.2f}" for end in row.intervals.get(n, ())) for n in names]
            table.add_row("", "95 %", *sure, "", "", style="dim")
    out.print(table)
    for row in rows:
        for number, why in row.failures[:3]:
            out.print(f"{row.method}, case {number}: {why}", markup=False, highlight=False, style="yellow")
