"""Where the files that travel with the product are. Knows folders; knows nothing of what is in them."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def assets_root() -> Path:
    """The folder of shipped data: inside an installed package, or `assets/` of a checkout."""
    installed = _PACKAGE / "_assets"
    return installed if installed.is_dir() else _PACKAGE.parent / "assets"


WORLD_NAME = "world-2019"


def world_dir() -> Path:
    """The folder of the embedded model: weights, tokenizer, card."""
    return assets_root() / WORLD_NAME


def tables_dir() -> Path:
    """The folder of the embedded model's fact tables and phrasings."""
    return assets_root() / "facts"
