"""How fast a password can be tried: every wrong try makes this whole process wait longer. Knows a clock and no page."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from hashlib import sha256
from threading import Lock

LONGEST = 60.0  # seconds between two tries
QUIET = 600.0  # seconds without a wrong try, after which the first is quick again


class Tries:
    """The wrong tries of everybody together: whoever guesses may come as many.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._wrong, self._last = 0, 0.0

    def wait(self) -> float:
        """Seconds until the next try is looked at."""
        with self._lock:
            return self._wait()

    def _wait(self) -> float:
        since = self._clock() - self._last
        if since >= QUIET:
            self._wrong = 0
        return max(0.0, min(LONGEST, 2.0 ** (self._wrong - 1)) - since) if self._wrong else 0.0

    def right(self, given: str, wanted: str) -> bool:
        """True for the password; a try that comes too early is not looked at."""
        with self._lock:
            if self._wait() > 0:
                return False
            same = hmac.compare_digest(_print(given), _print(wanted))
            if not same:
                self._wrong, self._last = self._wrong + 1, self._clock()
            return same


def _print(text: str) -> bytes:
    """Of equal length for all texts, so that a comparison tells nothing of it."""
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
