"""Reading edits again in the form they are taken away in: the same probes and answers, before and after, and logits.

"Before" is always the bare base model, "after" the whole stack: an edit made on top of others is read here as part of
the stack, so its scores can differ from the report of the day it was made.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from editcore import measure
from editcore.edit import sentence, took_hold
from editcore.errors import PatchError
from editcore.export.stack import Kept
from editcore.export.told import typed
from editcore.handle import Handle
from editcore.patch import Patch
from editcore.records import EditReport, EditRequest, Form, Probe, Scores, Seconds

GENERAL = ("The capital of France is", "Once upon a time", "2 + 2 =")  # read where an edit says no prompt of its own
CHUNK = 64  # prompts whose logits are held at once


@dataclass(frozen=True)
class Asked:
    """One request, and how it was read on the bare model."""

    report: EditReport  # what is known about it
    probes: tuple[Probe, ...]
    olds: tuple[str, ...]  # per probe, the answer to be compared with
    generate: bool
    before: Sequence[Any]  # of `measure.read`


def ask(handle: Handle, edits: Sequence[Kept]) -> tuple[tuple[Asked, ...], ...]:
    """For every edit its requests, read on the bare model; from the reports, else from what the patch says was asked.

    Raises:
        PatchError: the patch holds something that is no request.
    """
    return tuple(
        tuple(_of_report(handle, report) for report in reports) or tuple(_of_patch(handle, patch))
        for patch, reports in edits
    )


def answer(
    handle: Handle, asked: Sequence[Sequence[Asked]], patches: Sequence[Patch]
) -> tuple[tuple[EditReport, ...], ...]:
    """The reports of every edit, as the model behind `handle` answers now with `patches` in place."""
    return tuple(tuple(_reread(handle, one, patches) for one in edit) for edit in asked)


def with_reports(handle: Handle, edits: Sequence[Kept]) -> tuple[EditReport, ...]:
    """A report for every request: the stored one as it is; where none was kept, read now with the stack up to there."""
    told: list[EditReport] = []
    for at, (patch, reports) in enumerate(edits):
        known = reports
        if not known:
            standing = [other for other, _ in edits[: at + 1]]
            (known,) = answer(handle, ask(handle, [(patch, ())]), standing)
        told += known
    return tuple(told)


def prompts(asked: Sequence[Sequence[Asked]]) -> list[tuple[str, Form]]:
    """Every prompt that is read, in the form it is read in, once; some general ones where there is none."""
    own = ((probe.prompt, probe.form or "raw") for edit in asked for one in edit for probe in one.probes)
    return list(dict.fromkeys(own)) or [(text, "raw") for text in GENERAL]


def twin(handle: Handle) -> Any:
    """A model of its own over the same numbers: replacing a module or a weight of it leaves the shared model alone."""
    model = handle.model
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    shared |= {id(b): b.detach() for b in model.buffers()}
    return copy.deepcopy(model, shared)


def over(handle: Handle, model: Any) -> Handle:
    """A handle over another form of the same model; its structure is not looked at again."""
    return replace(handle, model=model, memory={}, standing=())


@dataclass(frozen=True)
class Gap:
    """How far two models are apart in the logits behind every prompt, and how large those are."""

    difference: float  # largest, between the two
    effect: float  # largest, between the first and the bare model
    size: float  # largest logit


def gap(handle: Handle, patches: Sequence[Patch], other: Handle, texts: Sequence[tuple[str, Form]]) -> Gap:
    """Compares `handle` with `patches` in place to `other` as it is, at the next token behind each text."""
    difference = effect = size = 0.0
    for start in range(0, len(texts), CHUNK):
        rows = [handle.row(text, form=form) for text, form in texts[start : start + CHUNK]]
        with handle.using([]):
            plain = handle.logits(rows)
        with handle.using(patches):
            wanted = handle.logits(rows)
        found = other.logits(rows)
        difference = max(difference, _apart(wanted, found))
        effect = max(effect, _apart(wanted, plain))
        size = max(size, *(float(row.abs().max()) for row in wanted))
    return Gap(difference, effect, size)


def _apart(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b.to(a.device)).abs().max()) for a, b in zip(one, other, strict=True))


def _of_report(handle: Handle, report: EditReport) -> Asked:
    probes = tuple(result.probe for result in report.probes)
    olds = tuple(result.before.old.text if result.before.old else "" for result in report.probes)
    return _asked(handle, report, probes, olds, report.scores.generation is not None)


def _of_patch(handle: Handle, patch: Patch) -> list[Asked]:
    try:
        requests = [typed(EditRequest, entry, "request") for entry in patch.requests]
    except ValueError as error:
        raise PatchError(f"The patch holds a request that cannot be read ({error}).", "", "Save it again.") from error
    found = []
    for request in requests:
        probes, olds = measure.settle(handle, request)
        blank = EditReport(
            patch.model, patch.method, patch.settings, request, request.subject, patch.info(handle.model),
            Seconds(0.0, 0.0), (), Scores(), False, "",
        )  # fmt: skip
        found.append(_asked(handle, blank, probes, tuple(olds), True))
    return found


def _asked(
    handle: Handle, report: EditReport, probes: tuple[Probe, ...], olds: tuple[str, ...], generate: bool
) -> Asked:
    before = measure.read(handle, probes, report.request.target, olds, (), generate=generate)
    return Asked(report, probes, olds, generate, before)


def _reread(handle: Handle, asked: Asked, patches: Sequence[Patch]) -> EditReport:
    report, target = asked.report, asked.report.request.target
    after = measure.read(handle, asked.probes, target, asked.olds, patches, generate=asked.generate)
    results = measure.compare(asked.probes, asked.before, after)
    scores = measure.score(results, target)
    took = took_hold(results, target, asked.generate)
    return replace(
        report,
        probes=results,
        scores=scores if asked.generate else replace(scores, generation=None),
        took=took,
        sentence=sentence(target, results, took, report.seconds.edit, report.patch.bytes),
        advice="",
    )
