"""Mathematics that several methods share, as plain functions: contexts, losses, the search for a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from editcore.anatomy import Site, attention_output
from editcore.chat import control_tokens
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.method import Pass
from editcore.resume import Change, Upper, reads_of
from editcore.spans import Row
from editcore.steps import First, Steps, adam

NOT_ENOUGH = 0.7  # nats: a search that ends above this has not made the answer likely
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


def sampling(handle: Handle, count: int) -> tuple[Pass, ...]:
    """The passes in which `count` contexts are sampled; none where they have been."""
    rows = [count // len(CONTEXT_LENGTHS) + (i < count % len(CONTEXT_LENGTHS)) for i in range(len(CONTEXT_LENGTHS))]
    return tuple(
        Pass(share, 1, 0, None, share, length)
        for share, length in zip(rows, CONTEXT_LENGTHS, strict=True)
        if share and ("contexts", count) not in handle.memory
    )


@torch.no_grad()
def _sample_contexts(handle: Handle, count: int) -> list[tuple[int, ...]]:
    start = handle.tokenizer.bos_token_id
    start = handle.pad if start is None else int(start)
    bar = [i for i in map(handle.tokenizer.convert_tokens_to_ids, control_tokens(handle.tokenizer)) if i is not None]
    stop = handle.tokenizer(". ", add_special_tokens=False)["input_ids"][:1]
    rows: list[tuple[int, ...]] = []
    with torch.random.fork_rng(devices=[handle.device] if handle.device.type == "cuda" else []):
        torch.manual_seed(handle.seed)
        for i, length in enumerate(CONTEXT_LENGTHS):
            share = count // len(CONTEXT_LENGTHS) + (i < count % len(CONTEXT_LENGTHS))
            if not share:
                continue
            ids = torch.full((share, 1), start, device=handle.device)
            out = handle.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=5, max_new_tokens=length,
                min_new_tokens=length, pad_token_id=handle.pad, suppress_tokens=sorted(bar) or None,
            )  # fmt: skip
            rows += [(*row[1:], *stop) for row in out.tolist()]
    return rows


def weighted(weights: Tensor, values: Tensor) -> Tensor:
    """sum_j w_ij v_j [rows] of values [n] by weights [rows, n]; what has no weight may be anything, even not finite."""
    return (weights * torch.where(weights > 0, values, 0.0)).sum(1)


class Answers:
    """Rows' answers on a device, laid out once: every step of a search looks at the same tokens.

    Args:
        rows: prompts with answers, in the order their log-probabilities come in.
    """

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        ids = [i for row in rows for i in row.answer]
        begin = [sum(len(row.answer) for row in rows[:i]) for i in range(len(rows))]
        weights = torch.zeros(len(rows), len(ids))
        for i, row in enumerate(rows):
            weights[i, begin[i] : begin[i] + len(row.answer)] = 1 / len(row.answer)
        self.ids, self.weights = torch.tensor(ids, device=device), weights.to(device)

    def losses(self, log_probabilities: Tensor) -> Tensor:
        """-(1/|y|) sum_t log p(y_t | x, y_<t) of each row [rows]: a mean over the answer's tokens.

        Args:
            log_probabilities: [sum of answer lengths, vocabulary], rows in order.
        """
        return -weighted(self.weights, log_probabilities.to(self.ids.device).gather(1, self.ids[:, None])[:, 0])

    def missed(self, log_probabilities: Tensor) -> Tensor:
        """Of each row [rows], the share of answer tokens that are not the most likely ones."""
        return weighted(self.weights, (log_probabilities.argmax(1).to(self.ids.device) != self.ids).float())


def behind(contexts: Sequence[Sequence[int]], bare: Row, spaced: Row) -> list[Row]:
    """The prompt behind each context, the bare prompt for the empty one. What leads a prompt stays in front.

    Args:
        spaced: the same prompt and answer with a space in front, as it stands inside running text.
    """
    return [_behind(context, spaced) if context else bare for context in contexts]


def _behind(context: Sequence[int], row: Row) -> Row:
    def moved(place: int | None) -> int | None:
        return None if place is None else place + len(context)

    return Row(
        (*row.ids[: row.lead], *context, *row.ids[row.lead :]),
        row.start + len(context),
        moved(row.subject),
        moved(row.subject_start),
        row.lead,
    )


def context_tokens(count: int) -> int:
    """Tokens of the longest of `count` contexts."""
    return max(CONTEXT_LENGTHS[: min(count, len(CONTEXT_LENGTHS))], default=-1) + 1


@dataclass(frozen=True)
class Value:
    """What the search found, with everything a rank-one update needs."""

    delta: Tensor  # [d_out], fp32: what to add to the output at the subject
    keys: Tensor  # [contexts, d_in], fp32: the site's input there, the bare prompt first
    values: Tensor  # [contexts, d_out], fp32: the output there, unchanged
    loss: float  # last total loss, nats
    steps: int  # optimiser steps taken
    clamped: bool  # the norm limit was active at the end


@dataclass(frozen=True)
class Search:
    """Dials of the value search."""

    steps: int
    rate: float
    momentum: float
    decay: float
    limit: float
    kl: float
    enough: float
    attention: bool = False  # search a second delta too, on the output of the block's attention
    eased: float = 1.0  # weight of the answer's loss once the answer is the most likely one behind every context
    calm: float | None = None  # nats: then also done, if the KL term (without its weight) is at most this


@dataclass(frozen=True)
class Wish:
    """What one request asks of a value search."""

    rows: Sequence[Row]  # the prompt behind each context, the bare prompt first; all with a subject
    essence: Row  # "{subject} is a", with its subject


def search_value(
    handle: Handle,
    site: Site,
    wish: Wish,
    dials: Search,
    listen: Callable[[int, float], None] = lambda step, loss: None,
) -> Value:
    """`search_values` for one request."""
    return search_values(handle, site, [wish], dials, listen)[0]


def search_values(
    handle: Handle,
    site: Site,
    wishes: Sequence[Wish],
    dials: Search,
    listen: Callable[[int, float], None] = lambda step, loss: None,
    block: bool = False,
) -> list[Value]:
    """Finds, for each request, the change of an output at the subject that makes the model answer.

        min_delta  mean_j NLL(y | x_j + p; v + delta) + kl * KL(p_delta || p_0) + decay * ||delta|| / ||v||^2

    (Meng et al. 2022, Eq. 4) by Adam, delta = 0 at first; after each step ||delta|| <= limit * ||v||. The KL term is
    read on the essence at its subject's last token. The requests share their passes and nothing else: each stops at
    its own `enough` (or `calm`), with what it would have found alone.

    With `attention`, a second delta on the attention's output is searched jointly, with decay and bound of its own
    (Li et al. 2024); it takes part in the search only.

    Args:
        listen: called with (step, mean loss of the requests that are not done) after each pass; may raise to stop.
        block: v is the residual stream behind the site's block (Meng et al. 2023, Eq. 16) instead of the site's output.

    Raises:
        Diverged: a loss is not finite.
    """
    every = [row for wish in wishes for row in (*wish.rows, wish.essence)]
    reads = [r for w in wishes for r in (*(reads_of(row) for row in w.rows), (w.essence.subject or 0,))]
    beside = attention_end(handle, site) if dials.attention else None
    upper = Upper(
        handle, site, tuple(r.ids for r in every), tuple(r.subject or 0 for r in every), tuple(reads), block, beside
    )
    counts = [len(wish.rows) + 1 for wish in wishes]
    first = [sum(counts[:i]) for i in range(len(counts))]
    owner = torch.repeat_interleave(torch.arange(len(wishes)), torch.tensor(counts)).to(site.device)
    outputs = [upper.y] if upper.y_beside is None else [upper.y, upper.y_beside]
    original = outputs[0][:, 0].float()
    sizes = [y[first, 0].float().norm(dim=1) for y in outputs]
    deltas = [torch.zeros(len(wishes), y.shape[-1], device=y.device, requires_grad=True) for y in outputs]

    def adding(delta: Tensor) -> Change:
        def change(_x: Tensor, y: Tensor) -> Tensor:
            moved = (y[:, :1].float() + delta[owner][:, None]).to(y.dtype)
            return torch.cat([moved, y[:, 1:]], 1)

        return change

    device = handle.device
    settles = dials.eased != 1.0 or dials.calm is not None
    asked = Answers([row for wish in wishes for row in wish.rows], device)
    wish_of = torch.repeat_interleave(torch.arange(len(wishes)), torch.tensor(counts) - 1)
    means = torch.stack([(wish_of == i) / (count - 1) for i, count in enumerate(counts)]).to(device)  # [wishes, rows]
    essences = {start + count - 1 for start, count in zip(first, counts, strict=True)}
    places = torch.split(torch.arange(sum(map(len, reads))), [len(read) for read in reads])
    at_answer = torch.cat([p for i, p in enumerate(places) if i not in essences]).to(device)
    at_essence = torch.cat([p for i, p in enumerate(places) if i in essences]).to(device)
    before = First(handle, len(wishes))

    def look() -> tuple[Tensor, Tensor]:
        out = upper.run(*map(adding, deltas)).to(device)
        answers, said = out[at_answer], out[at_essence]
        missed = weighted(means, asked.losses(answers))
        # KL(p_delta || p_0)
        moved = torch.nn.functional.kl_div(before.of(said), said, log_target=True, reduction="none").sum(1)
        long = torch.stack([d.norm(dim=1) / size**2 for d, size in zip(deltas, sizes, strict=True)]).sum(0)
        held = dials.kl * moved + dials.decay * long.to(device)
        unlike = weighted(means, asked.missed(answers)) if settles else torch.ones_like(missed)
        loss = (torch.where(unlike == 0, dials.eased, 1.0) * missed + held).sum()
        return torch.stack([missed + held, moved, unlike]), loss

    def bound() -> None:
        for d, size in zip(deltas, sizes, strict=True):
            d.mul_((dials.limit * size / d.norm(dim=1).clamp_min(1e-12)).clamp(max=1.0)[:, None])

    search = Steps(handle, look, adam(handle, deltas, dials.rate, betas=(dials.momentum, 0.999)), bound, upper.way)
    found: dict[int, tuple[Tensor, float, int]] = {}  # request -> delta, loss, steps
    for step in range(dials.steps):
        reached, apart, wrong = search.look().tolist()  # the host waits for the device here and nowhere else in a step
        open_ = [i for i in range(len(wishes)) if i not in found]
        listen(step + 1, sum(reached[i] for i in open_) / len(open_))
        if not all(math.isfinite(reached[i]) for i in open_):
            raise Diverged(
                f"The value search diverged at step {step + 1}.", "Nothing was kept.", "Lower the learning rate."
            )
        for i in open_:
            calm = dials.calm is not None and not wrong[i] and apart[i] <= dials.calm
            if reached[i] < dials.enough or calm or step == dials.steps - 1:
                found[i] = deltas[0][i].detach().clone(), reached[i], step
        if len(found) == len(wishes):
            break
        search.move()
    values = []
    for i, (start, count) in enumerate(zip(first, counts, strict=True)):
        mine, (change_, loss, steps) = slice(start, start + count - 1), found[i]
        clamped = bool(change_.norm() >= 0.999 * dials.limit * sizes[0][i])
        values.append(Value(change_, upper.x[mine, 0].float(), original[mine], loss, steps, clamped))
    return values


def attention_end(handle: Handle, site: Site) -> nn.Module:
    """The linear map that ends the attention of the site's block."""
    key = ("attention", site.layer)
    if key not in handle.memory:
        handle.memory[key] = attention_output(handle.model, handle.anatomy.blocks[site.layer], site.d_out)
    found: nn.Module = handle.memory[key]
    return found


def ridge(solve: Callable[[Tensor], Tensor], keys: Tensor, weight: float) -> Tensor:
    """C^-1 K (weight I + K^T C^-1 K)^-1 [d_in, n], fp64: equals (weight C + K K^T)^-1 K, with a solve of n x n only.

    Args:
        solve: applies C^-1 to columns.
        keys: K [d_in, n].

    Raises:
        Diverged: the keys are too alike.
    """
    keys = keys.double()
    solved = solve(keys)
    return _solve_small(keys.T @ solved, weight, solved)


def null_space_ridge(project: Callable[[Tensor], Tensor], keys: Tensor, earlier: Tensor, penalty: float) -> Tensor:
    """P M (M^T P M + penalty I)^-1 E [d_in, n], fp64, M = [K, K_p], E the columns of K: AlphaEdit's solve, made small.

    Args:
        project: applies P, the projection onto what the matrix hardly stores, to columns.
        keys: K [d_in, n]; earlier: K_p [d_in, m], the keys of edits made before.
    """
    every = torch.cat([keys, earlier], 1).double()
    kept = project(every)
    return _solve_small(every.T @ kept, penalty, kept)[:, : keys.shape[1]]


def _solve_small(gram: Tensor, weight: float, columns: Tensor) -> Tensor:
    """columns (gram + weight I)^-1.

    Raises:
        Diverged: the keys are too alike.
    """
    try:
        found: Tensor = torch.linalg.solve(gram + weight * torch.eye(len(gram)).to(gram), columns.T).T
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise Diverged(
            "The new facts cannot be told apart where they would be written.",
            "Two requests point at the same key.",
            "Remove one of them, or raise the weight that lets a fact be missed.",
        ) from error
    return found


def fit_all(solve: Callable[[Tensor], Tensor], keys: Tensor, wanted: Tensor, slack: float = 0.01) -> Tensor:
    """The direction u [d_in] (fp32) with u.k_j close to t_j for every key, and small on what C usually holds.

        u = C^-1 K (K^T C^-1 K + eps I)^-1 t

    Args:
        solve: applies C^-1 to columns.
        keys: K^T [keys, d_in], fp64.
        wanted: t [keys], fp64.
        slack: eps, as a share of the mean diagonal of K^T C^-1 K: nearly equal keys must not ask for the impossible.
    """
    solved = solve(keys.T)
    gram = keys @ solved
    return (_solve_small(gram, slack * float(gram.diagonal().mean()), solved) @ wanted).float()


def rank_one(direction: Tensor, key: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """Factors (read [d_in], write [d_out], fp32) of dW = residual (direction / direction.key)^T: dW key = residual."""
    direction, key = direction.double().reshape(-1), key.double().reshape(-1)
    scale = direction.norm()
    read = direction / scale
    return read.float(), (residual.double() / (read @ key)).float()
