"""The worker process: calls come in on its standard input, answers go out on what was its standard output.

`python -m editcore.engine.worker --model NAME --home FOLDER`; more options say how the model is opened. Knows the room
and the pipe; torch comes in only with the desk. Libraries print: before the desk is imported, file descriptor 1 is
pointed at the log and the pipe kept under another number, so nothing they print can reach the protocol. Leaves when
its input closes; on SIGTERM it lets the running edit finish, within limits. SIGINT is for the parent and ignored here.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

from editcore.engine import wire
from editcore.engine.hands import OpenDesk
from editcore.engine.room import Room
from editcore.errors import EditcoreError, EngineError
from editcore.records import EditRequest, Opening, from_plain, to_plain
from editcore.store import Library, Store

COURTESY = 5  # added to the niceness: a page that has something to draw goes first
STOP_SECONDS = 3.0  # how long a cancelled edit may take to notice
POISON_SECONDS = 1.0  # the page has this long to hear why, before the process is replaced
POISON_CODE = 70
logger = logging.getLogger("editcore.engine.worker")


def main(arguments: list[str] | None = None) -> None:
    """Serve until the input closes or SIGTERM; ends the process."""
    options = _parse(arguments)
    calls, answers = _claim_pipes()
    if hasattr(os, "nice"):
        os.nice(COURTESY)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    home = Path(options.home)
    store = Store(home)
    Library(store).prune()
    opening = Opening(options.model, options.revision, options.device, options.dtype, options.device_map)
    room = Room(lambda say: _open(options.desk)(opening, home, say), store, _leave_soon)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: _in_background(lambda: _leave(room, options.grace)))
    room.start()
    Server(room, answers).serve(calls)
    _leave(room, 0.0)


class Server:
    """Reads calls, answers them: control calls at once, questions when the desk has answered.

    Args:
        room: does the work.
        answers: where lines go; several threads write.
    """

    def __init__(self, room: Room, answers: BinaryIO) -> None:
        self._room, self._answers = room, answers
        self._writing = threading.Lock()

    def serve(self, calls: BinaryIO) -> None:
        """Until `calls` ends."""
        for line in calls:
            try:
                message = wire.loads(line)
                number, call, arguments = message["id"], message["call"], message["arguments"]
            except (ValueError, KeyError, TypeError):
                logger.error("a line of %d bytes is no call", len(line))
                continue
            try:
                result = self._call(call, arguments)
            except Exception as error:  # one bad call must not end the process
                self._send_error(number, error)
                continue
            if isinstance(result, Future):
                result.add_done_callback(lambda done, number=number: self._send_outcome(number, done))  # type: ignore[misc]
            else:
                self._send({"id": number, "result": result})

    def _call(self, call: str, given: Mapping[str, Any]) -> Any:
        room = self._room
        match call:
            case "health":
                return to_plain(room.health())
            case "poll":
                return to_plain(room.poll(given["job"], given["after"], given["have"]))
            case "cancel":
                return room.cancel(given["job"])
            case "submit":
                requests = [from_plain(EditRequest, request) for request in given["requests"]]
                plans = [(method, settings) for method, settings in given["plans"]]
                return room.submit(given["kind"], given["session"], requests, plans, given["key"])
            case "ask":
                return room.ask(given["name"], given["arguments"], given["timeout"])
            case "view":
                return room.view(**given)
            case "probe":
                return room.probe(given["session"], given["prompts"], given["form"], given["timeout"])
        raise EngineError(f"The worker knows no call {call!r}.")

    def _send_outcome(self, number: Any, done: Future[Any]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is not None:
            self._send_error(number, error)
        elif not done.cancelled():
            self._send({"id": number, "result": done.result()})

    def _send_error(self, number: Any, error: BaseException) -> None:
        if not isinstance(error, EditcoreError):
            logger.error("a call failed", exc_info=error)
            error = EngineError("The worker could not carry out a call.", "", "The log file has the details.")
        self._send({"id": number, "error": wire.error_to_plain(error)})

    def _send(self, message: Mapping[str, Any]) -> None:
        line = wire.dumps(message)
        with self._writing:
            try:
                self._answers.write(line)
                self._answers.flush()
            except (OSError, ValueError):
                logger.warning("nobody listens any more")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m editcore.engine.worker", description="Serves one model.")
    parser.add_argument("--model", required=True, help="name of the model")
    for name in ("revision", "device", "dtype", "device-map"):
        parser.add_argument(f"--{name}", default="", help="as `load` takes it; left out: as the settings say")
    parser.add_argument("--home", required=True, help="folder of sessions and logs")
    parser.add_argument("--desk", default="editcore.engine.desk:open_desk", help="module:function that opens the desk")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds a running edit may go on after SIGTERM")
    return parser.parse_args(arguments)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take both pipes out of reach of everybody who reads standard input or prints."""
    calls, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout.flush()
    os.dup2(2, 1)
    return calls, answers


def _open(name: str) -> OpenDesk:
    module, _, function = name.partition(":")
    desk: OpenDesk = getattr(importlib.import_module(module), function)
    return desk


def _leave(room: Room, grace: float) -> None:
    """End the process, whatever its other threads are in the middle of; committed edits are on disk."""
    room.drain(finish=grace, stop=STOP_SECONDS)
    logging.shutdown()
    os._exit(0)


def _leave_soon() -> None:
    def leave() -> None:
        logging.shutdown()
        os._exit(POISON_CODE)

    timer = threading.Timer(POISON_SECONDS, leave)
    timer.daemon = True
    timer.start()


def _in_background(act: Callable[[], None]) -> None:
    threading.Thread(target=act, daemon=True).start()


if __name__ == "__main__":
    main()
