"""GPT-2's forward pass on bare tensors, in the pieces the floors are put together from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn


@dataclass
class Bare:
    """GPT-2's forward pass as functions of its parameters."""

    model: Any

    def __post_init__(self) -> None:
        config = self.model.config
        self.body, self.width, self.heads = self.model.transformer, config.n_embd, config.n_head
        self.depth = config.n_layer

    def embed(self, ids: Tensor) -> Tensor:
        return self.body.wte.weight[ids] + self.body.wpe.weight[: ids.shape[1]]

    def norm(self, x: Tensor, layer: Any) -> Tensor:
        return fn.layer_norm(x, (self.width,), layer.weight, layer.bias, layer.eps)

    def attend(
        self, i: int, x: Tensor, before: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, Any]:
        block = self.body.h[i]
        rows, length, _ = x.shape
        mixed = torch.addmm(block.attn.c_attn.bias, self.norm(x, block.ln_1).flatten(0, 1), block.attn.c_attn.weight)
        q, k, v = mixed.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        own = (k, v)
        if before is not None:
            k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
        out = fn.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        out = out.transpose(1, 2).reshape(rows * length, -1)
        return x + torch.addmm(block.attn.c_proj.bias, out, block.attn.c_proj.weight).view_as(x), own

    def key(self, i: int, x: Tensor) -> Tensor:
        block = self.body.h[i]
        wide = torch.addmm(block.mlp.c_fc.bias, self.norm(x, block.ln_2).flatten(0, 1), block.mlp.c_fc.weight)
        return fn.gelu(wide, approximate="tanh").view(*x.shape[:2], -1)

    def value(self, i: int, key: Tensor) -> Tensor:
        site = self.body.h[i].mlp.c_proj
        return torch.addmm(site.bias, key.flatten(0, 1), site.weight).view(*key.shape[:2], -1)

    def block(self, i: int, x: Tensor, before: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None) -> Any:
        """The residual stream behind the block, and the block's own attention keys and values."""
        x, own = self.attend(i, x, before, mask)
        return x + self.value(i, self.key(i, x)), own

    def log_probabilities(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.norm(x, self.body.ln_f) @ self.model.lm_head.weight.T, -1)

    def up_to(self, ids: Tensor, layer: int) -> Tensor:
        """The residual stream in front of a block [rows, tokens, width]."""
        x = self.embed(ids)
        for i in range(layer):
            x = self.block(i, x)[0]
        return x

    def down_projection(self, layer: int) -> tuple[Tensor, Tensor]:
        """Weight [d_in, d_out] and bias [d_out]."""
        site = self.body.h[layer].mlp.c_proj
        return site.weight.detach(), site.bias.detach()


class Tails:
    """Rows of tokens, each from its first changed one on: below it and below the edited block everything has run once.

    `mid` [rows, tail, width]: the residual stream in front of the edited block's MLP; `read` [rows, tail, width]: what
    its attention adds to it; `key` and `value` [rows, tail, d_in or width]: input and output of the edited matrix.
    """

    @torch.no_grad()
    def __init__(self, bare: Bare, rows: Sequence[Any], starts: Sequence[int], layer: int) -> None:
        self.bare, self.layer, ids = bare, layer, padded([row.ids for row in rows])
        start, prefix = torch.tensor(starts), max(starts)
        tail = max(len(row.ids) - first for row, first in zip(rows, starts, strict=True))
        where = (start[:, None] + torch.arange(tail)).clamp(max=ids.shape[1] - 1)
        here = (torch.arange(len(rows))[:, None], where)
        below = bare.up_to(ids, layer)
        mid, _ = bare.attend(layer, below, None, None)
        key = bare.key(layer, mid)
        value = bare.value(layer, key)
        self.mid, self.read, self.key, self.value = (t[here] for t in (mid, mid - below, key, value))
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.mask = None
        if not prefix:
            return
        before = torch.arange(prefix) < start[:, None]
        causal = torch.ones(tail, tail, dtype=torch.bool).tril()
        seen = torch.cat([before[:, None].expand(-1, tail, -1), causal.expand(len(rows), -1, -1)], 2)[:, None]
        self.mask = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        x = (mid + value)[:, :prefix]
        for i in range(layer + 1, bare.depth):
            x, self.kept[i] = bare.block(i, x)

    def above(self, x: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
        """Log-probabilities [reads, vocabulary] at (row, place in its tail), from the stream behind the block."""
        for i in range(self.layer + 1, self.bare.depth):
            x = self.bare.block(i, x, self.kept.get(i), self.mask)[0]
        return self.bare.log_probabilities(x[places])


def padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Right-padded ids [rows, longest]."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids


def places(rows: Sequence[Any], starts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Where the answers' tokens are predicted: which row, and where in its tail."""
    found = [(i, p - first) for i, (row, first) in enumerate(zip(rows, starts, strict=True))
             for p in range(row.start - 1, len(row.ids) - 1)]  # fmt: skip
    return torch.tensor([i for i, _ in found]), torch.tensor([p for _, p in found])
