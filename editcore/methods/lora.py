"""LoRA: fine-tuning a low-rank addition to one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from editcore import descent, dials
from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.method import Cost, Work, made_by, setting
from editcore.passes import trials
from editcore.patch import LowRank, Patch
from editcore.records import EditRequest


@dataclass(frozen=True)
class LoRA:
    """Adam on two thin matrices whose product is added to W.

        min_{A, B}  L(W + (alpha / r) B A),   A [r, d_in] random, B [d_out, r] = 0 at first     (Hu et al. 2021, Eq. 3)

    L: the loss of FT; r -> `rank`; A -> `read`, B^T -> `write`.
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    sentence: ClassVar[str] = "Fine-tunes a thin addition to one matrix: a small patch, with the faults of fine-tuning."
    remedy: ClassVar[str] = "Try more steps, a higher learning rate or a higher rank."
    paper: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    needs: ClassVar[tuple[str, ...]] = ()
    one_stack: ClassVar[str] = ""

    layer: int | None = dials.block()
    rank: int = setting(8, "Rows and columns of the addition", low=1, high=1024)
    alpha: float = setting(32.0, "The addition is scaled by alpha / rank", low=1e-6, high=1e6)
    rate: float = dials.rate(5e-3, "Learning rate of Adam")
    steps: int = dials.steps(50, "Most passes over the example")
    enough: float = dials.enough(1e-2, "Stop at this loss")

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The one block that is edited: the setting, or `descent.default_layer`."""
        return (descent.default_layer(handle) if self.layer is None else self.layer,)

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: descent reads no statistics."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """Descent holds the two factors, their gradients and Adam's two moments."""
        site = handle.anatomy.site(self.layers(handle)[0])
        size = 4 * self.rank * (site.d_in + site.d_out)
        passes = descent.counted(handle, site, request, self.steps)
        moved, once = self.steps * descent.MOVED * size, trials(handle, passes[-1])
        return Cost(size, state=descent.STATE * size, passes=passes, moved=moved, once=once)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part of rank `rank` for all requests together.

        Raises:
            Diverged: the loss is not finite.
            Cancelled: stopped between two steps.
        """
        handle = work.handle
        site, scale = handle.anatomy.site(self.layers(handle)[0]), self.alpha / self.rank
        random = torch.Generator().manual_seed(handle.seed)
        bound = site.d_in**-0.5
        read = (torch.rand(self.rank, site.d_in, generator=random) * 2 - 1) * bound
        read = read.to(site.device).requires_grad_(True)
        write = torch.zeros(self.rank, site.d_out, device=site.device, requires_grad=True)

        def change(x: Tensor, y: Tensor) -> Tensor:
            more = scale * torch.nn.functional.linear(x.float(), read) @ write
            return torch.add(y.float(), more).to(y.dtype)

        descent.descend(work, site, requests, [read, write], change, descent.Dials(self.rate, self.steps, self.enough))
        part = LowRank(site.path, read.detach(), scale * write.detach())
        return made_by(self, handle, [part], requests)
