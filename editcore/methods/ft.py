"""FT: fine-tuning one matrix on the one example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from editcore.descent import descend
from editcore.handle import Handle
from editcore.methods.base import Work, setting
from editcore.patch import Patch
from editcore.records import EditRequest, to_plain


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
    paper: ClassVar[str] = "Zhu et al. 2020, arXiv 2012.00363"
    needs: ClassVar[tuple[str, ...]] = ()

    layer: int | None = setting(
        None, "Block to edit (0 = first); empty: chosen for the model", low=0, high=1000, kind="int"
    )
    rate: float = setting(5e-4, "Learning rate of Adam", low=1e-8, high=1.0)
    steps: int = setting(25, "Most passes over the example", low=1, high=10000)
    enough: float = setting(1e-2, "Stop at this loss", low=0.0, high=10.0)
    weight_decay: float = setting(0.0, "Adam's pull of the weights towards zero", low=0.0, high=1.0)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block that is edited: the setting, or two thirds of the way up."""
        return (2 * len(handle.anatomy.blocks) // 3 if self.layer is None else self.layer,)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One dense part for all requests together.

        Raises:
            Diverged: the loss is not finite.
            Cancelled: stopped between two steps.
        """
        site = work.handle.anatomy.site(self.layers(work.handle)[0])
        part = descend(
            work, site, requests, rate=self.rate, steps=self.steps, enough=self.enough, weight_decay=self.weight_decay
        )
        return Patch(
            (part,),
            work.handle.name,
            work.handle.fingerprint,
            self.name,
            asdict(self),
            tuple(to_plain(r) for r in requests),
        )
