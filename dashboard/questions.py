"""Questions to the model on threads of their own, so that no page waits for a model at work. Knows no page, no engine.

A question has a place (whose it is, and about what): a newer one at the same place takes the older one's turn.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

THREADS = 32  # each does nothing but wait
KEPT = 2000  # answers that hold for everybody
PLACES = 500  # that are waited for; who has left does not come for an answer


class Questions:
    """What is being asked, and answers that never change."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, "editcore-question")
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, tuple[str, Future[Any]]] = OrderedDict()  # by place: what, and its answer
        self._lasting: OrderedDict[str, Any] = OrderedDict()  # by what was asked

    def put(self, place: str, what: str, make: Callable[[], Any], seconds: float, lasting: bool = False) -> Future[Any]:
        """The answer to a question, begun now or before; waits `seconds` for it at most.

        An answer that has come is handed out once and forgotten, unless it is `lasting`: those are for everybody who
        asks the same.
        """
        with self._lock:
            if lasting and what in self._lasting:
                self._lasting.move_to_end(what)
                known: Future[Any] = Future()
                known.set_result(self._lasting[what])
                return known
            asked, answer = self._asked.get(place, ("", None))
            if answer is None or asked != what:
                if answer is not None:
                    answer.cancel()
                answer = self._pool.submit(make)
                self._asked[place] = (what, answer)
                _shorten(self._asked, PLACES)
        wait([answer], max(0.0, seconds))
        if answer.done():
            self._hand_out(place, what, answer, lasting)
        return answer

    def _hand_out(self, place: str, what: str, answer: Future[Any], lasting: bool) -> None:
        with self._lock:
            if self._asked.get(place, ("", None))[1] is answer:
                del self._asked[place]
            if lasting and not answer.cancelled() and answer.exception() is None:
                self._lasting[what] = answer.result()
                _shorten(self._lasting, KEPT)

    def answered(self, place: str) -> bool:
        """True when the answer at this place has come, or nothing is asked there any more."""
        with self._lock:
            _, answer = self._asked.get(place, ("", None))
            return answer is None or answer.done()

    def close(self) -> None:
        """Begin nothing any more; whoever is waiting is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _shorten(kept: OrderedDict[str, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
