"""Edits that are remembered beside the model: answers found by a prompt's key, a second matrix, a text in front.

These parts of a patch do not add to a matrix. Each row of a batch is decided on its own, at its prompt, and the
decision holds for the answer that follows: what else is in the batch, and how it is padded, does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from editcore.errors import PatchError
from editcore.prompts import Prompts

OWN = ("keys", "values", "radii", "spans", "answers")  # one row for each entry


@dataclass(frozen=True)
class Codebook:
    """Answers kept by key: where a prompt's last input is within a radius of a key, the output there is its value.

    Several codebooks of one module are read as one (see `Shelf`). Entries that this one narrows are not copied, only
    named by their key, so that taking either patch away leaves the other as it was made.
    """

    path: str
    keys: Tensor  # [n, d_in], fp32
    values: Tensor  # [n, d_out], fp32
    radii: Tensor  # [n], fp32: Euclidean distance from the key
    spans: Tensor  # [n], int64: tokens the value stands at, from the prompt's last one on
    answers: Tensor  # [n], int64: entries with equal numbers give the same answer
    narrowed: Tensor  # [m, d_in], fp32: keys of entries in codebooks below this one
    limits: Tensor  # [m], fp32: the radius each of them has at most while this one is in place

    @property
    def rank(self) -> int:
        """0: no matrix is changed."""
        return 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in (*OWN, "narrowed", "limits")}

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """What each tensor must measure on a module of that size."""
        n, m = self.radii.numel(), self.limits.numel()
        own = {"keys": (n, d_in), "values": (n, d_out), "radii": (n,), "spans": (n,), "answers": (n,)}
        return {**own, "narrowed": (m, d_in), "limits": (m,)}

    def norm(self) -> float:
        """0: no matrix is changed."""
        return 0.0

    def to(self, device: torch.device) -> Codebook:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class Side:
    """A changed copy of a matrix, kept as what differs, for the prompts that excite the change.

    A row whose prompt has mean_t ||delta x_t|| >= threshold, over all its tokens or the last few, reads through
    W + delta: prompt and answer.
    """

    path: str
    index: Tensor  # [k], int32: places in the flattened matrix [d_out * d_in]
    values: Tensor  # [k], fp32: what is added there
    threshold: Tensor  # [1], fp32
    window: Tensor  # [1], int64: how many of the prompt's last tokens are asked; 0: all

    @property
    def rank(self) -> None:
        return None

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"index": self.index, "values": self.values, "threshold": self.threshold, "window": self.window}

    def shapes(self, d_in: int, d_out: int) -> dict[str, tuple[int, ...]]:
        """What each tensor must measure on a module of that size.

        Raises:
            PatchError: a place lies outside the matrix.
        """
        if self.index.numel() and not 0 <= int(self.index.min()) <= int(self.index.max()) < d_in * d_out:
            raise PatchError(f"The patch changes places outside a matrix of shape [{d_out}, {d_in}].")
        count = self.values.numel()
        return {"index": (count,), "values": (count,), "threshold": (1,), "window": (1,)}

    def norm(self) -> float:
        """Frobenius norm of the change."""
        return math.sqrt(float(self.values.double().square().sum()))

    def to(self, device: torch.device) -> Side:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, **moved)

    def delta(self, d_in: int, d_out: int) -> Tensor:
        """The change as a full matrix [d_out, d_in], fp32."""
        full = torch.zeros(d_out * d_in, device=self.values.device)
        return full.index_put_((self.index.long(),), self.values).reshape(d_out, d_in)


@dataclass(frozen=True)
class Header:
    """A text in front of every prompt; the model itself is not touched."""

    path: str  # "": no module
    text: Tensor  # [bytes], uint8: UTF-8

    @staticmethod
    def of(text: str) -> Header:
        """The header that reads `text`."""
        return Header("", torch.tensor(list(text.encode()), dtype=torch.uint8))

    def __str__(self) -> str:
        return bytes(self.text.tolist()).decode()

    @property
    def rank(self) -> int:
        """0: no matrix is changed."""
        return 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"text": self.text}

    def norm(self) -> float:
        """0: no matrix is changed."""
        return 0.0

    def to(self, device: torch.device) -> Header:
        return self


class Shelf:
    """The codebooks of one module, read as one; the last is on top.

    The nearest key decides, and the value counts if it is within that key's radius. Of entries with the same key the
    topmost counts, and an entry is at most as wide as a codebook above it says.
    """

    def __init__(self, books: Sequence[tuple[Codebook, float]]) -> None:
        """`books`: each with its strength; 0 leaves it out."""
        kept: dict[bytes, dict[str, Tensor]] = {}
        for book, strength in books:
            if strength == 0.0:
                continue
            for name, limit in zip(_names(book.narrowed), book.limits, strict=True):
                if name in kept:
                    kept[name]["radii"] = torch.minimum(kept[name]["radii"], limit)
            for i, name in enumerate(_names(book.keys)):
                own = {what: getattr(book, what)[i] for what in OWN}
                kept[name] = {**own, "strengths": torch.tensor(strength, device=book.keys.device)}
        self.size = len(kept)
        self.entries = {what: torch.stack([e[what] for e in kept.values()]) for what in (*OWN, "strengths") if kept}

    def nearest(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the nearest key to each query [rows, d_in], and its distance, both [rows]; needs an entry."""
        # Plain differences: the distance of a key from itself is zero, which products would not give.
        distance = (query.float()[:, None] - self.entries["keys"]).norm(dim=-1)
        found = distance.min(1)
        return found.indices, found.values

    def answer(self, x: Tensor, y: Tensor, prompts: Prompts) -> Tensor:
        """y [rows, tokens, d_out], or the same flat, with the values where prompts are recognised.

        The pass that reads the prompts decides; the passes after it go on for as many tokens as a value stands at.
        """
        if not self.size:
            return y
        rows, begin = len(prompts.tokens), torch.zeros(len(prompts.tokens), dtype=torch.long, device=x.device)
        if self not in prompts.held:
            begin = prompts.last
            found, distance = self.nearest(x.reshape(rows, -1, x.shape[-1])[torch.arange(rows, device=x.device), begin])
            spans = self.entries["spans"][found] * (distance <= self.entries["radii"][found])
            prompts.held[self] = torch.stack([found, spans])
        found, left = prompts.held[self]
        if not bool(left.any()):
            return y
        wide = y.reshape(rows, -1, y.shape[-1])
        offset = torch.arange(wide.shape[1], device=x.device) - begin[:, None]
        here = ((offset >= 0) & (offset < left[:, None]))[..., None]
        prompts.held[self] = torch.stack([found, (left - wide.shape[1] + begin).clamp(min=0)])
        values, strengths = self.entries["values"][found][:, None], self.entries["strengths"][found][:, None, None]
        return torch.where(here, torch.lerp(wide.float(), values, strengths).to(y.dtype), wide).reshape(y.shape)


def _names(keys: Tensor) -> list[bytes]:
    """Each key [n, d_in] as something a table can be asked for."""
    return [key.tobytes() for key in keys.cpu().numpy()]


class Gate:
    """The side matrices of one module; each row goes to the one its prompt excites most, or to none."""

    def __init__(self, sides: Sequence[tuple[Side, float]], d_in: int, d_out: int) -> None:
        """`sides`: each with its strength; 0 leaves it out."""
        used = [(side, strength) for side, strength in sides if strength != 0.0]
        self.deltas = [side.delta(d_in, d_out) for side, _ in used]
        self.thresholds = [side.threshold for side, _ in used]
        self.windows = [int(side.window) for side, _ in used]
        self.strengths = [strength for _, strength in used]

    def addition(self, x: Tensor, prompts: Prompts) -> Tensor | None:
        """What is added to y for input x, like it in shape, fp32; None where no row goes to a side."""
        if not self.deltas:
            return None
        rows = len(prompts.tokens)
        wide = x.reshape(rows, -1, x.shape[-1]).float()
        if self not in prompts.held:
            share = torch.stack([
                excitement(wide, delta, asked(prompts.tokens, window)) / threshold
                for delta, threshold, window in zip(self.deltas, self.thresholds, self.windows, strict=True)
            ])  # fmt: skip
            best = share.max(0)
            prompts.held[self] = torch.where(best.values >= 1.0, best.indices, -1)
        chosen, total = prompts.held[self], None
        for number, (delta, strength) in enumerate(zip(self.deltas, self.strengths, strict=True)):
            here = (chosen == number)[:, None, None]
            if bool(here.any()):
                more = torch.where(here, wide @ delta.T * strength, 0.0)
                total = more if total is None else total + more
        return None if total is None else total.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Asked:
    """Tokens that are asked whether they excite a side copy, laid out once."""

    line: Tensor  # row of each [tokens asked]
    place: Tensor  # and where in it
    tokens: Tensor  # which of all are asked [rows, tokens], bool


def asked(tokens: Tensor, window: int = 0) -> Asked:
    """The last `window` of each row's `tokens` [rows, tokens], bool; 0 asks all of them."""
    if window:
        behind = tokens.flip(1).cumsum(1).flip(1)  # real tokens from here on
        tokens = tokens & (behind <= window)
    line, place = torch.nonzero(tokens, as_tuple=True)
    return Asked(line, place, tokens)


def excitement(x: Tensor, delta: Tensor, of: Asked) -> Tensor:
    """mean_t ||delta x_t|| [rows], fp32, over the tokens asked of x [rows, tokens, d_in]."""
    lengths = (x[of.line, of.place].float() @ delta.T).norm(dim=-1)
    total: Tensor = lengths.new_zeros(of.tokens.shape).index_put((of.line, of.place), lengths).sum(1)
    return total / of.tokens.sum(1)
