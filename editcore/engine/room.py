"""The engine's room: one work thread that owns the desk, the queue in front of it, the sessions behind it.

Knows the desk only as a protocol and imports no torch. The desk is opened, used and left on the work thread alone;
everything else is answered at once on the caller's thread.
"""

from __future__ import annotations

import errno
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from editcore.engine import wire
from editcore.engine.contract import EngineState, Health, JobKind, JobState, Plans, SessionState
from editcore.engine.queue import DeskLike, Job, Question, Trial, WorkQueue
from editcore.engine.sessions import SessionStore, check_session
from editcore.errors import Cancelled, EditcoreError, EngineBusy, EngineError
from editcore.gate import check_prompts
from editcore.records import EditReport, EditRequest, ModelInfo, Outcome, Progress

_ACTIVE = 32  # sessions whose patch the desk is told to keep
_DISK = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO})
_POISON = ("CUDA error", "device-side assert", "illegal memory access", "CUBLAS_STATUS", "uncorrectable ECC")
logger = logging.getLogger(__name__)


class Room:
    """One model at work.

    Args:
        open_desk: loads the model; called once, on the work thread.
        store: where committed edits are kept.
        poisoned: called after a fault that leaves the accelerator unusable for this process.
    """

    def __init__(
        self,
        open_desk: Callable[[], DeskLike],
        store: SessionStore,
        poisoned: Callable[[], None] | None = None,
    ) -> None:
        self._open_desk, self._store, self._poisoned = open_desk, store, poisoned
        self._queue = WorkQueue()
        self._state: EngineState = "starting"
        self._message = "The model is being loaded."
        self._model: ModelInfo | None = None
        self._busy: str | None = "loading"
        self._memory = 0
        self._active: OrderedDict[str, Path] = OrderedDict()  # what the desk was told, latest use last
        self._thread = threading.Thread(target=self._work, name="editcore-desk", daemon=True)

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self._thread.start()

    # answered at once ------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """How this room is."""
        return Health(self._state, self._message, self._model, self._queue.waiting(), self._busy, self._memory)

    def submit(self, kind: JobKind, session: str, request: EditRequest | None, plans: Plans, key: str) -> str:
        """See `Engine.submit`, `Engine.compare` and `Engine.prepare`."""
        return self._queue.submit(kind, session, request, plans, key)

    def poll(self, job: str, after: int = 0, have: int = 0) -> JobState:
        """See `Engine.poll`; only the outcomes behind the first `have`."""
        return self._queue.poll(job, after, have)

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        self._queue.cancel(job)

    def session(self, session: str) -> SessionState:
        """See `Engine.session`."""
        job = self._queue.unfinished(check_session(session))  # before the log: an edit that ends now is in one of them
        edits = self._store.applied(session)
        return SessionState(session, tuple(edit.report for edit in edits), job, bool(edits))

    def reset(self, session: str) -> None:
        """See `Engine.reset`. The desk hears of it before its next work for this session."""
        running = self._queue.unfinished(check_session(session))
        if running:
            raise EngineBusy(
                f"A job of this session is unfinished (job {running}).", "", "Wait for it or cancel it, then reset."
            )
        try:
            self._store.reset(session)
        except OSError as error:
            raise _disk_error(error) from error

    def ask(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Future[Any]:
        """A question for the desk; see `Engine.ask`."""
        return self._queue.ask(name, arguments, timeout)

    def probe(self, session: str, prompts: Sequence[str], timeout: float) -> Future[Any]:
        """Prompts for the base and the edited model; see `Engine.probe`."""
        check_session(session)
        check_prompts(prompts)
        return self._queue.ask("probe", {"session": session, "prompts": list(prompts)}, timeout)

    def drain(self, finish: float, stop: float) -> None:
        """Refuse new work, let the running edit finish for `finish` seconds, then cancel it and wait `stop` more."""
        self._queue.close(Cancelled("The engine was shut down before this could begin; nothing of it was kept."))
        if not self._queue.wait_idle(finish):
            self._queue.stop_running()
            self._queue.wait_idle(stop)

    # the work thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            desk = self._open_desk()
            self._model, self._memory = desk.info(), desk.memory()
        except BaseException as error:  # the thread must outlive whatever a library raises, SystemExit included
            reason = _explain(error, "The model could not be loaded", "loading")
            self._state, self._message, self._busy = "failed", str(reason), None
            self._queue.close(reason)
            return
        self._state, self._message, self._busy = "ready", "", None
        while (work := self._queue.take()) is not None:
            if isinstance(work, Question):
                self._busy = work.name
                self._answer(desk, work)
            else:
                self._busy = work.kind
                {"edit": self._edit, "comparison": self._compare, "preparation": self._prepare}[work.kind](desk, work)
            try:
                self._memory = desk.memory()
            except Exception:
                logger.exception("memory could not be read")
            self._busy = None

    def _answer(self, desk: DeskLike, question: Question) -> None:
        try:
            if question.name == "probe":
                session = question.arguments["session"]
                self._tell(desk, session)
                result = desk.probe(session, question.arguments["prompts"])
            else:
                result = desk.ask(question.name, question.arguments)
            question.answer.set_result(wire.plain(result))
        except BaseException as error:
            question.answer.set_exception(_explain(error, "The question could not be answered", question.name))
            self._check_poison(error)

    def _edit(self, desk: DeskLike, job: Job) -> None:
        def report(progress: Progress) -> None:
            self._queue.note(job, progress)

        try:
            folder = self._store.scratch(job.session, job.job)
            ((method, settings),) = job.plans
            assert job.request is not None
            made = desk.edit(job.session, job.request, method, settings, report, job.stop.is_set, folder)
            self._queue.go_on(job, commit=True)
            self._queue.finish(job, self._commit(desk, job, made))
        except BaseException as error:
            self._store.discard(job.session, job.job)
            self._queue.finish(job, _explain(error, "The edit stopped unexpectedly; nothing of it was kept", "edit"))
            self._check_poison(error)

    def _compare(self, desk: DeskLike, job: Job) -> None:
        try:
            assert job.request is not None
            trial = desk.trial(job.request)
            for number, (method, settings) in enumerate(job.plans, 1):
                self._queue.go_on(job)
                outcome = self._try(trial, job, f"{method}, {number} of {len(job.plans)}", method, settings)
                self._queue.add(job, outcome)
            self._queue.finish(job, None)
        except BaseException as error:
            self._queue.finish(job, _explain(error, "The comparison stopped unexpectedly", "comparison"))
            self._check_poison(error)

    def _prepare(self, desk: DeskLike, job: Job) -> None:
        try:
            ((method, examples),) = job.plans
            desk.prepare(method, examples, lambda progress: self._queue.note(job, progress), job.stop.is_set)
            self._queue.finish(job, None)
        except BaseException as error:
            self._queue.finish(job, _explain(error, "The preparation stopped unexpectedly", "preparation"))
            self._check_poison(error)

    def _try(self, trial: Trial, job: Job, title: str, method: str, settings: dict[str, Any]) -> Outcome:
        """One method of a comparison; its failure is its own, unless nothing can be computed any more."""

        def report(progress: Progress) -> None:
            text = f"{title}: {progress.text}" if progress.text else title
            self._queue.note(job, replace(progress, text=text))

        report(Progress("read", 0, 1))
        try:
            return Outcome(method, settings, trial(method, settings, report, job.stop.is_set))
        except Cancelled:
            raise
        except BaseException as error:  # whatever a library raises, SystemExit included
            if self._poisoned and _poisons(error):
                raise
            told = _explain(error, "It stopped unexpectedly", method)
            return Outcome(method, settings, None, str(told), wire.kind_of(told))

    def _commit(self, desk: DeskLike, job: Job, report: EditReport) -> EditReport:
        edit = self._store.commit(job.session, job.job, report)
        try:
            self._tell(desk, job.session)
        except Exception:  # the edit is committed; the next probe tries again and says what is wrong
            logger.exception("a committed patch could not be put to use")
        return edit.report

    def _tell(self, desk: DeskLike, session: str) -> None:
        """Make the desk use what the log says; after a restart this is how sessions come back."""
        edits = self._store.applied(session)
        wanted = edits[-1].folder if edits else None
        if self._active.get(session) != wanted:
            self._active.pop(session, None)
            desk.activate(session, wanted)
        if wanted is None:
            return
        self._active[session] = wanted
        self._active.move_to_end(session)
        while len(self._active) > _ACTIVE:
            desk.activate(self._active.popitem(last=False)[0], None)

    def _check_poison(self, error: BaseException) -> None:
        if self._poisoned and _poisons(error):
            logger.critical("the accelerator cannot be used any more by this process")
            self._state, self._message = "restarting", "The accelerator failed; the worker is being replaced."
            self._queue.close(EngineError(self._message, "", "Try again in a moment."))
            self._poisoned()


def _poisons(error: BaseException) -> bool:
    """True for a fault that leaves the accelerator unusable."""
    return any(sign in str(error) for sign in _POISON) and not isinstance(error, EditcoreError)


def _explain(error: BaseException, what: str, doing: str) -> EditcoreError:
    """What a person is told; details of the unexpected go to the log, under an incident id."""
    if isinstance(error, EditcoreError):
        return error
    if any(base.__name__ in ("MemoryError", "OutOfMemoryError") for base in type(error).__mro__):
        logger.exception("out of memory: %s", doing)
        return EngineError(
            "There was not enough memory for this; nothing of it was kept.",
            "",
            "Use fewer probes or a lighter method, or free memory on this machine, and try again.",
        )
    if isinstance(error, OSError) and error.errno in _DISK:
        logger.exception("disk: %s", doing)
        return _disk_error(error)
    incident = secrets.token_hex(4)
    logger.error("incident %s: %s", incident, doing, exc_info=error)
    return EngineError(f"{what} (incident {incident}).", "", "Try again; the log file has the details.")


def _disk_error(error: OSError) -> EngineError:
    return EngineError(
        f"It could not be saved: {(error.strerror or 'the disk refused').lower()}.",
        "Nothing was changed.",
        "Free space, or set EDITCORE_HOME to a folder that can be written, and try again.",
    )
