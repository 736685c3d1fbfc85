"""Statistics on disk: readable names, written whole or not at all, checked when read; not how they are made.

`<fingerprint>.<module>.<text>.<tokens>.safetensors` is a second moment, `<fingerprint>.<key>.partial` an estimate that
goes on. Several processes may write the same one: each writes a file of its own and renames it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "2"
STALE = 86_400.0  # seconds after which a file that was never renamed is rubbish
SYMMETRIC = 1e-5  # largest difference from the transpose, as a share of the largest entry
ENDING = ".safetensors"
TRIES = 20


def folder_in(home: Path) -> Path:
    """Where a model's folder, or the data folder, keeps statistics."""
    return home / "statistics"


def name(fingerprint: str, module: str, text: str, tokens: int) -> str:
    """The file of a second moment."""
    return f"{fingerprint}.{module}.{text}.{tokens}{ENDING}"


def found(home: Path, fingerprint: str, module: str, text: str | None) -> list[Path]:
    """Files that should hold the second moment of a module, the one from most tokens first.

    Args:
        text: the text it was read on, as in the name; None: any.
    """
    start, named = f"{fingerprint}.{module}.", []
    for path in folder_in(home).glob(f"{fingerprint}.*{ENDING}"):
        match = re.fullmatch(rf"([^.]+)\.(\d+){re.escape(ENDING)}", path.name.removeprefix(start))
        if path.name.startswith(start) and match and text in (None, match[1]):
            named.append((int(match[2]), path))
    return [path for _, path in sorted(named, reverse=True)]


def unnamed(home: Path, fingerprint: str, module: str) -> list[Path]:
    """A file that was named before texts were."""
    path = folder_in(home) / f"{fingerprint}.{module}{ENDING}"
    return [path] * path.exists()


def save(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Writes tensors with what is to be known about them, and a checksum over both.

    Raises:
        OSError: the disk refused; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    kept = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    head = {"format": FORMAT, **about}
    part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        save_file(kept, part, {**head, "checksum": checksum(kept, head)})
        part.replace(path)
    except SafetensorError as error:
        told = re.search(r"os error (\d+)", str(error))  # the library says it in words
        raise OSError(int(told[1]) if told else errno.EIO, f"{path.name} could not be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and what is said about them; None for a file that is absent, damaged or not what was written.

    The library opens a file twice, for its head and for its tensors: one that was replaced in between is read again.
    """
    for _ in range(TRIES):
        before, found = _version(path), _read(path)
        if found is not None or _version(path) == before:
            return found
    return None


def _version(path: Path) -> tuple[int, int]:
    """What changes when another file takes this one's place."""
    try:
        now = path.stat()
        return now.st_ino, now.st_mtime_ns
    except OSError:
        return 0, 0


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    try:
        with safe_open(path, framework="pt") as file:
            head = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    wanted = head.pop("checksum", None)
    if wanted is not None or "format" in head:  # files named before texts were have neither
        return (tensors, head) if wanted == checksum(tensors, head) else None
    return tensors, head


def checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    """SHA-256 over names, shapes, contents and what is said about them."""
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].numpy().data)
    return digest.hexdigest()


def is_moment(second: Tensor | None, width: int) -> bool:
    """True for a finite symmetric matrix of this width with no negative diagonal."""
    if second is None or second.shape != (width, width) or not bool(torch.isfinite(second).all()):
        return False
    apart = float((second - second.T).abs().max())
    return apart <= SYMMETRIC * float(second.abs().max()) and float(second.diagonal().min()) >= 0.0


def _sweep(folder: Path) -> None:
    for path in folder.glob("*.part"):
        try:
            if path.stat().st_mtime < time.time() - STALE:
                path.unlink()
        except OSError:
            continue  # another process was faster
