"""What was written when edits were taken away, as a value. Standard library and records only."""

from __future__ import annotations

from dataclasses import dataclass

from editcore.records import EditReport


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written when edits were taken away, and what was measured on it."""

    kind: str  # "patch", "peft" or "merged"
    folder: str
    bytes: int  # of all files
    reports: tuple[tuple[EditReport, ...], ...]  # for each edit; adapters and merged models: read again in that form
    difference: float | None = None  # largest one in a logit, against the attached patches, over all probe prompts
    tolerance: float | None = None  # the most it may be; None: any, as rounding is what it shows
    effect: float | None = None  # largest change of a logit by the edits themselves
    lost: tuple[tuple[str, float], ...] = ()  # module, share of the norm of its change that this form does not hold
    notes: tuple[str, ...] = ()  # what a person should know
