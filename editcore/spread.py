"""Writing what was found into one layer or several: the closed forms of the MEMIT family share this loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from editcore import algebra, dials, passes, statistics, subject
from editcore.anatomy import Site
from editcore.factors import bytes_of_factor
from editcore.handle import Handle
from editcore.method import Cost, Method, Pass, Work, made_by
from editcore.patch import LowRank, Patch
from editcore.records import EditRequest, Progress
from editcore.spans import Row

TOGETHER = 16  # requests whose values are searched in the same passes


def ridge(work: Work, weight: float | None) -> Callable[[Site, Tensor], Tensor]:
    """For `spread`: the keys of a site [d_in, n] to what `algebra.ridge` gives for them at this weight.

    Args:
        weight: None: d_in, which k^T C^-1 k is on average over the keys that C is the mean of, whatever their scale.
    """

    def adjust(site: Site, keys: Tensor) -> Tensor:
        moment = statistics.moment(work.handle, site, work.home, work.report, work.stop)
        return algebra.ridge(moment.solve, keys, float(site.d_in) if weight is None else weight)

    return adjust


def spread(
    work: Work,
    method: dials.Searching,
    requests: Sequence[EditRequest],
    adjust: Callable[[Site, Tensor], Tensor],
    search: algebra.Search | None = None,
    inside: bool = False,
    share: Callable[[int], float] = float,
) -> Patch:
    """All requests together, a share of the way in each layer (Meng et al. 2023, Algorithm 1).

        z_i = h_i + delta_i at the last layer L, found by `algebra.search_values`
        for l in layers:  R = (Z - H_L) / (number of layers left),   W_l <- W_l + R adjust(l, K_l)^T

    H_L (bare prompts) and K_l are read anew on the model as edited so far. Where a norm stands between a matrix and the
    residual stream (Gemma 2 and 3), what is written is not what is added: there z and H are outputs of the matrix
    itself, and one layer is written (see `span`).

    Args:
        adjust: gives [d_in, n] for a site and its keys K [d_in, n].
        search: dials of the value search, when they are more than `dials.search` reads off the method.
        inside: z and H are outputs of the matrix itself wherever it writes to.
        share: what R is divided by when so many layers are left.

    Raises:
        SubjectNotFound: a request has no subject, or it is not in its prompt.
        Diverged: a search or an update is not finite.
        Cancelled: stopped between two steps.
    """
    handle, layers, search = work.handle, method.layers(work.handle), search or dials.search(method)
    last = layers[-1]
    prompts = [subject.prompts(handle, request, method.contexts) for request in requests]
    wishes = [
        algebra.Wish(rows, subject.essence(handle, request.subject or "", request.form))
        for request, rows in zip(requests, prompts, strict=True)
    ]
    values = [
        value
        for begin in range(0, len(wishes), TOGETHER)
        for value in _values(work, wishes[begin : begin + TOGETHER], search, last, begin, len(wishes), inside)
    ]
    now = torch.stack([value.values[0] for value in values])
    wanted = now + torch.stack([value.delta for value in values])
    bare = [rows[0] for rows in prompts]
    parts: list[LowRank] = []
    for done, layer in enumerate(layers):
        work.check()
        site = handle.anatomy.site(layer)
        with handle.using([made_by(method, handle, parts, ())]):
            now = subject.outputs(handle, last, bare, inside) if parts else now  # as the search found it
            missing = (wanted - now) / share(len(layers) - done)
            keys = mean_keys(handle, site, requests, prompts, method.key)
        read = adjust(site, keys.T).T.float().contiguous()
        parts.append(LowRank(site.path, read, missing.float().to(read.device)))
    patch = made_by(method, handle, parts, requests)
    patch.check_finite()
    return patch


def mean_keys(
    handle: Handle, site: Site, requests: Sequence[EditRequest], prompts: Sequence[Sequence[Row]], place: str
) -> Tensor:
    """One key a request [n, d_in], fp32: half the bare prompt's, half the mean over its other texts."""
    others = [
        subject.sentences(handle, request.subject or "", request.form) if place == "subject" else list(rows[1:])
        for request, rows in zip(requests, prompts, strict=True)
    ]
    groups = [[rows[0], *more] for rows, more in zip(prompts, others, strict=True)]
    found = subject.keys(handle, site, [row for group in groups for row in group])
    means = []
    for group in torch.split(found, [len(group) for group in groups]):
        means.append((group[0] + group[1:].mean(0)) / 2 if len(group) > 1 else group[0])
    return torch.stack(means)


def span(handle: Handle, first: int | None, last: int | None) -> tuple[int, ...]:
    """The layers from `first` to `last`; empty ends: five layers that end a third of the way up.

    Only the last of them where the matrices do not write into the residual stream directly.
    """
    top = len(handle.anatomy.blocks) // 3 if last is None else last
    if top < len(handle.anatomy.blocks) and not handle.anatomy.additive[top]:
        return (top,)
    return tuple(range(max(0, top - 4) if first is None else min(first, top), top + 1))


def sites(method: Method, handle: Handle) -> tuple[Site, ...]:
    """Every site the method edits."""
    return tuple(handle.anatomy.site(layer) for layer in method.layers(handle))


def cost(method: dials.Searching, handle: Handle, request: EditRequest, inside: bool = False) -> Cost:
    """Rank-one parts; factors of the statistics stay in fp64; passes of the search, then of each layer's keys.

    Args:
        inside: the search starts at the matrix and not behind its block.
    """
    places, last = sites(method, handle), method.layers(handle)[-1]
    row = handle.row(request.prompt, request.target, request.subject or "", request.form)
    at, further = row.subject or 0, algebra.context_tokens(method.contexts)
    rows, tail = method.contexts + 2, len(row.ids) - (row.subject or 0)
    first = last if inside else last + handle.anatomy.additive[last]
    reads = (rows - 1) * len(row.answer) + 1
    about = len(subject.FRAMES) if method.key == "subject" else method.contexts
    keys = [Pass(1 + about, at + 1 + (0 if method.key == "subject" else further), 0, site.layer) for site in places]
    again = [Pass(1, at + 1, 0, last) for _ in places[1:]]
    squares = [bytes_of_factor(site.d_in) for site in method.measured(handle)]
    search = Pass(rows, tail, first, None, reads, method.steps, backward=True, before=at + further, played=True)
    read = (Pass(rows, len(row.ids) + further, 0, len(handle.anatomy.blocks) - 1), search, *keys, *again)
    once = (*algebra.sampling(handle, method.contexts), *passes.trials(handle, search))
    patch = sum(4 * (site.d_in + site.d_out) for site in places)
    return Cost(patch, max(squares, default=0) // 64, read, 2 * sum(squares), once)


def _values(
    work: Work,
    wishes: Sequence[algebra.Wish],
    search: algebra.Search,
    layer: int,
    done: int,
    count: int,
    inside: bool,
) -> list[algebra.Value]:
    """What each request wants to see at the layer; `done` of `count` requests were searched before."""

    def listen(step: int, loss: float) -> None:
        words = "searching for the new value" + (f"s of requests {done + 1} to {end} of {count}" if count > 1 else "")
        work.report(Progress("edit", done * search.steps + step * len(wishes), count * search.steps, loss, words))
        work.check()

    handle, end = work.handle, done + len(wishes)
    site, block = handle.anatomy.site(layer), handle.anatomy.additive[layer] and not inside
    values = algebra.search_values(handle, site, wishes, search, listen, block=block)
    if any(value.clamped and value.loss > algebra.NOT_ENOUGH for value in values):
        work.notes.append("A new value reached its length limit; a higher limit may be needed.")
    return values
