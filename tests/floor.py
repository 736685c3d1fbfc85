"""The least work an edit of a GPT-2-architecture model can take: the same mathematics on bare tensors, nothing wasted.

A yardstick for `make bench`, not a method. Below the edited block everything runs once; above it only positions from
the subject's last token on; the head only where the loss reads.
"""

from __future__ import annotations

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

    def block(
        self, i: int, x: Tensor, before: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Any, Tensor, Tensor]:
        x, own = self.attend(i, x, before, mask)
        key = self.key(i, x)
        site = self.body.h[i].mlp.c_proj
        value = torch.addmm(site.bias, key.flatten(0, 1), site.weight).view_as(x)
        return x + value, own, key, value

    def log_probabilities(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.norm(x, self.body.ln_f) @ self.model.lm_head.weight.T, -1)


def padded(rows: list[Any]) -> Tensor:
    """Right-padded ids [rows, longest]."""
    ids = torch.zeros(len(rows), max(len(r.ids) for r in rows), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
    return ids


@torch.no_grad()
def all_keys(bare: Bare, rows: list[Any], layer: int) -> tuple[Tensor, Tensor]:
    """Input of the edited matrix at every token of the rows [tokens, d_in], and 1 at a subject, else 0 [tokens]."""
    ids = padded(rows)
    x = bare.embed(ids)
    for i in range(layer):
        x = bare.block(i, x)[0]
    keys = bare.key(layer, bare.attend(layer, x, None, None)[0])
    line, at = torch.arange(len(rows)), torch.tensor([r.subject for r in rows])
    wanted = torch.zeros(ids.shape, dtype=torch.float64)
    wanted[line, at] = 1.0
    real = torch.arange(ids.shape[1]) < torch.tensor([len(r.ids) for r in rows])[:, None]
    kept = real & ((ids != ids[line, at][:, None]) | (wanted > 0))
    return keys[kept].double(), wanted[kept]


def rome_floor(
    model: Any, rows: list[Any], essence: Any, about: list[Any], layer: int, dials: Any, solve: Any
) -> tuple[Tensor, Tensor]:
    """The rank-one factors (read, write) of ROME's wide form.

    Rows of tokens, the bare prompt first; `about`: sentences about the subject; `solve` applies C^-1 to columns.
    """
    bare, everything = Bare(model), [*rows, essence]
    count, ids = len(everything), padded(everything)
    longest = ids.shape[1]
    start = torch.tensor([r.subject for r in everything])
    tail = max(len(r.ids) - r.subject for r in everything)
    prefix, line = int(start.max()), torch.arange(count)
    where = (start[:, None] + torch.arange(tail)).clamp(max=longest - 1)
    open_before = torch.arange(prefix)[None] < start[:, None]
    open_tail = torch.ones(tail, tail, dtype=torch.bool).tril()
    allowed = torch.cat([open_before[:, None].expand(-1, tail, -1), open_tail.expand(count, -1, -1)], 2)[:, None]
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    with torch.no_grad():
        x = bare.embed(ids)
        for i in range(layer + 1):
            x, _, _, value = bare.block(i, x)
        size = value[0, start[0]].norm()
        kept, y = {}, x
        for i in range(layer + 1, bare.depth):
            y, (k, v), _, _ = bare.block(i, y)
            kept[i] = (k[:, :, :prefix].contiguous(), v[:, :, :prefix].contiguous())
        hidden = x[line[:, None], where]
    answers = torch.tensor([row.answer for row in rows])
    reads = torch.tensor([[p - r.subject for p in range(r.start - 1, len(r.ids) - 1)] for r in rows])
    delta, before = torch.zeros(bare.width, requires_grad=True), None
    optimiser = torch.optim.Adam([delta], lr=dials.rate, betas=(dials.momentum, 0.999))
    for step in range(dials.steps):
        x = torch.cat([hidden[:, :1] + delta, hidden[:, 1:]], 1)
        for i in range(layer + 1, bare.depth):
            x = bare.block(i, x, kept[i], mask)[0]
        wanted = torch.cat([x[line[:-1, None], reads].flatten(0, 1), x[-1:, 0]])
        out = bare.log_probabilities(wanted)
        before = out[-1].detach() if before is None else before
        picked = out[:-1].view(*answers.shape, -1).gather(2, answers[..., None])[..., 0]
        near = fn.kl_div(before, out[-1], log_target=True, reduction="sum")
        loss = -picked.mean() + dials.kl * near + dials.decay * delta.norm() / size**2
        if loss.item() < dials.enough or step == dials.steps - 1:
            break
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            delta.mul_((dials.limit * size / delta.norm().clamp_min(1e-12)).clamp(max=1.0))
    keys, wanted = all_keys(bare, [*rows, *about], layer)
    solved = solve(keys.T)
    gram = keys @ solved
    gram += 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return (solved @ torch.linalg.solve(gram, wanted)).float(), delta.detach()


def ft_floor(
    model: Any, row: Any, layer: int, rate: float, steps: int, enough: float, distance: float | None
) -> Tensor:
    """Fine-tuning's change of the edited matrix [d_in, d_out]; `distance` bounds every entry."""
    bare, site = Bare(model), model.transformer.h[layer].mlp.c_proj
    ids = torch.tensor([row.ids])
    with torch.no_grad():
        x = bare.embed(ids)
        for i in range(layer):
            x = bare.block(i, x)[0]
        x, _ = bare.attend(layer, x, None, None)
        key = bare.key(layer, x)[0]
    start = [site.weight.detach(), site.bias.detach()]
    weight, bias = (t.clone().requires_grad_(True) for t in start)
    optimiser = torch.optim.Adam([weight, bias], lr=rate)
    answer = torch.tensor(row.answer)
    for step in range(steps):
        y = x + torch.addmm(bias, key, weight)
        for i in range(layer + 1, bare.depth):
            y = bare.block(i, y)[0]
        out = bare.log_probabilities(y[0, row.start - 1 : len(row.ids) - 1])
        loss = -out.gather(1, answer[:, None]).mean()
        if loss.item() < enough or step == steps - 1:
            break
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if distance is not None:
            with torch.no_grad():
                for value, origin in zip((weight, bias), start, strict=True):
                    value.copy_(value.maximum(origin - distance).minimum(origin + distance))
    return weight.detach() - start[0]
