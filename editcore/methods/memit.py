"""MEMIT: many facts written at once, spread over several layers (Meng et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editcore import dials, subject
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.method import Cost, Work
from editcore.patch import Patch
from editcore.records import EditRequest
from editcore.spread import cost, ridge, sites, span, spread


@dataclass(frozen=True)
class MEMIT:
    """A ridge solution in each of several layers, for all requests together.

        W_l <- W_l + R_l K_l^T (lambda C_l + K_l K_l^T)^-1                      (Meng et al. 2023, Eq. 14)

    K_l: one mean key a request at the subject's last token -> `spread.mean_keys`
    R_l: what is still missing at the last layer, divided by the layers left (Eq. 20) -> `spread.spread`
    lambda -> `weight`; C_l -> `statistics.moment`; the solve is n x n for n requests -> `algebra.ridge`
    """

    name: ClassVar[str] = "memit"
    title: ClassVar[str] = "MEMIT"
    sentence: ClassVar[str] = "Like ROME for many facts at once: a closed-form change spread over several layers."
    remedy: ClassVar[str] = "Try more steps, a higher limit or other layers, or correct the subject of the prompt."
    paper: ClassVar[str] = "Meng et al. 2023, arXiv 2210.07229"
    needs: ClassVar[tuple[str, ...]] = ("subject", "statistics")
    one_stack: ClassVar[str] = subject.ONE_STACK

    first: int | None = dials.block("First block to edit (0 = first)")
    last: int | None = dials.block("Last block to edit")
    weight: float | None = dials.weight()
    contexts: int = dials.contexts(5)
    key: str = dials.key()
    steps: int = dials.steps(25)
    rate: float = dials.rate(0.5)
    momentum: float = dials.momentum()
    decay: float = dials.decay(0.5)
    limit: float = dials.limit(0.75)
    kl: float = dials.kl(0.0625)
    enough: float = dials.enough(0.05)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """From `first` to `last`; see `spread.span`."""
        return span(handle, self.first, self.last)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """Every edited site."""
        return sites(self, handle)

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `spread.cost`."""
        return cost(self, handle, request)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part a layer, of rank one for each request; see `spread.spread` for what it raises."""
        return spread(work, self, requests, ridge(work, self.weight))
