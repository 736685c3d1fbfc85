"""A file somebody gave, unpacked into the data folder: only what a patch may hold, within limits. Knows no model."""

from __future__ import annotations

import errno
import io
import secrets
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from editcore.errors import BadRequest, EngineError
from editcore.settings import chosen

MOST_FILES = 2_000
SUFFIXES = (".json", ".safetensors", ".md")  # nothing else is unpacked; no format here can hold code
DISK = frozenset(
    {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}
)  # refuses


def unpacked(data: bytes, name: str, home: Path) -> Path:
    """A fresh folder with the files of a zip archive; a single folder around them is taken off.

    Raises:
        BadRequest: too large, no zip archive, or its entries lead out of it; nothing is left behind.
        EngineError: the disk refused.
    """
    most = chosen().largest_archive
    if len(data) > most:
        raise BadRequest(f"{name!r} has {len(data):,} bytes.", f"At most {most:,} fit.", "Export fewer edits at once.")
    folder = home / "scratch" / f"upload-{secrets.token_hex(8)}"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            wanted = _checked(archive, name)
            for entry in wanted:
                path = folder / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except Exception as error:  # damage shows as whatever the unpacking library met first
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, BadRequest):
            raise
        if isinstance(error, OSError) and error.errno in DISK:
            raise EngineError(
                f"{name!r} could not be unpacked ({error.strerror}).", "", "Free space and try again."
            ) from error
        raise BadRequest(
            f"{name!r} is not a zip archive that can be read ({error}).",
            "A patch or an adapter as exported here was wanted: a zip file.",
            "Export it again, or zip the folder of the adapter.",
        ) from error
    return folder


def _checked(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The entries that are unpacked; whoever lies about a size is cut off by the archive's own check."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    wanted = [entry for entry in entries if PurePosixPath(entry.filename).suffix in SUFFIXES]
    seen = ""
    if not wanted:
        seen = f"{name!r} holds no patch."
    elif len(entries) > MOST_FILES:
        seen = f"{name!r} holds {len(entries):,} files."
    elif sum(entry.file_size for entry in wanted) > chosen().largest_unpacked:
        seen = f"{name!r} unpacks to {sum(entry.file_size for entry in wanted):,} bytes."
    elif any(_leads_out(entry.filename) for entry in wanted):
        seen = f"{name!r} holds names that lead out of it."
    if seen:
        raise BadRequest(seen, "A patch or an adapter as exported here was wanted.", "Export it again.")
    return wanted


def _leads_out(entry: str) -> bool:
    path = PurePosixPath(entry)
    return path.is_absolute() or ".." in path.parts or "\\" in entry or ":" in entry
