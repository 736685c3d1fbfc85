"""FT-L: fine-tuning one matrix within a bounded distance of where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from editcore import descent, dials
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import Patch
from editcore.records import EditRequest


@dataclass(frozen=True)
class FTL:
    """Fine-tuning by projected descent: after each step the change goes back into a ball of radius eps.

        min_W  L(W)   subject to   ||W - W_0|| <= eps                    (Zhu et al. 2020, arXiv 2012.00363)

    eps -> `distance`, for each tensor (weight, bias) on its own. With the norm `linf` every single entry moves by at
    most eps; with `l2` the Frobenius norm of the change is at most eps.
    """

    name: ClassVar[str] = "ft-l"
    title: ClassVar[str] = "FT-L"
    sentence: ClassVar[str] = (
        "Fine-tunes one matrix on this one example, but keeps it within a set distance of the old weights."
    )
    remedy: ClassVar[str] = "The bound holds the weights back: try a larger distance, or more steps."
    paper: ClassVar[str] = "Zhu et al. 2020, arXiv 2012.00363"
    needs: ClassVar[tuple[str, ...]] = ()
    one_stack: ClassVar[str] = ""

    layer: int | None = dials.block()
    norm: str = setting(
        "linf", "How distance is measured: the largest entry (linf) or the root of squares (l2)", choices=("linf", "l2")
    )
    distance: float = setting(5e-4, "Largest distance from the old weights, in that norm", low=1e-9, high=1e3)
    rate: float = dials.rate(5e-4, "Learning rate of Adam")
    steps: int = dials.steps(25, "Most passes over the example")
    enough: float = dials.enough(1e-2, "Stop at this loss")

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block that is edited: the setting, or `descent.default_layer`."""
        return (descent.default_layer(handle) if self.layer is None else self.layer,)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: descent reads no statistics."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `descent.cost`."""
        site = handle.anatomy.site(self.layers(handle)[0])
        return descent.cost(handle, site, request, self.steps)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One dense part for all requests together, no further than `distance` from zero.

        Raises:
            Diverged: the loss is not finite.
            Cancelled: stopped between two steps.
        """
        site = work.handle.anatomy.site(self.layers(work.handle)[0])
        how = descent.Dials(self.rate, self.steps, self.enough)
        part = descent.tune_matrix(work, site, requests, how, self.project)
        return made_by(self, work.handle, [part], requests)

    def project(self, value: Tensor, start: Tensor) -> None:
        """Moves `value` in place to the nearest point within `distance` of `start`."""
        if self.norm == "linf":
            value.copy_(value.maximum(start - self.distance).minimum(start + self.distance))
        else:
            change = value - start
            value.copy_(start + change * (self.distance / change.norm().clamp_min(1e-30)).clamp(max=1.0))
