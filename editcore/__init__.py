"""editcore: edit what a language model believes, and see what moved.

Importing this package does nothing: no seeding, no files, no torch. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "EditReport": "editcore.records",
    "EditRequest": "editcore.records",
    "Patch": "editcore.patch",
    "Probe": "editcore.records",
    "export_adapter": "editcore.export",
    "export_merged": "editcore.export",
    "export_patch": "editcore.export",
    "import_adapter": "editcore.export",
    "import_edits": "editcore.export",
    "load": "editcore.opening",
    "load_patch": "editcore.patch",
    "run_edit": "editcore.edit",
    "run_edits": "editcore.edit",
    "suggested": "editcore.edit",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'editcore' has no attribute {name!r}")
