"""Gradient descent at one matrix, for the fine-tuning family: plain functions the methods share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editcore import algebra, corpus
from editcore.anatomy import Site
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.method import Cost, Pass, Work
from editcore.passes import passes, trials
from editcore.patch import Dense
from editcore.records import EditRequest, Progress
from editcore.resume import reads_of
from editcore.spans import Row
from editcore.steps import First, Steps, adam

STATE = 6  # times the matrix: its start, the value, a gradient, two moments, the change
MOVED = 16  # times the matrix: what a pass, its gradient and Adam's step read and write of it


@dataclass(frozen=True)
class Dials:
    """How to descend."""

    rate: float  # Adam's learning rate
    steps: int  # most forward passes; the last one is not followed by an update
    enough: float  # stop once the loss on the edit (nats) is below this
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Replay:
    """What should stay as it was while descending."""

    rows: Sequence[Row]  # read from the end of each prompt on
    weight: float  # of its KL term


def descend(
    work: Work,
    site: Site,
    requests: Sequence[EditRequest],
    values: Sequence[Tensor],
    change: Callable[[Tensor, Tensor], Tensor],
    dials: Dials,
    project: Callable[[], None] = lambda: None,
    replay: Replay | None = None,
) -> None:
    """Adam on `values`, in place, until every answer is likely.

        L = mean over requests of -(1/|y|) sum_t log p(y_t | x, y_<t)
            + weight * mean over replayed tokens of KL(p_0 || p)

    Args:
        values: leaf tensors that `change` depends on.
        change: (input x, output y) of the site -> its output as edited; as given, `values` must change nothing.
        project: called after each update.

    Raises:
        Diverged: the loss is not finite.
        Cancelled: stopped between two steps.
    """
    handle, beside = work.handle, replay.rows if replay else ()
    rows = [handle.row_of(r) for r in requests]
    reads = (*(reads_of(r) for r in rows), *(tuple(range(r.start - 1, len(r.ids))) for r in beside))
    answers, asked = sum(len(r.answer) for r in rows), algebra.Answers(rows, handle.device)
    with handle.using([]):
        upper = passes(handle, site, (*rows, *beside), reads)
        before = First(handle, sum(map(len, reads[len(rows) :])))

        def look() -> tuple[Tensor, Tensor]:
            out = upper.run(change)
            loss = asked.losses(out[:answers]).mean()
            if not replay:
                return loss, loss
            kept = out[answers:]
            apart = torch.nn.functional.kl_div(kept, before.of(kept), log_target=True, reduction="batchmean")
            return loss, loss + replay.weight * apart

        optimiser = adam(handle, values, dials.rate, weight_decay=dials.weight_decay)
        descent = Steps(handle, look, optimiser, project, upper.way)
        for step in range(dials.steps):
            reached = float(descent.look())
            work.report(Progress("edit", step + 1, dials.steps, reached, "descending"))
            work.check()
            if not math.isfinite(reached):
                raise Diverged(
                    f"Fine-tuning diverged at step {step + 1}.", "Nothing was kept.", "Lower the learning rate."
                )
            if reached < dials.enough or step == dials.steps - 1:
                break
            descent.move()


def tune_matrix(
    work: Work,
    site: Site,
    requests: Sequence[EditRequest],
    dials: Dials,
    project: Callable[[Tensor, Tensor], None] = lambda value, start: None,
    replay: Replay | None = None,
) -> Dense:
    """`descend` on weight and bias of `site`.

    Args:
        project: called after each update with (value, start) of each tensor, to change `value` in place.
    """
    weight, bias = site.weight().float().contiguous(), site.bias()
    start = [weight] if bias is None else [weight, bias.float()]
    values = [t.clone().requires_grad_(True) for t in start]

    def change(x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.linear(x.float(), values[0], values[1] if len(values) > 1 else None).to(y.dtype)

    def project_all() -> None:
        for value, origin in zip(values, start, strict=True):
            project(value, origin)

    descend(work, site, requests, values, change, dials, project_all, replay)
    changes = [v.detach() - s for v, s in zip(values, start, strict=True)]
    return Dense(site.path, changes[0], changes[1] if len(changes) > 1 else None)


def default_layer(handle: Handle) -> int:
    """The block fine-tuning edits unless told otherwise: two thirds of the way up those that say the answer."""
    said_by = handle.anatomy.said_by
    return said_by.start + 2 * len(said_by) // 3


def counted(
    handle: Handle, site: Site, request: EditRequest, steps: int, rows: int = 0, length: int = 0
) -> tuple[Pass, ...]:
    """What `descend` reads for one request.

    Args:
        rows, length: replayed texts, and their tokens.
    """
    row = handle.row_of(request)
    tokens, first = max(len(row.ids), length), site.layer + handle.anatomy.additive[site.layer]
    every = Pass(1 + rows, tokens, first, None, len(row.answer) + rows * length, steps, backward=True, played=True)
    return Pass(1 + rows, tokens, 0, site.layer), every


def cost(handle: Handle, site: Site, request: EditRequest, steps: int, rows: int = 0, length: int = 0) -> Cost:
    """One dense part; descent holds the value, its start, its gradient and Adam's two moments; see `counted`."""
    size = 4 * (site.d_in + (site.bias() is not None)) * site.d_out
    found = counted(handle, site, request, steps, rows, length)
    once, text = trials(handle, found[-1]), corpus.missing(handle, rows * length)
    return Cost(size, state=STATE * size, passes=found, moved=steps * MOVED * size, once=once, text=text)
