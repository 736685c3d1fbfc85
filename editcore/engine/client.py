"""The engine over a worker process of this machine: its contract, and the jobs as last heard of. Knows no pipe.

What the page relies on: no call waits for the model longer than it says; a worker that dies takes no committed edit
with it; a job that was known here can be polled here, whatever became of its worker.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editcore.admission import admitted, public_name
from editcore.engine import wire
from editcore.engine.contract import FINISHED, Health, JobKind, JobState, Plans, outdated, recent
from editcore.engine.inline import PROBE_TIMEOUT, OneModel, still_busy, wait
from editcore.engine.queue import check_work, unknown_job
from editcore.engine.sessions import StoredSessions
from editcore.engine.supervisor import Gone, Supervisor
from editcore.engine.upload import unpacked
from editcore.engine.watchdog import Sign, Watchdog, lost
from editcore.errors import BadRequest, EditcoreError, EngineBusy, EngineError
from editcore.gate import check_prompts
from editcore.home import check_session, home_dir
from editcore.records import EditReport, EditRequest, Form, Opening, from_plain, to_plain
from editcore.settings import chosen
from editcore.store import Store

CONTROL_TIMEOUT = 10.0  # seconds; control calls never wait for the model
HEALTH_TIMEOUT = 0.4  # seconds; the page waits so long at most, and goes on with what it heard last
LOOK_TIMEOUT = 40.0  # seconds for looking at a model that is to be opened; the hub may have to be asked
FRESH = 0.4  # seconds for which what the worker said about its health is not asked again
HASTE = 0.05  # seconds
DRAIN = 12.0  # seconds the running edit may go on when the program is asked to end; the worker itself allows 10
_REMEMBERED = 96  # jobs: each holds its report, and the page is a small process
_COMPARISONS = 24  # of them
_EVENTS = 2000  # kept per job
RESTARTING = "The worker stopped and is being restarted; applied edits are kept."
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Known:
    """One job as this side last saw it; `state.events` holds all its events."""

    state: JobState
    generation: int  # which worker has it
    key: tuple[str, str]


def _not_taken() -> EngineError:
    return EngineError(
        f"The engine has not taken this within {CONTROL_TIMEOUT:g} s: this machine is too busy.",
        "It may still begin; it is then shown here.",
        "Press the button once more to look; the same click is never carried out twice.",
    )


class LocalEngine(OneModel):
    """`Engine` over a worker process. Returns at once; the model loads behind it.

    Args:
        model: name of the model to load.
        home: folder of sessions and logs; None: `home_dir()`.
        desk: "module:function" that opens the desk in the worker; None: the real one.
        backoff: seconds before the first restart; doubles with every death within a minute.
        watchdog: says when the worker hangs; None: one with the usual patience.
    """

    def __init__(
        self, model: str = "world-2019", home: Path | None = None, desk: str | None = None, backoff: float = 0.2,
        watchdog: Watchdog | None = None,
    ) -> None:  # fmt: skip
        self._home, self._desk, self._opening = (home or home_dir()).absolute(), desk, Opening(model)
        self._store = Store(self._home)
        self._sessions = StoredSessions(self._store, self._unfinished)
        self._lock = threading.Lock()  # guards everything below
        self._jobs: OrderedDict[str, _Known] = OrderedDict()
        self._keys: dict[tuple[str, str], str] = {}
        self._submitting = 0  # jobs that are being handed over
        self._changing = False  # the model is about to be changed
        self._changed_at = 0  # the worker that was begun for another model than the one before it
        self._hung: set[int] = set()  # workers that were replaced because they hung
        self._health = Health("starting", "The worker is being started.", None, 0, "loading", 0)
        self._health_of = (0, 0.0)  # the worker that said so, and monotonic seconds
        self._worker = Supervisor(self._command(), self._home / "logs" / "worker.log", backoff)
        threading.Thread(target=self._watch, args=(watchdog or Watchdog(),), daemon=True).start()
        atexit.register(self.close, DRAIN)

    def _command(self) -> list[str]:
        """What the worker of the model is begun with."""
        options = ("model", "revision", "device", "dtype", "device_map")
        given = [(name.replace("_", "-"), getattr(self._opening, name)) for name in options]
        command = [sys.executable, "-m", "editcore.engine.worker", "--home", str(self._home)]
        command += [f"--{name}={value}" for name, value in given if value]
        return command + ([f"--desk={self._desk}"] if self._desk else [])

    # the contract ----------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """See `Engine.health`."""
        seen = self._worker.seen()
        with self._lock:
            last, (said_by, at) = self._health, self._health_of
        there = seen.there
        if seen.dead:
            return replace(last, state="failed", message=seen.dead, queue=0, busy=None, memory=0)
        if there and said_by == seen.generation and time.monotonic() - at < FRESH:
            return last
        if there:
            try:  # a worker that has not said anything yet is still starting: nobody waits for it
                heard = from_plain(Health, self._control("health", HEALTH_TIMEOUT if seen.heard else HASTE))
                if heard.state == "starting" and seen.generation > 1:
                    said = self._restarting(seen.generation, heard.message)
                    heard = replace(heard, state="restarting", message=said, model=last.model)
                if self._keep(heard, seen.generation):
                    return heard
                there = False
            except Gone:
                there = False
            except EngineError:
                if seen.heard:
                    return replace(last, message="The worker is slow to answer.")
        if seen.generation == 0 or (there and seen.generation == 1):
            return last
        said = self._restarting(seen.generation if there else seen.generation + 1)
        with self._lock:
            return replace(self._health, state="restarting", message=said, queue=0, busy="loading", memory=0)

    def _keep(self, heard: Health, generation: int) -> bool:
        """Remember what this worker said about its health, unless another has taken its place since."""
        with self._lock:
            if self._worker.is_gone(generation):
                return False
            self._health, self._health_of = heard, (generation, time.monotonic())
            return True

    def _restarting(self, generation: int, said: str = "") -> str:
        """Why there is no answer until this worker is ready, in words."""
        if generation != self._changed_at:
            return RESTARTING
        return f"{public_name(self._opening.model)} is being opened. {said}".strip()

    def open(self, opening: Opening) -> None:
        """See `Engine.open`."""
        opening = replace(opening, model=admitted(opening.model.strip(), chosen()))
        if opening == self._opening and self.health().state == "restarting":
            return  # the same click twice
        with self._no_job_begins():
            under_way = sum(status not in FINISHED for _, status, *_ in self._unfinished_jobs())
            if under_way:
                raise still_busy(under_way)
            self._look(opening)
            with self._lock:
                self._opening = opening
                self._changed_at = coming = self._worker.replace(self._command())
                self._health = Health("restarting", self._restarting(coming), None, 0, "loading", 0)
                self._health_of = (0, 0.0)

    @contextmanager
    def _no_job_begins(self) -> Iterator[None]:
        with self._lock:
            if self._changing or self._submitting:
                raise still_busy(self._submitting)
            self._changing = True
        try:
            yield
        finally:
            self._changing = False

    def _look(self, opening: Opening) -> None:
        """What can be told before the loaded model goes is told now. Raises ModelError: this one cannot be opened."""
        if self.health().state != "ready":
            return
        try:
            self.ask("look", LOOK_TIMEOUT, **to_plain(opening))
        except EngineError as error:
            logger.warning("the model could not be looked at before it was opened: %s", error)

    def ask(self, name: str, timeout: float = 20, **arguments: Any) -> Any:
        """See `Engine.ask`."""
        until = time.monotonic() + timeout
        answer = self._worker.send("ask", timeout, name=name, arguments=arguments, timeout=timeout)[0]
        return wait(answer, name, timeout, self.health, until)

    @property
    def sessions(self) -> StoredSessions:
        """See `Engine.sessions`."""
        return self._sessions

    def submit(
        self, session: str, requests: Sequence[EditRequest], method: str, settings: Mapping[str, Any], key: str
    ) -> str:
        """See `Engine.submit`."""
        return self._submit("edit", session, requests, [(method, settings)], key)

    def compare(self, session: str, request: EditRequest, methods: Plans, key: str) -> str:
        """See `Engine.compare`."""
        return self._submit("comparison", session, [request], methods, key)

    def prepare(self, session: str, method: str, examples: Mapping[str, Any], key: str) -> str:
        """See `Engine.prepare`."""
        return self._submit("preparation", session, [], [(method, examples)], key)

    def recompute(self, session: str, edit: str, key: str) -> str:
        """See `Engine.recompute`."""
        return self._submit("recomputation", session, [], [("", {"edit": edit})], key)

    def again(self, session: str, job: str, key: str) -> str:
        """See `Engine.again`."""
        kind, requests, plans = self._sessions.asked(session, job)
        return self._submit(kind, session, requests, plans, key)

    def adopt(self, session: str, data: bytes, name: str, request: EditRequest | None, key: str) -> str:
        """See `Engine.adopt`."""
        source = unpacked(data, name, self._home)
        return self._submit("adoption", session, [request] if request else [], [(name, {"source": str(source)})], key)

    def export(self, session: str, format: str, options: Mapping[str, Any], key: str) -> str:
        """See `Engine.export`."""
        return self._submit("export", session, [], [(format, options)], key)

    def view(self, session: str, edit: str, which: str, request: int = 0) -> EditReport:
        """See `Engine.view`."""
        given = {"session": check_session(session), "edit": edit, "which": which, "request": request}
        answer, _ = self._worker.send("view", PROBE_TIMEOUT, **given, timeout=PROBE_TIMEOUT)
        return from_plain(EditReport, wait(answer, "view", PROBE_TIMEOUT, self.health))

    def _submit(self, kind: JobKind, session: str, requests: Sequence[EditRequest], plans: Plans, key: str) -> str:
        check_session(session)
        check_work(kind, requests, plans)
        with self._lock:
            if (session, key) in self._keys:
                return self._keys[session, key]
            if self._changing:
                raise EngineBusy("Another model is being opened.", "", "Try again when it is there.")
            self._submitting += 1
        try:
            return self._hand_over(kind, session, requests, plans, key)
        finally:
            with self._lock:
                self._submitting -= 1

    def _hand_over(self, kind: JobKind, session: str, requests: Sequence[EditRequest], plans: Plans, key: str) -> str:
        given = {
            "requests": [to_plain(request) for request in requests],
            "plans": [[method, dict(settings)] for method, settings in plans],
        }
        asked = {"kind": kind, "session": session, "key": key, **given}
        answer, generation = self._worker.send("submit", CONTROL_TIMEOUT, **asked)
        methods, taken = tuple(method for method, _ in plans), Future[str]()

        def take(done: Future[Any]) -> None:
            """Also an answer nobody waits for any more is a job of this session."""
            error = done.exception()
            if error is None:
                fresh = JobState(done.result(), session, "queued", 1, None, (), 0, None, "", "", 0.0, kind, methods)
                self._note_job(_Known(fresh, generation, (session, key)))
            if not taken.set_running_or_notify_cancel():
                return
            taken.set_exception(error) if error else taken.set_result(done.result())

        answer.add_done_callback(take)
        try:
            job: str = wait(taken, "submit", CONTROL_TIMEOUT, lambda: self._health)
        except EngineError as error:
            raise (_not_taken() if taken.cancelled() else error) from error
        return job

    def _note_job(self, known: _Known) -> None:
        with self._lock:
            self._keys[known.key], self._health_of = known.state.job, (0, 0.0)
            self._jobs.setdefault(known.state.job, known)
            self._forget_old()

    def poll(self, job: str, after: int = 0) -> JobState:
        """See `Engine.poll`."""
        known = self._find(job)
        self._settle(known)
        if not known.state.finished:
            try:
                after, have = known.state.sequence, len(known.state.outcomes)
                heard = from_plain(JobState, self._control("poll", HEALTH_TIMEOUT, job=job, after=after, have=have))
                self._merge(known, heard, have)
            except EditcoreError as error:
                self._settle(known)  # the worker may have been replaced since the last look
                if not known.state.finished and isinstance(error, BadRequest):
                    raise  # it knows no such job; one that is only slow to answer has not forgotten it
        state = known.state
        return replace(state, events=recent(state.events, state.sequence, after))

    def cancel(self, job: str) -> None:
        """See `Engine.cancel`."""
        known = self._find(job)
        self._settle(known)
        if not known.state.finished:
            try:
                self._control("cancel", job=job)
            except EditcoreError:
                self._settle(known)
                if not known.state.finished:
                    raise

    def probe(self, session: str, prompts: Sequence[str], form: Form = "raw") -> list[dict[str, Any]]:
        """See `Engine.probe`."""
        check_session(session)
        check_prompts(prompts)
        given = {"session": session, "prompts": list(prompts), "form": form}
        answer, _ = self._worker.send("probe", PROBE_TIMEOUT, **given, timeout=PROBE_TIMEOUT)
        result: list[dict[str, Any]] = wait(answer, "probe", PROBE_TIMEOUT, self.health)
        return result

    def close(self, drain: float = 0.0) -> None:
        """See `Engine.close`; for `drain` seconds the running edit may finish first."""
        if self._worker.closed:
            return
        atexit.unregister(self.close)
        self._worker.close(drain)
        self._store.close()

    def _control(self, call: str, timeout: float = CONTROL_TIMEOUT, /, **arguments: Any) -> Any:
        answer, _ = self._worker.send(call, timeout, **arguments)
        return wait(answer, call, timeout, lambda: self._health)

    # jobs ------------------------------------------------------------------------------------------------------

    def _find(self, job: str) -> _Known:
        with self._lock:
            known = self._jobs.get(job)
        if known is None:
            raise unknown_job()
        return known

    def _unfinished(self, session: str) -> str | None:
        """The session's latest job that has not ended, as far as known; asks the worker about it."""
        with self._lock:
            mine = [job for job, one in self._jobs.items() if one.state.session == session and not one.state.finished]
        for job in reversed(mine):
            with contextlib.suppress(EditcoreError):
                if not self.poll(job).finished:
                    return job
        return None

    def _merge(self, known: _Known, heard: JobState, have: int) -> None:
        """Take in what the worker said; its outcomes are those behind the first `have`."""
        with self._lock:
            old = known.state
            new = len(old.outcomes) - have  # outcomes another poll brought meanwhile
            if old.finished or heard.sequence < old.sequence or len(heard.outcomes) < new:
                return
            if heard.status != old.status:
                self._health_of = (0, 0.0)  # the model is at something else now
            events = (*old.events, *recent(heard.events, heard.sequence, old.sequence))[-_EVENTS:]
            known.state = replace(heard, events=events, outcomes=(*old.outcomes, *heard.outcomes[new:]))

    def _settle(self, known: _Known) -> None:
        """Decide about a job whose worker is gone: done when its row was written, else lost."""
        if known.state.finished or not self._worker.is_gone(known.generation):
            return
        report: EditReport | None = None
        with contextlib.suppress(EditcoreError, OSError):
            if edit := self._store.committed(known.state.job):
                report = self._store.edit(known.state.session, edit).reports[0]
            if not self._worker.closed:  # else it may still be finishing, or is told of when the program is back
                self._store.end_job(known.state.job, lost=report is None)
                self._store.blobs.discard(known.state.job)
        with self._lock:
            if known.state.finished:
                return
            if report is not None:
                known.state = replace(known.state, status="done", position=0, report=report)
                return
            error = lost(known.state.kind, known.generation in self._hung)
            known.state = replace(
                known.state, status="lost", position=0, error=str(error), error_kind=wire.kind_of(error)
            )

    def _forget_old(self) -> None:
        known = [(job, one.state.kind) for job, one in self._jobs.items()]
        for job in outdated(known, _REMEMBERED, _COMPARISONS):
            self._keys.pop(self._jobs.pop(job).key, None)

    # hung workers ----------------------------------------------------------------------------------------------

    def _watch(self, watchdog: Watchdog) -> None:
        """Cancel what gives no sign any more; replace the worker when that does not help."""
        while not self._worker.is_closed_within(watchdog.interval):
            jobs = self._unfinished_jobs()
            sign = Sign(self.health().busy, (self._worker.generation, self._health.memory, self._health.queue, *jobs))
            said = watchdog.judge(sign, time.monotonic())
            if said == "cancel":
                for job in [job for job, status, *_ in jobs if status == "running"]:
                    logger.warning("job %s gives no sign and is cancelled", job)
                    with contextlib.suppress(EditcoreError):
                        self.cancel(job)
            elif said == "replace":
                logger.error("the worker hangs and is replaced")
                self._hung.add(self._worker.generation)
                self._worker.kill()

    def _unfinished_jobs(self) -> list[tuple[str, str, int, int]]:
        """Job, status, events and outcomes of what is under way, as the worker says now."""
        with self._lock:
            names = [job for job, known in self._jobs.items() if not known.state.finished]
        for job in names:
            with contextlib.suppress(EditcoreError):
                self.poll(job)
        states = [known.state for job in names if (known := self._jobs.get(job))]
        return [(state.job, state.status, state.sequence, len(state.outcomes)) for state in states]
