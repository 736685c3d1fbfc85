"""A session over its edits: what the check-ups after each of them say together. Standard library only, no model.

A model does not break at one edit: something starts to slip, and some edits later nothing is left. So a warning has
two thresholds: a line that has clearly been crossed now, and a lower one that says since which edit it has been on the
way there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from editcore.records import Checkup


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A warning, before it is too late."""

    start: int  # index of the check-up, and so of the edit, with which it began
    signs: tuple[str, ...]  # what is wrong now, in words
    sentence: str  # the warning, with its remedy
    collapsed: bool  # it is too late: the model no longer reads or writes plain text as the base does


@dataclass(frozen=True, slots=True)
class _Sign:
    """One way of getting worse; values grow as it does."""

    value: Callable[[Sequence[Checkup]], float]  # at the last of some check-ups
    onset: float  # from here on it has begun
    warn: float  # from here on it is said
    words: Callable[[float], str]


# (onset, warning), chosen on courses of random false edits of the embedded model, one on top of the other (seed 11).
# Sound editing stayed below every onset for 30 edits (rome, ft, grace) or 10 (memit, ft-l). Fine-tuning of block 0 that
# is never stopped crossed them in this order, and passed `COLLAPSED` between edits 10 and 15: answers move first.
DRIFT = (0.1, 0.25)  # share of unrelated answers that moved; the broken course began at 0.6
PERPLEXITY = (1.2, 1.5)  # times the base model's; sound editing reached 1.1 after 30 edits, the broken course 1.9 at 4
LOST = (0.1, 0.2)  # share of the edits that once held; the broken course kept all of 10 and lost a third of 25
REPETITION = (0.05, 0.1)  # share of the base model's n-gram entropy that is gone; it wavers by 0.02 by itself
LEAST_MOVED = 3  # answers: one of four is no trend
LEAST_LOST = 2  # edits: the same
COLLAPSED = 5.0  # times the base model's perplexity


def retention(checkup: Checkup) -> float | None:
    """Share of the edits that hold, of those no later edit contradicts; None where there is none."""
    standing = _standing(checkup)
    return sum(held for held in standing.values()) / len(standing) if standing else None


def _standing(checkup: Checkup) -> dict[tuple[str, str], bool]:
    """Edit -> holds, without those whose question was asked again later with another answer."""
    latest = {" ".join(h.prompt.split()).casefold(): h for h in checkup.held}
    return {(question, h.target): h.held for question, h in latest.items()}


def _lost(course: Sequence[Checkup]) -> float:
    """Share of the standing edits that held at some check-up before and do not now."""
    now = _standing(course[-1])
    once = {edit for checkup in course for edit, held in _standing(checkup).items() if held and edit in now}
    lost = [edit for edit in once if not now[edit]]
    return len(lost) / len(once) if len(lost) >= LEAST_LOST else 0.0


def _moved(course: Sequence[Checkup]) -> float:
    last = course[-1]
    return last.drift if last.drift is not None and round(last.drift * last.probes) >= LEAST_MOVED else 0.0


def _ratio(checkup: Checkup) -> float:
    return checkup.perplexity / checkup.base_perplexity


def _repetition(checkup: Checkup) -> float:
    return 1 - checkup.entropy / checkup.base_entropy if checkup.base_entropy else 0.0


SIGNS = (
    _Sign(lambda c: _ratio(c[-1]), *PERPLEXITY, lambda v: f"plain text is {v:.1f} times as surprising to it as before"),
    _Sign(_moved, *DRIFT, lambda v: f"{100 * v:.0f} % of the unrelated answers have moved"),
    _Sign(_lost, *LOST, lambda v: f"{100 * v:.0f} % of the edits that took no longer hold"),
    _Sign(
        lambda c: _repetition(c[-1]),
        *REPETITION,
        lambda v: f"what it writes repeats itself ({100 * v:.0f} % less varied)",
    ),
)


def diagnose(course: Sequence[Checkup], numbers: Sequence[int] | None = None) -> Diagnosis | None:
    """A warning when the model is getting worse with its edits, with the edit that started it; None while it is well.

    Args:
        course: the check-up after each edit, oldest first; the last is how the model is now.
        numbers: what the edits are called; counted from 1 where left out.
    """
    if not course:
        return None
    found = [(_begun(sign, course), sign.words(value)) for sign in SIGNS if (value := sign.value(course)) >= sign.warn]
    if not found:
        return None
    start, signs = min(at for at, _ in found), tuple(words for _, words in found)
    number = numbers[start] if numbers else start + 1
    collapsed = _ratio(course[-1]) >= COLLAPSED
    head = (
        f"The model has broken down since edit {number}"
        if collapsed
        else f"Since edit {number} the model is getting worse"
    )
    remedy = (
        f"Take edit {number} back." if start == len(course) - 1
        else f"Take edit {number} and those after it back, or go on with a method that is more local."
    )  # fmt: skip
    return Diagnosis(start, signs, f"{head}: {', '.join(signs)}. {remedy}", collapsed)


def _begun(sign: _Sign, course: Sequence[Checkup]) -> int:
    """Index of the first check-up since which the sign has been above its onset without a break."""
    at = len(course) - 1
    while at and sign.value(course[:at]) >= sign.onset:
        at -= 1
    return at


def course_rows(course: Sequence[Checkup], numbers: Sequence[int] | None = None) -> list[dict[str, float | int | None]]:
    """A row for each check-up, for a line chart.

    Returns:
        edit (its number), retention and unmoved (percent; None where there is nothing to judge), perplexity (times the
        base model's), entropy (percent of the base model's).
    """
    names = numbers or range(1, len(course) + 1)
    return [
        {
            "edit": number,
            "retention": None if (held := retention(c)) is None else 100 * held,
            "unmoved": None if c.drift is None else 100 * (1 - c.drift),
            "perplexity": _ratio(c),
            "entropy": 100 * (1 - _repetition(c)),
        }
        for number, c in zip(names, course, strict=True)
    ]
