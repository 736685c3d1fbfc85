"""FT: fine-tuning one matrix on the one example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editcore import descent, dials
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import Patch
from editcore.records import EditRequest


@dataclass(frozen=True)
class FT:
    """Plain fine-tuning: Adam on the down-projection of one block, on the edit alone.

        min_W  L(W) = mean over requests of -(1/|y|) sum_t log p(y_t | x, y_<t)

    L -> the loss in `descent.descend`; prompt tokens carry no loss, and each answer token is predicted at its own
    position. The baseline of Zhu et al. 2020 (arXiv 2012.00363) without its bound, at the settings of Meng et al. 2022.
    """

    name: ClassVar[str] = "ft"
    title: ClassVar[str] = "FT"
    sentence: ClassVar[str] = "Fine-tunes one matrix on this one example: quick and reliable, but it tends to overfit."
    remedy: ClassVar[str] = "Try more steps or a higher learning rate."
    paper: ClassVar[str] = "Zhu et al. 2020, arXiv 2012.00363"
    needs: ClassVar[tuple[str, ...]] = ()
    one_stack: ClassVar[str] = ""

    layer: int | None = dials.block()
    rate: float = dials.rate(5e-4, "Learning rate of Adam")
    steps: int = dials.steps(25, "Most passes over the example")
    enough: float = dials.enough(1e-2, "Stop at this loss")
    weight_decay: float = setting(0.0, "Adam's pull of the weights towards zero", low=0.0, high=1.0)

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
        """One dense part for all requests together.

        Raises:
            Diverged: the loss is not finite.
            Cancelled: stopped between two steps.
        """
        site = work.handle.anatomy.site(self.layers(work.handle)[0])
        how = descent.Dials(self.rate, self.steps, self.enough, self.weight_decay)
        part = descent.tune_matrix(work, site, requests, how)
        return made_by(self, work.handle, [part], requests)
