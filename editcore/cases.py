"""Lists of edits people bring: a file's text in, checked requests out, with what was not used. No model, no torch.

JSON, JSON lines and CSV; our own field names, EasyEdit's, CounterFact's and zsRE's (see `foreign`). A list is read
whole or not at all: the first wrong row is named and nothing is made of the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from editcore import foreign, gate
from editcore.errors import BadRequest
from editcore.lookup import normal
from editcore.records import EditRequest, Form
from editcore.rows import read_rows, refuse_size
from editcore.settings import chosen


@dataclass(frozen=True, slots=True)
class Requests:
    """A list of edits, as it was read."""

    requests: tuple[EditRequest, ...]
    format: str  # what kind of file and whose field names, in words
    notes: tuple[str, ...]  # what was read, what was not used, what was changed: sentences


def read_requests(
    data: bytes | str, name: str = "", limit: int | None = None, *, most: float | None = None,
    distinct: bool = True, form: Form = "raw",
) -> Requests:  # fmt: skip
    """The edits in a file, all of them checked.

    Args:
        data: what stands in the file.
        name: of the file, for messages; its ending is not looked at.
        limit: take only so many from the start.
        most: how many there may be after that, `math.inf` for any number; None: as many as are made in one patch.
        distinct: refuse a question that is asked twice.
        form: of edits that name none.

    Raises:
        BadRequest: the list cannot be read or holds an edit nobody could make; row and field are named.
    """
    found, kind = read_rows(data, name, foreign.USED)
    entries, told = foreign.rows_of_columns(found, name), foreign.Told(form=form)
    every, taken = len(entries), entries if limit is None else entries[:limit]
    most = chosen().most_requests if most is None else most
    if len(taken) > most:
        raise BadRequest(
            f"{name[-80:] or 'The list'} holds {every:,} edits.", f"At most {most:,} are made at a time.", "Split it."
        )
    requests = foreign.requests_of(taken, name, told)
    if distinct:
        gate.check_distinct(requests, lambda request: (normal(request.prompt), request.form), name[-80:] or "the list")
    whose = foreign.kind_of_list(taken)
    format = f"{kind}, {f'the field names of {whose}' if whose != 'editcore' else 'our own field names'}"
    count = f"{len(requests):,} of {every:,}" if len(requests) < every else f"{every:,}"
    first = f"{count} edit{'' if every == 1 else 's'} read: {format}."
    return Requests(tuple(requests), format, (first, *told.notes()))


def read_file(
    path: Path,
    limit: int | None = None,
    *,
    most: float | None = math.inf,
    distinct: bool = False,
    form: Form = "raw",
    name: str = "",
) -> Requests:
    """`read_requests` of a file on disk; its size is looked at before it is opened.

    Args:
        name: what messages call it; "": by its name on disk.

    Raises:
        BadRequest: as there, or there is no such file.
    """
    if not path.is_file():
        raise BadRequest(f"There is no file {str(path)!r}.", "A file of edits was wanted.", "Check the path.")
    name = name or path.name
    try:
        size = path.stat().st_size
        if size > chosen().largest_list:
            refuse_size(size, name)
        data = path.read_bytes()
    except OSError as error:
        raise BadRequest(f"{name!r} cannot be read ({error.strerror}).", "", "Check the path.") from error
    return read_requests(data, name, limit, most=most, distinct=distinct, form=form)


def read_cases(path: Path, limit: int | None = None, form: Form = "raw", name: str = "") -> list[EditRequest]:
    """The edits of a file on disk, any number of them, repeated questions too.

    Raises:
        BadRequest: see `read_file`.
    """
    return list(read_file(path, limit, form=form, name=name).requests)
