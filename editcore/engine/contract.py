"""What every engine promises: the protocol and the states it answers with. Knows no process, no thread, no model.

Everything that crosses this door is plain data or a frozen record; no callback, no tensor, no page type does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from editcore.history import Base, Move, Row
from editcore.records import (
    Checkup,
    EditReport,
    EditRequest,
    Form,
    MethodInfo,
    ModelInfo,
    Opening,
    Outcome,
    Progress,
)
from editcore.remade import Remade
from editcore.store.library import Library

JobStatus = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
JobKind = Literal["edit", "comparison", "preparation", "recomputation", "adoption", "export"]
EngineState = Literal["starting", "ready", "failed", "restarting"]
Plans = Sequence[tuple[str, Mapping[str, Any]]]  # methods with their settings; work without one has its options here
AGAIN: frozenset[JobKind] = frozenset({"edit", "comparison", "recomputation", "export"})  # can be run as asked before
LOCATE = "locate"  # a preparation that is no training: it finds out where to edit, with no examples
FINISHED: frozenset[str] = frozenset({"done", "failed", "cancelled", "lost"})


@dataclass(frozen=True, slots=True)
class Health:
    """How the engine is, right now."""

    state: EngineState
    message: str  # one sentence for a person; "" when there is nothing to say
    model: ModelInfo | None  # None until it is loaded
    queue: int  # jobs that wait
    busy: str | None  # what the model is doing, in a word: "loading", "edit" ...; None: nothing
    memory: int  # bytes the model holds, as of the last finished piece of work


@dataclass(frozen=True, slots=True)
class JobState:
    """One job on its way, as of one poll."""

    job: str
    session: str
    status: JobStatus
    position: int  # 1: next in the queue; 0: running or finished
    progress: Progress | None  # the latest event; while queued, how long the wait is expected to be
    events: tuple[Progress, ...]  # those with sequence > after, oldest first; only the latest 2000 are kept
    sequence: int  # number of events so far; pass it as `after` next time
    report: EditReport | None  # of an edit, once done; of several requests, the first
    error: str  # why it is not done, in full sentences
    error_kind: str  # a name in `errors.BY_NAME`; "" unless failed, cancelled or lost
    seconds: float  # of work so far; 0 while queued
    kind: JobKind = "edit"
    methods: tuple[str, ...] = ()  # only a comparison has more than one
    outcomes: tuple[Outcome, ...] = ()  # of a comparison: one a method, in order, each as soon as it is there
    file: str = ""  # of an export, once done: where it is

    @property
    def finished(self) -> bool:
        """True when nothing will change any more."""
        return self.status in FINISHED


@dataclass(frozen=True, slots=True)
class SessionState:
    """One session: its history, and what is on its way."""

    session: str
    rows: tuple[Row, ...] = ()  # the stack, oldest first
    undo: str = ""  # what undo would take back, in words; "": nothing
    redo: str = ""  # what redo would do again; "": nothing
    job: str | None = None  # the latest unfinished job
    edited: bool = False  # the session's model differs from the base
    name: str = ""  # given by a person
    interrupted: str = ""  # what became of a job that never ended, in a sentence; until another begins
    cut: str = ""  # that job, when `Engine.again` can run it
    base: Base | None = None  # the model its edits were made on; None: it holds none


class Sessions(Protocol):
    """What can be said and done about sessions without the model. Every change can be undone."""

    @property
    def library(self) -> Library:
        """The sessions as a whole: listed, named, copied, thrown away, shared."""
        ...

    def state(self, session: str) -> SessionState:
        """The session as of now; an unknown session is an empty one."""
        ...

    def reports(self, session: str, edit: str) -> tuple[EditReport, ...]:
        """What an edit of this session did when it was made: one report a request. Raises BadRequest: there is none."""
        ...

    def opening(self, base: Base) -> Opening | None:
        """What opens this model again; None where nobody here can tell."""
        ...

    def move(self, session: str, move: Move) -> SessionState:
        """Toggle, scale, remove, reorder or reset.

        Raises:
            EngineBusy: a job of this session is unfinished.
            BadRequest: see `history.moved`.
        """
        ...

    def undo(self, session: str) -> SessionState:
        """Take the last change back. Raises EngineBusy: a job of this session is unfinished."""
        ...

    def redo(self, session: str) -> SessionState:
        """Do it again. Raises EngineBusy: a job of this session is unfinished."""
        ...

    def annotate(self, session: str, edit: str, note: str) -> None:
        """Write a person's own words beside an edit."""
        ...

    def dismiss(self, session: str) -> None:
        """Tell no more of the job that was interrupted."""
        ...

    def course(self, session: str) -> tuple[tuple[int, Checkup], ...]:
        """How the model was after each edit of the stack, with the edit's number; where it was not read, nothing."""
        ...

    def remade(self, session: str, edit: str) -> tuple[Remade, ...]:
        """What computing again changed, for all edits that were computed with this one; () when it was not."""
        ...


class Engine(Protocol):
    """The door. Every error is an `EditcoreError`."""

    def health(self) -> Health:
        """How the engine is; never waits for the model."""
        ...

    def methods(self) -> tuple[MethodInfo, ...]:
        """The menu of editing methods, with the defaults that suit the model; needs no worker."""
        ...

    @property
    def opening(self) -> Opening:
        """How the model was opened that is loaded, or being loaded."""
        ...

    def open(self, opening: Opening) -> None:
        """Put another model in the place of the loaded one, for everybody; returns before it is loaded.

        The loaded one goes first, so that two are never in memory. What can be told before that is told before it.

        Raises:
            EngineBusy: somebody's job is queued or running.
            ModelError: it may not be opened here, or cannot be; the loaded one stays.
        """
        ...

    def ask(self, name: str, timeout: float = 20, **arguments: Any) -> Any:
        """Put a short question to the model ("preflight", "suggest", "believe"); answers are plain data.

        "models" (device, dtype) lists the models at hand (see `picker`); "look" (an opening's fields) raises what
        stands against opening one. "check_up" (session) answers nothing: it reads how the session's model is now, for
        `Sessions.course`.

        Raises:
            EngineError: no answer within `timeout` seconds, or the worker broke.
        """
        ...

    @property
    def sessions(self) -> Sessions:
        """The sessions; needs no worker."""
        ...

    def submit(
        self, session: str, requests: Sequence[EditRequest], method: str, settings: Mapping[str, Any], key: str
    ) -> str:
        """Queue an edit on top of what is in place; returns its job id, which becomes the edit's.

        Several requests are made together, in one patch. The same key again returns the same job.

        Raises:
            EngineBusy: the queue is full, or the session has another unfinished edit.
            BadInput: the request cannot be carried out.
        """
        ...

    def compare(self, session: str, request: EditRequest, methods: Plans, key: str) -> str:
        """Queue the same request through several methods with their settings, one after another; returns the job id.

        Each starts from what is in place. A method that fails stops nobody else; nothing is applied, no patch kept.

        Raises:
            EngineBusy, BadInput: as in `submit`.
        """
        ...

    def prepare(self, session: str, method: str, examples: Mapping[str, Any], key: str) -> str:
        """Queue the training of a method that learns to edit; returns the job id. It serves every session afterwards.

        Args:
            method: or `LOCATE`, which needs no examples.
            examples: "edits": text of a file of example edits, as JSON lines, or "" for the embedded model's own;
                "locality": running text, or ""; "steps": most optimiser steps; "edits_name", "locality_name": what
                messages call the two, never a path. Stopped and started again with the same, it goes on.

        Raises:
            EngineBusy: as in `submit`.
            BadInput: a text is missing or too long.
        """
        ...

    def recompute(self, session: str, edit: str, key: str) -> str:
        """Queue making this edit and all above it again, each on what is now beneath it; returns the job id.

        Raises:
            EngineBusy: as in `submit`.
        """
        ...

    def again(self, session: str, job: str, key: str) -> str:
        """Queue once more what was asked in a job of this session that was interrupted or lost; returns the job id.

        Raises:
            EngineBusy: as in `submit`.
            BadRequest: there is no such job, or it is of a kind that cannot be run again.
        """
        ...

    def adopt(self, session: str, data: bytes, name: str, request: EditRequest | None, key: str) -> str:
        """Queue putting a patch or an adapter from a file on top of what is in place; returns the job id.

        Args:
            data: a zip file of a patch, of a stack of them, or of a PEFT adapter of this model.
            name: of the file, for messages.
            request: what to measure it with when it brings no report.

        Raises:
            EngineBusy: as in `submit`.
            BadInput: the file is too large or no zip file.
        """
        ...

    def export(self, session: str, format: str, options: Mapping[str, Any], key: str) -> str:
        """Queue writing what is in place as a file to take away; returns the job id, whose `file` has it.

        Args:
            format: "patch", "peft" or "merged".
            options: "edits": ids, all that count when left out; "rank": of a dense edit's adapter.

        Raises:
            EngineBusy: as in `submit`.
        """
        ...

    def view(self, session: str, edit: str, which: str, request: int = 0) -> EditReport:
        """An edit's report with its probes read from the base model to another one; waits for the model the first time.

        Args:
            which: "base": the base model once more; "edited": everything in place; "only": this edit alone.
            request: of an edit that holds several, counted from 0.
        """
        ...

    def poll(self, job: str, after: int = 0) -> JobState:
        """Where the job stands, with the events after sequence number `after`."""
        ...

    def cancel(self, job: str) -> None:
        """Ask the job to stop before its next step; finished jobs and the outcomes a comparison has stay."""
        ...

    def probe(self, session: str, prompts: Sequence[str], form: Form = "raw") -> list[dict[str, Any]]:
        """Ask the base and the edited model: {"prompt", "base", "edited": same as base, or None when unedited}."""
        ...

    def close(self) -> None:
        """Stop; a running edit is cancelled and nothing of it is kept. Calling it twice is fine."""
        ...


def outdated(jobs: Sequence[tuple[str, JobKind]], most: int, most_compared: int) -> list[str]:
    """Of jobs, oldest first, those to be forgotten; a comparison holds a report for every method."""
    compared = [job for job, kind in jobs if kind == "comparison"]
    old = [job for job, _ in jobs[: max(0, len(jobs) - most)]]
    return list(dict.fromkeys([*old, *compared[: max(0, len(compared) - most_compared)]]))


def recent(events: tuple[Progress, ...], sequence: int, after: int) -> tuple[Progress, ...]:
    """The events numbered after `after`, of a tail of events whose last one is number `sequence`."""
    return events[max(0, len(events) - (sequence - after)) :] if sequence > after else ()
