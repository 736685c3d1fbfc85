"""How each model was opened that was ever loaded here, by its fingerprint: an old session can have its model back.

Standard library only. What is kept may name a folder of this machine: it is for whoever sits at it, not for visitors.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from editcore.records import Opening, from_plain, to_plain

_PRINT = re.compile(r"[0-9a-f]{8,64}")
logger = logging.getLogger(__name__)


def remember_opening(home: Path, fingerprint: str, opening: Opening) -> None:
    """Keep how this model was opened; a disk that refuses is no reason to stop."""
    file = _file(home, fingerprint)
    fresh = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(to_plain(opening)) + "\n", encoding="utf-8")
        fresh.replace(file)
    except OSError:
        logger.warning("how the model was opened could not be kept")


def recalled_opening(home: Path, fingerprint: str) -> Opening | None:
    """What opens this model again; None when it was never loaded here."""
    if not _PRINT.fullmatch(fingerprint):
        return None
    try:
        return from_plain(Opening, json.loads(_file(home, fingerprint).read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _file(home: Path, fingerprint: str) -> Path:
    return home / "models" / f"{fingerprint}.json"
