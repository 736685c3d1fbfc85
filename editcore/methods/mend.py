"""MEND: a small network that turns the gradient of one example into an edit (Mitchell et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from editcore import learned, trained
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.network import GradientEditor, laid_out


class MENDEditor(GradientEditor):
    """W_l <- W_l - a_l sum_t delta~_t x~_t^T                                     (Mitchell et al. 2022, Eq. 3)."""

    def change(self, handle: Handle, batch: Texts, fast: bool = False, training: bool = False) -> Factors:
        """See the class."""
        read, write = [], []
        for x, delta, taking in self._asked(handle, batch, fast):
            read.append(laid_out(x, taking))
            write.append(laid_out(delta, taking))
        return Factors(tuple(read), tuple(write))

    def together(self, handle: Handle, batch: Texts) -> Factors:
        """The same as one row, of the tokens that take part."""
        asked = [(x[None], delta[None]) for x, delta, _ in self._asked(handle, batch, fast=False)]
        return Factors(tuple(read for read, _ in asked), tuple(write for _, write in asked))

    def _asked(self, handle: Handle, batch: Texts, fast: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for step, (_, x, delta, taking) in zip(self.log_step.exp(), self.turned(handle, batch, fast), strict=True):
            yield x, -step * delta, taking


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
