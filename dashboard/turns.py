"""Whose turn it is to draw a page: a few at once. Knows no page.

Threads that draw share one interpreter, and locks of the framework that each element takes. Many at once hand these
over and over to one another and all get slow; one after the other each is done in its own time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

AT_ONCE = 2  # pages drawn: one draws while the other waits for a disk
PATIENCE = 2.0  # seconds after which nobody waits any longer for his turn


class Turns:
    """Turns for threads.

    Args:
        at_once: how many may have one.
        patience: seconds until a thread goes on without one.
    """

    def __init__(self, at_once: int = AT_ONCE, patience: float = PATIENCE) -> None:
        self._free, self._patience = threading.Semaphore(at_once), patience
        self._mine = threading.local()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While the block runs, this thread has a turn."""
        self._take()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While the block runs, another may have the turn of this thread, which only waits."""
        had = getattr(self._mine, "has", False)
        self._give()
        try:
            yield
        finally:
            if had:
                self._take()

    def _take(self) -> None:
        self._mine.has = self._free.acquire(timeout=self._patience)

    def _give(self) -> None:
        if getattr(self._mine, "has", False):
            self._mine.has = False
            self._free.release()
