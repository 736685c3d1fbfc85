"""The engine as a worker process of this machine: started, spoken to, restarted when it dies. Knows pipes, no torch.

What the page relies on: no call waits for the model longer than it says; a worker that dies takes no committed edit
with it; a job that was known here can be polled here, whatever became of its worker.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from editcore.engine import wire
from editcore.engine.contract import Health, JobKind, JobState, Plans, outdated, recent
from editcore.engine.inline import PROBE_TIMEOUT, wait
from editcore.engine.process import begin, end
from editcore.engine.queue import check_work, fail, unknown_job
from editcore.engine.sessions import StoredSessions
from editcore.engine.upload import unpacked
from editcore.engine.watchdog import Sign, Watchdog, lost
from editcore.errors import BadRequest, EditcoreError, EngineError
from editcore.gate import check_prompts
from editcore.home import check_session, home_dir
from editcore.records import EditReport, EditRequest, Form, MethodInfo, from_plain, to_plain
from editcore.store import Store

CONTROL_TIMEOUT = 10.0  # seconds; control calls never wait for the model
HEALTH_TIMEOUT = 0.4  # seconds; the page waits so long at most, and goes on with what it heard last
FRESH = 0.4  # seconds for which what the worker said about its health is not asked again
HASTE = 0.05  # seconds
DRAIN = 12.0  # seconds the running edit may go on when the program is asked to end; the worker itself allows 10
GIVE_UP_AFTER = 5  # deaths within a minute
_REMEMBERED = 96  # jobs: each holds its report, and the page is a small process
_COMPARISONS = 24  # of them
_EVENTS = 2000  # kept per job
RESTARTING = "The worker stopped and is being restarted; applied edits are kept."
logger = logging.getLogger(__name__)


class _Gone(EngineError):
    """The worker died while it was asked."""


@dataclass(slots=True)
class _Known:
    """One job as this side last saw it; `state.events` holds all its events."""

    state: JobState
    generation: int  # which worker has it
    key: tuple[str, str]


class LocalEngine:
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
        self._name = model
        self._home = (home or home_dir()).absolute()
        self._command = [sys.executable, "-m", "editcore.engine.worker", "--model", model, "--home", str(self._home)]
        self._command += ["--desk", desk] if desk else []
        self._backoff = backoff
        self._store = Store(self._home)
        self._sessions = StoredSessions(self._store, self._unfinished)
        self._changed = threading.Condition()  # guards everything below
        self._writing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None  # alive, as far as known
        self._generation = self._heard = 0  # how many workers there were; the one heard last
        self._dead: str = ""  # why there will be no further worker
        self._closed = False
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[Any]] = {}
        self._jobs: OrderedDict[str, _Known] = OrderedDict()
        self._keys: dict[tuple[str, str], str] = {}
        self._health = Health("starting", "The worker is being started.", None, 0, "loading", 0)
        self._health_of = (0, 0.0)  # the worker that said so, and monotonic seconds
        self._supervisor = threading.Thread(target=self._supervise, name="editcore-worker", daemon=True)
        self._supervisor.start()
        self._hung: set[int] = set()  # generations of workers that were replaced because they hung
        threading.Thread(target=self._watch, args=(watchdog or Watchdog(),), daemon=True).start()
        atexit.register(self.close, DRAIN)

    # the contract ----------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """See `Engine.health`."""
        with self._changed:
            last, there, dead, (said_by, at) = self._health, self._process is not None, self._dead, self._health_of
        if dead:
            return replace(last, state="failed", message=dead, queue=0, busy=None, memory=0)
        if there and said_by == self._generation and time.monotonic() - at < FRESH:
            return last
        if there:
            try:  # a worker that has not said anything yet is still starting: nobody waits for it
                patience = HEALTH_TIMEOUT if self._heard == self._generation else HASTE
                heard = from_plain(Health, self._control("health", patience))
                if heard.state == "starting" and self._generation > 1:
                    heard = replace(heard, state="restarting", message=RESTARTING, model=last.model)
                with self._changed:
                    self._health, self._health_of = heard, (self._generation, time.monotonic())
                return heard
            except _Gone:
                there = False
            except EngineError:
                if self._heard == self._generation:
                    return replace(last, message="The worker is slow to answer.")
        if self._generation == 0 or (there and self._generation == 1):
            return last
        return replace(last, state="restarting", message=RESTARTING, queue=0, busy="loading", memory=0)

    def methods(self) -> tuple[MethodInfo, ...]:
        """See `Engine.methods`."""
        from editcore.engine.menu import method_menu  # late: that module is also run as a program

        return method_menu(self._name)

    def ask(self, name: str, timeout: float = 20, **arguments: Any) -> Any:
        """See `Engine.ask`."""
        until = time.monotonic() + timeout
        answer = self._send("ask", timeout, name=name, arguments=arguments, timeout=timeout)[0]
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
        answer, _ = self._send("view", PROBE_TIMEOUT, **given, timeout=PROBE_TIMEOUT)
        return from_plain(EditReport, wait(answer, "view", PROBE_TIMEOUT, self.health))

    def _submit(self, kind: JobKind, session: str, requests: Sequence[EditRequest], plans: Plans, key: str) -> str:
        check_session(session)
        check_work(kind, requests, plans)
        with self._changed:
            if (session, key) in self._keys:
                return self._keys[session, key]
        given = {
            "requests": [to_plain(request) for request in requests],
            "plans": [[method, dict(settings)] for method, settings in plans],
        }
        answer, generation = self._send("submit", CONTROL_TIMEOUT, kind=kind, session=session, key=key, **given)
        job: str = wait(answer, "submit", CONTROL_TIMEOUT, lambda: self._health)
        methods = tuple(method for method, _ in plans)
        fresh = JobState(job, session, "queued", 1, None, (), 0, None, "", "", 0.0, kind, methods)
        with self._changed:
            self._keys[session, key], self._health_of = job, (0, 0.0)
            self._jobs.setdefault(job, _Known(fresh, generation, (session, key)))
            self._forget_old()
        return job

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
        answer, _ = self._send("probe", PROBE_TIMEOUT, **given, timeout=PROBE_TIMEOUT)
        result: list[dict[str, Any]] = wait(answer, "probe", PROBE_TIMEOUT, self.health)
        return result

    def close(self, drain: float = 0.0) -> None:
        """See `Engine.close`; for `drain` seconds the running edit may finish first."""
        with self._changed:
            if self._closed:
                return
            self._closed, self._dead = True, "The engine was closed."
            process = self._process
            self._changed.notify_all()
        atexit.unregister(self.close)
        if process is not None:
            end(process, drain)
        self._supervisor.join(2.0)
        self._store.close()

    # calls -----------------------------------------------------------------------------------------------------

    def _control(self, call: str, timeout: float = CONTROL_TIMEOUT, /, **arguments: Any) -> Any:
        answer, _ = self._send(call, timeout, **arguments)
        return wait(answer, call, timeout, lambda: self._health)

    def _send(self, call: str, patience: float, /, **arguments: Any) -> tuple[Future[Any], int]:
        """Send one call to the worker; while it is being restarted, wait for it up to `patience` seconds."""
        number, answer = next(self._numbers), Future[Any]()
        try:
            line = wire.dumps({"id": number, "call": call, "arguments": arguments})
        except (TypeError, ValueError) as error:
            raise EngineError(f"What {call!r} was given is not plain data.", "", "Send text and numbers.") from error
        with self._changed:
            if not self._changed.wait_for(lambda: self._process is not None or bool(self._dead), patience):
                raise EngineError("The worker is being restarted.", "", "Try again in a moment.")
            if self._dead or self._process is None:
                raise EngineError(self._dead)
            process, generation = self._process, self._generation
            self._pending[number] = answer
        answer.add_done_callback(lambda _: self._pending.pop(number, None))
        pipe: IO[bytes] | None = process.stdin
        with contextlib.suppress(OSError, ValueError), self._writing:  # a broken pipe: the supervisor fails the answer
            if pipe is not None:
                pipe.write(line)
                pipe.flush()
        return answer, generation

    # jobs ------------------------------------------------------------------------------------------------------

    def _find(self, job: str) -> _Known:
        with self._changed:
            known = self._jobs.get(job)
        if known is None:
            raise unknown_job()
        return known

    def _unfinished(self, session: str) -> str | None:
        """The session's latest job that has not ended, as far as known; asks the worker about it."""
        with self._changed:
            mine = [job for job, one in self._jobs.items() if one.state.session == session and not one.state.finished]
        for job in reversed(mine):
            with contextlib.suppress(EditcoreError):
                if not self.poll(job).finished:
                    return job
        return None

    def _merge(self, known: _Known, heard: JobState, have: int) -> None:
        """Take in what the worker said; its outcomes are those behind the first `have`."""
        with self._changed:
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
        with self._changed:
            gone = known.generation != self._generation or (self._process is None and self._generation > 0)
        if known.state.finished or not (gone or self._dead):
            return
        report: EditReport | None = None
        with contextlib.suppress(EditcoreError, OSError):
            if edit := self._store.committed(known.state.job):
                report = self._store.edit(known.state.session, edit).reports[0]
            if not self._closed:  # else it may still be finishing, or is told of when the program is back
                self._store.end_job(known.state.job, lost=report is None)
                self._store.blobs.discard(known.state.job)
        with self._changed:
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

    # supervision -----------------------------------------------------------------------------------------------

    def _supervise(self) -> None:
        deaths: deque[float] = deque()
        while True:
            code = self._run_worker()
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                deaths.append(now)
                while now - deaths[0] > 60.0:
                    deaths.popleft()
                logger.warning("the worker ended with code %s", code)
                if len(deaths) >= GIVE_UP_AFTER:
                    self._dead = (
                        f"The worker stopped {len(deaths)} times within a minute and is not started again. "
                        f"The log file {self._home / 'logs' / 'worker.log'} has the reason. Restart the dashboard."
                    )
                    self._changed.notify_all()
                    return
                self._changed.wait_for(lambda: self._closed, self._backoff * 2 ** (len(deaths) - 1))
                if self._closed:
                    return

    def _run_worker(self) -> int | None:
        """One worker from start to end; returns its exit code, None when it could not be started."""
        try:
            process = begin(self._command, self._home / "logs" / "worker.log")
        except OSError:
            logger.exception("the worker could not be started")
            return None
        with self._changed:
            if self._closed:  # between the decision to start and the start
                end(process)
                return process.returncode
            self._process, self._generation = process, self._generation + 1
            self._changed.notify_all()
        if process.stdout is not None:
            for line in process.stdout:
                self._hear(line)
        process.wait()
        self._bury()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return process.returncode

    def _watch(self, watchdog: Watchdog) -> None:
        """Cancel what gives no sign any more; replace the worker when that does not help."""
        while not self._is_closed_within(watchdog.interval):
            jobs = self._unfinished_jobs()
            sign = Sign(self.health().busy, (self._generation, self._health.memory, self._health.queue, *jobs))
            said = watchdog.judge(sign, time.monotonic())
            if said == "cancel":
                for job in [job for job, status, *_ in jobs if status == "running"]:
                    logger.warning("job %s gives no sign and is cancelled", job)
                    with contextlib.suppress(EditcoreError):
                        self.cancel(job)
            elif said == "replace":
                with self._changed:
                    self._hung.add(self._generation)
                    if self._process is not None:
                        logger.error("the worker hangs and is replaced")
                        self._process.kill()

    def _is_closed_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def _unfinished_jobs(self) -> list[tuple[str, str, int, int]]:
        """Job, status, events and outcomes of what is under way, as the worker says now."""
        with self._changed:
            names = [job for job, known in self._jobs.items() if not known.state.finished]
        for job in names:
            with contextlib.suppress(EditcoreError):
                self.poll(job)
        states = [known.state for job in names if (known := self._jobs.get(job))]
        return [(state.job, state.status, state.sequence, len(state.outcomes)) for state in states]

    def _bury(self) -> None:
        """No worker any more: first nobody can reach it, then everybody who waits is told."""
        with self._changed:
            self._process, self._health = None, replace(self._health, busy="loading")
            waiting, closed = list(self._pending.values()), self._closed
        for answer in waiting:
            said = "The engine was closed." if closed else "The worker stopped before it could answer."
            fail(answer, _Gone(said, "", "" if closed else "It is being restarted; try again in a moment."))

    def _hear(self, line: bytes) -> None:
        try:
            message = wire.loads(line)
            answer = self._pending.get(message["id"])
        except (ValueError, KeyError, TypeError):
            logger.error("a line of %d bytes from the worker is no answer", len(line))
            return
        self._heard = self._generation
        if answer is None or not answer.set_running_or_notify_cancel():
            return  # nobody waits any more
        if "error" in message:
            answer.set_exception(wire.error_from_plain(message["error"]))
        else:
            answer.set_result(message.get("result"))
