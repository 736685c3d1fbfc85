"""The least work an edit of a GPT-2-architecture model can take: the same mathematics on bare tensors, nothing wasted.

Yardsticks for `make bench`, not methods. Below the edited block everything runs once; above it only positions from the
first changed token on; the head only where the loss reads. A floor gets what an edit of ours does not compute either:
token ids, factorised statistics, trained parameters.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editcore import corpus, dials, statistics, subject, trained
from editcore.handle import Handle
from editcore.method import Work
from editcore.methods.wise import OTHER_TOKENS
from editcore.records import EditRequest
from editcore.spans import Row
from tests.floors import descent, learned, memory, search

Made = Sequence[Tensor | tuple[Tensor, Tensor]]  # tensors, and matrices as reads and writes
Floor = Callable[[], Made]


def floor_of(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor | None:
    """The floor of one edit by a method with these settings; None for a text in front, which computes nothing."""
    found = FLOORS.get(method.name)
    return None if found is None else found(handle, method, request, home)


def _rome(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    layer, texts = method.layers(handle)[0], _texts(handle, method, request)
    solve = statistics.moment(handle, handle.anatomy.site(layer), home).solve
    return lambda: search.rome(handle.model, *texts, layer, dials.search(method), solve)


def _texts(handle: Handle, method: Any, request: EditRequest) -> tuple[list[Row], Row, list[Row]]:
    """The prompt in each context, the essence, sentences about the subject."""
    name = request.subject or ""
    every = subject.prompts(handle, request, method.contexts)
    return every, subject.essence(handle, name), subject.sentences(handle, name)


def _spread(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    layers, texts = method.layers(handle), _texts(handle, method, request)
    moments = {layer: statistics.moment(handle, handle.anatomy.site(layer), home) for layer in layers}
    pmet, how = method.name == "pmet", dials.search(method)
    if pmet:
        how = replace(how, attention=method.attention)
    if method.name == "alphaedit":
        unused = {n: statistics.null_space(handle, m, method.cut, method.relative) for n, m in moments.items()}
        directions = {n: search.null_space(u.project, method.penalty) for n, u in unused.items()}
    else:
        slack = getattr(method, "slack", 1.0)
        weights = {n: slack * (len(m.factor) if method.weight is None else method.weight) for n, m in moments.items()}
        directions = {n: search.ridge(m.solve, weights[n]) for n, m in moments.items()}
    share = math.sqrt if pmet else float
    return lambda: search.spread(
        handle.model, *texts, layers, how, lambda layer, key: directions[layer](key), pmet, share
    )


def _matrix(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    row, layer = handle.row(request.prompt, request.target), method.layers(handle)[0]
    if method.name != "ft-replay":
        return lambda: descent.matrix(handle.model, row, layer, method, getattr(method, "distance", None))
    texts, _ = corpus.kept(handle, method.rows * method.length, home)
    chosen = random.Random(handle.seed).choices(texts, k=method.rows)
    replayed = [Row(tuple(text[: method.length]), 1) for text in chosen]
    return lambda: descent.matrix(handle.model, row, layer, method, None, replayed, method.weight)


def _lora(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    row, site = handle.row(request.prompt, request.target), handle.anatomy.site(method.layers(handle)[0])
    drawn = torch.rand(method.rank, site.d_in, generator=torch.Generator().manual_seed(handle.seed))
    start = (2 * drawn - 1) * site.d_in**-0.5
    return lambda: descent.low_rank(handle.model, row, site.layer, method, start, method.alpha / method.rank)


def _learned(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    row, made = handle.row(request.prompt, request.target), getattr(learned, method.name)
    editor = trained.ready(handle, method.name, method.editor, home)
    return lambda: made(handle.model, row, method.layers(handle), editor, method.strength)


def _ultraedit(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    row, layers = handle.row(request.prompt, request.target), method.layers(handle)
    method.edit(Work(handle, home=home), [request])  # measures what gradients are normalised by, once for a model
    normal = [handle.memory["primed", handle.anatomy.site(layer).path] for layer in layers]
    return lambda: learned.ultraedit(handle.model, row, layers, normal, method.rate)


def _grace(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    row = handle.row(request.prompt, request.target)
    return lambda: memory.grace(handle.model, row, method.layers(handle)[0], method)


def _wise(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    rows, layer = subject.in_text(handle, request, method.contexts), method.layers(handle)[0]
    made = method.edit(Work(handle, home=home), [request]).parts[0]  # for the places that were drawn
    texts, _ = corpus.kept(handle, OTHER_TOKENS * method.others, home)
    pieces = [text[i : i + OTHER_TOKENS] for text in texts for i in range(0, len(text), OTHER_TOKENS)]
    others, index = random.Random(method.seed).sample(pieces, method.others), made.index.long()
    return lambda: memory.wise(handle.model, rows, others, layer, method, index)


def _serac(handle: Handle, method: Any, request: EditRequest, home: Path) -> Floor:
    row = handle.row(request.prompt, request.target)
    editor = trained.ready(handle, method.name, method.editor, home)
    return lambda: memory.serac(handle.model, row, editor.sites[0].layer, editor.network)


FLOORS: dict[str, Callable[[Handle, Any, EditRequest, Path], Floor]] = {
    "rome": _rome, "emmet": _spread, "memit": _spread, "pmet": _spread, "alphaedit": _spread,
    "ft": _matrix, "ft-l": _matrix, "ft-replay": _matrix, "lora": _lora,
    "mend": _learned, "malmen": _learned, "enn": _learned, "ke": _learned, "ultraedit": _ultraedit,
    "grace": _grace, "wise": _wise, "serac": _serac,
}  # fmt: skip
