"""A network that turns the gradient of one answer, token by token, into a better one: what MEND and MALMEN share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from editcore import gradients, learned
from editcore.anatomy import Site
from editcore.gradients import Texts
from editcore.handle import Handle

SMALLEST = 1e-7  # standard deviation a dimension is divided by at least
SCALE_RATE = 10.0  # what is one number a layer learns this much faster than the network
BLOCKS = 2


class GradientEditor(learned.Editor):
    """One network for all matrices of a shape, with a scale and an offset of each layer's own.

        z_t = [norm(x_t); norm(delta_t)];   twice: z <- z + block(z);   [x~_t; delta~_t] = z

    block(z) is relu(s * (U V z + b) + o), or s * relu(U V z + b) + o where `outside`. U = 0 at first, so that training
    starts from the normalised gradient. The normaliser is measured before training.

    Args:
        rank: rows of V.
    """

    outside: ClassVar[bool] = False  # scale and offset come after the clamp

    def __init__(self, sites: Sequence[Site], rank: int = 192) -> None:
        super().__init__(sites)
        self.shapes = sorted({(s.d_in, s.d_out) for s in sites})
        self.kind = [self.shapes.index((s.d_in, s.d_out)) for s in sites]
        random = torch.Generator().manual_seed(0)
        self.mean, self.std = nn.ParameterList(), nn.ParameterList()
        self.up, self.down, self.bias = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for d_in, d_out in self.shapes:
            width = d_in + d_out
            self.mean.append(nn.Parameter(torch.zeros(width), requires_grad=False))
            self.std.append(nn.Parameter(torch.ones(width), requires_grad=False))
            for _ in range(BLOCKS):
                self.up.append(nn.Parameter(torch.zeros(width, rank)))
                self.down.append(nn.Parameter(torch.randn(rank, width, generator=random) * width**-0.5))
                self.bias.append(nn.Parameter(torch.zeros(width)))
        widths = [self.shapes[k][0] + self.shapes[k][1] for k in self.kind]
        self.scale = nn.ParameterList([nn.Parameter(torch.ones(BLOCKS, w)) for w in widths])
        self.offset = nn.ParameterList([nn.Parameter(torch.zeros(BLOCKS, w)) for w in widths])
        self.log_step = nn.Parameter(torch.full((len(self.sites),), -9.0))

    def quick(self) -> list[nn.Parameter]:
        """What is one number a layer."""
        return [self.log_step]

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The network, and single numbers at their own rate."""
        quick = self.quick()
        rest = [p for p in self.parameters() if p.requires_grad and not any(p is q for q in quick)]
        return [{"params": rest, "lr": rate}, {"params": quick, "lr": rate * SCALE_RATE}]

    def counts(self, batch: Texts, delta: Tensor) -> Tensor:
        """Which tokens take part [rows, tokens]: those that matter to the answer."""
        return delta.abs().amax(-1) > 0

    def calibrate(self, handle: Handle, batches: Sequence[Texts]) -> None:
        """Mean and standard deviation of every dimension over the tokens that take part."""
        seen: list[list[Tensor]] = [[] for _ in self.shapes]
        with handle.using([]):
            for batch in batches:
                factors, _ = gradients.gradients(handle, self.sites, batch)
                for kind, x, delta in zip(self.kind, factors.read, factors.write, strict=True):
                    seen[kind].append(torch.cat([x, delta], -1)[self.counts(batch, delta)])
        for kind, rows in enumerate(seen):
            every = torch.cat(rows)
            self.mean[kind].data = every.mean(0)
            self.std[kind].data = every.std(0).clamp_min(SMALLEST)

    def turned(self, handle: Handle, batch: Texts, fast: bool) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per site: x as read, x~ and delta~ [n, width each] of the n tokens that take part, and which they are.

        The last is [rows, tokens]; `laid_out` puts values back in their places.
        """
        factors, _ = gradients.gradients(handle, self.sites, batch, fast)
        for i, (x, delta) in enumerate(zip(factors.read, factors.write, strict=True)):
            kind, taking = self.kind[i], self.counts(batch, delta)
            read = x[taking]
            z = (torch.cat([read, delta[taking]], -1) - self.mean[kind]) / self.std[kind]
            for block in range(BLOCKS):
                j = BLOCKS * kind + block
                inner = torch.addmm(self.bias[j], z @ self.down[j].T, self.up[j].T)
                scale, offset = self.scale[i][block], self.offset[i][block]
                z = z + (scale * _positive(inner) + offset if self.outside else _positive(scale * inner + offset))
            turned, other = torch.split(z, [x.shape[-1], delta.shape[-1]], -1)
            yield read, turned, other, taking


def laid_out(values: Tensor, taking: Tensor) -> Tensor:
    """Values [n, width] of the tokens that take part in their places [rows, tokens, width]; 0 elsewhere."""
    return values.new_zeros(*taking.shape, values.shape[-1]).index_put((taking,), values)


def _positive(value: Tensor) -> Tensor:
    """max(value, 0). In training not `relu`: its gradient at 0, where all of training starts, is 0."""
    return torch.where(value >= 0, value, torch.zeros_like(value)) if value.requires_grad else value.relu()
