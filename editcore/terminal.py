"""What the command line reads and prints with: pairs, text, one JSON object, progress. Knows no command."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from editcore.errors import BadRequest
from editcore.gate import check_form
from editcore.records import Form
from editcore.words import left

if TYPE_CHECKING:
    from editcore.handle import Handle


def _known_form(value: str | None) -> str | None:
    """The value, checked before any model is opened."""
    if value is not None:
        check_form(value)
    return value


FormOption = Annotated[
    str | None,
    typer.Option(
        "--form", callback=_known_form,
        help="raw, or chat: in the model's chat template, which is the default if it has one.",
    ),
]  # fmt: skip
PIPED_WIDTH = 160  # columns where the output is no terminal: a table in a file should be whole


def _console(stderr: bool) -> Console:
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=PIPED_WIDTH)


out, err = _console(stderr=False), _console(stderr=True)
LINE_SECONDS = 20  # between two lines about long work, where no bar can be drawn


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` pairs as a dict.

    Raises:
        BadRequest: a pair has no "=".
    """
    result = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise BadRequest(f"--set {pair!r} cannot be read.", "name=value was wanted.", "For example: --set steps=30")
        result[name.strip()] = value.strip()
    return result


def form_of(handle: Handle, asked: str | None) -> Form:
    """The form a person asked for, or the model's usual one.

    Raises:
        BadRequest: there is no such form, or this model does not have it.
    """
    if asked is None:
        return handle.usual_form
    return handle.envelope(cast(Form, asked)).form


def show_json(value: Any) -> None:
    """One JSON object on standard output; a number that is not finite becomes null."""

    def clean(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, dict):
            return {str(k): clean(x) for k, x in v.items()}
        return [clean(x) for x in v] if isinstance(v, list | tuple) else v

    print(json.dumps(clean(value), ensure_ascii=False, indent=1))


@contextmanager
def bar(label: str, quiet: bool) -> Iterator[Any]:
    """A progress bar with ETA on standard error, lines where that is no terminal; yields advance(done, total, note)."""
    if not quiet and not err.is_terminal:
        yield _lines(label)
        return
    columns = (
        TextColumn(label),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet, transient=True) as progress:
        task = progress.add_task(label, total=None, note="")
        yield lambda done, total, note="": progress.update(task, completed=done, total=total, note=note)


def _lines(label: str) -> Callable[..., None]:
    said, last = time.monotonic(), (0, 0)
    first: tuple[int, float] | None = None  # work that is continued does not start at zero

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal said, first, last
        now = time.monotonic()
        if first is None or total != last[1] or done < last[0]:  # another stage, which has a pace of its own
            first = done, now
        last = done, total
        if now - said >= LINE_SECONDS or done == total:
            said, rate = now, (done - first[0]) / max(now - first[1], 1e-9)
            hope = f", {left((total - done) / rate)}" if rate and done < total else ""
            err.print(f"{label} {done}/{total} {note}{hope}", markup=False, highlight=False)

    return advance
