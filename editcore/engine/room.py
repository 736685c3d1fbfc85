"""The engine's room: one work thread that owns the desk, the queue in front of it, the sessions behind it.

Knows the desk only as a protocol and imports no torch. The desk is opened, used and left on the work thread alone;
everything else is answered at once on the caller's thread.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from editcore import history
from editcore.engine import wire
from editcore.engine.contract import EngineState, Health, JobKind, JobState, Plans
from editcore.engine.faults import explain, make_room, poisons
from editcore.engine.hands import DeskLike, Trial
from editcore.engine.queue import Job, Question, WorkQueue
from editcore.engine.sessions import CHECKUP, REMADE, print_of_view, to_be_noted
from editcore.errors import BadRequest, Cancelled, EditcoreError, EngineError, WrongModel
from editcore.gate import check_prompts
from editcore.history import Stack
from editcore.home import check_session
from editcore.records import EditReport, EditRequest, Form, ModelInfo, Outcome, Progress, to_plain
from editcore.remade import Remade, stand
from editcore.store import Made, Store

_UNEXPECTED: dict[JobKind, str] = {
    "edit": "The edit stopped unexpectedly; nothing of it was kept",
    "comparison": "The comparison stopped unexpectedly",
    "preparation": "The preparation stopped unexpectedly",
    "recomputation": "It stopped unexpectedly; the history is as it was",
    "adoption": "The file could not be brought in; nothing of it was kept",
    "export": "The export stopped unexpectedly; nothing was written",
}
_EDITING: frozenset[JobKind] = frozenset({"edit", "recomputation", "adoption"})
_SHARING: frozenset[JobKind] = frozenset({"edit", "recomputation", "comparison"})  # questions pass between their steps
_SHARE = 3  # a third of a job's seconds at most goes to questions
logger = logging.getLogger(__name__)


class Room:
    """One model at work.

    Args:
        open_desk: loads the model, and says how far it is; called once, on the work thread.
        store: where committed edits are kept.
        poisoned: called after a fault that leaves the accelerator unusable for this process.
    """

    def __init__(
        self,
        open_desk: Callable[[Callable[[str], None]], DeskLike],
        store: Store,
        poisoned: Callable[[], None] | None = None,
    ) -> None:
        self._open_desk, self._store, self._poisoned = open_desk, store, poisoned
        self._queue = WorkQueue()
        self._state: EngineState = "starting"
        self._message = "The model is being loaded."
        self._model: ModelInfo | None = None
        self._busy: str | None = "loading"
        self._memory = 0
        self._lent = 0.0  # seconds of the running job in which questions were answered
        self._cutting_off = False  # the running job is stopped because the program ends
        self._thread = threading.Thread(target=self._work, name="editcore-desk", daemon=True)

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self._thread.start()

    # answered at once ------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """How this room is."""
        return Health(self._state, self._message, self._model, self._queue.waiting(), self._busy, self._memory)

    def submit(self, kind: JobKind, session: str, requests: Sequence[EditRequest], plans: Plans, key: str) -> str:
        """See `Engine.submit`, `Engine.compare` and the other kinds of work."""

        def noted(job: Job) -> None:
            work = to_be_noted(kind, job.requests, job.plans)
            self._store.begin_job(session, job.job, kind, [method for method, _ in job.plans], work)

        return self._queue.submit(kind, session, requests, plans, key, noted)

    def poll(self, job: str, after: int = 0, have: int = 0) -> JobState:
        """See `Engine.poll`; only the outcomes behind the first `have`."""
        return self._queue.poll(job, after, have)

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        self._queue.cancel(job)

    def unfinished(self, session: str) -> str | None:
        """The session's job that is queued or running."""
        return self._queue.unfinished(session)

    def under_way(self) -> int:
        """How many jobs are queued or running."""
        return self._queue.under_way()

    def ask(self, name: str, arguments: Mapping[str, Any], timeout: float) -> Future[Any]:
        """A question for the desk; see `Engine.ask`."""
        return self._queue.ask(name, arguments, timeout)

    def probe(self, session: str, prompts: Sequence[str], form: Form, timeout: float) -> Future[Any]:
        """Prompts for the base and the edited model; see `Engine.probe`."""
        check_session(session)
        check_prompts(prompts)
        return self._queue.ask("probe", {"session": session, "prompts": list(prompts), "form": form}, timeout)

    def view(self, session: str, edit: str, which: str, request: int, timeout: float) -> Future[Any]:
        """One edit's probes, read with another model; see `Engine.view`."""
        given = {"session": check_session(session), "edit": edit, "which": which, "request": request}
        return self._queue.ask("view", given, timeout)

    def drain(self, finish: float, stop: float) -> None:
        """Refuse new work, let the running edit finish for `finish` seconds, then cancel it and wait `stop` more."""
        self._queue.close(Cancelled("The engine was shut down before this could begin; nothing of it was kept."))
        if not self._queue.wait_idle(finish):
            self._cutting_off = True
            self._queue.stop_running()
            self._queue.wait_idle(stop)

    def join(self, seconds: float) -> None:
        """Wait until the model is let go, at most so long; to be called after `drain`."""
        self._thread.join(seconds)

    # the work thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            desk = self._open_desk(self._say)
            self._model, self._memory = desk.info(), desk.memory()
        except BaseException as error:  # the thread must outlive whatever a library raises, SystemExit included
            reason = explain(error, "The model could not be loaded", "loading")
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
                self._carry_out(desk, work)
            try:
                self._memory = desk.memory()
            except Exception:
                logger.exception("memory could not be read")
            self._busy = None

    def _say(self, words: str) -> None:
        self._message = words

    def _answer(self, desk: DeskLike, question: Question) -> None:
        try:
            if question.name == "probe":
                self._check_base(question.arguments["session"])
                standing = self._store.standing(question.arguments["session"])
                result = desk.probe(standing, question.arguments["prompts"], question.arguments["form"])
            elif question.name == "check_up":
                self._check_up(desk, question.arguments["session"])
                result = None
            elif question.name == "view":
                result = self._view(desk, **question.arguments)
            else:
                result = desk.ask(question.name, question.arguments)
            question.answer.set_result(wire.plain(result))
        except BaseException as error:
            question.answer.set_exception(explain(error, "The question could not be answered", question.name))
            make_room(desk, error)
            self._check_poison(error)

    def _view(self, desk: DeskLike, session: str, edit: str, which: str, request: int) -> Any:
        stack = self._store.stack(session)
        placed = history.in_place(stack)
        if which == "base":
            placed = ()
        elif which == "only":
            placed = tuple((p.edit, p.strength) for p in stack if p.edit == edit) or ((edit, 1.0),)
        print_ = print_of_view(edit, request, which, placed)
        known = self._store.reading(session, "view", print_)
        if known is None:
            report = self._store.edit(session, edit).reports[request]
            known = to_plain(desk.view(self._store.placed(placed), report))
            self._store.remember(session, "view", print_, known)
        return known

    def _carry_out(self, desk: DeskLike, job: Job) -> None:
        kinds: dict[JobKind, Callable[[DeskLike, Job], EditReport | None]] = {
            "edit": self._edit, "comparison": self._compare, "preparation": self._prepare,
            "recomputation": self._recompute, "adoption": self._adopt, "export": self._export,
        }  # fmt: skip
        end: EditReport | EditcoreError | None
        fault: BaseException | None = None
        self._lent = 0.0
        try:
            if job.kind != "preparation":
                self._check_base(job.session)
            end = kinds[job.kind](desk, job)
        except BaseException as error:  # the thread must outlive whatever a library raises, SystemExit included
            self._store.blobs.discard(job.job)
            fault, end = error, explain(error, _UNEXPECTED[job.kind], job.kind)
            make_room(desk, error)
        try:
            if not (self._cutting_off and isinstance(end, Cancelled)):  # that is told when the program is back
                self._store.end_job(job.job)
        except EditcoreError:
            logger.exception("the end of a job could not be written")
        self._queue.finish(job, end)
        if fault is not None:
            self._check_poison(fault)
        elif job.kind in _EDITING:
            try:
                self._check_up(desk, job.session)
            except Exception:  # the edit is committed; its health is a line in a chart
                logger.exception("the edited model could not be checked")

    def _check_base(self, session: str) -> None:
        """Raises WrongModel when the session holds edits of another model, be they switched off."""
        base = self._store.base(session)
        if base and self._model and not base.is_of(self._model):
            raise WrongModel(
                f"The edits of this session were made on {base.model}.", f"{self._model.name} is open now.",
                "Start a new session, or open that model again.",
            )  # fmt: skip

    def _edit(self, desk: DeskLike, job: Job) -> EditReport:
        ((method, settings),) = job.plans
        below = history.in_place(self._store.stack(job.session))
        folder = self._store.blobs.scratch(job.job)
        made = desk.edit(
            self._store.placed(below), job.requests, method, settings, self._hear(desk, job), job.stop.is_set, folder
        )
        return self._commit(job, [Made(job.job, made, below)])

    def _compare(self, desk: DeskLike, job: Job) -> None:
        trial = desk.trial(self._store.standing(job.session), job.requests[0])
        for number, (method, settings) in enumerate(job.plans, 1):
            self._queue.go_on(job)
            outcome = self._try(desk, trial, job, f"{method}, {number} of {len(job.plans)}", method, settings)
            self._queue.add(job, outcome)

    def _prepare(self, desk: DeskLike, job: Job) -> None:
        ((method, examples),) = job.plans
        desk.prepare(method, examples, self._hear(desk, job), job.stop.is_set)

    def _recompute(self, desk: DeskLike, job: Job) -> EditReport:
        """An edit and all above it again, each on what is now beneath it; those switched off stay off.

        How each stood until now is read first, so that what changed can be told.
        """
        ((_, options),) = job.plans
        stack = self._store.stack(job.session)
        first = next((i for i, place in enumerate(stack) if place.edit == options["edit"]), len(stack))
        kept, again = stack[:first], [p for p in stack[first:]]
        if not again:
            raise BadRequest("This edit is not in the history.", "", "Look at the history again.")
        below = list(history.in_place(kept))
        folders = self._store.placed(below)
        made: list[Made] = []
        changed: list[Remade] = []
        for number, place in enumerate(again, 1):
            old = self._store.edit(job.session, place.edit)
            folder = self._store.blobs.scratch(f"{job.job}-{number}")
            hear = self._hear(desk, job, f"#{old.number}, {number} of {len(again)}")
            requests = [report.request for report in old.reports]
            hear(Progress("read", 0, 1))
            ground = self._store.placed(history.beneath(stack, place.edit))
            before = desk.measure(ground, old.folder, requests, job.stop.is_set)
            method, settings = old.reports[0].method, dict(old.reports[0].settings)
            reports = desk.edit(folders, requests, method, settings, hear, job.stop.is_set, folder)
            made.append(Made(f"{job.job}-{number}", reports, tuple(below)))
            target = requests[0].target
            changed.append(Remade(old.id, old.number, made[-1].id, target, stand(before), stand(reports)))
            if place.on and place.strength > 0:
                below.append((made[-1].id, place.strength))
                folders.append((folder, place.strength))
        name = f"#{self._store.edit(job.session, again[0].edit).number}"
        said = f"compute {name} again" if len(again) == 1 else f"compute {name} and {len(again) - 1} more again"
        self._store.remember(job.session, REMADE, job.job, [to_plain(one) for one in changed])  # before it is shown
        return self._commit(job, made, said, kept, [(p.on, p.strength) for p in again])

    def _adopt(self, desk: DeskLike, job: Job) -> EditReport:
        ((name, options),) = job.plans
        stack = self._store.stack(job.session)
        below, source = list(history.in_place(stack)), Path(options["source"])
        try:
            found = desk.adopt(
                self._store.placed(below), source, (job.requests or (None,))[0],
                lambda number: self._store.blobs.scratch(f"{job.job}-{number}"), job.stop.is_set,
            )  # fmt: skip
        finally:
            shutil.rmtree(source, ignore_errors=True)
        made: list[Made] = []
        for number, (reports, strength) in enumerate(found, 1):
            made.append(Made(f"{job.job}-{number}", reports, tuple(below)))
            below.append((made[-1].id, strength))
        return self._commit(job, made, f"bring in {name}", stack, [(True, strength) for _, strength in found])

    def _export(self, desk: DeskLike, job: Job) -> None:
        ((form, options),) = job.plans
        placed = history.in_place(self._store.stack(job.session))
        wanted = options.get("edits")
        chosen = [(edit, strength) for edit, strength in placed if wanted is None or edit in wanted]
        found = [self._store.edit(job.session, edit) for edit, _ in chosen]
        edits = [(one.folder, strength, one.reports) for one, (_, strength) in zip(found, chosen, strict=True)]
        folder = self._store.blobs.scratch(job.job)
        desk.export(form, edits, options, folder / form, self._hear(desk, job))
        job.file = shutil.make_archive(str(folder / f"editcore-{form}"), "zip", folder / form)

    def _hear(self, desk: DeskLike, job: Job, title: str = "") -> Callable[[Progress], None]:
        """What a job's progress goes through; with a title in front of its text."""

        def report(progress: Progress) -> None:
            text = f"{title}: {progress.text}" if title and progress.text else title or progress.text
            self._queue.note(job, replace(progress, text=text))
            self._answer_one(desk, job)

        return report

    def _answer_one(self, desk: DeskLike, job: Job) -> None:
        """Between two steps of an edit, a short question of somebody else; all of them make it at most half longer."""
        if job.kind not in _SHARING or self._lent > job.seconds(time.monotonic()) / _SHARE:
            return
        question = self._queue.take_short()
        if question is None:
            return
        began = time.monotonic()
        with desk.lent():
            self._answer(desk, question)
        self._lent += time.monotonic() - began

    def _try(
        self, desk: DeskLike, trial: Trial, job: Job, title: str, method: str, settings: dict[str, Any]
    ) -> Outcome:  # fmt: skip
        """One method of a comparison; its failure is its own, unless nothing can be computed any more."""
        report = self._hear(desk, job, title)
        report(Progress("read", 0, 1))
        try:
            return Outcome(method, settings, trial(method, settings, report, job.stop.is_set))
        except Cancelled:
            raise
        except BaseException as error:  # whatever a library raises, SystemExit included
            if self._poisoned and poisons(error):
                raise
            told = explain(error, "It stopped unexpectedly", method)
            make_room(desk, error)
            return Outcome(method, settings, None, str(told), wire.kind_of(told))

    def _commit(
        self, job: Job, made: Sequence[Made], said: str = "",
        instead: Stack | None = None, places: Sequence[tuple[bool, float]] = (),
    ) -> EditReport:  # fmt: skip
        self._queue.go_on(job, commit=True)
        return self._store.commit(job.session, made, said, instead, places)[-1].reports[0]

    def _check_up(self, desk: DeskLike, session: str) -> None:
        """Read how the model is with everything in place, unless that is known."""
        placed = history.in_place(self._store.stack(session))
        print_ = history.print_of(placed)
        if not placed or self._store.reading(session, CHECKUP, print_) is not None:
            return
        reports = [report for edit, _ in placed for report in self._store.edit(session, edit).reports]
        found = desk.check_up(self._store.placed(placed), reports, lambda: False)
        self._store.remember(session, CHECKUP, print_, to_plain(found))

    def _check_poison(self, error: BaseException) -> None:
        if self._poisoned and poisons(error):
            logger.critical("the accelerator cannot be used any more by this process")
            self._state, self._message = "restarting", "The accelerator failed; the worker is being replaced."
            self._queue.close(EngineError(self._message, "", "Try again in a moment."))
            self._poisoned()
