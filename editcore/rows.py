"""A file somebody brings, taken apart into rows of named fields, whatever its name. Standard library only.

Read are a JSON array, one JSON object, JSON lines, and CSV with commas, semicolons or tabs. What is no text, too large,
too deep, ragged or not finite is refused before anything is made of it. What the fields mean is `foreign`'s business.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from editcore.errors import BadRequest
from editcore.settings import chosen

MOST_DEEP = 20  # lists and objects inside each other; the data sets need 5
WANTED = "A list of edits as JSON, JSON lines or CSV in UTF-8 was wanted."
_OPENINGS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook", b"PK\x05\x06": "an empty ZIP archive",
    b"\x1f\x8b": "compressed (gzip)", b"BZh": "compressed (bzip2)", b"\xfd7zXZ": "compressed (xz)",
    b"7z\xbc\xaf": "a 7z archive", b"\x28\xb5\x2f\xfd": "compressed (zstandard)", b"%PDF": "a PDF",
    b"PAR1": "a Parquet table", b"\x93NUMPY": "a NumPy array", b"\x89PNG": "a picture", b"\x7fELF": "a program",
    b"SQLite format": "a database", b"\xff\xfe": "text in UTF-16", b"\xfe\xff": "text in UTF-16",
}  # fmt: skip
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)  # a whole string, or a bracket


class Number(str):
    """A number of a JSON file, as it is written there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One row, as it was found."""

    place: str  # "Row 3" or "Row 3 (line 5)"
    fields: Mapping[str, Any]
    cells: bool = False  # from a table: every value is a text


def kind_of(value: Any) -> str:
    """What a JSON value is, as people call it."""
    names = {dict: "an object", list: "a list", bool: "true or false", Number: "a number", str: "a text"}
    return names.get(type(value), "nothing")


def read_rows(data: bytes | str, name: str, headings: frozenset[str]) -> tuple[list[Entry], str]:
    """The rows of a file and what kind of file it is, in words.

    Args:
        name: of the file, for messages; may be empty.
        headings: column names that make a table one of edits.

    Raises:
        BadRequest: it is too large, no text, damaged, ragged, or no such list; the first wrong place is named.
    """
    if len(data) > chosen().largest_list:
        refuse_size(len(data), name)
    text = data if isinstance(data, str) else _decoded(data, name)
    text = text.removeprefix("\ufeff")
    if "\0" in text:
        raise BadRequest(f"{_the(name)} is no text: it holds null characters.", WANTED, "Save it as plain text.")
    opening = text.lstrip()[:1]
    if not opening:
        raise BadRequest(f"{_the(name)} is empty: it holds no case.", WANTED)
    if opening == "[":
        return _array(text, name), "a JSON array"
    if opening == "{":
        return _objects(text, name)
    return _table(text, name, headings)


def refuse_size(size: int, name: str) -> NoReturn:
    """Raises BadRequest with the size and the limit."""
    raise BadRequest(
        f"{_the(name)} has {size / 1e6:,.1f} million bytes.",
        f"At most {chosen().largest_list / 1e6:,.0f} million are read.",
        "Split it.",
    )


def _the(name: str) -> str:
    return repr(name[-80:]) if name else "The file"


def _of(name: str) -> str:
    return f" of {name[-80:]}" if name else ""


def _decoded(data: bytes, name: str) -> str:
    for opening, what in _OPENINGS.items():
        if data.startswith(opening):
            raise BadRequest(f"{_the(name)} is no text: it is {what}.", WANTED, "Save it as text in UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadRequest(
            f"{_the(name)} is no text in UTF-8: line {line} holds the byte 0x{data[error.start]:02x}.",
            WANTED,
            "Save it again with the encoding UTF-8 (in a spreadsheet: “CSV UTF-8”).",
        ) from error


# JSON


class NotFinite(str):
    """NaN or Infinity, as it is written."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the field {twice[:60]!r} stands there twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=NotFinite, parse_float=Number, parse_int=Number, object_pairs_hook=_once)


def parse(text: str) -> Any:
    """One JSON value; numbers stay as they are written, as do NaN and Infinity.

    Raises:
        ValueError: it is no JSON, nests deeper than `MOST_DEEP`, or holds a field twice.
    """
    deep = 0
    for token in _TOKEN.finditer(text):
        opening = token[0][0]
        deep += (opening in "[{") - (opening in "]}")
        if deep > MOST_DEEP:
            raise ValueError(f"more than {MOST_DEEP} lists and objects are nested inside each other")
    return _DECODER.decode(text)


def _json(text: str, line: int | None, name: str) -> Any:
    """One value; `line` where it has a line of its own, else it is the whole file."""
    try:
        return parse(text)
    except (ValueError, RecursionError) as error:
        at, why = line, str(error)
        if isinstance(error, json.JSONDecodeError):
            at, why = line or error.lineno, f"{error.msg}, column {error.colno}"
        where = f"Line {at}{_of(name)}" if at else _the(name)
        raise BadRequest(f"{where} cannot be read ({why}).", WANTED, "Mend that place.") from error


def _array(text: str, name: str) -> list[Entry]:
    rows = _json(text, None, name)
    if not rows:
        raise BadRequest(f"{_the(name)} is an empty list: it holds no case.", WANTED)
    return [_entry(row, f"Row {number}", name) for number, row in enumerate(rows, 1)]


def _objects(text: str, name: str) -> tuple[list[Entry], str]:
    """JSON lines, or one object over any number of lines."""
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) > 1 and (lines[1][1].startswith("{") or _stands_alone(lines[0][1])):
        return [
            _entry(_json(line, number, name), f"Row {row} (line {number})", name)
            for row, (number, line) in enumerate(lines, 1)
        ], "JSON lines"
    return [_entry(_json(text, None, name), "Row 1", name)], "one JSON object"


def _stands_alone(line: str) -> bool:
    try:
        parse(line)
    except (ValueError, RecursionError):
        return False
    return True


def _entry(row: Any, place: str, name: str) -> Entry:
    if not isinstance(row, dict):
        raise BadRequest(f"{place}{_of(name)} is {kind_of(row)}.", "An object with named fields was wanted.")
    for field, value in row.items():
        if (found := _not_finite(value)) is not None:
            raise BadRequest(
                f"{place}{_of(name)}, field {field[:60]}: {found} stands there.",
                "A text was wanted, or nothing.",
                "Remove it, or write null.",
            )
    return Entry(place, row)


def _not_finite(value: Any) -> NotFinite | None:
    if isinstance(value, dict | list):
        inside = (_not_finite(inner) for inner in (value.values() if isinstance(value, dict) else value))
        return next((found for found in inside if found is not None), None)
    return value if isinstance(value, NotFinite) else None


# Tables


def _table(text: str, name: str, headings: frozenset[str]) -> tuple[list[Entry], str]:
    lines = [line for line in text.splitlines() if line.strip()]
    marks = {",": "CSV", ";": "CSV with semicolons", "\t": "tab-separated values"}
    heads = {mark: _head(lines[0], mark) for mark in marks}
    mark = max(marks, key=lambda m: len(headings & set(heads[m])))
    head = heads[mark]
    if not headings & set(head):
        raise BadRequest(
            f"{_the(name)} is neither JSON nor a table of edits: it begins with {lines[0].strip()[:60]!r}.",
            "A first line with column names such as prompt, target_new, subject was wanted, or JSON.",
        )
    twice = next((column for i, column in enumerate(head) if column in head[:i]), None)
    if twice is not None:
        raise BadRequest(f"{_the(name)} has two columns called {twice[:60]!r}.", "Each name once was wanted.")
    return _cells(text, mark, head, name), marks[mark]


def _head(line: str, mark: str) -> list[str]:
    try:
        return [cell.strip().lower().replace(" ", "_") for cell in next(csv.reader([line], delimiter=mark), [])]
    except csv.Error:
        return []


def _cells(text: str, mark: str, head: Sequence[str], name: str) -> list[Entry]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    found: list[Entry] = []
    begun, header = 1, True
    try:
        for cells in reader:
            place, begun = f"Row {len(found) + 1} (line {begun})", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header:
                header = False
                continue
            if len(cells) != len(head):
                raise BadRequest(
                    f"{place}{_of(name)} has {len(cells)} cell{'' if len(cells) == 1 else 's'}.",
                    f"The first line names {len(head)} column{'' if len(head) == 1 else 's'}.",
                    "Put quotation marks around a cell that holds the separator.",
                )
            filled = {column: cell.strip() for column, cell in zip(head, cells, strict=True) if cell.strip()}
            found.append(Entry(place, filled, cells=True))
    except csv.Error as error:
        raise BadRequest(f"Line {begun}{_of(name)} cannot be read ({error}).", WANTED, "Mend that line.") from error
    if not found:
        raise BadRequest(f"{_the(name)} has column names and no case beneath them.", WANTED)
    return found
