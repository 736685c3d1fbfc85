"""ENN: a start from which one step of descent is a good edit (Sinitsin et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from editcore import gradients, learned, passes, trained
from editcore.anatomy import Site
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import Dense, Patch
from editcore.records import EditRequest

STEP_RATE = 10.0  # the inner step sizes learn this much faster than the start


class ENNEditor(learned.Editor):
    """The start M_l (a change of every edited matrix) and the step sizes of the descent from it.

        theta_0 = W + M;   theta_{k+1} = theta_k - a * grad L_e(theta_k)              (Sinitsin et al. 2020, Eq. 2)

    Training differentiates through the steps (second order), with a price on the drift of theta_0 from the model.

    Args:
        steps: inner steps of descent.
    """

    drift_weight = 1.0

    def __init__(self, sites: Sequence[Site], steps: int = 2) -> None:
        super().__init__(sites)
        self.steps = steps
        self.matrices = nn.ParameterList([nn.Parameter(torch.zeros(s.d_out, s.d_in)) for s in sites])
        self.log_step = nn.Parameter(torch.full((steps, len(self.sites)), -2.0))

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """The start, and the step sizes at their own rate."""
        return [
            {"params": list(self.matrices), "lr": rate},
            {"params": [self.log_step], "lr": rate * STEP_RATE},
        ]

    @contextmanager
    def start(self) -> Iterator[None]:
        """The model at theta_0."""

        def add(matrix: Tensor) -> Any:
            def hook(_m: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
                return out + nn.functional.linear(args[0], matrix.to(args[0].dtype)).to(out.dtype)

            return hook

        hooks = [s.module.register_forward_hook(add(m)) for s, m in zip(self.sites, self.matrices, strict=True)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def change(self, handle: Handle, batch: Texts, fast: bool = False, training: bool = False) -> Factors:
        """The inner steps; the start has to be in place."""
        total: Factors | None = None
        for step in range(self.steps):
            if total is None:
                found, _ = gradients.gradients(handle, self.sites, batch, fast, graph=training)
            else:
                with gradients.changed(self.sites, total):
                    found, _ = gradients.gradients(handle, self.sites, batch, fast, graph=training)
            total = self._taken(step, found, total)
        assert total is not None
        return total

    def together(self, handle: Handle, batch: Texts) -> Factors:
        """What `change` gives, without reading again below the first edited block in every step."""
        if handle.encoder_decoder:
            return self.change(handle, batch)
        again, total = gradients.Again(handle, self.sites, batch), None
        for step in range(self.steps):
            total = self._taken(step, again.gradients(total), total)
        assert total is not None
        return total

    def _taken(self, step: int, found: Factors, total: Factors | None) -> Factors:
        """All changes after a step whose gradient was `found`."""
        sizes = self.log_step[step].exp()
        taken = Factors(found.read, tuple(-a * g for a, g in zip(sizes, found.write, strict=True)))
        return taken if total is None else total.joined(taken)


@dataclass(frozen=True)
class ENN(trained.GradientMethod):
    """Plain descent, from a start that was trained for it.

        W_l <- W_l + M_l - sum_k a_kl grad_l L(theta_k),   L(theta) = -(1/|y|) sum_t log p_theta(y_t | x, y_<t)

    M, a -> `ENNEditor`; trained by `editcore train enn`. The patch holds the start too: without it the steps mean
    nothing. What the start alone changes is measured in training and said in the report.
    """

    name: ClassVar[str] = "enn"
    title: ClassVar[str] = "ENN"
    sentence: ClassVar[str] = "Moves the model to a trained start from which a step or two of descent is a good edit."
    paper: ClassVar[str] = "Sinitsin et al. 2020, arXiv 2004.00345"
    editor: ClassVar[type[learned.Editor]] = ENNEditor

    strength: float = setting(1.0, "The steps are scaled by this", low=0.01, high=100.0)

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """The start is dense; see `trained.cost` for the rest."""
        editor = trained.ready(handle, self.name, ENNEditor)
        steps = trained.cost(handle, editor, request, steps=editor.steps)
        start = sum(4 * site.d_in * site.d_out for site in editor.sites)
        search, lowest = steps.passes[-1], min(site.layer for site in editor.sites)
        once = passes.trials(handle, replace(search, first=lowest + handle.anatomy.additive[lowest], times=1))
        return replace(steps, patch=steps.patch + start, state=steps.state + start, once=once)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """Two parts a layer: the start, and the steps.

        Raises:
            Untrained, WrongModel, ModelError: see `trained.find`.
            Diverged: a gradient is not finite.
            Cancelled: stopped before it began.
        """
        editor = trained.ready(work.handle, self.name, ENNEditor, work.home)
        about = trained.find(work.handle, self.name).about
        work.notes.append(f"The trained start alone moves {about['moved']:.1%} of unrelated answers.")
        start = [Dense(s.path, m.detach().clone()) for s, m in zip(editor.sites, editor.matrices, strict=True)]
        steps = trained.parts(work, editor, requests, self.strength)
        return made_by(self, work.handle, [*start, *steps], requests)
