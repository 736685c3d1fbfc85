"""How far the weights of a model have been read, in bytes, while they are. Knows files and a clock; loads nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils import logging as transformers_logging

from editcore.words import human_bytes, left

READING = "Loading weights"  # what the library calls the loop over the tensors it reads
LONGEST_HEADER = 100_000_000  # bytes; what claims to be longer is no safetensors file


@dataclass(frozen=True)
class Loaded:
    """Where the reading stands."""

    read: int  # bytes
    total: int
    seconds: float  # since it began

    def __str__(self) -> str:
        """Loading 4.2 of 16 GB, about 20 s left."""
        hope = f", {left(self.seconds * (self.total - self.read) / self.read, about=True)}" if self.read else ""
        return f"Loading {human_bytes(self.read)} of {human_bytes(self.total)}{hope}."


def folder_of(source: str, revision: str | None = None) -> Path | None:
    """Where the files of a folder or of a hub id lie on this machine; None: they do not."""
    if Path(source).is_dir():
        return Path(source)
    found = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of each tensor in the safetensors files of a folder, from their headers; a file without one is left out."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                head = json.loads(file.read(length)) if length <= LONGEST_HEADER else {}
            found |= {n: t["data_offsets"][1] - t["data_offsets"][0] for n, t in head.items() if n != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
    return found


@contextmanager
def told(source: str, revision: str | None, listen: Callable[[Loaded], None]) -> Iterator[None]:
    """While the block loads a model, `listen` hears after each tensor how much has been read."""

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if given.get("desc") == READING and args:
            folder = folder_of(source, revision)  # only now: what had to be fetched is here
            known = sizes(folder) if folder else {}
            if known:
                return _counted(args[0], known, listen)
        return factory(*args, **given)

    before = transformers_logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(before)


def _counted(
    tensors: Iterable[tuple[str, Any]], known: Mapping[str, int], listen: Callable[[Loaded], None]
) -> Iterator[Any]:
    """The tensors (name, and what the library has of it), counted as they are read."""
    began, read, total = time.monotonic(), 0, sum(known.values())
    usual = total // len(known)  # of a tensor whose name in the file is another one
    listen(Loaded(0, total, 0.0))
    for item in tensors:
        yield item
        read = min(total, read + known.get(item[0], known.get(item[0].partition(".")[2], usual)))
        listen(Loaded(read, total, time.monotonic() - began))
    listen(Loaded(total, total, time.monotonic() - began))
