"""Numbers and forms as people say them. Standard library only."""

from __future__ import annotations

import math

from editcore.records import Form

FORM_WORDS: dict[Form, str] = {"raw": "raw text", "chat": "a chat"}  # what a prompt is read as


def duration(seconds: float) -> str:
    """0.4 -> "0.4 s", 75 -> "1 min 15 s", 8000 -> "2 h 13 min"."""
    if math.isnan(seconds):
        return "n/a"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_ = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def left(seconds: float, about: bool = False) -> str:
    """30 -> "30 s left"; less than half a second, or than none at all -> "a moment left".

    Args:
        about: "about 30 s left".
    """
    return "a moment left" if seconds < 0.5 else f"{'about ' if about else ''}{duration(seconds)} left"


def human_bytes(count: int) -> str:
    """5120 -> "5 kB"."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError
