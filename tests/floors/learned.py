"""Floors of the methods that make an edit of one gradient: MEND, MALMEN, KE, ENN, UltraEdit.

What was trained or measured beforehand is an input: an editor's parameters, UltraEdit's means and spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn

from tests.floors.bare import Bare, padded

Pair = tuple[Tensor, Tensor]  # inputs or reads [tokens, d_in], gradients or writes [tokens, d_out]


class Gradient:
    """Inputs of the edited matrices and gradients of the answer's loss at their outputs, from the first of them on."""

    def __init__(self, model: Any, row: Any, layers: Sequence[int]) -> None:
        self.bare, self.row, self.layers = Bare(model), row, layers
        with torch.no_grad():
            x = self.bare.up_to(padded([row.ids]), layers[0])
            self.mid, _ = self.bare.attend(layers[0], x, None, None)
            self.key = self.bare.key(layers[0], self.mid)
        self.reads, self.answer = slice(row.start - 1, len(row.ids) - 1), torch.tensor(row.answer)

    def pairs(self, more: Callable[[int, Tensor], Tensor] | None = None) -> tuple[list[Pair], Tensor]:
        """One pair a layer over all tokens, and log-probabilities where the answer is predicted [tokens, vocabulary].

        Args:
            more: what is added to the output of the matrix with that number, for its input.
        """
        mid, key, x, keys, values = self.mid, self.key, self.mid, [], []
        for i in range(self.layers[0], self.bare.depth):
            if values:
                mid, _ = self.bare.attend(i, x, None, None)
                key = self.bare.key(i, mid)
            value = self.bare.value(i, key)
            if i in self.layers:
                value = value if more is None else value + more(len(keys), key)
                value = value if values else value.detach().requires_grad_(True)
                keys.append(key.detach()[0])
                values.append(value)
            x = mid + value
        out = self.bare.log_probabilities(x[0, self.reads])
        loss = -out.gather(1, self.answer[:, None]).mean()
        return [(k, g[0]) for k, g in zip(keys, torch.autograd.grad(loss, values), strict=True)], out.detach()

    def answering(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Only where an answer token is predicted."""
        return [(x[self.reads], g[self.reads]) for x, g in pairs]


@torch.no_grad()
def _turned(editor: Any, layer: int, pair: Pair) -> Pair:
    """The network of MEND and MALMEN, on the tokens that take part."""
    kind, z = editor.kind[layer], torch.cat(pair, -1)
    z = (z - editor.mean[kind]) / editor.std[kind]
    for block in range(2):
        j, scale, offset = 2 * kind + block, editor.scale[layer][block], editor.offset[layer][block]
        inner = torch.addmm(editor.bias[j], z @ editor.down[j].T, editor.up[j].T)
        inner = torch.addcmul(offset, scale, inner.relu() if editor.outside else inner)
        z = z + (inner if editor.outside else inner.relu())
    turned, other = torch.split(z, [pair[0].shape[-1], pair[1].shape[-1]], -1)
    return turned, other


def _taking_part(pairs: Sequence[Pair]) -> list[Pair]:
    """Without the tokens that matter to no answer."""
    kept = [g.abs().amax(-1) > 0 for _, g in pairs]
    return [(x[k], g[k]) for (x, g), k in zip(pairs, kept, strict=True)]


def mend(model: Any, row: Any, layers: Sequence[int], editor: Any, strength: float) -> list[Pair]:
    """One pair of reads and writes a layer."""
    pairs, _ = Gradient(model, row, layers).pairs()
    turned = [_turned(editor, i, pair) for i, pair in enumerate(_taking_part(pairs))]
    steps = -strength * editor.log_step.exp()
    return [(read, step * write) for step, (read, write) in zip(steps, turned, strict=True)]


@torch.no_grad()
def _solved(keys: Tensor, asked: Tensor, ridge: Tensor) -> Tensor:
    """(K K^T + ridge I)^-1 D in fp64, for K [tokens, d_in] and D [tokens, d_out]."""
    gram = keys.double() @ keys.double().T
    gram.diagonal().add_(ridge)
    return torch.linalg.solve(gram, asked.double()).float()


def malmen(model: Any, row: Any, layers: Sequence[int], editor: Any, strength: float) -> list[Pair]:
    """One pair of reads and writes a layer."""
    gradient, found = Gradient(model, row, layers), []
    for i, (x, g) in enumerate(gradient.answering(gradient.pairs()[0])):
        turned, delta = _turned(editor, i, (x, g))
        asked = -editor.log_step[i].exp() * (x * turned).sum(-1, keepdim=True) * delta
        found.append((x, strength * _solved(x, asked, editor.log_weight[i].exp())))
    return found


def _joined(one: Pair, other: Pair) -> Pair:
    return torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]])


def enn(model: Any, row: Any, layers: Sequence[int], editor: Any, strength: float) -> list[Any]:
    """The start of each layer [d_out, d_in], then one pair of reads and writes a layer."""
    gradient, starts, steps = Gradient(model, row, layers), [m.detach() for m in editor.matrices], editor.log_step.exp()
    taken: list[Pair] = []

    def more(i: int, key: Tensor) -> Tensor:
        value = key @ starts[i].T
        return value + (key @ taken[i][0].T) @ taken[i][1] if taken else value

    for step in steps:
        pairs = _taking_part(gradient.pairs(more)[0])
        found = [(x, -a * g) for a, (x, g) in zip(step, pairs, strict=True)]
        taken = [_joined(*both) for both in zip(taken, found, strict=True)] if taken else found
    return [*starts, *((x, strength * g) for x, g in taken)]


def ke(model: Any, row: Any, layers: Sequence[int], editor: Any, strength: float) -> list[Pair]:
    """One pair of reads and writes a layer; the last token stands for what the network adds."""
    pairs, out = Gradient(model, row, layers).pairs()
    table, width, found = model.transformer.wte.weight, model.config.n_embd, []

    def embedded(ids: Sequence[int]) -> Tensor:
        return fn.layer_norm(table[torch.as_tensor(ids)], (width,))

    with torch.no_grad():
        old, new, asked = (embedded(ids) for ids in (out.argmax(-1), row.answer, row.ids[: row.start]))
        said = (old, editor.marks[:1], new, editor.marks[1:], asked)
        last = editor.reader(torch.cat(said)[:, None])[1][0]
        summary = torch.tanh(editor.summary(last.flatten()))
        for i, (x, g) in enumerate(_taking_part(pairs)):
            d_in, d_out = x.shape[-1], g.shape[-1]
            said = editor.outer[i](torch.tanh(editor.inner[i](summary)))
            alpha, beta, gamma, delta, eta = torch.split(said, [d_out, d_out, d_in, d_in, 1])
            step = strength * editor.log_step[i].exp() * eta.sigmoid()
            alpha, beta = (d_out * step * v.softmax(-1) for v in (alpha, beta))
            write = torch.cat([alpha / editor.size[i] * g, (beta * (d_in * d_out) ** -0.5)[None]])
            found.append((torch.cat([gamma * x, delta[None]]), write))
    return found


def ultraedit(model: Any, row: Any, layers: Sequence[int], normal: Sequence[Pair], rate: float) -> list[Pair]:
    """One pair of reads and writes a layer; `normal`: mean and spread of [input; gradient] of each."""
    gradient, found = Gradient(model, row, layers), []
    for (x, g), (mean, std) in zip(gradient.answering(gradient.pairs()[0]), normal, strict=True):
        z, g_ = torch.split((torch.cat([x, g], -1) - mean) / std, [x.shape[-1], g.shape[-1]], -1)
        found.append((x, _solved(x, -rate * z.square().sum(-1, keepdim=True) * g_, torch.tensor(1.0))))
    return found
