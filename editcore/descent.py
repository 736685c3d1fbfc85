"""Gradient descent on one matrix, for the fine-tuning family: a plain function the methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from editcore import algebra, spans
from editcore.anatomy import Site
from editcore.errors import Diverged
from editcore.methods.base import Work
from editcore.patch import Dense
from editcore.records import EditRequest, Progress
from editcore.resume import Upper, reads_of


def descend(
    work: Work,
    site: Site,
    requests: Sequence[EditRequest],
    *,
    rate: float,
    steps: int,
    enough: float,
    weight_decay: float,
    project: Callable[[Tensor, Tensor], None] = lambda value, start: None,
) -> Dense:
    """Adam on weight and bias of `site` until every answer is likely.

        W <- project(W - Adam(grad L)),   L = mean over requests of -(1/|y|) sum_t log p(y_t | x, y_<t)

    Args:
        rate: Adam's learning rate.
        steps: most forward passes; the last one is not followed by an update.
        enough: stop once the loss (nats) is below this.
        project: called after each update with (value, start) of each tensor, to change `value` in place.

    Raises:
        Diverged: the loss is not finite.
        Cancelled: stopped between two steps.
    """
    handle = work.handle
    rows = [spans.encode(handle.tokenizer, r.prompt, r.target) for r in requests]
    with handle.using([]):
        upper = Upper(handle, site, tuple(r.ids for r in rows), (0,) * len(rows), tuple(reads_of(r) for r in rows))
        weight0, bias0 = site.weight().float().contiguous(), site.bias()
        start = [weight0] if bias0 is None else [weight0, bias0.float()]
        value = [t.clone().requires_grad_(True) for t in start]
        optimiser = torch.optim.Adam(value, lr=rate, weight_decay=weight_decay)

        def change(x: Tensor, y: Tensor) -> Tensor:
            return torch.nn.functional.linear(x.float(), value[0], value[1] if len(value) > 1 else None).to(y.dtype)

        for step in range(steps):
            loss = algebra.target_loss(upper.run(change), rows).mean()
            reached = float(loss.detach())
            work.report(Progress("edit", step + 1, steps, reached, "descending"))
            work.check()
            if not torch.isfinite(loss):
                raise Diverged(
                    f"Fine-tuning diverged at step {step + 1}.", "Nothing was kept.", "Lower the learning rate."
                )
            if reached < enough or step == steps - 1:
                break
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            with torch.no_grad():
                for tensor, origin in zip(value, start, strict=True):
                    project(tensor, origin)
    changes = [v.detach() - s for v, s in zip(value, start, strict=True)]
    return Dense(site.path, changes[0], changes[1] if len(changes) > 1 else None)
