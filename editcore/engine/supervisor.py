"""One worker process after another: begun, spoken to over pipes, begun again when it dies. Knows no job and no torch.

Only one of them is alive at a time. Whoever calls is answered or told why not: a worker that dies fails every answer
it owes. One that keeps dying is given up, until another program is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from editcore.engine import wire
from editcore.engine.process import begin, end
from editcore.engine.queue import fail
from editcore.errors import EngineError

GIVE_UP_AFTER = 5  # deaths within a minute
CLOSED = "The engine was closed."
logger = logging.getLogger(__name__)


class Gone(EngineError):
    """The worker went while it was asked."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How things stood at one moment."""

    generation: int  # how many workers there were so far
    there: bool  # the last of them can be spoken to, as far as known
    heard: bool  # it has said something
    dead: str  # why there will be no further one; "": there will


class Supervisor:
    """Keeps a worker running.

    Args:
        command: what a worker is begun with.
        log: file for what it writes to its standard error.
        backoff: seconds before the first restart; doubles with every death within a minute.
    """

    def __init__(self, command: Sequence[str], log: Path, backoff: float) -> None:
        self.backoff, self._log = backoff, log
        self._command = tuple(command)
        self._changed = threading.Condition()  # guards everything below
        self._writing = threading.Lock()
        self._alive: subprocess.Popen[bytes] | None = None  # also one that was told to leave
        self._process: subprocess.Popen[bytes] | None = None  # the one to speak to
        self._generation = self._heard = 0  # how many workers there were; the one heard last
        self._dead = ""
        self._closed = False
        self._numbers = itertools.count(1)
        self._pending: dict[int, Future[Any]] = {}
        self._thread = threading.Thread(target=self._supervise, name="editcore-worker", daemon=True)
        self._thread.start()

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The worker to speak to; None while there is none."""
        return self._process

    @property
    def generation(self) -> int:
        """How many workers there were so far."""
        return self._generation

    @property
    def closed(self) -> bool:
        """True once nothing will be begun any more."""
        return self._closed

    def seen(self) -> Seen:
        """How things stand now."""
        with self._changed:
            heard = self._heard == self._generation
            return Seen(self._generation, self._process is not None, heard, self._dead)

    def is_gone(self, generation: int) -> bool:
        """True when that worker is not there any more."""
        with self._changed:
            none = self._process is None and self._generation > 0
            return none or bool(self._dead) or generation != self._generation

    def is_closed_within(self, seconds: float) -> bool:
        """Wait that long for the end of everything."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, seconds)

    def send(self, call: str, patience: float, /, **arguments: Any) -> tuple[Future[Any], int]:
        """Send one call; while a worker is being begun, wait for it up to `patience` seconds.

        Returns:
            The answer to come, and the number of the worker that owes it.

        Raises:
            EngineError: there is no worker, or what it was to be given is not plain data.
        """
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
        with contextlib.suppress(OSError, ValueError), self._writing:  # a broken pipe: the answer is failed elsewhere
            if pipe is not None:
                pipe.write(line)
                pipe.flush()
        return answer, generation

    def replace(self, command: Sequence[str]) -> int:
        """Begin another program once the worker has left, which is no death; returns the number it will have.

        Raises:
            EngineError: the engine was closed.
        """
        with self._changed:
            if self._closed:
                raise EngineError(CLOSED)
            self._command, self._dead, self._process = tuple(command), "", None
            alive, coming = self._alive, self._generation + 1
            self._changed.notify_all()
        self._fail_all("Another model is being opened.", "Ask again when it is there.")
        if alive is not None:
            threading.Thread(target=end, args=(alive,), daemon=True).start()
        return coming

    def kill(self) -> None:
        """End a worker that hangs; the next one is begun."""
        with self._changed:
            if self._process is not None:
                self._process.kill()

    def close(self, drain: float) -> None:
        """Begin nothing any more and end what is there; for `drain` seconds its running edit may finish first."""
        with self._changed:
            self._closed, self._dead = True, CLOSED
            alive = self._alive
            self._changed.notify_all()
        if alive is not None:
            end(alive, drain)
        self._thread.join(2.0)

    # the thread that begins and hears --------------------------------------------------------------------------

    def _supervise(self) -> None:
        deaths: deque[float] = deque()
        while not self._closed:
            command = self._command
            code = self._run(command)
            with self._changed:
                if self._is_over(command):
                    deaths.clear()
                    continue
                self._count(deaths)
                logger.warning("the worker ended with code %s", code)
                given_up = len(deaths) >= GIVE_UP_AFTER
                if given_up:
                    self._dead = (
                        f"The worker stopped {len(deaths)} times within a minute and is not started again. "
                        f"The log file {self._log} has the reason. Restart the dashboard."
                    )
                    self._changed.notify_all()
                pause = None if given_up else self.backoff * 2 ** (len(deaths) - 1)
                if self._changed.wait_for(partial(self._is_over, command), pause):
                    deaths.clear()

    def _is_over(self, command: Sequence[str]) -> bool:
        """True when no worker of this command is wanted any more."""
        return self._closed or self._command is not command

    def _count(self, deaths: deque[float]) -> None:
        """One more death; those of more than a minute ago are forgotten."""
        now = time.monotonic()
        deaths.append(now)
        while now - deaths[0] > 60.0:
            deaths.popleft()

    def _run(self, command: Sequence[str]) -> int | None:
        """One worker from start to end; returns its exit code, None when it was not started."""
        try:
            process = begin(command, self._log)
        except OSError:
            logger.exception("the worker could not be started")
            return None
        with self._changed:
            unwanted = self._is_over(command)  # between the decision to start and the start
            if not unwanted:
                self._alive = self._process = process
                self._generation += 1
                self._changed.notify_all()
        if unwanted:
            end(process)
            return process.returncode
        if process.stdout is not None:
            for line in process.stdout:
                self._hear(line)
        process.wait()
        self._bury(process)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        return process.returncode

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        """No worker any more: first nobody can reach it, then everybody who waits is told."""
        with self._changed:
            told_to_leave, closed = self._process is not process, self._closed
            self._alive = self._process = None
        if not told_to_leave:  # else they were told then
            again = "" if closed else "It is being restarted; try again in a moment."
            self._fail_all(CLOSED if closed else "The worker stopped before it could answer.", again)

    def _fail_all(self, said: str, try_: str) -> None:
        with self._changed:
            waiting = list(self._pending.values())
        for answer in waiting:
            fail(answer, Gone(said, "", try_))

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
