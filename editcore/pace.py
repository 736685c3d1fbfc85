"""How fast a model reads on this device and what a gradient keeps; from that, how long a one-off preparation takes.

Timed once for a handle, in passes whose result nobody reads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from editcore.handle import Handle
from editcore.learned import Dials
from editcore.records import EXAMPLE_CHARACTERS
from editcore.trace import Stop

TRIED = 8, 16  # rows and tokens of the pass that is timed
COPIED = 64_000_000  # bytes of the copy that is timed
CHARACTERS = 4.0  # of a token
PASSES = 4.0  # forward, with backward counted as two, over every text of an example


@dataclass(frozen=True)
class Pace:
    """What a pass takes here."""

    single: float  # seconds of a pass over one token
    token: float  # seconds each token more takes, when many are read at once
    backward: float  # of a gradient back to the first block, in forward passes
    moved: float  # bytes read and written in a second by a copy
    kept: float  # bytes a token keeps until its gradient, in all blocks together
    head: float  # share of a pass that is the head's, by its parameters


def of(handle: Handle) -> Pace:
    """See `Pace`; timed once for a handle."""
    if "pace of passes" not in handle.memory:
        token, single = seconds_of_tokens(handle)
        handle.memory["pace of passes"] = Pace(
            single,
            max(0.0, token * TRIED[0] * TRIED[1] - single) / (TRIED[0] * TRIED[1] - 1),
            _backward(handle),
            bandwidth(handle.device),
            _kept(handle),
            _share_of_head(handle),
        )
    found: Pace = handle.memory["pace of passes"]
    return found


def bandwidth(device: torch.device) -> float:
    """Bytes read and written in a second when a large tensor is copied."""
    there, here = (torch.ones(COPIED // 4, device=device) for _ in range(2))
    return 2 * COPIED / _least(device, lambda: here.copy_(there), 4)


def _share_of_head(handle: Handle) -> float:
    head = int(handle.model.get_output_embeddings().weight.numel())
    blocks = sum(p.numel() for block in handle.anatomy.blocks for p in block.parameters())
    return head / (head + blocks)


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


def _backward(handle: Handle) -> float:
    run = _with_gradient(handle)
    with torch.inference_mode(False), torch.enable_grad(), handle.using([]):
        forward = _least(handle.device, run)
        return max(0.5, _least(handle.device, lambda: _gradient(run())) / forward - 1)


def _gradient(end: Tensor) -> None:
    end.float().sum().backward()  # type: ignore[no-untyped-call]


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


def of_training(handle: Handle, dials: Dials) -> float:
    """Seconds a training on examples of usual length is expected to take if it runs to its last step."""
    token, _ = seconds_of_tokens(handle)
    return dials.steps * dials.edits * PASSES * EXAMPLE_CHARACTERS / CHARACTERS * token
