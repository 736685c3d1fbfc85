"""Folders that appear complete or not at all. Knows files, no patch and no model."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from editcore.errors import BadRequest, EditcoreError

SPARE = 1 << 20  # bytes for the small files beside the tensors
_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole(folder: Path, needed: int) -> Iterator[Path]:
    """Yields a path beside `folder`, not there yet; what the block makes there is `folder` afterwards.

    Args:
        needed: bytes that will be written, about.

    Raises:
        BadRequest: see `check_free`.
        EditcoreError: the disk is full, named with the bytes needed, or refuses to be written; nothing is left behind.
    """
    check_free(folder)
    rough = folder.parent / f".{folder.name}-{secrets.token_hex(4)}.part"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _check_room(folder, needed)
        rough.mkdir()
        yield rough / "made"
        _flush(rough / "made")
        if folder.is_dir():
            folder.rmdir()  # it is empty; not every system renames onto a folder
        os.replace(rough / "made", folder)
    except (OSError, SafetensorError) as error:
        raise _explained(error, folder, needed) from error
    finally:
        shutil.rmtree(rough, ignore_errors=True)


def weight(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_free(folder: Path) -> None:
    """Raises BadRequest unless `folder` is new or empty."""
    if folder.is_dir():
        if not any(folder.iterdir()):
            return
        seen = f"The folder {folder.name!r} is not empty."
    elif folder.exists():
        seen = f"{folder.name!r} is a file."
    else:
        return
    raise BadRequest(seen, "A new or an empty folder was wanted.", "Choose another name.")


def _check_room(folder: Path, needed: int) -> None:
    if shutil.disk_usage(folder.parent).free < needed + SPARE:
        raise OSError(errno.ENOSPC, "no space")


def _flush(folder: Path) -> None:
    """Brings every file to the disk, so that a power cut after the rename finds them whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _explained(error: Exception, folder: Path, needed: int) -> EditcoreError:
    full = getattr(error, "errno", None) in _FULL or "No space left" in str(error)
    if not full:
        why = getattr(error, "strerror", None) or str(error)
        return EditcoreError(
            f"The folder {folder.name!r} cannot be written ({why}).", "Nothing was written.", "Choose another folder."
        )
    free = shutil.disk_usage(folder.parent).free if folder.parent.exists() else 0
    return EditcoreError(
        f"The disk has no room for {folder.name!r}: {needed + SPARE:,} bytes are needed and {free:,} are free.",
        "Nothing was written.",
        "Free space, or choose a folder on another disk.",
    )
