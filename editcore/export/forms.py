"""Which edits can be taken away as a change of matrices, and as which change of which matrix.

A patch whose parts look at the prompt (a codebook, a side memory, an edit memory) or stand in front of it (a header)
has no such form, and is refused by the name of its method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from editcore.errors import BadRequest, EditcoreError, UnknownMethod
from editcore.export.stack import Kept
from editcore.handle import Handle
from editcore.memory import Codebook, Header, Side
from editcore.patch import Dense, LowRank, Patch, attached
from editcore.scope import EditMemory

WHY = {
    Codebook: "keeps its answers in a codebook that looks at each prompt",
    Side: "sends some prompts through a second matrix and others not",
    Header: "is a text in front of every prompt",
    EditMemory: "keeps its edits as text beside the model and decides at each prompt",
}
FULL_SVD = 2048  # smaller side of a matrix up to which all singular values are computed


@dataclass
class Change:
    """What a stack adds to one module: y += (x read^T) write + x dense^T + bias, strengths folded in, fp32."""

    reads: list[Tensor] = field(default_factory=list)  # [r, d_in] each
    writes: list[Tensor] = field(default_factory=list)  # [r, d_out] each
    dense: Tensor | None = None  # [d_out, d_in]
    bias: Tensor | None = None  # [d_out]

    def add(self, part: LowRank | Dense, strength: float) -> None:
        """One more part on top."""
        if isinstance(part, LowRank):
            self.reads.append(part.read.float())
            self.writes.append(strength * part.write.float())
            return
        more = strength * part.weight.float()
        self.dense = more if self.dense is None else self.dense + more
        if part.bias is not None:
            shift = strength * part.bias.float()
            self.bias = shift if self.bias is None else self.bias + shift

    def delta(self) -> Tensor:
        """The change of the matrix as a whole [d_out, d_in]."""
        low = [write.T @ read for read, write in zip(self.reads, self.writes, strict=True)]
        pieces = [*low, *(() if self.dense is None else (self.dense,))]
        return torch.stack(pieces).sum(0) if len(pieces) > 1 else pieces[0]


def changes(handle: Handle, edits: Sequence[Kept], form: str) -> dict[str, Change]:
    """Module path -> what the stack adds there, in the order modules are first changed.

    Args:
        form: what is wanted, as a message names it: "adapter", "merged".

    Raises:
        BadRequest: an edit is no change of matrices; its method is named.
        PatchError: a patch does not fit the model.
        EditcoreError: the model is being used with edits in place.
    """
    if handle.standing:
        raise EditcoreError("Edits are in place on the model.", "The bare model was wanted.", "Leave `using` first.")
    with attached(handle.model, [patch for patch, _ in edits]):
        pass  # what cannot be attached cannot be exported: modules and shapes are checked there
    found: dict[str, Change] = {}
    for patch, _ in edits:
        for part in patch.parts:
            if not isinstance(part, LowRank | Dense):
                raise _formless(patch, part, form)
            found.setdefault(part.path, Change()).add(part.to(handle.device), patch.strength)
    return found


def _formless(patch: Patch, part: Any, form: str) -> BadRequest:
    others = "as an adapter or merged" if form == "adapter" else "merged or as an adapter"
    return BadRequest(
        f"An edit by {title(patch.method)} has no {form} form: it {WHY[type(part)]}.",
        f"Only a change of matrices can be taken away {others}.",
        "Export it as a patch, or switch it off first.",
    )


def title(method: str) -> str:
    """The method as people call it."""
    from editcore.methods import find_method  # here, as methods import much

    try:
        return find_method(method).title
    except UnknownMethod:
        return method


def truncated(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best approximation of `matrix` [d_out, d_in] by `rank` directions (exact up to `FULL_SVD`, else randomised).

    Returns:
        read [rank, d_in], write [rank, d_out], and the Frobenius norm of what is left out.
    """
    rank, small = min(rank, *matrix.shape), min(matrix.shape)
    if small <= FULL_SVD:
        left, values, right = torch.linalg.svd(matrix.float(), full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
            torch.manual_seed(0)
            left, values, right = torch.svd_lowrank(matrix.float(), q=min(rank + 16, small), niter=6)
        right = right.T
    read, write = right[:rank].contiguous(), (left[:, :rank] * values[:rank]).T.contiguous()
    return read, write, float((matrix - write.T @ read).norm())
