"""What is in place in a session, as a value, and the moves that lead from one to the next. Knows no disk, no model.

A stack is a tuple of places, oldest first. Every move returns a new stack; a session's log is a list of stacks with a
cursor, so undo and redo only move the cursor, and undoing everything is the base model by construction.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from editcore.errors import BadRequest
from editcore.records import EditReport, ModelInfo, Scores

STRONGEST = 1.5  # times what was computed


@dataclass(frozen=True, slots=True)
class Place:
    """One edit of a session, and whether and how strongly it counts."""

    edit: str  # its id
    on: bool = True
    strength: float = 1.0  # 0 to `STRONGEST`; 1: as computed


Stack = tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Move:
    """Something a person does to the stack.

    kind: "toggle", "scale", "remove", "up", "down" (of one edit), or "reset".
    """

    kind: str
    edit: str = ""
    value: float = 1.0  # toggle: 0 or 1; scale: the strength


@dataclass(frozen=True, slots=True)
class Base:
    """The model a session's edits were made on."""

    model: str  # its name
    fingerprint: str  # "" where its patches cannot be read: then the name decides

    def is_of(self, model: ModelInfo) -> bool:
        """True when this is the model."""
        return self.fingerprint == model.fingerprint if self.fingerprint else self.model == model.name


@dataclass(frozen=True, slots=True)
class Row:
    """One edit as the history shows it; the whole report is read apart."""

    edit: str
    number: int  # counted from 1 in the order they were made; never given twice in a session
    method: str
    prompt: str
    target: str
    requests: int  # how many edits it holds: usually 1, more when a list was applied in one patch
    sentence: str
    took: bool  # all of them did
    scores: Scores  # of the first request
    seconds: float  # of the edit
    bytes: int
    note: str
    at: float  # when it was made, seconds since 1970
    on: bool
    strength: float
    shifted: bool  # what is in place beneath it is no longer what it was computed on


def moved(stack: Stack, move: Move) -> Stack:
    """The stack after `move`.

    Raises:
        BadRequest: the edit is not in the stack, the strength is out of bounds, or there is no such move.
    """
    if move.kind == "reset":
        return ()
    at = _index(stack, move.edit)
    match move.kind:
        case "toggle":
            return _put(stack, at, replace(stack[at], on=bool(move.value)))
        case "scale":
            return _put(stack, at, replace(stack[at], strength=check_strength(move.value)))
        case "remove":
            return stack[:at] + stack[at + 1 :]
        case "up" | "down":
            to = at - 1 if move.kind == "up" else at + 1
            if not 0 <= to < len(stack):
                raise BadRequest("This edit is at the end of the list already.")
            return _put(_put(stack, at, stack[to]), to, stack[at])
    raise BadRequest(f"There is no move {move.kind!r}.", "toggle, scale, remove, up, down and reset are known.")


def said(move: Move, name: str) -> str:
    """A move in words, as the undo button names it.

    Args:
        name: what the edit is called, "#2 Boris Johnson".
    """
    match move.kind:
        case "toggle":
            return f"switch {name} {'on' if move.value else 'off'}"
        case "scale":
            return f"set {name} to {round(100 * move.value)} %"
        case "remove":
            return f"remove {name}"
        case "up" | "down":
            return f"move {name} {move.kind}"
    return "reset to the base model"


def in_place(stack: Stack) -> tuple[tuple[str, float], ...]:
    """The edits that count, with their strength, oldest first."""
    return tuple((p.edit, p.strength) for p in stack if p.on and p.strength > 0)


def beneath(stack: Stack, edit: str) -> tuple[tuple[str, float], ...]:
    """What counts below an edit of the stack."""
    return in_place(stack[: _index(stack, edit)])


def print_of(standing: Sequence[tuple[str, float]]) -> str:
    """A short print of what is in place: equal for equal answers of the model."""
    return hashlib.sha256(json.dumps([[e, s] for e, s in standing]).encode()).hexdigest()[:24]


def plain(stack: Stack) -> list[list[Any]]:
    """A stack as JSON."""
    return [[p.edit, p.on, p.strength] for p in stack]


def revived(data: Sequence[Sequence[Any]]) -> Stack:
    """The inverse of `plain`."""
    return tuple(Place(str(edit), bool(on), float(strength)) for edit, on, strength in data)


def summary(reports: Sequence[EditReport]) -> Mapping[str, Any]:
    """The fields of a `Row` that its reports decide."""
    first = reports[0]
    took = sum(report.took for report in reports)
    told = first.sentence if len(reports) == 1 else f"{len(reports)} edits in one patch; {took} took."
    return {
        "method": first.method, "prompt": first.request.prompt, "target": first.request.target,
        "requests": len(reports), "sentence": told, "took": took == len(reports), "scores": first.scores,
        "seconds": first.seconds.edit, "bytes": first.patch.bytes,
    }  # fmt: skip


def _index(stack: Stack, edit: str) -> int:
    found = next((i for i, place in enumerate(stack) if place.edit == edit), None)
    if found is None:
        raise BadRequest("This edit is not in the history.", "", "Look at the history again; it may have been undone.")
    return found


def _put(stack: Stack, at: int, place: Place) -> Stack:
    return (*stack[:at], place, *stack[at + 1 :])


def check_strength(value: float) -> float:
    """The strength itself. Raises BadRequest when it is out of bounds."""
    if not (math.isfinite(value) and 0 <= value <= STRONGEST):
        raise BadRequest(
            f"The strength is {value!r}.", f"0 to {STRONGEST:g} was wanted.", "1 is the edit as it was computed."
        )
    return float(value)
