"""The gradient of an answer, in factors; and passes in which every text has its own low-rank change.

For a matrix with inputs x_t and gradients delta_t of the loss at its outputs, dL/dW = sum_t delta_t x_t^T: a sum over
tokens, never formed. Learned editors work on these factors (Mitchell et al. 2022, section 3.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.layout import Layout, logits_at
from editcore.method import Cost, Pass
from editcore.resume import Upper
from editcore.spans import Row


@dataclass(frozen=True)
class Factors:
    """Per site: what the change of its matrix is made of, one term a token; W gains sum_t write_t read_t^T."""

    read: tuple[Tensor, ...]  # [texts, tokens, d_in] each
    write: tuple[Tensor, ...]  # [texts, tokens, d_out] each

    def of(self, texts: Tensor) -> Factors:
        """The terms of some texts, in the order of the indices [rows]."""
        return Factors(tuple(t[texts] for t in self.read), tuple(t[texts] for t in self.write))

    def joined(self, other: Factors) -> Factors:
        """Both changes at once."""
        pairs = [zip(mine, its, strict=True) for mine, its in ((self.read, other.read), (self.write, other.write))]
        read, write = (tuple(torch.cat(pair, 1) for pair in group) for group in pairs)
        return Factors(read, write)


def cost(
    handle: Handle, sites: Sequence[Site], row: Row, more: int = 0, steps: int = 1, answering: bool = False,
    moved: int = 0,
) -> Cost:  # fmt: skip
    """Of edits made of one answer's gradient; see `trained.cost`."""
    lowest, top = min(site.layer for site in sites), len(handle.anatomy.blocks) - 1
    ranks = [len(row.answer) if answering or site.layer == top else len(row.ids) - 1 for site in sites]
    patch = sum(4 * (steps * rank + more) * (site.d_in + site.d_out) for rank, site in zip(ranks, sites, strict=True))
    below = Pass(1, len(row.ids), 0, lowest - 1)
    above = Pass(1, len(row.ids), lowest, None, len(row.answer), steps, backward=True)
    return Cost(patch, 2 * patch, (below, above), moved)


@dataclass(frozen=True)
class Texts:
    """Rows of tokens as one right-padded batch, with the places that predict their answers."""

    layout: Layout
    line: Tensor  # [answer tokens]: which row
    place: Tensor  # [answer tokens]: the place in what says the answers whose logits predict the token
    wanted: Tensor  # [answer tokens]: its id

    @property
    def ids(self) -> Tensor:
        """[rows, longest]: prompts and answers, or the prompts alone where an encoder reads them."""
        return self.layout.ids

    @property
    def mask(self) -> Tensor:
        """1 where a token of `ids` is real."""
        return self.layout.mask

    def prompt(self, row: int) -> Tensor:
        """The prompt of one row [tokens]."""
        first = int(self.place[self.line == row][0])
        length = first + 1 if self.layout.said is None else int(self.mask[row].sum())
        return self.ids[row, :length]

    @property
    def rows(self) -> int:
        return int(self.ids.shape[0])

    def mean_by_row(self, values: Tensor) -> Tensor:
        """The mean over each row's answer tokens [rows], of values [answer tokens]."""
        total = torch.zeros(self.rows, device=values.device).index_add(0, self.line, values)
        return total / torch.bincount(self.line, minlength=self.rows).clamp_min(1)


def texts(handle: Handle, rows: Sequence[Row]) -> Texts:
    """A batch of prompts with answers."""
    layout = handle.layout(rows)
    at = [(i, p) for i, row in enumerate(rows) for p in range(row.start - 1, len(row.ids) - 1)]
    line, position = (torch.tensor([pair[j] for pair in at], device=layout.ids.device) for j in (0, 1))
    place = position + layout.shift[line]
    return Texts(layout, line, place, layout.next(line, place))


def log_probabilities(handle: Handle, batch: Texts, fast: bool = False) -> Tensor:
    """Of every next token, at the places that predict the answers: [answer tokens, vocabulary], fp32.

    The head runs at those places only.

    Args:
        fast: products in bfloat16.
    """
    with torch.autocast(batch.ids.device.type, torch.bfloat16, enabled=fast):
        logits = logits_at(handle.model, batch.layout, batch.line, batch.place)
    return torch.log_softmax(logits.to(batch.ids.device).float(), -1)


def losses(log_p: Tensor, batch: Texts) -> Tensor:
    """-(1/|y|) sum_t log p(y_t) of each row [rows]."""
    return -batch.mean_by_row(log_p.gather(1, batch.wanted[:, None])[:, 0])


def added(x: Tensor, y: Tensor, read: Tensor, write: Tensor) -> Tensor:
    """y with each row's own low-rank change: y += (x read^T) write."""
    read, write = read.to(x.device), write.to(x.device)
    weights = torch.bmm(x.float().reshape(len(read), -1, x.shape[-1]), read.transpose(1, 2))
    return y + torch.bmm(weights, write).reshape(y.shape).to(y.dtype)


@contextmanager
def changed(sites: Sequence[Site], factors: Factors) -> Iterator[None]:
    """While the block runs, each row of a pass has the change of the same row of `factors` in place."""

    def add(read: Tensor, write: Tensor) -> Any:
        def hook(_m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            return added(args[0], out, read, write)

        return hook

    hooks = [
        site.module.register_forward_hook(add(r, w))
        for site, r, w in zip(sites, factors.read, factors.write, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def gradients(
    handle: Handle, sites: Sequence[Site], batch: Texts, fast: bool = False, graph: bool = False
) -> tuple[Factors, Tensor]:
    """The factors of every row's own gradient, and the log-probabilities it was taken at [answer tokens, vocabulary].

    read: the site's input at every token; write: the gradient of the row's loss at the site's output, 0 where the
    output matters to no answer and at padding. Both fp32.

    Args:
        graph: keep what a second derivative needs; without it the factors are plain values.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        out = out if out.requires_grad else out.detach().requires_grad_(True)
        seen[module] = args[0], out
        return out.clone()  # some families (Falcon) add to it in place

    hooks = [site.module.register_forward_hook(keep) for site in sites]
    try:
        # Of the attention kernels only the plain one can be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if graph else nullcontext():
            log_p = log_probabilities(handle, batch, fast)
            outputs = [seen[site.module][1] for site in sites]
            found = torch.autograd.grad(losses(log_p, batch).sum(), outputs, create_graph=graph)
    finally:
        for hook in hooks:
            hook.remove()
    real = [batch.layout.real(site.encoder) for site in sites]
    read = [
        seen[site.module][0].reshape(*r.shape, -1).float().to(r.device) for site, r in zip(sites, real, strict=True)
    ]
    write = [g.reshape(*r.shape, -1).float().to(r.device) * r[..., None] for g, r in zip(found, real, strict=True)]
    if not graph:
        read, write, log_p = [x.detach() for x in read], [g.detach() for g in write], log_p.detach()
    return Factors(tuple(read), tuple(write)), log_p


class Again:
    """`gradients` at the same texts again and again: what no change of the sites can reach is run once.

    Made and used with the same patches in place.
    """

    def __init__(self, handle: Handle, sites: Sequence[Site], batch: Texts) -> None:
        self.sites, self.batch = sites, batch
        self.lowest = min(range(len(sites)), key=lambda i: sites[i].layer)
        lengths = batch.mask.sum(1).tolist()
        rows = tuple(tuple(row[:length]) for row, length in zip(batch.ids.tolist(), lengths, strict=True))
        reads: list[list[int]] = [[] for _ in rows]
        for line, place in zip(batch.line.tolist(), batch.place.tolist(), strict=True):
            reads[line].append(place)
        self.upper = Upper(handle, sites[self.lowest], rows, (0,) * len(rows), tuple(map(tuple, reads)))

    def gradients(self, more: Factors | None = None) -> Factors:
        """See `gradients`, with each row's change `more` in place as in `changed`."""
        x, y, low = self.upper.x, self.upper.y, self.lowest
        y = y if more is None else added(x, y, more.read[low], more.write[low])
        start = y.detach().requires_grad_(True)
        seen = {low: (x, start)}
        with torch.enable_grad(), self._above(more, seen):
            log_p = self.upper.run(lambda _x, _y: start)
            outputs = [seen[i][1] for i in range(len(self.sites))]
            found = torch.autograd.grad(losses(log_p, self.batch).sum(), outputs)
        shape, real = (*self.batch.ids.shape, -1), self.batch.mask[..., None]
        read = tuple(seen[i][0].reshape(shape).float().detach().to(real.device) for i in range(len(self.sites)))
        return Factors(read, tuple(g.reshape(shape).float().to(real.device) * real for g in found))

    @contextmanager
    def _above(self, more: Factors | None, seen: dict[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
        """While the block runs, the sites above the lowest are changed, and noted as `seen`: input and output."""
        above = [i for i in range(len(self.sites)) if i != self.lowest]

        def note(i: int) -> Any:
            def hook(_m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
                seen[i] = args[0], out

            return hook

        some = [self.sites[i] for i in above]
        part = None if more is None else Factors(*(tuple(t[i] for i in above) for t in (more.read, more.write)))
        with nullcontext() if part is None else changed(some, part):
            hooks = [self.sites[i].module.register_forward_hook(note(i)) for i in above]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()
