"""How fast a model reads on this device and what a gradient keeps; from that, how long a one-off preparation takes.

Timed once for a handle, in passes whose result nobody reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from editcore import corpus, statfiles
from editcore.algebra import Answers
from editcore.handle import Handle
from editcore.learned import Dials
from editcore.passes import passes
from editcore.records import EXAMPLE_CHARACTERS
from editcore.resume import reads_of
from editcore.spans import Row
from editcore.steps import Steps, adam, as_written, recordable
from editcore.trace import Stop

TRIED = 8, 16  # rows and tokens of the pass that is timed
FEW = 2, 4  # the same of a pass as short as those of a search: a product with one row alone would be another kind
WRITTEN = 1, 4  # tokens written in what is timed
TOLD = 10_000  # tokens of the embedded model's text that are timed
SOLVED = {"cuda": 2048, "cpu": 512}  # width of the matrix whose eigenvectors are timed, and its factor
HASHED = 1 << 22  # bytes of the file whose check is timed
COPIED = {"cuda": (256_000_000, 8), "cpu": (64_000_000, 1)}  # bytes of the copy that is timed, and copies in a row
CHARACTERS = 4.0  # of a token
PASSES = 4.0  # forward, with backward counted as two, over every text of an example


@dataclass(frozen=True)
class Line:
    """Seconds of a pass, as a straight line through two lengths of it."""

    first: float  # seconds of a pass over a single token
    more: float  # seconds of each further token

    def of(self, tokens: int) -> float:
        """Seconds of a pass over so many tokens."""
        return self.first + self.more * max(0, tokens - 1)

    def times(self, share: float) -> Line:
        """Of so many passes."""
        return Line(share * self.first, share * self.more)

    def less(self, other: Line) -> Line:
        """What is left of a pass without that part of it."""
        return Line(max(0.0, self.first - other.first), max(0.0, self.more - other.more))


@dataclass(frozen=True)
class Descent:
    """Seconds of a step of descent."""

    blocks: Line  # of all blocks and the gradient through them
    step: Line  # of the rest of it, whose loss reads so many places


@dataclass(frozen=True)
class Pace:
    """What a pass takes here; one of a descent is counted with its gradient, its loss and what moves the value."""

    blocks: Line  # of all blocks, with what stands around them
    head: Line  # of the head and its log-probabilities, at so many places
    back: Descent  # with a gradient, as it is written
    played: Descent  # the same in a descent's later steps, which a GPU may have recorded
    moved: float  # bytes read and written in a second by a copy
    kept: float  # bytes a token keeps until its gradient, in all blocks together


def of(handle: Handle) -> Pace:
    """See `Pace`; timed once for a handle."""
    if "pace of passes" not in handle.memory:
        with torch.no_grad():
            head = _line(handle, lambda ids: partial(_head, handle, ids.numel()))
            blocks = _line(handle, lambda ids: partial(_pass, handle, ids)).less(head)
        with as_written(handle):
            back = _descent(handle)
        played = _descent(handle) if recordable(handle) else back
        found = Pace(blocks, head, back, played, bandwidth(handle.device), _kept(handle))
        handle.memory["pace of passes"] = found
    known: Pace = handle.memory["pace of passes"]
    return known


def bandwidth(device: torch.device) -> float:
    """Bytes read and written in a second when a large tensor is copied."""
    size, count = COPIED["cuda" if device.type == "cuda" else "cpu"]
    there, here = (torch.ones(size // 4, device=device) for _ in range(2))
    return 2 * size * count / _least(device, lambda: [here.copy_(there) for _ in range(count)], 4)


def _line(handle: Handle, job: Callable[[Tensor], Callable[[], object]], unread: int = 0) -> Line:
    """Through the seconds of a job over ids [rows, tokens] at two sizes.

    Args:
        unread: tokens of a row that do not count.
    """
    seconds, counts = [], []
    for rows, length in (FEW, TRIED):
        ids = torch.full((rows, min(length, handle.context)), handle.pad, device=handle.device)
        with handle.using([]):
            seconds.append(_least(handle.device, job(ids)))
        counts.append(rows * (ids.shape[1] - unread))
    more = max(0.0, seconds[1] - seconds[0]) / max(1, counts[1] - counts[0])
    return Line(max(0.0, seconds[0] - more * (counts[0] - 1)), more)


def _head(handle: Handle, places: int) -> None:
    head = handle.model.get_output_embeddings()
    state = torch.ones(places, head.weight.shape[1], dtype=handle.dtype, device=head.weight.device)
    torch.log_softmax(head(state).float(), -1)


def _descent(handle: Handle) -> Descent:
    """Of all blocks in a step of descent, and of the rest of the step: steps from the first and from the last block."""
    top = len(handle.anatomy.blocks) - 1
    with torch.inference_mode(False), torch.enable_grad():
        whole, alone = (_line(handle, partial(_step, handle, layer)) for layer in (0, top))
        step = _line(handle, partial(_step, handle, top), unread=1)
    blocks = whole.less(alone).times((top + 1) / max(1, top))  # the first block has run when a descent begins
    return Descent(blocks, step)


def _step(handle: Handle, layer: int, ids: Tensor) -> Callable[[], None]:
    """A step of descent on what block `layer` writes, whose loss reads every token but the last of each row."""
    texts, site = [Row(tuple(row), 1) for row in ids.tolist()], handle.anatomy.site(layer)
    ready, answers = passes(handle, site, texts, [reads_of(t) for t in texts]), Answers(texts, handle.device)
    value = torch.zeros(site.d_out, device=site.device).requires_grad_(True)

    def look() -> tuple[Tensor, Tensor]:
        loss = answers.losses(ready.run(lambda _x, y: (y.float() + value).to(y.dtype))).mean()
        return loss, loss

    descent = Steps(handle, look, adam(handle, [value], 1e-3), way=ready.way)

    def step() -> None:
        float(descent.look())
        descent.move()

    return step


def _with_gradient(handle: Handle) -> Callable[[], Tensor]:
    """A pass over the tokens that are timed, up to the head, with all that a gradient needs kept."""
    rows, length = TRIED
    ids = torch.full((rows, min(length, handle.context)), handle.pad, device=handle.device)
    first, last = handle.anatomy.blocks[0], handle.anatomy.blocks[-1]
    ends: list[Tensor] = []

    def begin(_m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_(True)
        return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

    def end(_m: Any, _args: Any, out: Any) -> None:
        ends.append(out[0] if isinstance(out, tuple) else out)
        raise Stop

    def run() -> Tensor:
        hooks = [first.register_forward_pre_hook(begin, with_kwargs=True), last.register_forward_hook(end)]
        try:
            _pass(handle, ids)
        except Stop:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return ends.pop()

    return run


def _kept(handle: Handle) -> float:
    """Bytes that a backward pass would find, without parameters, for each token."""
    known = {p.untyped_storage().data_ptr() for p in handle.model.parameters()}
    seen: dict[int, int] = {}

    def note(kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return kept

    rows, length = TRIED
    with torch.inference_mode(False), torch.enable_grad(), handle.using([]):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
            end = _with_gradient(handle)()
        found = sum(seen.values())
        del end
    return found / (rows * min(length, handle.context))


def _least(device: torch.device, job: Callable[[], object], times: int = 3) -> float:
    """Least seconds of some runs, after one that is not timed: the first of a shape costs more."""
    taken = []
    for _ in range(times + 1):
        began = _clock(device)
        job()
        taken.append(_clock(device) - began)
    return min(taken[1:])


def _clock(device: torch.device) -> float:
    """Seconds: of the only thread that computes, where there is one, whatever runs beside it; else the wall's."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.thread_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


@torch.no_grad()
def seconds_of_tokens(handle: Handle) -> tuple[float, float]:
    """Seconds one token takes when many are read at once, and seconds of a pass that reads a single one.

    Timed once for a handle.
    """
    if "pace" not in handle.memory:
        rows, length = TRIED
        length = min(length, handle.context)
        many = torch.full((rows, length), handle.pad, device=handle.device)
        with handle.using([]):
            handle.memory["pace"] = (
                _timed(handle, many) / many.numel(),
                _timed(handle, many[:1, :1]),
            )
    found: tuple[float, float] = handle.memory["pace"]
    return found


def _timed(handle: Handle, ids: torch.Tensor) -> float:
    return _least(handle.device, lambda: _pass(handle, ids))


def _pass(handle: Handle, ids: torch.Tensor) -> torch.Tensor:
    """Logits of ids read by the model, or by its encoder and said by its decoder."""
    more = {"decoder_input_ids": ids} if handle.encoder_decoder else {}
    found: torch.Tensor = handle.model(input_ids=ids, use_cache=False, **more).logits
    return found


def of_writing(handle: Handle, rows: int) -> float:
    """Seconds a token takes that the model writes, in so many rows side by side: each step has its own of them all."""
    token, _ = seconds_of_tokens(handle)
    if "pace of writing" not in handle.memory:
        with handle.using([]):
            few, more = (_least(handle.device, partial(_write, handle, count), 2) for count in WRITTEN)
        handle.memory["pace of writing"] = max(0.0, more - few) / (WRITTEN[1] - WRITTEN[0])
    step: float = handle.memory["pace of writing"]
    return token + max(0.0, step - token) / max(1, rows)


@torch.no_grad()
def _write(handle: Handle, tokens: int) -> None:
    ids = torch.full((1, 1), handle.pad, device=handle.device)
    if handle.encoder_decoder:
        handle.say([[handle.pad]], tokens, tokens, do_sample=False)
    else:
        handle.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens,
            min_new_tokens=tokens, pad_token_id=handle.pad,
        )  # fmt: skip


def of_text(handle: Handle, tokens: int) -> float:
    """Seconds so many tokens take of the embedded model's training text, which is told and cut anew. Timed once."""
    if "pace of text" not in handle.memory:
        few, many = (_least(torch.device("cpu"), partial(corpus.world_rows, handle, n), 1) for n in (1, TOLD))
        handle.memory["pace of text"] = Line(few, max(0.0, many - few) / TOLD)
    found: Line = handle.memory["pace of text"]
    return found.of(tokens)


def of_eigenvectors(handle: Handle, width: int) -> float:
    """Seconds all eigenvectors of a symmetric matrix take, in fp64: as the cube of its width. Timed once."""
    return _cubic(handle, "pace of eigenvectors", torch.linalg.eigh, width)


def of_factor(handle: Handle, width: int) -> float:
    """Seconds until a stored second moment is read and factorised; its file is looked over byte by byte. Timed once."""
    if "pace of files" not in handle.memory:
        some = {"some": torch.zeros(HASHED // 4)}
        seconds = _least(torch.device("cpu"), lambda: statfiles.checksum(some, {}), 2)
        handle.memory["pace of files"] = seconds / HASHED
    each: float = handle.memory["pace of files"]
    return 4 * width**2 * each + _cubic(handle, "pace of factors", torch.linalg.cholesky, width)


def _cubic(handle: Handle, key: str, job: Callable[[Tensor], object], width: int) -> float:
    """Seconds of a job on a positive matrix, fp64, as the cube of its width; timed once for a handle."""
    if key not in handle.memory:
        size = SOLVED["cuda" if handle.device.type == "cuda" else "cpu"]
        some = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        some = (some @ some.T / size + torch.eye(size, dtype=torch.float64)).to(handle.device)
        handle.memory[key] = _least(handle.device, lambda: job(some), 1) / size**3
    each: float = handle.memory[key]
    return each * width**3


def of_training(handle: Handle, dials: Dials) -> float:
    """Seconds a training on examples of usual length is expected to take if it runs to its last step."""
    token, _ = seconds_of_tokens(handle)
    return dials.steps * dials.edits * PASSES * EXAMPLE_CHARACTERS / CHARACTERS * token
