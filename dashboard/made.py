"""What was made of a record that never changes, such as a table of a report: made once, however often it is drawn."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import plotly.graph_objects as go

T = TypeVar("T")


class Made:
    """Things by the record they were made of, and a name; kept for as long as the record is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_record: dict[int, dict[str, Any]] = {}

    def of(self, record: Any, name: str, make: Callable[[], T]) -> T:
        """`make()`, the first time; then the same again, which nobody may change.

        Args:
            record: is told from others by identity, so that nothing of it has to be read.
            make: no pandas frame: one notes every look at its columns, and would grow with each.
        """
        with self._lock:
            found = self._by_record.get(id(record))
            if found is None:
                found = self._by_record[id(record)] = {}
                weakref.finalize(record, self._by_record.pop, id(record), None)
        if name not in found:
            found[name] = make()
        thing: T = found[name]
        return thing


class Picture(go.Figure):  # type: ignore[misc]
    """A chart that is sent many times and changed no more: what it is sent as is worked out once."""

    def __init__(self, drawn: go.Figure) -> None:
        super().__init__()
        self._sent: dict[str, Any] = drawn.to_dict()

    def to_dict(self) -> dict[str, Any]:
        """The chart as plain data, the same object every time."""
        return self._sent
