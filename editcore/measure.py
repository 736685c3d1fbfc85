"""Reading a model at probes: one function, run twice (without and with the patches).

Before and after can therefore not differ in protocol.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from editcore import spans
from editcore.errors import BadRequest
from editcore.handle import Handle
from editcore.patch import Patch
from editcore.records import AnswerScore, EditRequest, Form, Probe, ProbeResult, Reading, Scores
from editcore.words import FORM_WORDS

TOP = 10  # next tokens kept
CONTINUATION = 12  # tokens generated
ANSWER_END = (".", "\n", ";")
SAME_FACT = ("raw", "chat", "paraphrase")  # probes whose old answer is that of the edit


@dataclass(frozen=True)
class _Raw:
    """A reading with what comparison needs and a report does not."""

    reading: Reading
    next: Tensor  # log-probabilities of the next token [vocabulary], fp32, CPU
    likeliest: tuple[int, ...]  # most likely tokens along the old answer


def read(
    handle: Handle,
    probes: Sequence[Probe],
    target: str,
    olds: Sequence[str],
    patches: Sequence[Patch],
    *,
    generate: bool = True,
) -> list[_Raw]:
    """Every probe once, under `patches`: both answers teacher-forced, the next token, a greedy continuation.

    Args:
        olds: per probe, the answer to be compared with (may be empty: then only the new one is scored).
    """
    with handle.using(patches):
        prompts = [handle.row(p.prompt, form=p.form or "raw") for p in probes]
        asked = [(p, a) for p, o in zip(probes, olds, strict=True) for a in (target, o) if a]
        rows = [handle.row(p.prompt, a, form=p.form or "raw") for p, a in asked]
        logits = handle.logits([*prompts, *rows])
        # Enough to say the new answer: a long one is judged whole.
        length = max([CONTINUATION, *(len(row.answer) for row, (_, a) in zip(rows, asked, strict=True) if a == target)])
        texts = handle.generate([p.ids for p in prompts], length) if generate else [""] * len(probes)
    nexts = torch.log_softmax(torch.cat(logits[: len(probes)]), -1).cpu()
    scored = iter(_scored(rows, logits[len(probes) :]))
    results = []
    for i, old in enumerate(olds):
        new_score = replace(next(scored)[0], text=target) if target else None
        old_score, likeliest = next(scored) if old else (None, ())
        old_score = old_score and replace(old_score, text=old)
        results.append(_Raw(Reading(new_score, old_score, _top(handle, nexts[i]), texts[i]), nexts[i], likeliest))
    return results


def _scored(rows: Sequence[spans.Row], logits: Sequence[Tensor]) -> list[tuple[AnswerScore, tuple[int, ...]]]:
    """Each row's answer scored, and the most likely tokens along it; the device is waited for once, for all rows."""
    if not rows:
        return []
    every = torch.cat(list(logits))
    ids = torch.tensor([i for row in rows for i in row.answer], device=every.device)[:, None]
    log_p, picked = torch.log_softmax(every, -1).gather(1, ids), every.gather(1, ids)
    ranks = (every > picked).sum(-1) + 1
    table = torch.stack([log_p[:, 0].double(), every.argmax(-1).double(), ranks.double()], 1).cpu()
    parts = torch.split(table, [len(row.answer) for row in rows])
    return [_score(row, *part.T.tolist()) for row, part in zip(rows, parts, strict=True)]


def _score(
    row: spans.Row, log_p: Sequence[float], likeliest: Sequence[float], ranks: Sequence[float]
) -> tuple[AnswerScore, tuple[int, ...]]:
    """One row's score, by each answer token's log-probability, the most likely id in its place, and its own rank."""
    best = tuple(map(int, likeliest))
    hits = [one == wanted for one, wanted in zip(best, row.answer, strict=True)]
    score = AnswerScore(
        text="",
        tokens=len(row.answer),
        joint=math.exp(math.fsum(log_p)),
        mean=math.exp(math.fsum(log_p) / len(log_p)),
        rank=int(ranks[0]),
        exact=all(hits),
        token_accuracy=sum(hits) / len(hits),
    )
    return score, best


def mean_probabilities(rows: Sequence[spans.Row], logits: Sequence[Tensor]) -> list[float]:
    """Per-token geometric mean probability of each row's answer."""
    return [score.mean for score, _ in _scored(rows, logits)]


def answer(handle: Handle, prompts: Sequence[str], patches: Sequence[Patch] = (), form: Form = "raw") -> list[Reading]:
    """What the model says to each prompt: next tokens and a greedy continuation, no answer scored."""
    probes = [Probe("far", p, form=form) for p in prompts]
    return [raw.reading for raw in read(handle, probes, "", [""] * len(probes), patches)]


def _top(handle: Handle, log_probabilities: Tensor) -> tuple[tuple[str, float], ...]:
    values, ids = log_probabilities.topk(min(TOP, len(log_probabilities)))
    return tuple((handle.tokenizer.decode([i]), v) for i, v in zip(ids.tolist(), values.exp().tolist(), strict=True))


def own_answers(
    handle: Handle, prompts: Sequence[str], patches: Sequence[Patch] = (), forms: Sequence[Form] = ()
) -> list[str]:
    """What the model itself answers to each prompt: its greedy continuation up to the end of the sentence.

    Args:
        forms: one a prompt; none: all raw.
    """
    every: Sequence[Form] = forms or ["raw"] * len(prompts)
    with handle.using(patches):
        rows = [handle.row(prompt, form=form) for prompt, form in zip(prompts, every, strict=True)]
        texts = handle.generate([row.ids for row in rows], CONTINUATION)
    return [cut_answer(text) for text in texts]


def cut_answer(text: str) -> str:
    """The first sentence of a continuation, without its full stop; initials ("D.C.") do not end it."""
    text = text.strip().split("\n")[0].strip()
    for i, letter in enumerate(text):
        if letter in ANSWER_END and i and (i + 1 == len(text) or text[i + 1] == " ") and not _initial(text, i):
            return text[:i].strip()
    return text


def _initial(text: str, at: int) -> bool:
    """True for the stop behind a single capital letter, as in "Samuel L. Jackson" or "D.C."."""
    return text[at] == "." and text[at - 1].isupper() and (at < 2 or not text[at - 2].isalpha())


def says(text: str, answer: str) -> bool:
    """True when a continuation starts with the answer, as a whole."""
    text, answer = (unicodedata.normalize("NFC", t).strip() for t in (text, answer))
    return text.startswith(answer) and not text[len(answer) : len(answer) + 1].isalnum()


def all_probes(request: EditRequest, more: Sequence[Probe] = ()) -> tuple[Probe, ...]:
    """The edit prompt itself, `more`, its paraphrases, then near and far probes; repeated ones once, each in its form.

    The same prompt in another form is another probe.
    """
    first = Probe("edit", request.prompt, request.old, source="the edit")
    seen: dict[tuple[str, Form], Probe] = {}
    for probe in (first, *more, *request.paraphrases, *request.probes):
        form = probe.form or request.form
        seen.setdefault((" ".join(probe.prompt.split()), form), replace(probe, form=form))
    return tuple(seen.values())


def other_form(handle: Handle, request: EditRequest) -> tuple[Probe, ...]:
    """The edit prompt in the form it is not edited in; nothing where the model cannot read it so."""
    form: Form = "chat" if request.form == "raw" else "raw"
    if form == "chat" and not handle.chats:
        return ()
    try:
        for answer in filter(None, (request.target, request.old)):
            handle.check_length(len(handle.row(request.prompt, answer, form=form).ids))
    except BadRequest:
        return ()
    return (Probe(form, request.prompt, source=f"the edit's prompt as {FORM_WORDS[form]}", form=form),)


def settle(handle: Handle, request: EditRequest, patches: Sequence[Patch] = ()) -> tuple[tuple[Probe, ...], list[str]]:
    """Probes with the answer each is compared with: the given one, else the unedited model's own."""
    probes = all_probes(request, other_form(handle, request))
    missing = [p for p in probes if p.kind not in SAME_FACT and not p.answer]
    forms = [p.form or "raw" for p in missing]
    own = iter(own_answers(handle, [p.prompt for p in missing], patches, forms) if missing else ())
    settled = [p if p.kind in SAME_FACT or p.answer else replace(p, answer=next(own)) for p in probes]
    old = settled[0].answer or ""
    olds = [old if p.kind in SAME_FACT else p.answer or "" for p in settled]
    return tuple(settled), [
        o if g.answer and g.kind not in SAME_FACT else fitting(handle, g.prompt, o, g.form or "raw")
        for g, o in zip(probes, olds, strict=True)
    ]


def fitting(handle: Handle, prompt: str, answer: str, form: Form = "raw") -> str:
    """`answer`, or "" when it does not fit into the model's context behind the prompt.

    For answers nobody typed: a continuation cut off at the limit may need more tokens when it is read as text.
    """
    if not answer:
        return ""
    return answer if len(handle.plain_row(prompt, answer, form=form).ids) <= handle.context else ""


def compare(probes: Sequence[Probe], before: Sequence[Any], after: Sequence[Any]) -> tuple[ProbeResult, ...]:
    """Two passes over the same probes, side by side."""
    return tuple(
        ProbeResult(
            probe=p,
            before=b.reading,
            after=a.reading,
            kl=max(0.0, float((b.next.double().exp() * (b.next.double() - a.next.double())).sum())),
            moved=b.likeliest != a.likeliest,
        )
        for p, b, a in zip(probes, before, after, strict=True)
    )


def score(results: Sequence[ProbeResult], target: str) -> Scores:
    """What the edit is judged by (see `Scores`)."""
    by = {kind: [r for r in results if r.probe.kind == kind] for kind in ("edit", "paraphrase", "near", "far")}

    def wins(group: list[ProbeResult], keeps_old: bool) -> float | None:
        return _mean(
            [
                float((r.after.old.mean > r.after.new.mean) if keeps_old else (r.after.new.mean > r.after.old.mean))
                for r in group
                if r.after.new and r.after.old
            ]
        )

    es, ps, ns = wins(by["edit"], False), wins(by["paraphrase"], False), wins(by["near"], True)
    return Scores(
        reliability=_mean([float(r.after.new.exact) for r in by["edit"] if r.after.new]),
        generality=_mean([float(r.after.new.exact) for r in by["paraphrase"] if r.after.new]),
        locality=_mean([float(not r.moved) for r in by["near"] + by["far"]]),
        es=es,
        ps=ps,
        ns=ns,
        s=harmonic(es, ps, ns),
        generation=_mean([float(says(r.after.text, target)) for r in by["edit"] + by["paraphrase"]]),
        reliability_tokens=_mean([r.after.new.token_accuracy for r in by["edit"] if r.after.new]),
        generality_tokens=_mean([r.after.new.token_accuracy for r in by["paraphrase"] if r.after.new]),
    )


def harmonic(*values: float | None) -> float | None:
    """Harmonic mean; 0 when one of them is, None when one is missing."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return None
    return 0.0 if min(known) <= 0 else len(known) / sum(1 / v for v in known)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
