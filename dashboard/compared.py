"""Outcomes of a comparison in, pandas frames out: the standings, what every probe did, and who did best.

Knows the records and pandas; knows neither the page nor the pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dashboard.tables import ordered
from editcore.intervals import wilson
from editcore.records import EditReport, Outcome, ProbeResult

LANES = {
    "edit": "Edit", "raw": "Raw text", "chat": "As a chat", "paraphrase": "Paraphrases", "near": "Unrelated",
    "far": "Unrelated",
}  # fmt: skip
SCORES = {
    "reliability": ("edit",),
    "generality": ("paraphrase",),
    "locality": ("near", "far"),
    "generation": ("edit", "paraphrase"),
}
_COSTS = {"seconds": math.nan, "bytes": None, "change": math.nan, "memory": None, "modules": None}
COLUMNS = ("method", "state", *SCORES, *_COSTS, "sentence")


def judged(report: EditReport, score: str) -> int:
    """How many probes a score was counted over; 0 where there is none."""
    if getattr(report.scores, score) is None:
        return 0
    return sum(r.probe.kind in SCORES[score] for r in report.probes)


def totals(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Per score, how many probes it is counted over: the same for every method, as all read the same probes."""
    reports = [o.report for o in outcomes if o.report]
    return {score: max((judged(r, score) for r in reports), default=0) for score in SCORES}


def standings(outcomes: Sequence[Outcome], titles: Mapping[str, str], waiting: Sequence[str] = ()) -> pd.DataFrame:
    """One row a method. Columns: method, state ("took", "did not take", "failed", "running", "waiting"), then how many
    probes are right: reliability, generality, locality, generation; seconds, bytes, change, memory, modules, sentence.

    Args:
        titles: method name -> what people call it.
        waiting: names of methods that have not finished, the running one first.
    """
    rows = [_row(o, titles.get(o.method, o.method)) for o in outcomes]
    for place, name in enumerate(waiting):
        rows.append({"method": titles.get(name, name), "state": "running" if place == 0 else "waiting"})
    frame = pd.DataFrame([{**dict.fromkeys(SCORES), **_COSTS, "sentence": None, **row} for row in rows])
    frame = frame.reindex(columns=list(COLUMNS))
    return frame.astype({**dict.fromkeys(SCORES, "Int64"), "bytes": "Int64", "memory": "Int64"})


def _row(outcome: Outcome, title: str) -> dict[str, Any]:
    report = outcome.report
    if report is None:
        return {"method": title, "state": "failed", "sentence": outcome.error}
    right = {}
    for score in SCORES:
        share, of = getattr(report.scores, score), judged(report, score)
        right[score] = round(share * of) if of and share is not None and not math.isnan(share) else None
    return {
        "method": title, "state": "took" if report.took else "did not take", **right, "sentence": report.sentence,
        "seconds": report.seconds.edit, "bytes": report.patch.bytes, "change": report.patch.relative_norm,
        "memory": report.peak_memory, "modules": modules(report.patch.modules) or None,
    }  # fmt: skip


def modules(paths: Sequence[str]) -> str:
    """Module paths that differ in one number as one: "h.3.mlp", "h.4.mlp" -> "h.{3,4}.mlp"."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        found = re.search(r"(?<=\.)\d+(?=\.)", path)
        head, number, tail = (path[: found.start()], found[0], path[found.end() :]) if found else (path, "", "")
        groups.setdefault((head, tail), []).append(number)
    braced = {key: n[0] if len(n) == 1 else f"{{{','.join(n)}}}" for key, n in groups.items()}
    return "; ".join(f"{head}{numbers}{tail}" for (head, tail), numbers in braced.items())


def points(outcomes: Sequence[Outcome], titles: Mapping[str, str]) -> pd.DataFrame:
    """Generality and locality of every method that ran, with Wilson's 95 % interval over its probes.

    Columns: method, took, reliability, generality, generality_low, generality_high, generality_of, the same for
    locality. A method without a score is left out.
    """
    rows = []
    for outcome in outcomes:
        report = outcome.report
        if report is None:
            continue
        row: dict[str, Any] = {"method": titles.get(outcome.method, outcome.method), "took": report.took}
        row["reliability"] = report.scores.reliability
        for score in ("generality", "locality"):
            share, of = getattr(report.scores, score), judged(report, score)
            low, high = wilson(share * of, of) if of and not math.isnan(share) else (math.nan, math.nan)
            row |= {score: math.nan if share is None else share, f"{score}_low": low, f"{score}_high": high,
                    f"{score}_of": of}  # fmt: skip
        if not math.isnan(row["generality"]) and not math.isnan(row["locality"]):
            rows.append(row)
    names = [f"{score}{part}" for score in ("generality", "locality") for part in ("", "_low", "_high", "_of")]
    return pd.DataFrame(rows, columns=["method", "took", "reliability", *names])


def lanes(outcomes: Sequence[Outcome], titles: Mapping[str, str]) -> pd.DataFrame:
    """Every probe under every method: how likely the answer is that should stand there, before and after.

    That is the corrected answer for the edit and its paraphrases, and the answer it had for an unrelated prompt.
    Columns: method, lane, prompt, answer, before, after, moved.
    """
    rows = []
    for outcome in outcomes:
        for result in ordered(outcome.report.probes) if outcome.report else ():
            before, after = _right(result)
            if before is not None and after is not None:
                rows.append({
                    "method": titles.get(outcome.method, outcome.method), "lane": LANES[result.probe.kind],
                    "prompt": result.probe.prompt, "answer": before.text, "before": before.mean, "after": after.mean,
                    "moved": result.moved,
                })  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "lane", "prompt", "answer", "before", "after", "moved"])


def _right(result: ProbeResult) -> tuple[Any, Any]:
    role = "new" if result.probe.kind not in ("near", "far") else "old"
    return getattr(result.before, role), getattr(result.after, role)


def overall(report: EditReport) -> float:
    """Harmonic mean of the scores there are; 0 for an edit that did not take."""
    found = [getattr(report.scores, score) for score in ("reliability", "generality", "locality")]
    known = [v for v in found if v is not None and not math.isnan(v)]
    if not report.took or not known or min(known) <= 0:
        return 0.0
    return len(known) / sum(1 / v for v in known)


def best(outcomes: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """Those nobody beats, in order; empty when no edit took."""
    ran = [(overall(o.report), o) for o in outcomes if o.report]
    top = max((score for score, _ in ran), default=0.0)
    return tuple(o for score, o in ran if score >= top - 1e-9) if top > 0 else ()


def disturbance(report: EditReport) -> float:
    """Mean absolute change of the probability of the answers that should stay; NaN where none is probed."""
    moves = [
        abs(after.mean - before.mean)
        for result in report.probes
        if LANES[result.probe.kind] == "Unrelated"
        for before, after in [_right(result)]
        if before is not None and after is not None
    ]
    return sum(moves) / len(moves) if moves else math.nan
