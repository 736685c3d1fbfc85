"""Mathematics that several methods share, as plain functions: contexts, losses, the search for a value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from editcore.anatomy import Site
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.resume import Upper, reads_of
from editcore.spans import Row
from editcore.statistics import context_seed

CONTEXT_LENGTHS = (4, 8)  # tokens of a sampled context


def contexts(handle: Handle, count: int) -> tuple[tuple[int, ...], ...]:
    """`count` short texts the model wrote itself, as token ids, plus the empty one in front.

    Prompts are put behind them so that a value holds in running text too (Meng et al. 2022, section 3.1). They are
    sampled once for a model, from a seed that depends on the model alone.
    """
    key = ("contexts", count)
    if key not in handle.memory:
        handle.memory[key] = ((), *_sample_contexts(handle, count)) if count else ((),)
    found: tuple[tuple[int, ...], ...] = handle.memory[key]
    return found


@torch.no_grad()
def _sample_contexts(handle: Handle, count: int) -> list[tuple[int, ...]]:
    start = handle.tokenizer.bos_token_id
    start = handle.pad if start is None else int(start)
    stop = handle.tokenizer(". ", add_special_tokens=False)["input_ids"][:1]
    rows: list[tuple[int, ...]] = []
    with torch.random.fork_rng(devices=[handle.device] if handle.device.type == "cuda" else []):
        torch.manual_seed(context_seed(handle))
        for i, length in enumerate(CONTEXT_LENGTHS):
            share = count // len(CONTEXT_LENGTHS) + (i < count % len(CONTEXT_LENGTHS))
            if not share:
                continue
            ids = torch.full((share, 1), start, device=handle.device)
            out = handle.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=5, max_new_tokens=length,
                min_new_tokens=length, pad_token_id=handle.pad,
            )  # fmt: skip
            rows += [(*row[1:], *stop) for row in out.tolist()]
    return rows


def target_loss(log_probabilities: Tensor, rows: Sequence[Row]) -> Tensor:
    """-(1/|y|) sum_t log p(y_t | x, y_<t) for each row, [rows]: a mean over the answer's tokens.

    Args:
        log_probabilities: [sum of answer lengths, vocabulary], rows in order.
    """
    ids = torch.tensor([i for row in rows for i in row.answer], device=log_probabilities.device)
    picked = log_probabilities.gather(1, ids[:, None])[:, 0]
    lengths = [len(row.answer) for row in rows]
    return -torch.stack([part.mean() for part in torch.split(picked, lengths)])


def behind(contexts: Sequence[Sequence[int]], bare: Row, spaced: Row, lead: int) -> list[Row]:
    """The prompt behind each context, the bare prompt for the empty one.

    Args:
        spaced: the same prompt and answer with a space in front, as it stands inside running text.
        lead: number of automatic first tokens, which stay in front.
    """
    return [
        Row(
            (*spaced.ids[:lead], *context, *spaced.ids[lead:]),
            spaced.start + len(context),
            None if spaced.subject is None else spaced.subject + len(context),
        )
        if context
        else bare
        for context in contexts
    ]


@dataclass(frozen=True)
class Value:
    """What the search found, with everything a rank-one update needs."""

    delta: Tensor  # [d_out], fp32: what to add to the site's output at the subject
    keys: Tensor  # [contexts, d_in], fp32: the site's input there, the bare prompt first
    values: Tensor  # [contexts, d_out], fp32: the site's output there, unchanged
    loss: float  # last total loss, nats
    steps: int  # optimiser steps taken
    clamped: bool  # the norm limit was active at the end


@dataclass(frozen=True)
class Search:
    """Dials of the value search."""

    steps: int
    rate: float
    decay: float
    limit: float
    kl: float
    enough: float


def search_value(
    handle: Handle,
    site: Site,
    rows: Sequence[Row],
    essence: Row,
    dials: Search,
    listen: Callable[[int, float], None] = lambda step, loss: None,
) -> Value:
    """Finds the change of the site's output at the subject that makes the model answer (Meng et al. 2022, Eq. 4).

        min_delta  mean_j NLL(y | x_j + p; v + delta) + kl * KL(p_delta || p_0) + decay * ||delta|| / ||v||^2

    by Adam, delta = 0 at first; after each step ||delta|| <= limit * ||v||. The KL term is read on `essence`
    ("{subject} is a") at its subject's last token.

    Args:
        rows: the prompt behind each context, bare prompt first; all with a subject.
        listen: called with (step, loss) after each forward pass; may raise to stop.

    Raises:
        Diverged: the loss is not finite.
    """
    everything = [*rows, essence]
    starts = tuple(row.subject or 0 for row in everything)
    reads = (*(reads_of(row) for row in rows), (essence.subject or 0,))
    upper = Upper(handle, site, tuple(row.ids for row in everything), starts, reads)
    before = upper.plain[-1]
    original = upper.y[:, 0].float()
    size = original[0].norm()
    delta = torch.zeros(site.d_out, device=handle.device, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=dials.rate)

    def change(_x: Tensor, y: Tensor) -> Tensor:
        first = (y[:, :1].float() + delta).to(y.dtype)
        return torch.cat([first, y[:, 1:]], 1)

    loss, step = torch.zeros(()), 0
    for step in range(dials.steps):
        out = upper.run(change)
        near = torch.nn.functional.kl_div(before, out[-1], log_target=True, reduction="sum")
        loss = target_loss(out[:-1], rows).mean() + dials.kl * near + dials.decay * delta.norm() / size**2
        listen(step + 1, float(loss.detach()))
        if not torch.isfinite(loss):
            raise Diverged(
                f"The value search diverged at step {step + 1}.", "Nothing was kept.", "Lower the learning rate."
            )
        if float(loss.detach()) < dials.enough or step == dials.steps - 1:
            break
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            delta.mul_((dials.limit * size / delta.norm().clamp_min(1e-12)).clamp(max=1.0))
    with torch.no_grad():
        clamped = bool(delta.norm() >= 0.999 * dials.limit * size)
    return Value(
        delta.detach(), upper.x[: len(rows), 0].float(), original[: len(rows)], float(loss.detach()), step, clamped
    )


def rank_one(direction: Tensor, key: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (read [d_in], write [d_out], fp32) of dW = residual (direction / direction.key)^T: dW key = residual."""
    direction, key = direction.double().reshape(-1), key.double().reshape(-1)
    scale = direction.norm()
    read = direction / scale
    return read.float(), (residual.double() / (read @ key)).float()


def fit_all(solved: Tensor, keys: Tensor, wanted: Tensor, slack: float = 0.01) -> Tensor:
    """The direction u [d_in] (fp32) with u.k_j close to t_j for every key, and small on what C usually holds.

        u = C^-1 K (K^T C^-1 K + eps I)^-1 t

    Args:
        solved: C^-1 K [d_in, keys], fp64.
        keys: K^T [keys, d_in], fp64.
        wanted: t [keys], fp64.
        slack: eps, as a share of the mean diagonal of K^T C^-1 K: nearly equal keys must not ask for the impossible.
    """
    gram = keys @ solved
    gram = gram + slack * gram.diagonal().mean() * torch.eye(len(keys)).to(gram)
    weights: Tensor = torch.linalg.solve(gram, wanted)
    return (solved @ weights).float()
