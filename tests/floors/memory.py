"""Floors of the methods that leave the matrices alone: GRACE, WISE, SERAC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.floors.bare import Bare, Tails, padded, places


def grace(model: Any, row: Any, layer: int, dials: Any) -> list[Tensor]:
    """The entry's key [1, d_in] and value [1, d_out], from a warm start."""
    starts = (row.start - 1,)
    tails, where = Tails(Bare(model), [row], starts, layer), places([row], starts)
    span, answer = len(row.answer) if dials.hold else 1, torch.tensor(row.answer)[:, None]
    leaf = tails.value[0, 0].clone().requires_grad_(True)
    optimiser, hidden = torch.optim.Adam([leaf], lr=dials.rate), tails.mid + tails.value
    best, least = leaf.detach().clone(), float("inf")
    for step in range(dials.steps):
        out = tails.above(torch.cat([tails.mid[:, :span] + leaf, hidden[:, span:]], 1), where)
        loss = -out.gather(1, answer).mean()
        reached = loss.item()
        if reached < least:
            best, least = leaf.detach().clone(), reached
        if least < dials.enough or step == dials.steps - 1:
            break
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return [tails.key[0, :1], best[None]]


@torch.no_grad()
def _last_keys(bare: Bare, texts: Sequence[Sequence[int]], layer: int) -> Tensor:
    """Input of the edited matrix at the last token of each text [texts, d_in]."""
    mid, _ = bare.attend(layer, bare.up_to(padded(texts), layer), None, None)
    last = mid[torch.arange(len(texts)), torch.tensor([len(text) - 1 for text in texts])]
    return bare.key(layer, last[:, None])[:, 0]


def wise(
    model: Any, rows: Sequence[Any], others: Sequence[Sequence[int]], layer: int, dials: Any, index: Tensor
) -> list[Tensor]:
    """What differs in the side copy [k] at the drawn places `index`, and the gate's threshold [1].

    Margins relative, and a window of one token: the prompt's last.
    """
    bare, zeros = Bare(model), (0,) * len(rows)
    tails, where = Tails(bare, rows, zeros, layer), places(rows, zeros)
    answers, hidden = torch.tensor([row.answer for row in rows]), tails.mid + tails.value
    last, far = torch.tensor([row.start - 1 for row in rows]), _last_keys(bare, others, layer)
    prompt = torch.arange(hidden.shape[1]) <= last[:, None]
    near = tails.key[torch.arange(len(rows)), last]
    unit = tails.value.norm(dim=-1)[prompt].mean()
    alpha, beta, gamma = (unit * bound for bound in (dials.alpha, dials.beta, dials.gamma))
    weight, _ = bare.down_projection(layer)
    leaf, d_in = torch.zeros(len(index), requires_grad=True), weight.shape[0]
    optimiser = torch.optim.SGD([leaf], lr=dials.rate, weight_decay=dials.decay)
    for step in range(dials.steps):
        delta = torch.zeros(weight.numel()).index_put((index,), leaf).view(-1, d_in)
        out = tails.above(hidden + tails.key @ delta.T, where)
        answer = -out.view(*answers.shape, -1).gather(2, answers[..., None]).mean()
        inside, outside = (near @ delta.T).norm(dim=-1), (far @ delta.T).norm(dim=-1)
        margins = (outside - alpha).relu().mean() + (beta - inside).relu().mean()
        margins = margins + (outside - inside[:, None] + gamma).relu().mean()
        if (answer.item() < dials.enough and margins.item() <= 0) or step == dials.steps - 1:
            break
        optimiser.zero_grad(set_to_none=True)
        (answer + margins).backward()
        optimiser.step()
        with torch.no_grad():
            leaf.clamp_(-dials.limit, dials.limit)
    return [leaf.detach(), dials.ratio * inside.detach()[:1]]


@torch.no_grad()
def serac(model: Any, row: Any, layer: int, network: Any) -> list[Tensor]:
    """The key of the edit's prompt [1, key], and the network's numbers [count]."""
    found, classifier = Bare(model).up_to(padded([row.ids[: row.start]]), layer + 1)[0], network.classifier
    seen = (torch.cat([found[-1], found.mean(0)]) - classifier.mean) / classifier.std
    key = classifier.outer(torch.nn.functional.gelu(classifier.inner(seen)))
    return [key[None], torch.cat([p.flatten() for p in network.parameters()]).half()]
