"""AlphaEdit: MEMIT, confined to directions the matrix hardly uses (Fang et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from editcore import algebra, dials, statistics, subject
from editcore.anatomy import Site
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.method import Cost, Work, setting
from editcore.patch import Patch
from editcore.records import EditRequest, from_plain
from editcore.spread import cost, mean_keys, sites, span, spread


@dataclass(frozen=True)
class AlphaEdit:
    """MEMIT's loop with a solve that cannot touch what the matrices usually store.

        W_l <- W_l + R K^T P (K_p K_p^T P + K K^T P + a I)^-1                   (Fang et al. 2025, Eq. 14)

    P: projection onto the eigenvectors of C_l with an eigenvalue below `cut` -> `statistics.null_space`
    K_p: keys of AlphaEdit's edits already in place, read anew on the edited model; a -> `penalty`
    The solve is n x n for n keys -> `algebra.null_space_ridge`; R and K as in MEMIT -> `spread.spread`
    """

    name: ClassVar[str] = "alphaedit"
    title: ClassVar[str] = "AlphaEdit"
    sentence: ClassVar[str] = (
        "Like MEMIT, but writes only where the matrices store next to nothing: made for many edits in a row."
    )
    remedy: ClassVar[str] = "Try more steps, a higher limit or other layers, or correct the subject of the prompt."
    paper: ClassVar[str] = "Fang et al. 2025, arXiv 2410.02355"
    needs: ClassVar[tuple[str, ...]] = ("subject", "statistics")
    one_stack: ClassVar[str] = subject.ONE_STACK

    first: int | None = dials.block("First block to edit (0 = first)")
    last: int | None = dials.block("Last block to edit")
    penalty: float = setting(10.0, "Pull of the change towards zero", low=1e-9, high=1e9)
    cut: float = setting(0.02, "Directions count as unused below this eigenvalue of the statistics", low=0.0, high=1e9)
    relative: bool = setting(False, "Read that bound as a multiple of the mean eigenvalue")
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
        """See `spread.cost`; the eigenvectors of each second moment are worked out once."""
        waiting = [s.d_in for s in self.measured(handle) if not statistics.decomposed(handle, s)]
        return replace(cost(self, handle, request), spectra=tuple(waiting))

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part a layer, of rank one for each request; see `spread.spread` for what it raises."""
        earlier = [
            from_plain(EditRequest, request) for p in work.patches if p.method == self.name for request in p.requests
        ]
        before = [subject.prompts(work.handle, request, self.contexts) for request in earlier]

        def adjust(site: Site, keys: Tensor) -> Tensor:
            moment = statistics.moment(work.handle, site, work.home, work.report, work.stop)
            unused = statistics.null_space(work.handle, moment, self.cut, self.relative)
            work.notes.append(f"{site.path}: {unused.size} of {site.d_in} directions are free to write to.")
            if not unused.size:
                raise Diverged(
                    f"No direction of {site.path} is free to write to.",
                    f"Every eigenvalue of its statistics is at least {self.cut:g}.",
                    "Raise `cut`, or read it relative to the mean eigenvalue.",
                )
            old = mean_keys(work.handle, site, earlier, before, self.key).T if earlier else keys[:, :0]
            return algebra.null_space_ridge(unused.project, keys, old, self.penalty)

        return spread(work, self, requests, adjust)
