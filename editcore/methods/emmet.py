"""EMMET: ROME for a batch of facts, with equality constraints (Gupta et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editcore import dials, subject
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.method import Cost, Work, setting
from editcore.patch import Patch
from editcore.records import EditRequest
from editcore.spread import cost, ridge, sites, spread


@dataclass(frozen=True)
class EMMET:
    """One layer, all requests met exactly while the change is kept small on what the matrix usually stores.

        W <- W + R (K^T (w C)^-1 K + eps I)^-1 K^T (w C)^-1                     (Gupta et al. 2024, section 4)

    K: one mean key a request -> `spread.mean_keys`; R: what is missing behind the block -> `spread.spread`
    eps -> `slack`, w -> `weight`; it equals MEMIT in one layer with lambda = w eps, so `algebra.ridge` solves both
    """

    name: ClassVar[str] = "emmet"
    title: ClassVar[str] = "EMMET"
    sentence: ClassVar[str] = (
        "ROME for many facts at once in one layer: every new fact holds exactly, little else moves."
    )
    remedy: ClassVar[str] = "Try more steps, a higher limit or other layers, or correct the subject of the prompt."
    paper: ClassVar[str] = "Gupta et al. 2024, arXiv 2403.14236"
    needs: ClassVar[tuple[str, ...]] = ("subject", "statistics")
    one_stack: ClassVar[str] = subject.ONE_STACK

    layer: int | None = dials.block()
    slack: float = setting(
        0.1, "How far a new fact may be missed, so that like keys do not clash (eps)", low=0.0, high=1e6
    )
    weight: float = setting(1.0, "Weight of what the matrix usually stores", low=1e-9, high=1e9)
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
        """The one block that is edited: the setting, or a third of the way up."""
        return (len(handle.anatomy.blocks) // 3 if self.layer is None else self.layer,)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """Every edited site."""
        return sites(self, handle)

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `spread.cost`."""
        return cost(self, handle, request)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part a layer, of rank one for each request; see `spread.spread` for what it raises."""
        return spread(work, self, requests, ridge(work, self.weight * self.slack))
