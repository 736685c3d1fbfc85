"""MEND: a small network that turns the gradient of one example into an edit (Mitchell et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editcore import learned, trained
from editcore.anatomy import Site
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.methods.base import Cost, Work, made_by, setting
from editcore.network import GradientEditor
from editcore.patch import Patch
from editcore.records import EditRequest


class MENDEditor(GradientEditor):
    """W_l <- W_l - a_l sum_t delta~_t x~_t^T                                     (Mitchell et al. 2022, Eq. 3)."""

    def change(self, handle: Handle, batch: Texts, fast: bool = False, training: bool = False) -> Factors:
        """See the class."""
        read, write = [], []
        for step, (_, x, delta, counts) in zip(self.log_step.exp(), self.turned(handle, batch, fast), strict=True):
            read.append(x)
            write.append(-step * delta * counts)
        return Factors(tuple(read), tuple(write))


@dataclass(frozen=True)
class MEND:
    """One gradient, turned into a better one by a trained network.

        W_l <- W_l - a_l sum_t delta~_t x~_t^T,   (x~_t, delta~_t) = g(x_t, delta_t)          (Mitchell et al. 2022)

    x_t, delta_t: input of W_l and gradient of the answer's loss at its output -> `gradients.gradients`
    g -> `GradientEditor.turned`; trained by `editcore train mend`. Several requests are each
    computed on the model as it is, and added up.
    """

    name: ClassVar[str] = "mend"
    title: ClassVar[str] = "MEND"
    sentence: ClassVar[str] = "A trained network turns one gradient into an edit: instant, once it has been trained."
    remedy: ClassVar[str] = "Try a larger strength; what it can edit was settled when it was trained."
    paper: ClassVar[str] = "Mitchell et al. 2022, arXiv 2110.11309"
    needs: ClassVar[tuple[str, ...]] = ("trained",)
    editor: ClassVar[type[learned.Editor]] = MENDEditor

    strength: float = setting(1.0, "The edit is scaled by this", low=0.01, high=100.0)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The blocks it was trained on."""
        return trained.find(handle, self.name).layers

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: it reads no statistics."""
        return ()

    def cost(self, handle: Handle) -> Cost:
        """See `trained.cost`."""
        return trained.cost(handle, self.name)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part a layer, of rank one for each token that matters.

        Raises:
            Untrained, WrongModel, ModelError: see `trained.find`.
            Diverged: a gradient is not finite.
            Cancelled: stopped before it began.
        """
        editor = trained.ready(work, self.name, MENDEditor)
        parts = trained.parts(work, editor, requests, self.strength)
        return made_by(self, work.handle, parts, requests)
