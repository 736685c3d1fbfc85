"""What waits for the model: short questions first, then jobs in order. Knows clocks; knows no model and no disk.

Any thread may submit, ask, poll and cancel; exactly one work thread takes. Durations are monotonic seconds.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from editcore.engine.contract import FINISHED, LOCATE, JobKind, JobState, JobStatus, Plans, outdated, recent
from editcore.engine.wire import kind_of
from editcore.errors import BadRequest, Cancelled, EditcoreError, EngineBusy
from editcore.gate import check_examples, check_list, check_plans
from editcore.home import check_session
from editcore.records import EditReport, EditRequest, Outcome, Progress
from editcore.settings import chosen

_REMEMBERED = 256  # finished jobs that can still be polled
_COMPARISONS = 32  # of them
_EVENTS = 2000  # kept per job
SHORT = frozenset(
    {"preflight", "outlook", "suggest", "believe", "probe", "view", "models"}
)  # answered between steps too
KEPT: dict[JobKind, str] = {  # of work that was stopped
    "edit": "nothing of it was kept",
    "comparison": "the results that were there are kept",
    "preparation": "to go on with a training, start it again with the same examples",
    "recomputation": "the history is as it was",
    "adoption": "nothing of it was kept",
    "export": "nothing was written",
}
FINDING = "Finding out where to edit was stopped on request; nothing was kept."


@dataclass(slots=True)
class Question:
    """A short question, and where its answer goes."""

    name: str
    arguments: dict[str, Any]
    deadline: float  # monotonic seconds; later nobody listens
    answer: Future[Any] = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class Job:
    """One piece of work on its way. Changed by the queue alone."""

    job: str
    session: str
    key: str
    kind: JobKind
    requests: tuple[EditRequest, ...]  # of an edit or a comparison
    plans: tuple[tuple[str, dict[str, Any]], ...]  # methods with their settings; only a comparison has several
    status: JobStatus = "queued"
    events: deque[Progress] = field(default_factory=lambda: deque(maxlen=_EVENTS))
    sequence: int = 0
    report: EditReport | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    error: str = ""
    error_kind: str = ""
    file: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    committing: bool = False  # past the point where it can be cancelled
    started: float = 0.0
    ended: float = 0.0
    stage_began: tuple[str, int, float] = ("", 0, 0.0)  # the stage, and step and time of its first event

    def seconds(self, now: float) -> float:
        """Of work so far."""
        return (self.ended or now) - self.started if self.started else 0.0


class WorkQueue:
    """The line in front of the model.

    Args:
        limit: how many jobs may wait; None: as many as the settings say.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit, self._questions_limit = limit or chosen().most_waiting, chosen().most_questions
        self._changed = threading.Condition()
        self._questions: deque[Question] = deque()
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._keys: dict[tuple[str, str], str] = {}
        self._durations: deque[float] = deque(maxlen=8)  # of finished work, seconds a method
        self._refusal: EditcoreError | None = None

    # anybody ---------------------------------------------------------------------------------------------------

    def submit(
        self, kind: JobKind, session: str, requests: Sequence[EditRequest], plans: Plans, key: str,
        noted: Callable[[Job], None] = lambda job: None,
    ) -> str:  # fmt: skip
        """Queue a job; the same session and key give the same one. Raises EngineBusy, BadInput, EngineError.

        Args:
            noted: called with a fresh job before it can run.
        """
        check_session(session)
        if not isinstance(key, str) or not 0 < len(key) <= 200:
            raise BadRequest("The submission carries no usable key.", "A key of 1 to 200 characters is needed.")
        with self._changed:
            known = self._keys.get((session, key))
            if known:
                return known
            self._check_open()
            check_work(kind, requests, plans)
            self._check_room(session)
            job = Job(secrets.token_hex(8), session, key, kind, tuple(requests), tuple((m, dict(s)) for m, s in plans))
            noted(job)
            self._jobs[job.job] = job
            self._keys[session, key] = job.job
            self._waiting.append(job)
            self._forget_old()
            self._changed.notify_all()
            return job.job

    def ask(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Future[Any]:
        """Queue a question before all jobs; it is dropped unanswered once `timeout` seconds have passed."""
        with self._changed:
            self._check_open()
            if len(self._questions) >= self._questions_limit:
                raise EngineBusy(f"{len(self._questions)} questions are waiting already.", "", "Try again in a moment.")
            question = Question(name, dict(arguments), time.monotonic() + timeout)
            self._questions.append(question)
            self._changed.notify_all()
            return question.answer

    def poll(self, job: str, after: int = 0, have: int = 0) -> JobState:
        """Where a job stands, with the outcomes behind the first `have`. Raises BadRequest: there is no such job."""
        with self._changed:
            it = self._find(job)
            position = self._waiting.index(it) + 1 if it in self._waiting else 0
            events = tuple(it.events)
            progress = self._wait(position) if position else (events[-1] if events else None)
            return JobState(
                job=it.job, session=it.session, status=it.status, position=position, progress=progress,
                events=recent(events, it.sequence, after), sequence=it.sequence, report=it.report, error=it.error,
                error_kind=it.error_kind, seconds=it.seconds(time.monotonic()), kind=it.kind,
                methods=tuple(method for method, _ in it.plans), outcomes=tuple(it.outcomes[have:]), file=it.file,
            )  # fmt: skip

    def cancel(self, job: str) -> None:
        """Drop a queued job, ask a running one to stop; leave a finished or committing one alone."""
        with self._changed:
            it = self._find(job)
            if it.status == "queued":
                self._end(it, "cancelled", _stopped(it))
            elif not it.committing:
                it.stop.set()

    def unfinished(self, session: str) -> str | None:
        """The session's job that is queued or running."""
        with self._changed:
            return next((j.job for j in reversed(self._jobs.values()) if _open(j) and j.session == session), None)

    def under_way(self) -> int:
        """How many jobs wait or run."""
        with self._changed:
            return len(self._waiting) + (self._running is not None)

    def waiting(self) -> int:
        """How many jobs wait."""
        with self._changed:
            return len(self._waiting)

    def close(self, reason: EditcoreError) -> None:
        """Refuse everything from now on, and whatever waits; a running job goes on."""
        with self._changed:
            self._refusal = reason
            kind: JobStatus = "cancelled" if isinstance(reason, Cancelled) else "failed"
            for job in list(self._waiting):
                self._end(job, kind, reason)
            while self._questions:
                fail(self._questions.popleft().answer, reason)
            self._changed.notify_all()

    def stop_running(self) -> None:
        """Ask the running job, if any, to stop."""
        with self._changed:
            if self._running and not self._running.committing:
                self._running.stop.set()

    def wait_idle(self, timeout: float) -> bool:
        """True once no job runs; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running is None, timeout)

    # the work thread -------------------------------------------------------------------------------------------

    def take(self) -> Question | Job | None:
        """Wait for the next piece of work; None once closed."""
        with self._changed:
            while True:
                if self._refusal is not None:
                    return None
                while self._questions:
                    question = self._questions.popleft()
                    if time.monotonic() < question.deadline and question.answer.set_running_or_notify_cancel():
                        return question
                if self._waiting:
                    job = self._running = self._waiting.pop(0)
                    job.status, job.started = "running", time.monotonic()
                    return job
                self._changed.wait()

    def take_short(self) -> Question | None:
        """A short question that waits, if there is one; for the work thread between two steps of a job."""
        with self._changed:
            for question in [q for q in self._questions if q.name in SHORT]:
                self._questions.remove(question)
                if time.monotonic() < question.deadline and question.answer.set_running_or_notify_cancel():
                    return question
        return None

    def note(self, job: Job, progress: Progress) -> None:
        """Record one event of the running job; time left within the stage is filled in when the job gives none."""
        with self._changed:
            now = time.monotonic()
            if job.stage_began[0] != progress.stage:
                job.stage_began = (progress.stage, progress.step, now)
            _, first, began = job.stage_began
            if progress.seconds_left is None and progress.step > first:
                rate = (now - began) / (progress.step - first)
                progress = replace(progress, seconds_left=rate * max(0, progress.steps - progress.step))
            job.events.append(progress)
            job.sequence += 1

    def add(self, job: Job, outcome: Outcome) -> None:
        """Record what became of one method of the running comparison."""
        with self._changed:
            job.outcomes.append(outcome)
            job.stage_began = ("", 0, 0.0)

    def go_on(self, job: Job, commit: bool = False) -> None:
        """Raises Cancelled when somebody asked the running job to stop; with `commit`, nobody can from now on."""
        with self._changed:
            if job.stop.is_set():
                raise _stopped(job)
            job.committing = job.committing or commit

    def finish(self, job: Job, end: EditReport | EditcoreError | None) -> None:
        """Record how the running job ended: an edit with its report, a comparison with nothing more, or an error."""
        with self._changed:
            if isinstance(end, EditcoreError):
                self._end(job, "cancelled" if isinstance(end, Cancelled) else "failed", end)
                return
            job.report = end
            self._end(job, "done", None)
            if job.requests:
                self._durations.append(job.seconds(job.ended) / len(job.plans))

    # inside, with the lock held --------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._refusal is not None:
            again = self._refusal  # a fresh instance: one exception object must not collect several tracebacks
            raise type(again)(again.seen, again.wanted, again.try_)

    def _check_room(self, session: str) -> None:
        other = self.unfinished(session)
        if other:
            raise EngineBusy(
                f"Another {self._jobs[other].kind} of this session is unfinished (job {other}).",
                "One thing at a time can be done.",
                "Wait for it, or cancel it.",
            )
        if len(self._waiting) >= self._limit:
            left = self._seconds_before(len(self._waiting))
            hope = f"in about {max(1, round(left))} s" if left is not None else "in a moment"
            raise EngineBusy(f"{len(self._waiting)} edits are waiting already.", "", f"Try again {hope}.")

    def _find(self, job: str) -> Job:
        it = self._jobs.get(job) if isinstance(job, str) else None
        if it is None:
            raise unknown_job()
        return it

    def _end(self, job: Job, status: JobStatus, error: EditcoreError | None) -> None:
        job.status, job.ended = status, time.monotonic()
        if error is not None:
            job.error, job.error_kind = str(error), kind_of(error)
        if job in self._waiting:
            self._waiting.remove(job)
        if job is self._running:
            self._running = None
        self._changed.notify_all()

    def _forget_old(self) -> None:
        finished = [(job.job, job.kind) for job in self._jobs.values() if job.status in FINISHED]
        for name in outdated(finished, _REMEMBERED, _COMPARISONS):
            job = self._jobs.pop(name)
            self._keys.pop((job.session, job.key), None)

    def _wait(self, position: int) -> Progress:
        """What somebody in the queue hears."""
        ahead = position - 1 + (self._running is not None)
        text = f"{ahead} edit{'' if ahead == 1 else 's'} before this one" if ahead else "next"
        return Progress("queued", 0, 1, text=text, seconds_left=self._seconds_before(position - 1))

    def _seconds_before(self, waiting: int) -> float | None:
        """Expected seconds until the running job and the first `waiting` of the queue are done; None: no idea."""
        usual = sum(self._durations) / len(self._durations) if self._durations else None
        running = 0.0
        if self._running is not None:
            done = self._running.seconds(time.monotonic())
            last = self._running.events[-1].seconds_left if self._running.events else None
            if last is None and usual is None:
                return None
            running = max(last or 0.0, (usual or 0.0) * len(self._running.plans) - done)
        if waiting and usual is None:
            return None
        return running + sum(len(job.plans) for job in self._waiting[:waiting]) * (usual or 0.0)


def check_work(kind: JobKind, requests: Sequence[EditRequest], plans: Plans) -> None:
    """Refuse a job that could not be carried out whatever the model is."""
    if kind == "preparation":
        check_examples(*plans[0], needed=plans[0][0] != LOCATE)
    elif kind in ("edit", "comparison"):
        check_list(requests)
        for request in requests:
            check_plans(request, plans)


def unknown_job() -> BadRequest:
    """The answer to somebody who asks for a job that does not exist, or not any more."""
    return BadRequest("There is no such job here.", "", "Open the session again; what was applied is still there.")


def fail(answer: Future[Any], error: EditcoreError) -> None:
    """Put an error into an answer nobody has given yet."""
    if not answer.done() and (answer.running() or answer.set_running_or_notify_cancel()):
        answer.set_exception(error)


def _open(job: Job) -> bool:
    return job.status not in FINISHED


def _stopped(job: Job) -> Cancelled:
    finding = job.kind == "preparation" and job.plans[0][0] == LOCATE
    return Cancelled(FINDING if finding else f"The {job.kind} was stopped on request; {KEPT[job.kind]}.")
