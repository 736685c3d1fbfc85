"""Edits that were computed again: how each stood before and after, and that in a sentence.

Knows the records; knows no model, no disk and no page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from editcore.records import EditReport

_SAME = 0.01  # a probability that moved by less is called unchanged


@dataclass(frozen=True, slots=True)
class Stand:
    """How an edit stands on what is beneath it, at full strength; the requests of one patch are counted together."""

    took: int  # requests that took
    requests: int
    probability: float | None  # of the corrected answer, per token: the mean over the requests; None: not read
    paraphrases: int  # that give it too
    paraphrases_of: int
    unmoved: int  # unrelated prompts that did not move
    unmoved_of: int

    @property
    def holds(self) -> bool:
        """True when all of it took."""
        return self.took == self.requests


@dataclass(frozen=True, slots=True)
class Remade:
    """One edit that was computed again: the one that is gone and the one in its place."""

    old: str  # ids
    number: int  # the old one's
    new: str
    target: str  # of its first request
    before: Stand  # the old patch on what is beneath it now
    after: Stand  # the new patch on the same, those beneath it made again too


def stand(reports: Sequence[EditReport]) -> Stand:
    """How an edit stands, from its reports, one a request."""
    found = [r.after.new for report in reports for r in report.probes if r.probe.kind == "edit"]
    means = [score.mean for score in found if score is not None and not math.isnan(score.mean)]
    right, of = _counted(reports, lambda report: report.scores.generality, ("paraphrase",))
    unmoved, unmoved_of = _counted(reports, lambda report: report.scores.locality, ("near", "far"))
    return Stand(
        sum(report.took for report in reports), len(reports), sum(means) / len(means) if means else None,
        right, of, unmoved, unmoved_of,
    )  # fmt: skip


def _counted(
    reports: Sequence[EditReport], share: Callable[[EditReport], float | None], kinds: tuple[str, ...]
) -> tuple[int, int]:
    """How many probes of these kinds a score calls right, and of how many."""
    right = of = 0
    for report in reports:
        told = share(report)
        if told is not None and not math.isnan(told):
            judged = sum(result.probe.kind in kinds for result in report.probes)
            right, of = right + round(told * judged), of + judged
    return right, of


def told(made: Sequence[Remade]) -> str:
    """What computing again changed, in a sentence or two."""
    count = len(made)
    head = "This edit was computed again." if count == 1 else f"{count} edits were computed again."
    gained = [one.target for one in made if one.after.holds and not one.before.holds]
    lost = [one.target for one in made if one.before.holds and not one.after.holds]
    parts = [f"{_named(gained)} took now, and did not hold before."] if gained else []
    parts += [f"{_named(lost)} held before, and did not take this time."] if lost else []
    return " ".join([head, *(parts or [_alike(made)])])


def _named(targets: Sequence[str]) -> str:
    names = [f"“{target}”" for target in targets[:3]]
    return ", ".join(names) + (f" and {len(targets) - 3} more" if len(targets) > 3 else "")


def _alike(made: Sequence[Remade]) -> str:
    """The same for edits that took, or did not, as before."""
    moves = [
        (abs(after - before), before, after, one.target)
        for one in made
        if (before := one.before.probability) is not None and (after := one.after.probability) is not None
    ]
    held = "Whether it took is as before"
    if all(one.after.holds for one in made):
        held = "It holds as before" if len(made) == 1 else "All hold as before"
    size, before, after, target = max(moves, default=(0.0, 0.0, 0.0, ""))
    if size < _SAME:
        return f"{held}."
    return f"{held}; “{target}” is {'likelier' if after > before else 'less likely'} now."
