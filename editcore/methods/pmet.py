"""PMET: MEMIT with values found for the MLP alone, beside a change of attention that is not kept (Li et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from editcore import dials, subject
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.method import Cost, Work, setting
from editcore.patch import Patch
from editcore.records import EditRequest
from editcore.spread import cost, ridge, sites, span, spread


@dataclass(frozen=True)
class PMET:
    """MEMIT's ridge solution, towards what the last edited matrix itself should put out.

        delta_a, delta_m = argmin L(a_L + delta_a, m_L + delta_m);   v* = m_L + delta_m     (Li et al. 2024)
        W_l <- W_l + R_l K_l^T (lambda C_l + K_l K_l^T)^-1,   R_l = (v* - m_L) / sqrt(layers left)

    a_L, m_L: what attention and MLP of the last edited block add at the subject -> `algebra.search_values`; delta_a
    takes up what belongs to attention in general, and only delta_m is written. L: the answer's loss, `kl` times the
    KL on the subject's essence, and the pull towards old values; once the answer is the most likely one, its loss is
    weighted by `eased`.
    K_l, R_l -> `spread.spread`; lambda -> `weight`; C_l -> `statistics.moment`; the solve -> `algebra.ridge`
    """

    name: ClassVar[str] = "pmet"
    title: ClassVar[str] = "PMET"
    sentence: ClassVar[str] = "Like MEMIT, but leaves to attention what is attention's and writes only the MLP's part."
    remedy: ClassVar[str] = "Try more steps, a higher limit or other layers, or correct the subject of the prompt."
    paper: ClassVar[str] = "Li et al. 2024, arXiv 2308.08742"
    needs: ClassVar[tuple[str, ...]] = ("subject", "statistics")
    one_stack: ClassVar[str] = subject.ONE_STACK

    first: int | None = dials.block("First block to edit (0 = first)")
    last: int | None = dials.block("Last block to edit")
    weight: float | None = dials.weight()
    attention: bool = setting(True, "Search a change of attention's output as well, which is not written")
    contexts: int = dials.contexts(5)
    key: str = dials.key()
    steps: int = dials.steps(30)
    rate: float = dials.rate(0.2)
    momentum: float = dials.momentum()
    decay: float = dials.decay(0.5)
    limit: float = dials.limit(0.75)
    kl: float = dials.kl(1.0)
    eased: float = setting(
        0.1, "Weight of the answer's loss in that search while the answer is the most likely one", low=0.0, high=1.0
    )
    calm: float = setting(
        0.01, "Stop the search once the answer is the most likely one and the KL at most this", low=0.0, high=10.0
    )
    enough: float = dials.enough(0.0)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """From `first` to `last`; see `spread.span`."""
        return span(handle, self.first, self.last)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """Every edited site."""
        return sites(self, handle)

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `spread.cost`."""
        return cost(self, handle, request, inside=True)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part a layer, of rank one for each request; see `spread.spread` for what it raises.

        Raises:
            ModelError: the output of attention was not found; see `anatomy.attention_output`.
        """
        search = replace(dials.search(self), attention=self.attention, eased=self.eased, calm=self.calm)
        return spread(work, self, requests, ridge(work, self.weight), search, inside=True, share=math.sqrt)
