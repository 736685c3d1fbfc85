"""What an edit takes here before it is made: seconds, memory, bytes of its patch, and whether it fits.

Passes are counted by the method (`Cost`) and timed on this device (`pace`). Once a method has edited here, its own
times are better than any count and are taken instead.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from editcore import corpus, pace, statistics, steps, tuning
from editcore.devices import free_memory as free
from editcore.errors import OutOfMemory, is_out_of_memory
from editcore.factors import bytes_of_factor
from editcore.handle import Handle
from editcore.method import Cost, Method, Pass
from editcore.records import EditReport, EditRequest
from editcore.words import duration, human_bytes

HEAD = 4  # copies of the logits at the reads, fp32, that stand side by side when their gradient is taken
ROOM = 1.1  # what is asked to be free, in expected bytes
# Settings that make an edit smaller, the gentlest first, and the least that is proposed.
LEVERS: tuple[tuple[str, Any], ...] = (
    ("contexts", 0), ("rows", 1), ("length", 2), ("others", 1), ("share", 0.01), ("rank", 1), ("covariance", False),
)  # fmt: skip
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forecast:
    """What one edit is expected to take."""

    seconds: float  # of the edit itself
    memory: int  # bytes at the peak, over the loaded model
    patch: int  # bytes
    prepare: str  # what it waits for first, in words; "": nothing
    problem: str  # why it does not fit, with what would help; "": it fits


def forecast(handle: Handle, method: Method, request: EditRequest, home: Path | None = None) -> Forecast:
    """Of a checked request."""
    cost = method.cost(handle, request)
    needed, there = memory(handle, cost, method), free(handle.device)
    problem = "" if ROOM * needed <= there else lacking(handle, method, request, needed, there)
    waits = preparation(handle, method, home, cost.spectra)
    return Forecast(seconds(handle, method, request, home), needed, cost.patch, waits, problem)


def seconds(handle: Handle, method: Method, request: EditRequest, home: Path | None = None) -> float:
    """Of an edit: the median of those made here; before the first one, what is counted, with what it makes once.

    The first edit by a method stands alone in no median: it may have paid for what was made once.
    """
    done: list[float] = handle.memory.get(("seconds", method.name), [])
    if len(done) > 1:
        later = sorted(done[1:])
        return later[len(later) // 2]
    again, once = counted(handle, method, request, home)
    return min([*done, again + once])


def counted(handle: Handle, method: Method, request: EditRequest, home: Path | None = None) -> tuple[float, float]:
    """Seconds of an edit, of its passes and of what else is moved; and of what it has to make first, once."""
    usual = tuning.usual_steps(handle.name, method.name)
    if usual is not None and hasattr(method, "steps"):
        method = dataclasses.replace(method, steps=min(usual, method.steps))
    cost, found = method.cost(handle, request), pace.of(handle)
    once = sum(_seconds(handle, p, found) for p in cost.once) + _text(handle, cost.text, home)
    stored = [site for site in method.measured(handle) if ("moment", site.path) not in handle.memory]
    once += sum(pace.of_factor(handle, site.d_in) for site in stored if statistics.ready(handle, site, home))
    return sum(_seconds(handle, p, found) for p in cost.passes) + cost.moved / found.moved, once


def _text(handle: Handle, tokens: int, home: Path | None) -> float:
    """Seconds until there is so much running text."""
    if not tokens:
        return 0.0
    rows = -(-tokens // corpus.row_length(handle))
    written = corpus.written_share(handle, home) * rows * corpus.row_length(handle) * pace.of_writing(handle, rows)
    return written + (pace.of_text(handle, tokens) if handle.embedded else 0.0)


def _seconds(handle: Handle, some: Pass, found: pace.Pace) -> float:
    """Of passes: the blocks that run, and what is read at their end. To record a step takes as long as to run it."""
    if some.backward:
        later = found.played if some.played else found.back
        return some.times * _step(handle, some, later) + _step(handle, some, found.back) * (later is not found.back)
    read = found.head.of(some.reads) if some.last is None else 0.0
    return some.times * (_blocks(handle, some) * found.blocks.of(some.rows * some.tokens) + read)


def _step(handle: Handle, some: Pass, found: pace.Descent) -> float:
    read = found.step.of(some.reads) if some.last is None else 0.0
    return _blocks(handle, some) * found.blocks.of(some.rows * some.tokens) + read


def _blocks(handle: Handle, some: Pass) -> float:
    """Share of the blocks that run."""
    count = len(handle.anatomy.blocks)
    return max(0, (count if some.last is None else some.last + 1) - some.first) / count


def memory(handle: Handle, cost: Cost, method: Method) -> int:
    """Expected bytes over the loaded model at the peak; what was read for an earlier edit is there already."""
    widths = [site.d_in for site in method.measured(handle) if ("moment", site.path) not in handle.memory]
    read = sum(map(bytes_of_factor, widths))
    factorised = 2 * 8 * max(widths, default=0) ** 2  # a moment and its factor, both square
    return read + max(factorised, cost.state + max((_kept(handle, some) for some in cost.passes), default=0))


def _kept(handle: Handle, some: Pass) -> int:
    """Bytes of a pass: what its gradient needs, or the widest block; keys and values in front; logits."""
    width, size = handle.anatomy.site(0).d_out, handle.dtype.itemsize
    wide = 2 * size * max(width, handle.anatomy.site(0).d_in)
    tokens, count = some.rows * some.tokens, len(handle.anatomy.blocks)
    found = tokens * wide
    if some.backward:
        found += int(tokens * pace.of(handle).kept * _blocks(handle, some))
    front = some.rows * some.before * 2 * width * size * (count - some.first)
    found += front * (2 if some.backward else 1)  # kept, and beside the tail's own in every block
    if some.last is None:
        rows = int(handle.model.get_output_embeddings().weight.shape[0])
        found += HEAD * 4 * some.reads * rows
    return found


@contextmanager
def enough(handle: Handle, method: Method | None = None, request: EditRequest | None = None) -> Iterator[None]:
    """While the block runs, memory that runs out is told with its numbers, and what was taken is given back.

    Raises:
        OutOfMemory: with what the edit was expected to need, what is free now, and what would help.
    """
    failed = False
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        logger.exception("out of memory")
        traceback.clear_frames(error.__traceback__)  # what broke off holds its tensors until then
        failed = True
    if failed:
        steps.release(handle)
        gc.collect()
        if handle.device.type == "cuda":
            torch.cuda.empty_cache()
        raise ran_out(handle, method, request)


def ran_out(handle: Handle, method: Method | None, request: EditRequest | None) -> OutOfMemory:
    """What a person is told when memory ran out in the middle."""
    there = free(handle.device)
    kept = "Nothing of it was kept, and the model is as it was."
    needed = None if method is None or request is None else _needed(handle, method, request)
    if method is None or request is None or needed is None:
        told = f"The memory of the device ran out; {human_bytes(there)} is free now."
        return OutOfMemory(told, kept, "Use fewer prompts, or free memory on this machine, and try again.")
    told = f"The memory of the device ran out: this edit needs about {human_bytes(needed)} beside the model, and"
    fits = ROOM * needed <= there
    help_ = "Something else took it meanwhile: try again." if fits else remedy(handle, method, request, there)
    return OutOfMemory(f"{told} {human_bytes(there)} is free now.", kept, help_)


def _needed(handle: Handle, method: Method, request: EditRequest) -> int | None:
    """`memory` of an edit; None where that cannot be told: what a gradient keeps is measured, which takes some too."""
    try:
        return memory(handle, method.cost(handle, request), method)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def lacking(handle: Handle, method: Method, request: EditRequest, needed: int, there: int) -> str:
    """That an edit does not fit, by how much, and what would make it fit."""
    return (
        f"{method.title} needs about {human_bytes(needed)} more memory for this edit, and {human_bytes(there)} is free:"
        f" {human_bytes(max(0, int(ROOM * needed) - there))} is missing. {remedy(handle, method, request, there)}"
    )


def remedy(handle: Handle, method: Method, request: EditRequest, there: int) -> str:
    """A setting that makes the edit fit into `there` bytes, in words; else what to do instead."""
    for smaller, said in _smaller(handle, method):
        if ROOM * memory(handle, smaller.cost(handle, request), smaller) <= there:
            return f"With {said} it fits."
    if handle.device.type == "cuda" and handle.dtype == torch.float32:
        return "Load the model in bfloat16, which halves most of it, or free memory."
    return "No setting of it is small enough: choose a lighter method, or free memory on this machine."


def _smaller(handle: Handle, method: Method) -> Iterator[tuple[Method, str]]:
    """The method with one setting lower, ever lower; then with one layer."""
    names = {f.name for f in dataclasses.fields(method)}
    for name, least in LEVERS:
        value = getattr(method, name) if name in names else least
        while value > least:
            half = value // 2 if isinstance(value, int) else value / 2
            value = False if isinstance(value, bool) else max(least, half)
            yield dataclasses.replace(method, **{name: value}), f"{name} at {value}"
    if {"first", "last"} <= names and len(method.layers(handle)) > 1:
        last: Any = method.layers(handle)[-1]
        yield dataclasses.replace(method, first=last), f"block {last} alone (first at {last})"


def preparation(handle: Handle, method: Method, home: Path | None = None, spectra: Sequence[int] = ()) -> str:
    """What an edit by this method waits for first, in words; "": nothing.

    Args:
        spectra: see `Cost`.
    """
    waiting = [site for site in method.measured(handle) if not statistics.ready(handle, site, home)]
    first = f"The first edit at {'these layers' if len(method.measured(handle)) > 1 else 'this layer'}"
    said = []
    if waiting:
        takes = duration(statistics.seconds_to_wait(handle, waiting, home))
        said.append(f"{first} reads statistics first: about {takes}, once for this model.")
    if spectra:
        takes = duration(sum(pace.of_eigenvectors(handle, width) for width in spectra))
        said.append(f"{first} works out which directions are free: about {takes}, once until the next start.")
    return " ".join(said)


def remember_seconds(handle: Handle, report: EditReport) -> None:
    """Keeps how long edits take on this machine, for the next forecast."""
    handle.memory.setdefault(("seconds", report.method), []).append(report.seconds.edit)
