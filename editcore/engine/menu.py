"""The menu of editing methods for a process without torch: a table beside this file, written from the methods.

`python -m editcore.engine.menu` writes it anew after a method or one of its settings has changed; a test compares.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from editcore.engine import wire
from editcore.records import MethodInfo, from_plain, to_plain
from editcore.tuning import tuned

TABLE = Path(__file__).with_name("methods.json")


@lru_cache(maxsize=8)
def method_menu(model: str = "") -> tuple[MethodInfo, ...]:
    """The stored menu; with a model's name, with the defaults that suit it."""
    stored = (from_plain(MethodInfo, row) for row in wire.loads(TABLE.read_bytes()))
    return tuple(tuned(method, model) if model else method for method in stored)


def described_menu() -> tuple[MethodInfo, ...]:
    """The menu as the methods describe it themselves, in the form the table can hold. Imports torch."""
    from editcore.methods import menu

    return tuple(from_plain(MethodInfo, wire.plain(to_plain(method))) for method in menu())


def main() -> None:
    """Write the table."""
    rows = [to_plain(method) for method in described_menu()]
    TABLE.write_text(json.dumps(rows, indent=1) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
