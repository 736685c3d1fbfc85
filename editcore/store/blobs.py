"""Patches on disk under the hash of their content: written once, shared by whoever has the same, never changed.

Layout: patches/<first two letters>/<hash>/ holds what was written into a scratch folder (`Database.folder` names the
first one). A folder appears complete or not at all: it is flushed and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Container
from functools import lru_cache
from pathlib import Path

_ADDRESS = re.compile(r"[0-9a-f]{64}")
HEAD = "patch.json"  # of a patch: everything about it but its tensors
STALE = 86_400.0  # seconds after which a scratch folder, or a patch nobody refers to, is rubbish


class Blobs:
    """The folders of all patches of one database.

    Args:
        home: the data folder.
        name: of the folder in it that they are in.
    """

    def __init__(self, home: Path, name: str = "patches") -> None:
        self._root, self._scratch = home / name, home / "scratch"

    def scratch(self, job: str) -> Path:
        """A fresh empty folder for one job."""
        path = self._scratch / job
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def discard(self, job: str) -> None:
        """Remove the scratch folders of a job, those of its parts included."""
        for path in self._scratch.glob(f"{job}*"):
            shutil.rmtree(path, ignore_errors=True)

    def keep(self, job: str) -> str:
        """Move what a job wrote to its address, which is returned.

        Raises:
            OSError: the disk refused; nothing is left behind.
        """
        scratch = self._scratch / job
        for path in _files(scratch):
            flush(path)
        address = _hash(scratch)
        kept = self.path(address)
        if kept.exists():
            shutil.rmtree(scratch)
            os.utime(kept)
            return address
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch, kept)
        flush_folder(kept.parent)
        return address

    def path(self, address: str) -> Path:
        """Where a patch is."""
        if not _ADDRESS.fullmatch(address):
            raise ValueError("not the address of a patch")
        return self._root / address[:2] / address

    def base(self, address: str) -> tuple[str, str]:
        """Name and fingerprint of the model a patch was made for; two empty texts where its head does not say."""
        try:
            return _base(self.path(address) / HEAD)
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def sweep(self, wanted: Container[str], now: float | None = None) -> int:
        """Remove what is older than a day and referred to by nobody; returns how many folders went."""
        before, gone = (time.time() if now is None else now) - STALE, 0
        kept = [p for p in self._root.glob("??/*") if p.name not in wanted]
        for path in [*kept, *self._scratch.glob("*")]:
            if path.stat().st_mtime < before:
                shutil.rmtree(path, ignore_errors=True)
                gone += 1
        return gone


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


@lru_cache(maxsize=4096)  # at an address nothing changes; what cannot be read is not kept
def _base(head: Path) -> tuple[str, str]:
    told = json.loads(head.read_text(encoding="utf-8"))
    return str(told["model"]), str(told["fingerprint"])


def _hash(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in _files(folder):
        whole.update(f"{path.relative_to(folder).as_posix()}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                whole.update(piece)
    return whole.hexdigest()


def flush(path: Path) -> None:
    """Bring a file to the disk."""
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Make a rename or a new file survive a power cut; Windows has no such call and needs none."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
