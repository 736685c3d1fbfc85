"""When a worker counts as hung, and what is said about work whose worker is gone. Knows no process and no clock.

A sign of life is anything that changes: a step of a job, a job that begins or ends, a question answered. Work that
may be silent for long, loading a model or training an editor between two checkpoints, is left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from editcore.engine.contract import JobKind
from editcore.errors import EngineError
from editcore.settings import chosen

GRACE = 30.0  # seconds more, in which a job that was asked to stop may notice
SILENT = frozenset({"loading", "preparation"})
_AFTER_A_LOSS: dict[JobKind, tuple[str, str]] = {
    "edit": ("Nothing that was applied before is lost.", "Run it again, or change it first."),
    "comparison": ("The results that were there are kept.", "Run it again, or change it first."),
    "preparation": (
        "Of a training, what it had learned at the last checkpoint is kept; where to edit is found out anew.",
        "Start it again, a training with the same examples.",
    ),
    "recomputation": ("The history is as it was.", "Run it again."),
    "adoption": ("Nothing of it was kept.", "Bring the file in again."),
    "export": ("Nothing was written.", "Run it again."),
}


@dataclass(frozen=True, slots=True)
class Sign:
    """How the worker looked at one moment."""

    busy: str | None  # what it is doing; None: nothing
    state: tuple[Any, ...]  # whatever changes when it gets on


class Watchdog:
    """Judges by signs.

    Args:
        after: seconds without a sign until the work is to be cancelled; None: as the settings say.
        grace: seconds after that until the worker is to be replaced.
    """

    def __init__(self, after: float | None = None, grace: float = GRACE) -> None:
        self.after = chosen().hung_after if after is None else after
        self.grace = grace
        self._last: Sign | None = None
        self._since = 0.0
        self._warned = False

    @property
    def interval(self) -> float:
        """Seconds between two looks."""
        return self.after / 60

    def judge(self, sign: Sign, now: float) -> Literal["fine", "cancel", "replace"]:
        """What to do, told once: cancel the work after `after` seconds, replace the worker `grace` seconds later.

        Args:
            now: monotonic seconds.
        """
        if sign != self._last or sign.busy is None or sign.busy in SILENT:
            self._last, self._since, self._warned = sign, now, False
            return "fine"
        quiet = now - self._since
        if quiet >= self.after + self.grace:
            self._last = None
            return "replace"
        if quiet >= self.after and not self._warned:
            self._warned = True
            return "cancel"
        return "fine"


def lost(kind: JobKind, hung: bool) -> EngineError:
    """What is said about a job whose worker is gone.

    Args:
        hung: the worker was replaced because it gave no sign any more.
    """
    how = "The worker stopped" if not hung else "The worker gave no sign of life any more and was replaced"
    return EngineError(f"{how} before this {kind} was done.", *_AFTER_A_LOSS[kind])
