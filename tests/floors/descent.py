"""Floors of the fine-tuning family: FT, FT-L, FT + replay, LoRA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.floors.bare import Bare, Tails, places


def descend(
    tails: Tails, rows: Sequence[Any], leaves: Sequence[Tensor], value: Callable[[Tensor], Tensor], dials: Any,
    project: Callable[[], None], weight: float,
) -> None:  # fmt: skip
    """Adam on `leaves`, in place; the first row is the request, the others are replayed at `weight`.

    Args:
        value: output of the edited matrix [rows, tokens, d_out] for its input.
    """
    request, zeros = rows[0], (0,) * len(rows)
    line, at = places(rows, zeros)
    answer, count = torch.tensor(request.answer)[:, None], len(request.answer)
    optimiser = torch.optim.Adam(leaves, lr=dials.rate)
    before: Tensor | None = None
    for step in range(dials.steps):
        out = tails.above(tails.mid + value(tails.key), (line, at))
        loss = -out[:count].gather(1, answer).mean()
        if loss.item() < dials.enough or step == dials.steps - 1:
            break
        if len(rows) > 1:  # KL(p_0 || p) without the part that no weight changes
            before = out[count:].detach().exp() if before is None else before
            loss = loss - weight * (before * out[count:]).sum() / len(before)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        project()


def matrix(
    model: Any, row: Any, layer: int, dials: Any, distance: float | None = None, replayed: Sequence[Any] = (),
    weight: float = 0.0,
) -> list[Tensor]:  # fmt: skip
    """The change of the edited matrix [d_out, d_in]; `distance` bounds every entry."""
    bare, rows = Bare(model), [row, *replayed]
    tails, start = Tails(bare, rows, (0,) * len(rows), layer), bare.down_projection(layer)
    leaves = [t.clone().requires_grad_(True) for t in start]

    def value(key: Tensor) -> Tensor:
        return torch.addmm(leaves[1], key.flatten(0, 1), leaves[0]).view(*key.shape[:2], -1)

    @torch.no_grad()
    def project() -> None:
        for leaf, origin in zip(leaves, start, strict=True):
            leaf.copy_(leaf.maximum(origin - distance).minimum(origin + distance))

    descend(tails, rows, leaves, value, dials, (lambda: None) if distance is None else project, weight)
    return [(leaves[0].detach() - start[0]).T]


def low_rank(model: Any, row: Any, layer: int, dials: Any, read: Tensor, scale: float) -> list[tuple[Tensor, Tensor]]:
    """Factors of LoRA's change; `read` [rank, d_in]: where it starts."""
    bare = Bare(model)
    tails = Tails(bare, [row], (0,), layer)
    leaves = [read.clone().requires_grad_(True), torch.zeros(len(read), bare.width, requires_grad=True)]

    def value(key: Tensor) -> Tensor:
        return tails.value + scale * (key @ leaves[0].T) @ leaves[1]

    descend(tails, [row], leaves, value, dials, lambda: None, 0.0)
    return [(leaves[0].detach(), scale * leaves[1].detach())]
