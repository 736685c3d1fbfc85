"""Floors of the methods that search a new value at the subject: ROME's wide form, EMMET, MEMIT, PMET, AlphaEdit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn

from tests.floors.bare import Bare, Tails, padded

Factors = tuple[Tensor, Tensor]  # read [d_in], write [d_out]


def search(
    bare: Bare, rows: Sequence[Any], essence: Any, layer: int, dials: Any, behind: bool
) -> tuple[Tensor, Tensor]:
    """The change of a value and the value itself, both [width].

    Args:
        rows: the prompt in each context with its answer, the bare one first.
        behind: the value is the stream behind the block, else the matrix's output.
    """
    every = [*rows, essence]
    starts = [row.subject for row in every]
    tails = Tails(bare, every, starts, layer)
    value = (tails.mid + tails.value if behind else tails.value)[0, 0]
    sizes = [value.norm()] + ([tails.read[0, 0].norm()] if dials.attention else [])
    deltas = [torch.zeros(bare.width, requires_grad=True) for _ in sizes]
    optimiser = torch.optim.Adam(deltas, lr=dials.rate, betas=(dials.momentum, 0.999))
    answers, hidden = torch.tensor([row.answer for row in rows]), tails.mid + tails.value
    reads = [(i, p - row.subject) for i, row in enumerate(rows) for p in range(row.start - 1, len(row.ids) - 1)]
    places = (torch.tensor([i for i, _ in reads] + [len(rows)]), torch.tensor([p for _, p in reads] + [0]))
    before: Tensor | None = None
    for step in range(dials.steps):
        first = hidden[:, :1] + deltas[0]
        if dials.attention:
            mid = tails.mid[:, :1] + deltas[1]
            first = mid + bare.value(layer, bare.key(layer, mid)) + deltas[0]
        out = tails.above(torch.cat([first, hidden[:, 1:]], 1), places)
        before = out[-1].detach() if before is None else before
        picked = out[:-1].view(*answers.shape, -1).gather(2, answers[..., None])[..., 0]
        near = fn.kl_div(before, out[-1], log_target=True, reduction="sum")
        loss = -picked.mean() + dials.kl * near
        loss = loss + sum(dials.decay * d.norm() / size**2 for d, size in zip(deltas, sizes, strict=True))
        if loss.item() < dials.enough or step == dials.steps - 1:
            break
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            for d, size in zip(deltas, sizes, strict=True):
                d.mul_((dials.limit * size / d.norm().clamp_min(1e-12)).clamp(max=1.0))
    return deltas[0].detach(), value


@torch.no_grad()
def all_keys(bare: Bare, rows: Sequence[Any], layer: int) -> tuple[Tensor, Tensor]:
    """Input of the edited matrix at every token of the rows [tokens, d_in], and 1 at a subject, else 0 [tokens]."""
    ids = padded([row.ids for row in rows])
    keys = bare.key(layer, bare.attend(layer, bare.up_to(ids, layer), None, None)[0])
    line, at = torch.arange(len(rows)), torch.tensor([r.subject for r in rows])
    wanted = torch.zeros(ids.shape, dtype=torch.float64)
    wanted[line, at] = 1.0
    real = torch.arange(ids.shape[1]) < torch.tensor([len(r.ids) for r in rows])[:, None]
    kept = real & ((ids != ids[line, at][:, None]) | (wanted > 0))
    return keys[kept].double(), wanted[kept]


def rome(
    model: Any, rows: Sequence[Any], essence: Any, about: Sequence[Any], layer: int, dials: Any,
    solve: Callable[[Tensor], Tensor],
) -> list[Factors]:  # fmt: skip
    """ROME's wide form; `about`: sentences about the subject; `solve` applies C^-1 to columns."""
    bare = Bare(model)
    delta, _ = search(bare, rows, essence, layer, dials, behind=False)
    keys, wanted = all_keys(bare, [*rows, *about], layer)
    solved = solve(keys.T)
    gram = keys @ solved
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return [((solved @ torch.linalg.solve(gram, wanted)).float(), delta)]


@torch.no_grad()
def mean_key(keys: Tensor) -> Tensor:
    """Half the first of the keys [n, d_in], half the mean of the others."""
    return (keys[0] + keys[1:].mean(0)) / 2


def spread(
    model: Any, rows: Sequence[Any], essence: Any, about: Sequence[Any], layers: Sequence[int], dials: Any,
    adjust: Callable[[int, Tensor], Tensor], inside: bool, share: Callable[[int], float],
) -> list[Factors]:  # fmt: skip
    """One request written into several layers; what is below an edited layer runs once, and nothing behind a subject.

    Args:
        adjust: gives a direction [d_in] for a layer and its mean key.
        inside: the value is the matrix's output, else the stream behind the block.
        share: what is missing is divided by this when so many layers are left.
    """
    bare, last = Bare(model), layers[-1]
    delta, value = search(bare, rows, essence, last, dials, not inside)
    texts = [rows[0], *about]
    line, at = torch.arange(len(texts)), torch.tensor([row.subject for row in texts])
    parts: list[Factors] = []
    with torch.no_grad():
        x = bare.up_to(padded([row.ids[: row.subject + 1] for row in texts]), layers[0])
        for done, layer in enumerate(layers):
            mid, _ = bare.attend(layer, x, None, None)
            keys = bare.key(layer, mid)
            now = value if not done else _value(bare, mid[:1], keys[:1], layer, last, inside)[0, at[0]]
            read = adjust(layer, mean_key(keys[line, at]))
            parts.append((read, (value + delta - now) / share(len(layers) - done)))
            if layer != last:
                x = mid + bare.value(layer, keys) + (keys @ read)[..., None] * parts[-1][1]
    return parts


def _value(bare: Bare, mid: Tensor, key: Tensor, layer: int, last: int, inside: bool) -> Tensor:
    """What is read at the last layer, from the edited stream in front of the MLP of `layer`."""
    value = bare.value(layer, key)
    for i in range(layer + 1, last + 1):
        mid, _ = bare.attend(i, mid + value, None, None)
        value = bare.value(i, bare.key(i, mid))
    return value if inside else mid + value


def ridge(solve: Callable[[Tensor], Tensor], weight: float) -> Callable[[Tensor], Tensor]:
    """C^-1 k / (weight + k^T C^-1 k) of a key k [d_in]."""

    def direction(key: Tensor) -> Tensor:
        solved = solve(key.double())[:, 0]
        return (solved / (weight + key.double() @ solved)).float()

    return direction


def null_space(project: Callable[[Tensor], Tensor], penalty: float) -> Callable[[Tensor], Tensor]:
    """P k / (penalty + k^T P k) of a key k [d_in]."""

    def direction(key: Tensor) -> Tensor:
        kept = project(key.double()[:, None])[:, 0]
        return (kept / (penalty + key.double() @ kept)).float()

    return direction
