"""Taking edits away and bringing them back: patches, PEFT adapters, merged checkpoints. Knows no page and no session.

Names are loaded when they are first used: `exported` and `told` can be had without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Exported": "exported",
    "export_adapter": "adapter",
    "export_merged": "merged",
    "export_patch": "stack",
    "import_adapter": "adopt",
    "import_edits": "adopt",
    "load_edits": "stack",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"editcore.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'editcore.export' has no attribute {name!r}")
