"""Edits that exist already, measured again: with other edits in place, or on arrival from a file. Computes no edit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from editcore import measure
from editcore.edit import read_before, sentence, took_hold
from editcore.errors import BadRequest, Cancelled
from editcore.gate import check_request
from editcore.handle import Handle
from editcore.patch import Patch
from editcore.records import EditReport, EditRequest, Seconds


@torch.no_grad()
def view(handle: Handle, report: EditReport, patches: Sequence[Patch]) -> EditReport:
    """A report with its probes read again: by the base model, and with `patches` in place."""
    probes, target = [result.probe for result in report.probes], report.request.target
    olds = [result.before.old.text if result.before.old else "" for result in report.probes]
    before, after = (measure.read(handle, probes, target, olds, placed) for placed in ((), patches))
    results = measure.compare(probes, before, after)
    took = took_hold(results, target)
    told = sentence(target, results, took, report.seconds.edit or None, report.patch.bytes)
    scores = measure.score(results, target)
    return replace(report, probes=results, scores=scores, took=took, sentence=told, advice="", warnings=())


def measured(
    handle: Handle,
    patch: Patch,
    requests: Sequence[EditRequest],
    standing: Sequence[Patch],
    stop: Callable[[], bool] = lambda: False,
) -> tuple[EditReport, ...]:
    """What a patch does on top of what is standing, one report a request.

    Raises:
        BadRequest: there is no request to measure it with.
        Cancelled: stopped between two requests.
    """
    if not requests:
        raise BadRequest(
            "This patch does not say what it corrects.",
            "A prompt and a corrected answer are needed to measure it.",
            "Type both into the form, and bring it in again.",
        )
    reports = []
    with torch.no_grad(), handle.using(standing):
        for request in requests:
            if stop():
                raise Cancelled("It was stopped on request.", "Nothing was changed.")
            check_request(request)
            reports.append(_report(handle, patch, request))
    return tuple(reports)


def _report(handle: Handle, patch: Patch, request: EditRequest) -> EditReport:
    first, began = read_before(handle, request), time.monotonic()
    after = measure.read(handle, first.probes, request.target, first.olds, [patch])
    results = measure.compare(first.probes, first.readings, after)
    took, info = took_hold(results, request.target), patch.info(handle.model)
    return EditReport(
        model=handle.name, method=patch.method, settings=dict(patch.settings), request=request,
        subject=request.subject, patch=info, seconds=Seconds(0.0, first.seconds + time.monotonic() - began),
        probes=results, scores=measure.score(results, request.target), took=took,
        sentence=sentence(request.target, results, took, None, info.bytes),
    )  # fmt: skip
