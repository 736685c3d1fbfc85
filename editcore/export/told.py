"""Reports on disk, beside the patch they tell about. Read back strictly: every field with its type, or not at all.

Standard library and records only.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from editcore.errors import PatchError
from editcore.records import EditReport, to_plain

FILE = "report.json"
FORMAT = 1
LARGEST = 200_000_000  # bytes of a JSON file that is read
_SCALARS: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def save_reports(folder: Path, reports: Sequence[EditReport]) -> None:
    """Writes `report.json`; a number that is not finite becomes null. No reports, no file."""
    if reports:
        write_json(folder / FILE, {"format": FORMAT, "reports": [to_plain(report) for report in reports]})


def load_reports(folder: Path) -> tuple[EditReport, ...]:
    """The reports beside a patch; none where there is no file.

    Raises:
        PatchError: the file is damaged, or holds something that is no report.
    """
    if not (folder / FILE).exists():
        return ()
    data = read_json(folder / FILE)
    try:
        if data.get("format") != FORMAT:
            raise ValueError(f"format {data.get('format')!r}, where {FORMAT} was wanted")
        return tuple(typed(EditReport, entry, "report") for entry in data["reports"])
    except (KeyError, TypeError, ValueError) as error:
        raise PatchError(
            f"{FILE} is damaged ({error}).",
            "Reports as they were saved were wanted.",
            "Remove the file, or save again.",
        ) from error


def write_json(path: Path, value: Any) -> None:
    """A file other programs can read: UTF-8, and null for a number that is not finite."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=1, default=str)
    path.write_text(text + "\n", encoding="utf-8", errors="replace")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        PatchError: the file is missing, too large, or holds no such thing.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes, where at most {LARGEST:,} are read")
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("no JSON object")
        return data
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise PatchError(f"{path.name} cannot be read ({why}).", "", "Save or export it again.") from error


def typed(hint: Any, value: Any, where: str) -> Any:
    """Plain data as what `hint` says: a record, a tuple of them, a scalar.

    Raises:
        ValueError: something is missing, unknown or of another type; `where` says which.
    """
    if is_dataclass(hint):
        return _record(hint, value, where)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else typed(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        return _row(args, value, where)
    if hint is float and value is None:
        return math.nan
    if hint in _SCALARS:
        right = isinstance(value, _SCALARS[hint]) and (hint is bool or not isinstance(value, bool))
    elif origin is Literal:
        right = value in args
    else:
        right = isinstance(value, dict)
    if not right:
        raise ValueError(f"{where} is {type(value).__name__}")
    return value


def _row(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} is no list")
    hints = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
    if len(hints) != len(value):
        raise ValueError(f"{where} has {len(value)} entries")
    return tuple(typed(hint, entry, where) for hint, entry in zip(hints, value, strict=True))


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is no object")
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if wrong := (set(value) - set(known)) | (needed - set(value)):
        raise ValueError(f"{where} has unknown or missing fields {sorted(map(str, wrong))}")
    return kind(**{name: typed(hints[name], entry, f"{where}.{name}") for name, entry in value.items()})


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
