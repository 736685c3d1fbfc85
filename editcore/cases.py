"""Edits read from a file of JSON lines, with what they are measured by. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editcore.errors import BadRequest
from editcore.records import EditRequest, Probe

CASE_FIELDS = {"prompt", "subject", "target_new", "target_old", "paraphrases", "probes"}


def read_cases(path: Path, limit: int | None = None) -> list[EditRequest]:
    """JSON lines {prompt, subject?, target_new, target_old?, paraphrases: [], probes: [{prompt, answer?}]}.

    Raises:
        BadRequest: a line cannot be read; the message names the line and the field.
    """
    if not path.is_file():
        raise BadRequest(f"There is no file {str(path)!r}.", "A file of JSON lines was wanted.", "Check the path.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{path.name} is no text ({error}).", "JSON lines in UTF-8 were wanted.") from error
    cases = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cases.append(_case(json.loads(line)))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise BadRequest(
                f"Line {number} of {path.name} cannot be read ({error}).",
                "An object with prompt, target_new and optional subject, target_old, paraphrases, probes was wanted.",
                "Mend that line.",
            ) from error
        if limit is not None and len(cases) >= limit:
            break
    if not cases:
        raise BadRequest(f"{path.name} holds no case.", "One JSON object a line was wanted.")
    return cases


def _case(data: Any) -> EditRequest:
    if not isinstance(data, Mapping):
        raise TypeError("not an object")
    unknown = set(data) - CASE_FIELDS
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    probes = [p if isinstance(p, Mapping) else {"prompt": p} for p in data.get("probes", [])]
    return EditRequest(
        prompt=str(data["prompt"]),
        target=str(data["target_new"]),
        subject=data.get("subject"),
        old=data.get("target_old"),
        paraphrases=tuple(Probe("paraphrase", str(p)) for p in data.get("paraphrases", [])),
        probes=tuple(Probe("near", str(p["prompt"]), p.get("answer")) for p in probes),
    )
