"""MEND: a small network that turns the gradient of one example into an edit (Mitchell et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from editcore import learned, trained
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.network import GradientEditor


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
class MEND(trained.GradientMethod):
    """One gradient, turned into a better one by a trained network.

        W_l <- W_l - a_l sum_t delta~_t x~_t^T,   (x~_t, delta~_t) = g(x_t, delta_t)          (Mitchell et al. 2022)

    x_t, delta_t: input of W_l and gradient of the answer's loss at its output -> `gradients.gradients`
    g -> `GradientEditor.turned`; trained by `editcore train mend`. Several requests are each
    computed on the model as it is, and added up.
    """

    name: ClassVar[str] = "mend"
    title: ClassVar[str] = "MEND"
    sentence: ClassVar[str] = "A trained network turns one gradient into an edit: instant, once it has been trained."
    paper: ClassVar[str] = "Mitchell et al. 2022, arXiv 2110.11309"
    editor: ClassVar[type[learned.Editor]] = MENDEditor
