"""What a load came to: figures held against their bars, the store against what its visitors did and saw."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import sqlalchemy as sa
from rich.console import Console
from rich.table import Table

from editcore.store import Store
from editcore.store.tables import edits
from tests.load_server import MIB

if TYPE_CHECKING:
    from tests.load import Load

SLOWEST, HEAVIEST, GROWTH = 0.5, 400 * MIB, 0.05  # seconds, bytes, share
TIMED = (
    ("click", "a click that needs no model"), ("poll", "a poll of a job or of the engine"),
    ("first page", "first page"),
    ("history", "undo, redo, reset of several edits"), ("edit, click to result", "an edit, click to result"),
    ("chromium", "a click in a real Chromium, seen on screen"),
)  # fmt: skip


@dataclass
class Ended:
    """What one visitor did and saw."""

    session: str
    answers: tuple[str, ...]
    stack: tuple[str, ...] = ()  # that should be in the history
    made: set[str] = field(default_factory=set)  # edits whose result was shown
    seen: set[str] = field(default_factory=set)  # edits that ever stood in the history
    badges: set[str] = field(default_factory=set)  # lines that named what is in place
    submitted: int = 0
    told: int = 0  # edits that did not come about, which was said
    silent: int = 0  # edits that nobody ever heard of again
    stuck: int = 0  # forms that could not be applied in time


@dataclass
class Figures:
    """Rows of (what, measured, wanted, met); met is None where there is no bar."""

    rows: list[tuple[str, str, str, bool | None]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """True when no bar is missed."""
        return all(met is not False for *_, met in self.rows)

    def add(self, what: str, measured: str, wanted: str = "", met: bool | None = None) -> None:
        """One row."""
        self.rows.append((what, measured, wanted, met))

    def none_of(self, what: str, count: int) -> None:
        """A row for something that must not happen."""
        self.add(what, str(count), "0", count == 0)


def figures(load: Load, home: Path) -> Figures:
    """Everything about a run."""
    found = Figures()
    for name, words in TIMED:
        _timed(found, name, words, load.times.get(name, []))
    found.add("visitors besides", str(load.connects))
    found.none_of("sockets dropped", load.dropped)
    found.none_of("clicks never answered", load.unanswered)
    _memory(found, load.page.memory)
    _kept(found, load.ended, home)
    page, mine, others = load.page.work.shares()
    found.add(f"of {psutil.cpu_count()} processors: the page, all of this load", f"{page:.2f}, {mine:.2f}")
    found.add("processors that others kept busy meanwhile", f"{others:.2f}")
    found.add("engine killed, back again", f"{load.kills}, {load.restarts}", "the same", load.kills == load.restarts)
    return found


def _timed(found: Figures, name: str, words: str, seconds: Sequence[float]) -> None:
    if not seconds:
        return
    middle, slow = statistics.median(seconds), sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    bar = (f"p95 < {1000 * SLOWEST:.0f} ms", slow < SLOWEST) if name in ("click", "poll") else ("", None)
    found.add(f"{words}: p50, p95 of {len(seconds)}", f"{1000 * middle:.0f} ms, {1000 * slow:.0f} ms", *bar)


def _memory(found: Figures, looks: Sequence[tuple[float, int]]) -> None:
    """Flat: from the second fifth, when everybody is there and every module loaded, to the last."""
    held = [size for _, size in looks]
    fifth = max(1, len(held) // 5)
    warm, late = statistics.median(held[fifth : 2 * fifth] or held), statistics.median(held[-fifth:])
    found.add("page: before anybody came", f"{held[0] / MIB:.0f} MiB")
    found.add("page: most", f"{max(held) / MIB:.0f} MiB", f"< {HEAVIEST // MIB} MiB", max(held) < HEAVIEST)
    wanted = f"at most {GROWTH:.0%} more"
    found.add("page: second fifth, last fifth", f"{warm / MIB:.0f} MiB, {late / MIB:.0f} MiB", wanted,
              late <= warm * (1 + GROWTH))  # fmt: skip


def _kept(found: Figures, ended: Sequence[Ended], home: Path) -> None:
    store = Store(home)
    with store.database.reading() as at:
        rows = at.execute(sa.select(edits.c.id, edits.c.session, edits.c.summary)).all()
    of, says = {r.id: r.session for r in rows}, {r.id: json.loads(r.summary)["target"] for r in rows}
    stacks = {one.session: tuple(row.edit for row in store.history(one.session).rows) for one in ended}
    store.close()
    made = sum(len(one.made) for one in ended)
    found.add("edits applied and shown", str(made))
    found.add("edits ended by a kill or refused, and said so", str(sum(one.told for one in ended)))
    lost = sum(of.get(edit) != one.session for one in ended for edit in one.made)
    found.none_of("edits lost: shown, but not stored", lost)
    found.none_of("edits nobody heard of again", sum(one.silent for one in ended))
    found.none_of("forms that could not be applied", sum(one.stuck for one in ended))
    found.none_of("histories that are not what was done", sum(stacks[one.session] != one.stack for one in ended))
    found.none_of("cross-talk: somebody else's edit", sum(_strange(one, of, says) for one in ended))


def _strange(one: Ended, of: dict[str, str], says: dict[str, str]) -> int:
    """Edits of others that this visitor saw, or that are in this session; answers of others in a badge."""
    seen = sum(of.get(edit, one.session) != one.session for edit in one.seen)
    stored = sum(says[edit] not in one.answers for edit, session in of.items() if session == one.session)
    badges = sum(not any(answer in badge for answer in one.answers) for badge in one.badges if " edits" not in badge)
    return seen + stored + badges


def print_figures(found: Figures, as_json: bool) -> None:
    """A table, or one JSON object."""
    if as_json:
        names = ("figure", "measured", "wanted", "met")
        print(json.dumps({"passed": found.passed, "rows": [dict(zip(names, r, strict=True)) for r in found.rows]}))
        return
    table = Table("figure", "measured", "wanted", "")
    for what, measured, wanted, met in found.rows:
        table.add_row(what, measured, wanted, "" if met is None else "met" if met else "MISSED")
    Console(width=120).print(table)
