"""What is trained to edit, and its training, on example edits that never touch the model.

An editor turns the gradient of one answer into a low-rank change of several matrices; while it is trained, every text
of a batch has its own change in place (`gradients.changed`).
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from editcore import gradients, halves
from editcore.anatomy import Anatomy, Site
from editcore.errors import Cancelled, Diverged
from editcore.gradients import Factors, Texts
from editcore.handle import Handle
from editcore.spans import Row

LAST_BLOCKS = 3  # are edited, as published
LAST_OF_BOTH = 2  # of an encoder's and of a decoder's, the same


@dataclass(frozen=True)
class Example:
    """One edit to learn from."""

    edit: Row
    asked: tuple[Row, ...]  # should give the new answer afterwards
    held: tuple[Row, ...]  # should be predicted as before


@dataclass(frozen=True)
class Parts:
    """A step's loss in its parts, each a mean."""

    asked: Tensor  # of the new answers
    held: Tensor  # of what should stay
    drift: Tensor  # of the start's own distance from the model

    def total(self, dials: Dials, learner: Learner) -> Tensor:
        return dials.edit_weight * self.asked + dials.held_weight * self.held + learner.drift_weight * self.drift


class Learner(nn.Module, ABC):
    """The trainable part of a method, for fixed layers of one model."""

    drift_weight: float = 0.0  # price of the start's own distance from the model; 0: edits start from the model

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self.sites = tuple(sites)

    @staticmethod
    def usual(anatomy: Anatomy) -> tuple[int, ...]:
        """The layers unless told otherwise: the last ones, as published; of an encoder-decoder, those of both."""
        said_by, each = anatomy.said_by, LAST_OF_BOTH if anatomy.split else LAST_BLOCKS
        return (*range(said_by.start)[-each:], *said_by[-each:])

    @abstractmethod
    def parts(self, handle: Handle, examples: Sequence[Example], training: bool = False) -> Parts:
        """The loss on a batch of examples; differentiable in the parameters."""

    @contextmanager
    def start(self) -> Iterator[None]:
        """While the block runs, the model is the one that edits start from."""
        yield

    def calibrate(self, handle: Handle, batches: Sequence[Texts]) -> None:
        """Measures what has to be known before training."""

    @abstractmethod
    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Disjoint parameter groups for Adam."""


class Editor(Learner):
    """What turns the gradient of an answer into a change."""

    @abstractmethod
    def change(self, handle: Handle, batch: Texts, fast: bool = False, training: bool = False) -> Factors:
        """The change each row of `batch` asks for; differentiable in the editor's parameters while training."""

    def together(self, handle: Handle, batch: Texts) -> Factors:
        """The change that all rows ask for; what `change` gives unless they are better met together."""
        return self.change(handle, batch)

    def parts(self, handle: Handle, examples: Sequence[Example], training: bool = False) -> Parts:
        """Loss of the new answers and KL on what should stay, with every text's own change in place."""
        fast = halves.pay(handle.device)
        edits = gradients.texts(handle, [e.edit for e in examples])
        asked = [(i, row) for i, e in enumerate(examples) for row in e.asked]
        held = [(i, row) for i, e in enumerate(examples) for row in e.held]
        batch = gradients.texts(handle, [row for _, row in (*asked, *held)])
        owner = torch.tensor([i for i, _ in (*asked, *held)], device=handle.device)
        new = batch.line < len(asked)
        with torch.no_grad():
            before = gradients.log_probabilities(handle, batch, fast)[~new]
        with self.start():
            change = self.change(handle, edits, fast, training)
            unedited = gradients.log_probabilities(handle, batch, fast)[~new] if self.drift_weight else before
            with gradients.changed(self.sites, change.of(owner)):
                after = gradients.log_probabilities(handle, batch, fast)
        each = gradients.losses(after, batch)

        def moved(p: Tensor, q: Tensor) -> Tensor:
            """Mean over the held rows of KL(p || q)."""
            near = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
            full = torch.zeros(len(batch.line), device=near.device).masked_scatter(~new, near)
            return batch.mean_by_row(full)[len(asked) :].mean()

        return Parts(each[: len(asked)].mean(), moved(unedited.detach(), after[~new]), moved(before, unedited))


@dataclass(frozen=True)
class Dials:
    """How to train."""

    steps: int = 1500
    edits: int = 24  # examples a step
    rate: float = 1e-3  # Adam's, falling to zero along a half cosine
    edit_weight: float = 1.0  # of the new answers' loss
    held_weight: float = 1.0  # of the KL on what should stay
    check_every: int = 100  # steps between two looks at the validation examples
    patience: int = 10  # looks without an improvement after which training ends
    seed: int = 7


@dataclass(frozen=True)
class Heard:
    """What a listener of the training hears."""

    step: int
    steps: int
    loss: float  # training loss, nats
    validation: float | None  # mean loss on the validation examples at the last look
    seconds_left: float


def train(
    handle: Handle,
    editor: Learner,
    sample: Callable[[random.Random], Example],
    validation: Sequence[Example],
    dials: Dials,
    work: Path,
    listen: Callable[[Heard], None] = lambda heard: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Trains `editor` in place and leaves it at its best validation loss; continues from `work/checkpoint.pt`.

        min  edit_weight * mean NLL(new answers | edited) + held_weight * mean KL(p_unedited || p_edited) [+ drift]

    for an `Editor`; another learner has its own parts.
    The model's own weights take no part. The same seed gives the same examples at the same step, resumed or not.

    Returns:
        The figures of the best look: validation loss and its parts (nats), steps and seconds.

    Raises:
        Diverged: the loss is not finite.
        Cancelled: `stop()` became true; the checkpoint stays.
    """
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = work / "checkpoint.pt"
    editor.to(handle.device).train()
    optimiser = torch.optim.Adam(editor.groups(dials.rate))
    peaks = [group["lr"] for group in optimiser.param_groups]
    done, best, figures, idle, spent = 0, dict(editor.state_dict()), {"validation": float("inf")}, 0, 0.0
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=True, map_location=handle.device)
        editor.load_state_dict(kept["editor"])
        optimiser.load_state_dict(kept["optimiser"])
        done, best, figures, idle, spent = (kept[n] for n in ("done", "best", "figures", "idle", "spent"))
    else:
        some = [[_drawn(sample, dials, step, i).edit for i in range(dials.edits)] for step in range(-8, 0)]
        editor.calibrate(handle, [gradients.texts(handle, rows) for rows in some])
    began, first = time.monotonic(), done
    with handle.using([]):
        for step in range(done, dials.steps):
            if stop():
                raise Cancelled(
                    "Training was stopped.",
                    "What it had learned at the last checkpoint is kept.",
                    "Start the training again to go on.",
                )
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * min(1.0, (step + 1) / 50) * 0.5 * (1 + _cosine(step / dials.steps))
            examples = [_drawn(sample, dials, step, i) for i in range(dials.edits)]
            loss = editor.parts(handle, examples, training=True).total(dials, editor)
            if not torch.isfinite(loss):
                raise Diverged(f"Training diverged at step {step + 1}.", "", "Lower the learning rate.")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 1.0)
            optimiser.step()
            each = (time.monotonic() - began) / (step + 1 - first)
            look = (step + 1) % dials.check_every == 0 or step + 1 == dials.steps
            if look:
                found = _look(handle, editor, validation, dials)
                idle += 1
                if found["validation"] < figures["validation"]:
                    idle, best = 0, {n: t.clone() for n, t in editor.state_dict().items()}
                    figures = {**found, "steps": float(step + 1)}
                _keep(checkpoint, editor, optimiser, step + 1, best, figures, idle, spent + time.monotonic() - began)
            shown = figures["validation"] if look else None
            listen(Heard(step + 1, dials.steps, float(loss.detach()), shown, each * (dials.steps - step - 1)))
            if idle >= dials.patience:
                break
    editor.load_state_dict(best)
    editor.eval()
    return {**figures, "seconds": spent + time.monotonic() - began}


def _cosine(share: float) -> float:
    return float(torch.cos(torch.tensor(share * torch.pi)))


def _drawn(sample: Callable[[random.Random], Example], dials: Dials, step: int, number: int) -> Example:
    return sample(random.Random(f"{dials.seed}|{step}|{number}"))


def _look(handle: Handle, editor: Learner, validation: Sequence[Example], dials: Dials) -> dict[str, float]:
    editor.eval()
    groups = [validation[i : i + dials.edits] for i in range(0, len(validation), dials.edits)]
    found = [editor.parts(handle, group) for group in groups]
    editor.train()
    total = sum(float(p.total(dials, editor).detach()) * len(g) for p, g in zip(found, groups, strict=True))
    figures = {"validation": total / len(validation)}
    for name in ("asked", "held", "drift"):
        figures[name] = sum(float(getattr(p, name).detach()) for p in found) / len(found)
    return figures


def _keep(
    path: Path, editor: Learner, optimiser: torch.optim.Optimizer, done: int, best: Mapping[str, Tensor],
    figures: Mapping[str, float], idle: int, spent: float,
) -> None:  # fmt: skip
    part = path.with_suffix(".part")
    state = {
        "editor": editor.state_dict(), "optimiser": optimiser.state_dict(), "done": done, "best": dict(best),
        "figures": dict(figures), "idle": idle, "spent": spent,
    }  # fmt: skip
    torch.save(state, part)
    part.replace(path)
