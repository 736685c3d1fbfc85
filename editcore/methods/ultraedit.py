"""UltraEdit: one gradient, normalised and solved in closed form; nothing is trained (Gu et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from editcore import corpus, dials, gradients
from editcore.anatomy import Site
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import LowRank, Patch
from editcore.records import EditRequest, Progress
from editcore.spans import Row
from editcore.spread import sites, span

PRIMED_ON = 64  # texts
CUT = 4  # tokens at the end of a text that stand for an answer
LENGTH = 24  # tokens of such a text
PRIMED_TOKENS = 2 * PRIMED_ON * LENGTH  # of running text, from which the texts are cut
LEAST_SPREAD = 0.01  # standard deviation a dimension is divided by at least, in means over its kind


@dataclass(frozen=True)
class UltraEdit:
    """Keys and gradients at the answer's positions, normalised, then a ridge solution for all of them.

        h^, g^ = (h - mean) / std, (g - mean) / std;   v = -rate * ||h^||^2 g^
        W <- W + ((H H^T + I)^-1 V)^T H                                        (Gu et al. 2025, arXiv 2505.14679)

    h, g: input of W and gradient at its output where an answer token is predicted -> `gradients.gradients`
    mean, std: over texts that end in another text's words, since a single edit has no spread of its own -> `_prime`
    The solve is one of n x n for n answer tokens; it equals (H^T H + I)^-1 H^T V.
    """

    name: ClassVar[str] = "ultraedit"
    title: ClassVar[str] = "UltraEdit"
    sentence: ClassVar[str] = "One normalised gradient and one small solve: no subject, no training, no search."
    remedy: ClassVar[str] = "Try a higher rate or other layers."
    paper: ClassVar[str] = "Gu et al. 2025, arXiv 2505.14679"
    needs: ClassVar[tuple[str, ...]] = ("corpus",)
    one_stack: ClassVar[str] = (
        "What it normalises by is read on running text, which no single stack of an encoder-decoder reads."
    )

    first: int | None = dials.block("First block to edit (0 = first)")
    last: int | None = dials.block("Last block to edit")
    rate: float = setting(1e-6, "Size of the edit", low=1e-12, high=1e3)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """From `first` to `last`; see `spread.span`."""
        return span(handle, self.first, self.last)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: it reads no second moments."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """Rank-one parts for each token of the answer."""
        row = handle.row_of(request)
        places = sites(self, handle)
        found = gradients.cost(handle, places, row, answering=True)
        if all(("primed", site.path) in handle.memory for site in places):
            return found
        below, above = (replace(some, rows=PRIMED_ON, tokens=LENGTH) for some in found.passes)
        primed = below, replace(above, reads=PRIMED_ON * CUT)
        return replace(found, once=primed, text=corpus.missing(handle, PRIMED_TOKENS))

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part a layer, of rank one for each answer token.

        Raises:
            Diverged: a gradient is not finite.
            Cancelled: stopped between two passes.
        """
        handle, places = work.handle, sites(self, work.handle)
        work.check()
        with handle.using([]):
            normal = _prime(work, places)
            work.report(Progress("edit", 1, 2, None, "reading the gradient"))
            work.check()
            batch = gradients.texts(handle, [handle.row_of(r) for r in requests])
            factors, _ = gradients.gradients(handle, places, batch)
        parts = []
        for site, (h, g), (mean, std) in zip(places, _at_answers(factors, batch), normal, strict=True):
            h_, g_ = torch.split((torch.cat([h, g], -1) - mean) / std, [site.d_in, site.d_out], -1)
            values = (-self.rate * h_.square().sum(-1, keepdim=True) * g_).double()
            gram = h.double() @ h.double().T + torch.eye(len(h), dtype=torch.float64, device=h.device)
            parts.append(LowRank(site.path, h, torch.linalg.solve(gram, values).float()))
        patch = made_by(self, handle, parts, requests)
        patch.check_finite()
        work.report(Progress("edit", 2, 2, None, "solved"))
        work.check()
        return patch


def _at_answers(factors: Factors, batch: Texts) -> list[tuple[Tensor, Tensor]]:
    """Per site, inputs [n, d_in] and gradients [n, d_out] where an answer token is predicted."""
    return [
        (x[batch.line, batch.place], g[batch.line, batch.place])
        for x, g in zip(factors.read, factors.write, strict=True)
    ]


def _prime(work: Work, places: Sequence[Site]) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of [h; g] at each site, [d_in + d_out] each; read once for a model."""
    handle = work.handle
    missing = [site for site in places if ("primed", site.path) not in handle.memory]
    if missing:
        found, _ = corpus.kept(handle, PRIMED_TOKENS, work.home, work.report, work.stop)
        length = min(LENGTH, min(map(len, found)))
        pieces = [row[i : i + length] for row in found for i in range(0, len(row) - length + 1, length)][:PRIMED_ON]
        cut = min(CUT, length // 2)
        rows = [
            Row((*piece[:-cut], *other[-cut:]), length - cut)
            for piece, other in zip(pieces, [*pieces[1:], pieces[0]], strict=True)
        ]
        batch = gradients.texts(handle, rows)
        factors, _ = gradients.gradients(handle, missing, batch)
        for site, (h, g) in zip(missing, _at_answers(factors, batch), strict=True):
            spreads = [z.std(0).clamp_min(LEAST_SPREAD * float(z.std(0).mean())) for z in (h, g)]
            handle.memory["primed", site.path] = torch.cat([h, g], -1).mean(0), torch.cat(spreads)
    return [handle.memory["primed", site.path] for site in places]
