"""Which models of the local cache could be opened here: how large each is, and whether it fits. Loads none of them.

A model fits when its weights in the number format it would be opened in, with a fifth more for the work on it, are no
more than the memory that is free where it would be opened.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from editcore.checkpoint import Checkpoint, check, read_weights
from editcore.devices import choose_device, choose_dtype, free_memory, short
from editcore.errors import ModelError
from editcore.local import Cached, Kept, cached
from editcore.weights import auto_class

ROOM = 1.2  # times the weights


@dataclass(frozen=True, slots=True)
class Choice:
    """One revision of a model that is at hand."""

    name: str  # hub id
    revision: str  # commit
    refs: tuple[str, ...]  # branches and tags that stood for it
    disk: int  # bytes
    parameters: int  # 0 where the weights cannot be read
    dtype: str  # number format it would be opened in
    needed: int  # bytes of memory, the work on it included
    free: int  # bytes of memory
    device: str
    problem: str  # why it cannot be opened; "" when it can

    @property
    def fits(self) -> bool:
        """There is room for it, and nothing else stands against it."""
        return not self.problem and self.needed <= self.free

    @property
    def command(self) -> str:
        """What opens a page on it."""
        revision = "" if "main" in self.refs else f" --revision {self.revision}"
        return f"editcore dashboard --model {self.name}{revision} --dtype {self.dtype}"


def choices(
    device: str | None = None, dtype: str | None = None, allowed: Collection[str] = (), everywhere: bool = False
) -> tuple[Choice, ...]:
    """The models of the local cache, by name, the revision fetched last first.

    Args:
        device, dtype: where and in which number format they would be opened; None: chosen as `load` chooses.
        allowed: names that may be opened; none: any.
        everywhere: count the free memory of all GPUs.

    Raises:
        ModelError: there is no such device or number format.
    """
    place, _ = choose_device(device)
    kind, _ = choose_dtype(place, dtype)
    free = free_memory(place, everywhere)
    return tuple(
        _choice(model, kept, short(kind), kind.itemsize, free, str(place))
        for model in cached()
        if not allowed or model.name in allowed
        for kept in model.revisions
    )


def _choice(model: Cached, kept: Kept, dtype: str, itemsize: int, free: int, device: str) -> Choice:
    parameters, problem = 0, ""
    try:
        found: Checkpoint = check(model.name, kept.files, None, kept.commit)
        auto_class(found)
        parameters = read_weights(model.name, kept.files).parameters
    except ModelError as error:
        problem = error.seen
    needed = round(ROOM * parameters * itemsize)
    return Choice(model.name, kept.commit, kept.refs, kept.bytes, parameters, dtype, needed, free, device, problem)
