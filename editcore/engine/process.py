"""A worker's process: begun with its log beside it, ended politely and then not. Knows no call and no job."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_LOG_BYTES = 5_000_000  # then the log is turned over
# Torch's threads wait for each other asleep: awake, they hold the processors that the page and the browser need.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
logger = logging.getLogger(__name__)


def begin(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A process with pipes to its input and from its output, and its errors in `log`. Raises OSError."""
    with _opened(log) as errors:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=-1,
            env={**_WAITING, **os.environ},
        )  # fmt: skip


def _opened(log: Path) -> IO[bytes]:
    """The log, turned over when long; nowhere when the disk refuses."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        return log.open("ab")
    except OSError:
        logger.warning("the worker's log cannot be written")
        return open(os.devnull, "wb")


def end(process: subprocess.Popen[bytes], drain: float = 0.0) -> None:
    """Close the input, which asks the worker to leave; insist when it does not.

    Args:
        drain: seconds in which it may finish what it is doing, where the system has a signal that says so.
    """
    if drain and os.name == "posix":
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(drain)
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for insist in (process.terminate, process.kill, None):
        try:
            process.wait(5.0)
            return
        except subprocess.TimeoutExpired:
            if insist:
                insist()
