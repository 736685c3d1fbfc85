"""Trained editors at work: the artifact they are kept in, tied to one model, and the edits they make."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from editcore import gradients
from editcore.anatomy import Site
from editcore.errors import ModelError, Untrained, WrongModel
from editcore.handle import Handle
from editcore.learned import Editor, Learner
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import LowRank, Patch
from editcore.records import EditRequest, Progress

FORMAT = "1"


def path_in(folder: Path, handle: Handle, name: str) -> Path:
    """Where a model's folder, or the data folder, keeps the trained editor of a method."""
    return folder / "editors" / f"{handle.fingerprint}.{name}.safetensors"


def command(handle: Handle, name: str) -> str:
    """What is typed to train a method for this model; only the embedded one has examples of its own."""
    return (
        f"`editcore train {name} --model {shlex.quote(handle.name)}{'' if handle.embedded else ' --edits edits.jsonl'}`"
    )


def save(path: Path, handle: Handle, name: str, editor: Learner, about: Mapping[str, Any]) -> None:
    """Writes the editor's parameters (fp16) and what is to be known about it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    tensors = {n: t.half().cpu().contiguous() for n, t in editor.state_dict().items()}
    layers = [site.layer for site in editor.sites]
    head = {"format": FORMAT, "method": name, "model": handle.name, "fingerprint": handle.fingerprint}
    save_file(tensors, part, {**head, "layers": json.dumps(layers), "about": json.dumps(dict(about))})
    part.replace(path)


@dataclass(frozen=True)
class Trained:
    """An artifact as read."""

    layers: tuple[int, ...]
    state: Mapping[str, Tensor]  # fp32
    about: Mapping[str, Any]  # how it was trained and what was measured


def find(handle: Handle, name: str, home: Path | None = None) -> Trained:
    """The trained editor of a method for this model: from memory, the model's folder, or the data folder.

    Raises:
        Untrained: there is none.
        WrongModel: it was trained for another model.
        ModelError: the file is damaged.
    """
    key = ("editor", name)
    if key not in handle.memory:
        folders = [f for f in (handle.folder, home or handle.home) if f is not None]
        found = next((p for p in (path_in(f, handle, name) for f in folders) if p.exists()), None)
        if found is None:
            raise Untrained(
                f"{name} has not been trained for {handle.name}.",
                "It learns to edit from examples once per model, before the first edit.",
                f"Run {command(handle, name)}.",
            )
        handle.memory[key] = read(found, handle, name)
    trained: Trained = handle.memory[key]
    return trained


def read(path: Path, handle: Handle, name: str) -> Trained:
    """Reads and checks an artifact; see `find` for what it raises."""
    again = f"Run {command(handle, name)} to make it again."
    try:
        with safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
            state = {n: file.get_tensor(n).float().to(handle.device) for n in file.keys()}  # noqa: SIM118
        layers, about = tuple(json.loads(head["layers"])), json.loads(head["about"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"The trained editor {path.name!r} is damaged ({error}).", "", again) from error
    if head.get("fingerprint") != handle.fingerprint or head.get("method") != name:
        raise WrongModel(
            f"{path.name!r} is a {head.get('method')} editor of the model with fingerprint {head.get('fingerprint')}.",
            f"A {name} editor of {handle.name} with fingerprint {handle.fingerprint} was wanted.",
            again,
        )
    if not all(bool(torch.isfinite(t).all()) for t in state.values()):
        raise ModelError(f"The trained editor {path.name!r} holds a number that is not finite.", "", again)
    return Trained(layers, state, about)


E_ = TypeVar("E_", bound=Learner)


def ready(handle: Handle, name: str, kind: type[E_], home: Path | None = None) -> E_:
    """The trained editor of this model, made once; see `find` for what it raises."""
    key = ("ready", name)
    if key not in handle.memory:
        trained = find(handle, name, home)
        editor = kind([handle.anatomy.site(layer) for layer in trained.layers])
        try:
            editor.load_state_dict(dict(trained.state), assign=True)  # as read: nothing is copied
        except RuntimeError as error:
            raise ModelError(
                f"The trained {name} editor does not fit {handle.name} ({str(error).splitlines()[0]}).",
                "",
                f"Run {command(handle, name)} to make it again.",
            ) from error
        handle.memory[key] = editor.to(handle.device).eval().requires_grad_(False)
    made: E_ = handle.memory[key]
    return made


def parts(work: Work, editor: Editor, requests: Sequence[EditRequest], strength: float) -> list[LowRank]:
    """What the editor asks for, as one part a layer; tokens that matter to no answer are left out.

    Raises:
        Diverged: a gradient is not finite.
        Cancelled: stopped before it began, or before the result was used.
    """
    handle = work.handle
    work.check()
    with handle.using([]), editor.start():
        batch = gradients.texts(handle, [handle.row_of(r) for r in requests])
        change = editor.together(handle, batch)
    result = []
    for site, read, write in zip(editor.sites, change.read, change.write, strict=True):
        kept = write.abs().amax(-1) > 0
        result.append(LowRank(site.path, read[kept].detach().clone(), strength * write[kept].detach()))
    work.report(Progress("edit", 1, 1, None, "one gradient, changed by the trained network"))
    work.check()
    Patch(tuple(result), handle.name, handle.fingerprint, "").check_finite()
    return result


def cost(
    handle: Handle, editor: Editor, request: EditRequest, more: int = 0, steps: int = 1, answering: bool = False
) -> Cost:
    """Rank-one parts for the tokens that matter to the answer. The editor is there already, and so not counted.

    Args:
        more: parts of rank one a layer that no token stands for.
        steps: gradients that are taken.
        answering: only tokens take part where one of the answer is predicted.
    """
    moved = 4 * sum(p.numel() for p in editor.parameters())
    return gradients.cost(handle, editor.sites, handle.row_of(request), more, steps, answering, moved)


@dataclass(frozen=True)
class GradientMethod:
    """What methods share whose trained editor turns the gradient of an answer into an edit."""

    name: ClassVar[str]
    title: ClassVar[str]
    sentence: ClassVar[str]
    paper: ClassVar[str]
    remedy: ClassVar[str] = "Try a larger strength; what it can edit was settled when it was trained."
    needs: ClassVar[tuple[str, ...]] = ("trained",)
    one_stack: ClassVar[str] = ""
    editor: ClassVar[type[Editor]]

    strength: float = setting(1.0, "The edit is scaled by this", low=0.01, high=100.0)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """The blocks it was trained on."""
        return find(handle, self.name).layers

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: it reads no statistics."""
        return ()

    def made(self, handle: Handle, home: Path | None = None) -> Editor:
        """The trained editor; see `ready`."""
        return ready(handle, self.name, self.editor, home)

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """See `trained.cost`."""
        return cost(handle, self.made(handle), request)

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One part a layer, of rank one for each token that takes part.

        Raises:
            Untrained, WrongModel, ModelError: see `trained.find`.
            Diverged: a gradient is not finite.
            Cancelled: stopped before it began.
        """
        editor = self.made(work.handle, work.home)
        return made_by(self, work.handle, parts(work, editor, requests, self.strength), requests)
