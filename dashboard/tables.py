"""Records in, pandas frames out: what the charts draw, what the tables show, what the downloads hold.

Knows the records and pandas; knows neither the page nor the pictures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from dashboard.text import token, visible
from editcore.records import KINDS, EditReport, Probe, ProbeResult, Scores, to_plain

GROUPS = {
    "edit": "The edit itself", "raw": "The same as raw text", "chat": "The same as a chat", "paraphrase": "Paraphrase",
    "near": "Unrelated, near", "far": "Unrelated, far",
}  # fmt: skip
HEADINGS = {
    "edit": "The edit itself – should change",
    "raw": "The same as raw text – should change",
    "chat": "The same as a chat – should change",
    "paraphrase": "Paraphrases – should change",
    "near": "Same about others – should stay",
    "far": "Anything else – should stay",
}
PARAPHRASE_COLUMNS = ("prompt", "held_out", "source")
PROBE_COLUMNS = ("kind", "prompt", "answer", "source")
YOURS = "added by you"
NO_SHIFTS = pd.DataFrame({"kind": [], "before": [], "after": []})  # `shifts` of no prompt, as far as a chart reads it


def paraphrase_rows(probes: Iterable[Probe]) -> pd.DataFrame:
    """The editable table of paraphrases."""
    rows = [(p.prompt, p.held_out, p.source) for p in probes]
    frame = pd.DataFrame(rows, columns=list(PARAPHRASE_COLUMNS))
    return frame.astype({"prompt": "object", "held_out": bool, "source": "object"})


def probe_rows(probes: Iterable[Probe]) -> pd.DataFrame:
    """The editable table of unrelated probes."""
    rows = [(p.kind, p.prompt, p.answer or "", p.source) for p in probes]
    return pd.DataFrame(rows, columns=list(PROBE_COLUMNS)).astype("object")


def _cell(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value).strip()


def paraphrases_from(frame: pd.DataFrame) -> tuple[Probe, ...]:
    """Paraphrases out of the edited table; rows without a prompt are dropped."""
    return tuple(
        Probe("paraphrase", _cell(row["prompt"]), None, row["held_out"] is True or row["held_out"] == 1,
              _cell(row["source"]) or YOURS)
        for row in frame.to_dict("records")
        if _cell(row["prompt"])
    )  # fmt: skip


def probes_from(frame: pd.DataFrame) -> tuple[Probe, ...]:
    """Unrelated probes out of the edited table; rows without a prompt are dropped, an open kind is far."""
    return tuple(
        Probe("near" if _cell(row["kind"]) == "near" else "far", _cell(row["prompt"]), _cell(row["answer"]) or None,
              False, _cell(row["source"]) or YOURS)
        for row in frame.to_dict("records")
        if _cell(row["prompt"])
    )  # fmt: skip


def ordered(results: Iterable[ProbeResult]) -> tuple[ProbeResult, ...]:
    """Edit, paraphrases, near, far; inside a group as they came."""
    return tuple(sorted(results, key=lambda r: KINDS.index(r.probe.kind)))


def shifts(report: EditReport) -> pd.DataFrame:
    """One row per prompt and answer, probabilities before and after.

    Columns: index (of the prompt), kind, prompt, held_out, role ("new" or "old"), answer, before, after (per-token
    geometric means), before_joint, after_joint, rank_before, rank_after, kl, moved.
    """
    rows = []
    for index, result in enumerate(ordered(report.probes)):
        for role in ("new", "old"):
            before, after = getattr(result.before, role), getattr(result.after, role)
            if before is None or after is None:
                continue
            rows.append({
                "index": index, "kind": result.probe.kind, "prompt": result.probe.prompt,
                "held_out": result.probe.held_out, "role": role, "answer": before.text,
                "before": before.mean, "after": after.mean,
                "before_joint": before.joint, "after_joint": after.joint,
                "rank_before": before.rank, "rank_after": after.rank, "kl": result.kl, "moved": result.moved,
            })  # fmt: skip
    return pd.DataFrame(rows)


def tiles(scores: Scores, results: Sequence[ProbeResult]) -> pd.DataFrame:
    """The scores people read first. Columns: name, share, right, of, meaning; share is NaN where nothing was judged."""
    edits, paraphrases, near, far = (
        sum(r.probe.kind == kind for r in results) for kind in ("edit", "paraphrase", "near", "far")
    )
    rows = [
        ("Reliability", scores.reliability, edits, "the edited prompt gives the new answer"),
        ("Generality", scores.generality, paraphrases, "paraphrases that give it too"),
        ("Locality", scores.locality, near + far, "unrelated prompts that did not move"),
        ("Free text", scores.generation, edits + paraphrases, "prompts where free writing starts with it"),
    ]
    return pd.DataFrame([
        {"name": name, "share": math.nan if share is None else share,
         "right": None if share is None or not of or math.isnan(share) else round(share * of),
         "of": of or None, "meaning": meaning}
        for name, share, of, meaning in rows
    ]).astype({"right": "Int64", "of": "Int64"})  # fmt: skip


def score_list(scores: Scores) -> pd.DataFrame:
    """Every score, named as in the literature, for the table behind the tiles."""
    names = {
        "reliability": "edit prompts whose whole new answer is the most likely one",
        "generality": "paraphrases whose whole new answer is the most likely one",
        "locality": "unrelated prompts whose most likely tokens along the old answer did not change",
        "generation": "edit prompt and paraphrases whose free continuation starts with the new answer",
        "es": "CounterFact efficacy: new answer likelier than old on the edit prompt",
        "ps": "CounterFact paraphrase success: the same on paraphrases",
        "ns": "CounterFact neighbourhood success: near prompts where the true answer stays likelier",
        "s": "CounterFact score: harmonic mean of es, ps and ns",
        "reliability_tokens": "token accuracy on the edit prompt",
        "generality_tokens": "token accuracy on paraphrases",
    }
    plain = to_plain(scores)
    return pd.DataFrame([{"score": n, "value": plain[n], "meaning": text} for n, text in names.items()])


def next_tokens(result: ProbeResult) -> pd.DataFrame:
    """The most likely next tokens side by side. Columns: rank, before, p_before, after, p_after, movement."""
    before, after = result.before.top, result.after.top
    places = {text: place for place, (text, _) in enumerate(before, 1)}
    rows = []
    for place in range(1, max(len(before), len(after)) + 1):
        old = before[place - 1] if place <= len(before) else ("", math.nan)
        new = after[place - 1] if place <= len(after) else ("", math.nan)
        rows.append({
            "rank": place, "before": token(old[0]), "p_before": old[1], "after": token(new[0]), "p_after": new[1],
            "movement": _movement(places.get(new[0]), place),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _movement(was: int | None, now: int) -> str:
    if was is None:
        return "▲ new"
    return "=" if was == now else f"▲ {was - now}" if was > now else f"▼ {now - was}"


def continuations(report: EditReport) -> pd.DataFrame:
    """What the model writes on its own after every prompt. Columns: kind, prompt, held_out, before, after, changed."""
    return pd.DataFrame([
        {"kind": r.probe.kind, "prompt": r.probe.prompt, "held_out": r.probe.held_out,
         "before": r.before.text, "after": r.after.text, "changed": r.before.text.split() != r.after.text.split()}
        for r in ordered(report.probes)
    ])  # fmt: skip


def beliefs(rows: Sequence[tuple[str, str, str, float | None]]) -> pd.DataFrame:
    """The browser's rows. Columns: fact (subject and relation), answer, probability (NaN: not read yet)."""
    cells = [(f"{s}: {r}", a, math.nan if p is None else p) for s, r, a, p in rows]
    return pd.DataFrame(cells, columns=["fact", "answer", "probability"])


def effective(settings: Mapping[str, Any]) -> pd.DataFrame:
    """The settings that were in force."""
    return pd.DataFrame([{"setting": k, "value": "chosen for the model" if v is None else str(v)}
                         for k, v in settings.items()])  # fmt: skip


def to_csv(frame: pd.DataFrame) -> bytes:
    """UTF-8 with a byte-order mark; a cell a spreadsheet would run as a formula gets an apostrophe in front."""
    safe = frame.map(lambda v: f"'{v}" if isinstance(v, str) and v.lstrip()[:1] in ("=", "+", "-", "@") else v)
    safe = safe.map(lambda v: visible(v) if isinstance(v, str) else v)
    return safe.to_csv(index=False, na_rep="n/a").encode("utf-8-sig")


def to_json(value: Any) -> bytes:
    """A frame (as rows) or a record as JSON; numbers that are not finite become null."""
    rows = value.astype(object).to_dict("records") if isinstance(value, pd.DataFrame) else to_plain(value)
    text = json.dumps(_finite(rows), ensure_ascii=False, indent=2, default=str)
    return text.encode("utf-8", errors="replace")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value.item() if hasattr(value, "item") else value
