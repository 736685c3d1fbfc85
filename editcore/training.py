"""Training a method's editor for one model, from examples to the artifact."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from editcore import examples, gradients, learned, trained
from editcore.errors import BadRequest
from editcore.examples import COMMAND_LINE, Wording
from editcore.handle import Handle
from editcore.learned import Dials, Editor, Example, Heard, Learner
from editcore.methods import METHODS, check_suited, find_method
from editcore.records import Form
from editcore.world.facts import load_world

VALIDATION = 96  # examples
WORLD_EDITS = "random wrong answers to facts of the embedded world, on entities that are never scored"


def trainable() -> tuple[str, ...]:
    """Methods that learn first."""
    return tuple(m.name for m in METHODS if hasattr(m, "editor"))


def learner_of(name: str) -> type[Learner]:
    """What a method trains.

    Raises:
        UnknownMethod: there is no such method.
        BadRequest: it does not learn.
    """
    kind: type[Learner] | None = getattr(find_method(name), "editor", None)
    if kind is None:
        raise BadRequest(f"{name} needs no training.", f"These methods do: {', '.join(trainable())}.")
    return kind


def default_layers(handle: Handle, kind: type[Learner] = Editor) -> tuple[int, ...]:
    """The blocks a trained editor changes or reads unless told otherwise."""
    return kind.usual(handle.anatomy)


def train_method(
    handle: Handle,
    name: str,
    work: Path,
    to: Path,
    *,
    edits: Path | None = None,
    form: Form = "raw",
    locality: Path | None = None,
    wording: Wording = COMMAND_LINE,
    layers: Sequence[int] = (),
    dials: Dials | None = None,
    listen: Callable[[Heard], None] = lambda heard: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains an editor and writes its artifact into the folder `to`; returns what was measured.

    Args:
        work: folder of the checkpoint, from which an interrupted training goes on.
        edits, form, locality, wording: see `examples.of_files`; without `edits`, the embedded world's own facts.

    Raises:
        BadRequest: the method does not learn, or the examples cannot be used.
        UnknownMethod, Unsuited: there is no such method, or it cannot edit such a model.
        BadSetting: a layer does not exist.
        Cancelled, Diverged: see `learned.train`.
    """
    kind = learner_of(name)
    check_suited(find_method(name), handle)
    dials = dials or Dials()
    if edits is not None:
        sample, validation = examples.of_files(handle, edits, locality, form, wording)
    elif handle.embedded:
        sample, validation = _world_examples(handle)
    else:
        raise BadRequest(
            f"There are no examples to train {name} for {handle.name} on.",
            "A file of edits with paraphrases and probes was wanted, one JSON object a line.",
            "Give it with --edits.",
        )
    editor = kind([handle.anatomy.site(layer) for layer in layers or default_layers(handle, kind)])
    figures = learned.train(handle, editor, sample, validation, dials, work, listen, stop)
    about = {
        **figures, **dataclasses.asdict(dials), "moved": moved_by_start(handle, editor, validation),
        "examples": edits.name if edits else WORLD_EDITS,
    }  # fmt: skip
    trained.save(trained.path_in(to, handle, name), handle, name, editor, about)
    for key in (("editor", name), ("ready", name)):
        handle.memory.pop(key, None)
    return about


def _world_examples(handle: Handle) -> tuple[examples.Sample, list[Example]]:
    world = load_world()
    drawn = examples.of_world(handle, world, "validation")
    return examples.of_world(handle, world, "train"), [drawn(random.Random(i)) for i in range(VALIDATION)]


@torch.no_grad()
def moved_by_start(handle: Handle, editor: Learner, validation: Sequence[Example]) -> float:
    """Share of held answers whose most likely tokens change when the editor's start is put in place, without any edit.

    0 for editors that start from the model itself.
    """
    batch = gradients.texts(handle, [row for e in validation for row in e.held])
    with handle.using([]):
        before = gradients.log_probabilities(handle, batch).argmax(-1)
        with editor.start():
            after = gradients.log_probabilities(handle, batch).argmax(-1)
    return float((batch.mean_by_row((before != after).float()) > 0).float().mean())
