"""What every engine promises: the protocol and the states it answers with. Knows no process, no thread, no model.

Everything that crosses this door is plain data or a frozen record; no callback, no tensor, no page type does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from editcore.records import EditReport, EditRequest, MethodInfo, ModelInfo, Outcome, Progress

JobStatus = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
JobKind = Literal["edit", "comparison", "preparation"]
EngineState = Literal["starting", "ready", "failed", "restarting"]
Plans = Sequence[tuple[str, Mapping[str, Any]]]  # methods with their settings
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
    report: EditReport | None  # of an edit, once done
    error: str  # why it is not done, in full sentences
    error_kind: str  # a name in `errors.BY_NAME`; "" unless failed, cancelled or lost
    seconds: float  # of work so far; 0 while queued
    kind: JobKind = "edit"
    methods: tuple[str, ...] = ()  # only a comparison has more than one
    outcomes: tuple[Outcome, ...] = ()  # of a comparison: one a method, in order, each as soon as it is there

    @property
    def finished(self) -> bool:
        """True when nothing will change any more."""
        return self.status in FINISHED


@dataclass(frozen=True, slots=True)
class SessionState:
    """One session: what is applied to its model, and what is on its way."""

    session: str
    reports: tuple[EditReport, ...]  # applied edits, oldest first; an edit replaces the one before it
    job: str | None  # the latest unfinished job
    edited: bool  # the session's model differs from the base


class Engine(Protocol):
    """The door. Every error is an `EditcoreError`."""

    def health(self) -> Health:
        """How the engine is; never waits for the model."""
        ...

    def methods(self) -> tuple[MethodInfo, ...]:
        """The menu of editing methods; needs no worker."""
        ...

    def ask(self, name: str, timeout: float = 20, **arguments: Any) -> Any:
        """Put a short question to the model ("preflight", "suggest", "believe"); answers are plain data.

        Raises:
            EngineError: no answer within `timeout` seconds, or the worker broke.
        """
        ...

    def submit(self, session: str, request: EditRequest, method: str, settings: Mapping[str, Any], key: str) -> str:
        """Queue an edit; returns its job id. The same key again returns the same job.

        Raises:
            EngineBusy: the queue is full, or the session has another unfinished edit.
            BadInput: the request cannot be carried out.
        """
        ...

    def compare(self, session: str, request: EditRequest, methods: Plans, key: str) -> str:
        """Queue the same request through several methods with their settings, one after another; returns the job id.

        A method that fails stops nobody else. Nothing is applied to the session and no patch is kept.

        Raises:
            EngineBusy, BadInput: as in `submit`.
        """
        ...

    def prepare(self, session: str, method: str, examples: Mapping[str, Any], key: str) -> str:
        """Queue the training of a method that learns to edit; returns the job id. It serves every session afterwards.

        Args:
            examples: "edits": text of a file of example edits, as JSON lines, or "" for the embedded model's own;
                "locality": running text, or ""; "steps": most optimiser steps. Stopped and started again with the
                same, it goes on.

        Raises:
            EngineBusy: as in `submit`.
            BadInput: a text is missing or too long.
        """
        ...

    def poll(self, job: str, after: int = 0) -> JobState:
        """Where the job stands, with the events after sequence number `after`."""
        ...

    def cancel(self, job: str) -> None:
        """Ask the job to stop before its next step; finished jobs and the outcomes a comparison has stay."""
        ...

    def session(self, session: str) -> SessionState:
        """What is applied and what is on its way; an unknown session is an empty one."""
        ...

    def reset(self, session: str) -> None:
        """Back to the base model.

        Raises:
            EngineBusy: an edit of this session is unfinished.
        """
        ...

    def probe(self, session: str, prompts: Sequence[str]) -> list[dict[str, Any]]:
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
