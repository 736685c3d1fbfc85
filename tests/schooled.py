"""Editors trained for a moment on a few examples, so that methods that learn can be tried on tiny models."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import torch

from editcore import learned
from editcore.demonstrations import Demonstration, Index
from editcore.methods import find_method
from editcore.trained import Trained
from tests.cases import EIGHT

PROMPTS = tuple((r.prompt, r.target) for r in EIGHT)
LAYER = 1


def example(handle, number: int) -> learned.Example:
    edit = handle.plain_row(*PROMPTS[number % len(PROMPTS)])
    return learned.Example(edit, (edit,), (handle.plain_row("Two and two make", "four"),))


def show(handle) -> None:
    """Puts example edits to be shown in front of others into the handle's memory."""
    if "demonstrations" not in handle.memory:
        shown = [
            Demonstration(f"{name} is", target, f"What is {name}?", (f"Where is {name}?", "here"), name)
            for name, target in (("Iron", "a gas"), ("The capital", "far"), ("Łódź", "new"), ("Rome", "old"))
        ]
        handle.memory["demonstrations"] = Index(handle, shown)


def places(handle, name: str) -> tuple[int, ...]:
    """Layer `LAYER` of every stack that the method can edit."""
    split = handle.anatomy.split
    return tuple({split + LAYER: 0} if name == "malmen" else {LAYER: 0, split + LAYER: 0})


def school(handle, name: str) -> None:
    """Puts a trained editor of the layers `places` into the handle's memory."""
    if ("editor", name) not in handle.memory:
        handle.memory["editor", name] = _trained(handle, name)


@lru_cache(maxsize=64)
def _trained(handle, name: str) -> Trained:
    torch_state = torch.random.get_rng_state()
    layers = places(handle, name)
    editor = find_method(name).editor([handle.anatomy.site(layer) for layer in layers])
    dials = learned.Dials(steps=30, edits=4, rate=1e-2, check_every=10)
    with tempfile.TemporaryDirectory() as work:
        figures = learned.train(
            handle, editor, lambda rng: example(handle, rng.randrange(len(PROMPTS))),
            [example(handle, i) for i in range(len(PROMPTS))], dials, Path(work),
        )  # fmt: skip
    torch.random.set_rng_state(torch_state)
    return Trained(layers, {n: t.detach().clone() for n, t in editor.state_dict().items()}, {**figures, "moved": 0.0})
