"""MALMEN: trained gradients of many examples, brought together by least squares (Tan et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from editcore import learned, trained
from editcore.anatomy import Anatomy, Site
from editcore.errors import BadSetting
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.method import Cost
from editcore.network import GradientEditor, laid_out
from editcore.records import EditRequest


class MALMENEditor(GradientEditor):
    """What each answer token asks for, d_i = -eta_l (x_i . x~_i) delta~_i, met by ridge regression.

        dW_l^T = (K^T K + lambda_l I)^-1 K^T D                                          (Tan et al. 2024, Eq. 4)

    K: inputs x_i of W_l where an answer token is predicted; D: the d_i. Solved as K^T (K K^T + lambda_l I)^-1 D, which
    is n x n for n answer tokens.
    """

    outside = True

    def __init__(self, sites: Sequence[Site], rank: int = 192) -> None:
        """Raises BadSetting when a site is an encoder's: no answer token is predicted there."""
        super().__init__(sites, rank)
        if any(site.encoder for site in sites):
            raise BadSetting(
                "MALMEN was to edit a layer of the encoder.",
                "It takes its keys where an answer token is predicted, and that is in the decoder.",
                "Name layers of the decoder.",
            )
        self.log_weight = nn.Parameter(torch.zeros(len(self.sites)))

    @staticmethod
    def usual(anatomy: Anatomy) -> tuple[int, ...]:
        """The last blocks that say answers."""
        return tuple(anatomy.said_by[-learned.LAST_BLOCKS :])

    def quick(self) -> list[nn.Parameter]:
        """Step sizes and ridge weights."""
        return [self.log_step, self.log_weight]

    def counts(self, batch: Texts, delta: Tensor) -> Tensor:
        """Only where an answer token is predicted."""
        found = torch.zeros(delta.shape[:2], dtype=torch.bool, device=delta.device)
        found[batch.line, batch.place] = True
        return found

    def change(self, handle: Handle, batch: Texts, fast: bool = False, training: bool = False) -> Factors:
        """Each row's tokens solved on their own."""
        read, write = [], []
        for i, (x, turned, delta, taking) in enumerate(self.turned(handle, batch, fast)):
            keys, asked = laid_out(x, taking), laid_out(self._asked(i, x, turned, delta), taking)
            read.append(keys)
            write.append(self._solved(i, keys, asked))
        return Factors(tuple(read), tuple(write))

    def together(self, handle: Handle, batch: Texts) -> Factors:
        """All rows' tokens in one solve; as one row."""
        read, write = [], []
        for i, (x, turned, delta, _) in enumerate(self.turned(handle, batch, fast=False)):
            read.append(x[None])
            write.append(self._solved(i, x[None].double(), self._asked(i, x, turned, delta)[None].double()).float())
        return Factors(tuple(read), tuple(write))

    def _asked(self, layer: int, x: Tensor, turned: Tensor, delta: Tensor) -> Tensor:
        return -self.log_step[layer].exp() * (x * turned).sum(-1, keepdim=True) * delta

    def _solved(self, layer: int, keys: Tensor, asked: Tensor) -> Tensor:
        gram = keys @ keys.transpose(1, 2)
        ridge = self.log_weight[layer].exp() * torch.eye(gram.shape[-1], device=gram.device)
        solved: Tensor = torch.linalg.solve(gram + ridge.to(gram), asked)
        return solved


@dataclass(frozen=True)
class MALMEN(trained.GradientMethod):
    """Like MEND for many facts at once: the edits are not added up but fitted together.

        W_l <- W_l + ((K^T K + lambda_l I)^-1 K^T D)^T                                         (Tan et al. 2024)

    K, D, lambda -> `MALMENEditor`; trained by `editcore train malmen`.
    """

    name: ClassVar[str] = "malmen"
    title: ClassVar[str] = "MALMEN"
    sentence: ClassVar[str] = "MEND for many facts: a trained network says what each wants, one solve meets all."
    paper: ClassVar[str] = "Tan et al. 2024, arXiv 2311.04661"
    editor: ClassVar[type[learned.Editor]] = MALMENEditor

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `trained.cost`."""
        return trained.cost(handle, self.made(handle), request, answering=True)
