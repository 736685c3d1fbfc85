"""What went wrong in the engine's work: what a person is told of it, and whether work can go on. Imports no torch."""

from __future__ import annotations

import logging
import os
import re
import secrets
import traceback

from editcore.engine.hands import DeskLike
from editcore.engine.upload import DISK
from editcore.errors import EditcoreError, EngineError, is_out_of_memory

_POISON = ("CUDA error", "device-side assert", "illegal memory access", "CUBLAS_STATUS", "uncorrectable ECC")
logger = logging.getLogger(__name__)


def poisons(error: BaseException) -> bool:
    """True for a fault that leaves the accelerator unusable."""
    return any(sign in str(error) for sign in _POISON) and not isinstance(error, EditcoreError)


def make_room(desk: DeskLike, error: BaseException) -> None:
    """After running out of memory: what the failed work held is let go, so that the next finds room."""
    if is_out_of_memory(error):
        traceback.clear_frames(error.__traceback__)
        desk.free()


def explain(error: BaseException, what: str, doing: str) -> EditcoreError:
    """What a person is told; details of the unexpected go to the log, under an incident id.

    Args:
        what: the sentence for what nobody expected, without its end; doing: the work, for the log.
    """
    if isinstance(error, EditcoreError):
        return error
    if is_out_of_memory(error):
        logger.error("out of memory: %s", doing, exc_info=error)
        return _memory_error(error)
    if (refused := _refused(error)) in DISK:
        logger.error("disk: %s", doing, exc_info=error)
        return _disk_error(refused)
    incident = secrets.token_hex(4)
    logger.error("incident %s: %s", incident, doing, exc_info=error)
    return EngineError(f"{what} (incident {incident}).", "", "Try again; the log file has the details.")


def _memory_error(error: BaseException) -> EngineError:
    wanted = re.search(r"tried to allocate ([\d.]+ ?\w+)", str(error), re.IGNORECASE)
    free = re.search(r"of which ([\d.]+ ?\w+) is free", str(error))
    numbers = f": it asked for {wanted[1]} more" if wanted else ""
    numbers += f" where {free[1]} is free" if wanted and free else ""
    return EngineError(
        f"There was not enough memory for this{numbers}.",
        "Nothing of it was kept.",
        "Use fewer probes or a lighter method, or free memory on this machine, and try again.",
    )


def _refused(error: BaseException) -> int | None:
    """The number of what the system refused; safetensors tells it in words."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(told[1]) if told else None


def _disk_error(refused: int | None) -> EngineError:
    why = os.strerror(refused).lower() if refused else "the disk refused"
    return EngineError(
        f"It could not be saved: {why}.",
        "Nothing was changed.",
        "Free space, or set EDITCORE_HOME to a folder that can be written, and try again.",
    )
