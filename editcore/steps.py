"""The steps of a descent: look where it stands, then move on; on a GPU recorded once and played again.

An edit reads a few short rows, so a step is some thousand small kernels that a host launches more slowly than a GPU
runs them. A step is therefore recorded as two CUDA graphs, which launch the same kernels on the same tensors at once:
the numbers are the same, bit for bit. For the first descent of a kind on a model that is its second step, since the
first makes what is made once; later it is the first. Where a step waits for the device, or cannot be recorded for
another reason, it is run as it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from editcore.errors import is_out_of_memory
from editcore.handle import Handle

logger = logging.getLogger(__name__)
WRITTEN = "steps as written"  # nothing is recorded on this model now
POOL = "memory of recorded steps"  # a graph that is played no more: the next one is recorded into its memory


class Steps:
    """`look`, `move`, `look`, `move` ... over the same tensors.

    Args:
        look: gives what the host is to read of a step, and the loss. It does the same work each time, and what it
            changes it changes in place.
        optimiser: moves its parameters down the loss; see `adam`.
        after: called after each move, under the same rule.
        way: how the rows are run (see `passes`): one that was recorded says nothing about another.
    """

    def __init__(
        self,
        handle: Handle,
        look: Callable[[], tuple[Tensor, Tensor]],
        optimiser: torch.optim.Optimizer,
        after: Callable[[], object] = lambda: None,
        way: str = "",
    ) -> None:
        self._key = ("recordable", way)
        self.handle, self.optimiser = handle, optimiser
        self._job, self._after = look, after
        self._values: list[Tensor] = [value for group in optimiser.param_groups for value in group["params"]]
        self._told = self._loss = torch.zeros(())
        self._taken = False
        self._records = recordable(handle) and handle.memory.get(self._key, True)
        self._known = bool(handle.memory.get(self._key))  # such a step was recorded on this model
        self._stream = _stream(handle.device) if self._records else None
        self._looking: Any = None
        self._moving: Any = None

    def look(self) -> Tensor:
        """What `look` gives the host."""
        with self._aside():
            if self._records and not self._taken and not self._known:
                self._try()
            elif self._records and self._looking is None:
                self._looking = self._recorded(self._look)
            _play(self._looking, self._look)
        return self._told

    def move(self) -> None:
        """One step down the loss that was looked at last."""
        with self._aside():
            if self._looking is not None and self._moving is None:
                self._moving = self._recorded(self._move)
                if self._moving is None:
                    self._looking = None
                    self._look()  # what was recorded of the gradient is gone
            _play(self._moving, self._move)
        self._taken = True

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own: a gradient can be recorded only where its pass was, from the first step on."""
        if self._stream is None:
            yield
            return
        here = torch.cuda.current_stream(self.handle.device)
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            here.wait_stream(self._stream)

    def _look(self) -> None:
        self._told, self._loss = self._job()
        self._told = self._told.detach()

    def _move(self) -> None:
        found = torch.autograd.grad(self._loss, self._values)
        for value, gradient in zip(self._values, found, strict=True):
            value.grad = gradient
        self.optimiser.step()
        with torch.no_grad():
            self._after()

    def _try(self) -> None:
        """Looks, and takes a gradient nobody uses: what waits for the device is met before it can spoil a recording."""
        try:
            with _unwaiting():
                self._look()
                torch.autograd.grad(self._loss, self._values)
        except RuntimeError as error:
            self._refused(error)

    def _recorded(self, job: Callable[[], None]) -> Any:
        try:
            found = _record(self.handle, job)
        except RuntimeError as error:
            self._refused(error)
            if not is_out_of_memory(error):
                _let_go(self.handle)
            return None
        self.handle.memory[self._key] = True
        return found

    def _refused(self, error: RuntimeError) -> None:
        logger.warning("a step cannot be recorded: %s", error)
        self._records = False
        if not is_out_of_memory(error):  # which says nothing about the model; a step as it is written needs less
            self.handle.memory[self._key] = False


class First:
    """What a pass gave in the first step, when nothing had changed yet; the same work in every step."""

    def __init__(self, handle: Handle, rows: int) -> None:
        width = handle.model.get_output_embeddings().weight.shape[0]
        self._kept = torch.zeros(rows, int(width), device=handle.device)
        self._open = torch.ones((), dtype=torch.bool, device=handle.device)

    def of(self, now: Tensor) -> Tensor:
        """The first `now` there was: log-probabilities [rows, vocabulary]."""
        self._kept.copy_(torch.where(self._open, now.detach(), self._kept))
        self._open.fill_(False)
        return self._kept


def adam(handle: Handle, values: Sequence[Tensor], rate: float, **dials: Any) -> torch.optim.Adam:
    """Adam on `values`, ready for `Steps`: on a GPU it counts its own steps there, and has room for its moments."""
    if not on_one_gpu(handle):
        return torch.optim.Adam(list(values), lr=rate, **dials)
    made = torch.optim.Adam(list(values), lr=rate, capturable=True, **dials)
    for value in values:  # what the first step would make: a recording would make it in every step
        step = torch.zeros((), device=value.device)
        made.state[value] = {"step": step, "exp_avg": torch.zeros_like(value), "exp_avg_sq": torch.zeros_like(value)}
    return made


def on_one_gpu(handle: Handle) -> bool:
    """True where all of the model is on one real CUDA device."""
    return handle.device.type == "cuda" and torch.cuda.is_available() and len(handle.devices) == 1


def recordable(handle: Handle) -> bool:
    """True where steps may be recorded: not beside what decides by looking at a prompt."""
    return WRITTEN not in handle.memory and on_one_gpu(handle) and not handle.remembers


@lru_cache(maxsize=16)
def _stream(device: torch.device) -> Any:
    """One for all descents: libraries keep a workspace for each."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def as_written(handle: Handle) -> Iterator[None]:
    """Nothing is recorded while the block runs."""
    handle.memory[WRITTEN] = True
    try:
        yield
    finally:
        del handle.memory[WRITTEN]


@contextmanager
def _unwaiting() -> Iterator[None]:
    """Raises RuntimeError where the host waits for the device while the block runs."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _play(recorded: Any, job: Callable[[], None]) -> None:
    if recorded is None:
        job()
    else:
        recorded.replay()


def _record(handle: Handle, job: Callable[[], None]) -> Any:
    """The job as a CUDA graph, not run yet; its tensors stay where they are for as long as they are held."""
    graph, known = torch.cuda.CUDAGraph(), handle.memory.get(POOL)
    pool = {} if known is None else {"pool": known.pool()}
    graph.capture_begin(**pool, capture_error_mode="thread_local")  # others may use the device meanwhile
    try:
        job()
    finally:
        graph.capture_end()
    handle.memory[POOL] = graph
    return graph


def release(handle: Handle) -> None:
    """Gives back the memory that recorded steps keep for the next ones."""
    handle.memory.pop(POOL, None)


def _let_go(handle: Handle) -> None:
    """After a recording that broke off, its memory and the random numbers would count as being recorded for ever."""
    release(handle)
    index = torch.cuda.current_device() if handle.device.index is None else handle.device.index
    drawn = torch.cuda.default_generators[index]
    fresh = torch.Generator(handle.device).manual_seed(drawn.initial_seed())
    drawn.graphsafe_set_state(fresh.graphsafe_get_state())
