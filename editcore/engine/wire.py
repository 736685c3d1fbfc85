"""How calls look on the pipe: one JSON object a line, ASCII, NaN allowed. Knows records and errors, no transport.

A call is {"id", "call", "arguments"}; an answer is {"id", "result"} or {"id", "error": {"kind", "seen", "wanted",
"try"}}, where kind is a name in `errors.BY_NAME`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from editcore.errors import BY_NAME, EditcoreError, EngineError


def dumps(message: Any) -> bytes:
    """One line, newline included. Raises TypeError or ValueError when `message` is not plain data."""
    return json.dumps(message, allow_nan=True, separators=(",", ":")).encode("ascii") + b"\n"


def loads(line: bytes) -> Any:
    """The inverse of `dumps`. Raises ValueError when the line is not JSON."""
    return json.loads(line)


def plain(value: Any) -> Any:
    """`value` as it would look after a trip through the pipe: lists for tuples, a copy for everything."""
    return loads(dumps(value))


def kind_of(error: BaseException) -> str:
    """The name in `errors.BY_NAME` that describes `error` best."""
    return next((base.__name__ for base in type(error).__mro__ if base.__name__ in BY_NAME), "EngineError")


def error_to_plain(error: EditcoreError) -> dict[str, str]:
    """An error as a dict."""
    return {"kind": kind_of(error), "seen": error.seen, "wanted": error.wanted, "try": error.try_}


def error_from_plain(data: Mapping[str, Any]) -> EditcoreError:
    """The inverse of `error_to_plain`; an unknown kind becomes an EngineError."""
    kind = BY_NAME.get(str(data.get("kind")), EngineError)
    return kind(*(str(data.get(part, "")) for part in ("seen", "wanted", "try")))
