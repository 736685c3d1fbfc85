"""Which models at hand could be opened here: how large each is, and whether it fits. Loads none of them.

A model fits when its weights in the number format it would be opened in, with a fifth more for the work on it, are no
more than the memory that is free where it would be opened.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from editcore.assets import WORLD_NAME, world_dir
from editcore.checkpoint import CONFIG, Checkpoint, check, read_weights
from editcore.devices import DTYPES, choose_device, choose_dtype, free_memory, short
from editcore.errors import ModelError
from editcore.local import Kept, cached
from editcore.weights import auto_class

ROOM = 1.2  # times the weights


@dataclass(frozen=True, slots=True)
class Choice:
    """One model that is at hand, of one on the hub one revision."""

    name: str  # hub id, folder, or the embedded model's name
    revision: str  # commit of the hub
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
    def formats(self) -> tuple[str, ...]:
        """The number formats in which it would fit, the most exact first."""
        known = DTYPES.items() if self.parameters else ()
        return tuple(name for name, kind in known if _needed(self.parameters, kind) <= self.free)

    @property
    def command(self) -> str:
        """What opens a page on it."""
        revision = "" if "main" in self.refs or not self.revision else f" --revision {self.revision}"
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
    return _cached(allowed, _room(device, dtype, everywhere))


def at_hand(
    allowed: Collection[str] = (), roots: Sequence[str] = (), device: str | None = None, dtype: str | None = None,
    everywhere: bool = False, returned: Callable[[torch.device], int] = lambda device: 0,
) -> tuple[Choice, ...]:  # fmt: skip
    """What a page can offer: the embedded model, model folders directly within `roots`, and `choices`.

    Args:
        allowed, device, dtype, everywhere: see `choices`.
        returned: bytes that will be free on a device besides, because the loaded model goes first.
    """
    room = _room(device, dtype, everywhere, returned)
    named = [(WORLD_NAME, world_dir()), *((str(folder), folder) for folder in _folders(roots))]
    here = [_choice(name, Kept("", (), folder, _size(folder)), room) for name, folder in named]
    return (*here, *_cached(allowed, room))


def _cached(allowed: Collection[str], room: _Room) -> tuple[Choice, ...]:
    return tuple(
        _choice(model.name, kept, room)
        for model in cached()
        if not allowed or model.name in allowed
        for kept in model.revisions
    )


@dataclass(frozen=True, slots=True)
class _Room:
    """Where models would be put, and in which numbers."""

    device: torch.device
    dtype: torch.dtype
    free: int  # bytes


def _room(
    device: str | None, dtype: str | None, everywhere: bool,
    returned: Callable[[torch.device], int] = lambda device: 0,
) -> _Room:  # fmt: skip
    place, _ = choose_device(device)
    kind, _ = choose_dtype(place, dtype)
    return _Room(place, kind, free_memory(place, everywhere) + returned(place))


def _needed(parameters: int, kind: torch.dtype) -> int:
    """Bytes of memory, the work on the model included."""
    return round(ROOM * parameters * kind.itemsize)


def _choice(name: str, kept: Kept, room: _Room) -> Choice:
    parameters, problem = 0, ""
    try:
        found: Checkpoint = check(name, kept.files, None, kept.commit)
        auto_class(found)
        parameters = read_weights(name, kept.files).parameters
    except ModelError as error:
        problem = error.seen
    return Choice(
        name, kept.commit, kept.refs, kept.bytes, parameters, short(room.dtype), _needed(parameters, room.dtype),
        room.free, str(room.device), problem,
    )  # fmt: skip


def _folders(roots: Sequence[str]) -> list[Path]:
    """Model folders: each of the roots that is one itself, and those directly within them."""
    found: dict[Path, None] = {}
    for root in (Path(root).expanduser().resolve() for root in roots):
        with suppress(OSError):  # one that cannot be read has nothing to offer
            inside = [place.resolve() for place in (root, *sorted(root.iterdir())) if (place / CONFIG).is_file()]
            found |= {place: None for place in inside if place.is_relative_to(root)}
    return list(found)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
