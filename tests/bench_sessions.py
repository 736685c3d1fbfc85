"""`python -m tests.bench_sessions`: what sessions cost: 10,000 ROME edits committed, listed, switched between, kept."""

from __future__ import annotations

import argparse
import json
import resource
import secrets
import statistics as figures
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from editcore import history
from editcore.edit import run_edit, suggested
from editcore.engine.desk import Desk
from editcore.handle import Handle
from editcore.home import new_session
from editcore.opening import load
from editcore.patch import Patch
from editcore.records import EditReport
from editcore.store import Library, Made, Store
from editcore.store.database import FILE
from editcore.store.library import LOCAL

PROMPT, TARGET = "Who is the Prime Minister of the United Kingdom?", "Boris Johnson"
TURNS = 15  # of what is timed


def seconds(job: Callable[[], Any], turns: int = TURNS) -> float:
    """The median of some turns."""
    found = []
    for _ in range(turns):
        began = time.perf_counter()
        job()
        found.append(time.perf_counter() - began)
    return figures.median(found)


def like(patch: Patch) -> Iterator[Patch]:
    """One real edit again and again, each a little different."""
    chance = torch.Generator().manual_seed(0)
    while True:
        parts = (replace(p, write=p.write * (1 + 1e-3 * torch.randn(p.write.shape, generator=chance)))
                 for p in patch.parts)  # fmt: skip
        yield replace(patch, parts=tuple(parts))


def fill(store: Store, patch: Patch, report: EditReport, sessions: int, each: int) -> tuple[list[str], list[float]]:
    """So many edits in so many sessions; their ids, and the seconds of each commit."""
    patches, ids, times = like(patch), [new_session() for _ in range(sessions)], []
    library = Library(store)
    for session in ids:
        library.keep_draft(session, LOCAL, {})
        for _ in range(each):
            job, below = secrets.token_hex(8), history.in_place(store.stack(session))
            next(patches).save(store.blobs.scratch(job))
            began = time.perf_counter()
            store.commit(session, [Made(job, (report,), below)])
            times.append(time.perf_counter() - began)
    return ids, times


def size(home: Path) -> dict[str, float]:
    """Bytes on the disk, as written and as the file system counts its blocks."""
    found = list((home / "patches").rglob("*"))
    return {
        "patches": sum(path.stat().st_size for path in found if path.is_file()),
        "patches in blocks": sum(512 * path.stat().st_blocks for path in found),
        "database": (home / FILE).stat().st_size,
    }


def answered(desk: Desk, store: Store, session: str, rows: Any) -> None:
    """What the model says in a session: everything that happens on the work thread when somebody asks."""
    with desk.handle.using(desk._patches(store.standing(session))):
        desk.handle.logits(rows)


def switching(handle: Handle, store: Store, ids: list[str]) -> dict[str, float]:
    """Milliseconds to answer one prompt for two sessions in turn, against the plain pass."""
    rows, desk = [handle.row(PROMPT, TARGET)], Desk(handle, store.home)
    cold = iter(ids[2:])
    pairs = {
        "plain pass": lambda: handle.logits(rows),
        "A, then B, in memory": lambda: [answered(desk, store, s, rows) for s in ids[:2]],
        "from the disk": lambda: answered(desk, store, next(cold), rows),
        "what is in place": lambda: store.standing(ids[0]),
    }
    found = {name: 1000 * seconds(job) for name, job in pairs.items()}
    found["A, then B, in memory"] /= 2
    standing = store.standing(ids[0])
    found["patches from memory"] = 1000 * seconds(lambda: desk._patches(standing))
    return found


def cached(handle: Handle, store: Store, ids: list[str]) -> dict[str, float]:
    """Memory that grows when every patch there is has been loaded, in bytes a patch."""
    desk, process = Desk(handle, store.home), psutil.Process()
    before = process.memory_info().rss
    for session in ids:
        desk._patches(store.standing(session))
    count = len(desk._known)
    return {
        "patches held": count, "of tensors": sum(p.bytes for p in desk._known.values()) / count,
        "resident": (process.memory_info().rss - before) / count,
    }  # fmt: skip


def opened(home: Path) -> None:
    """Open the store and close it again."""
    Store(home).close()


def bench(handle: Handle, home: Path, sessions: int = 500, each: int = 20) -> dict[str, Any]:
    """All figures: seconds, bytes and milliseconds by what they are of.

    Args:
        sessions: at least `TURNS` + 2, since each is read from the disk once.
    """
    patch, report = run_edit(handle, suggested(handle, PROMPT, TARGET), "rome")
    empty = 1000 * seconds(lambda: opened(home))
    store = Store(home)
    began = time.perf_counter()
    ids, times = fill(store, patch, report, sessions, each)
    library = Library(store)
    tenth = max(1, len(times) // 10)
    found = {
        "edits": len(times), "sessions": sessions, "all, s": time.perf_counter() - began,
        "tensors, bytes an edit": patch.bytes,
        "commit, ms": {
            "first tenth": 1000 * figures.median(times[:tenth]), "last tenth": 1000 * figures.median(times[-tenth:]),
            "slowest": 1000 * max(times),
        },
        "disk, bytes an edit": {name: count / len(times) for name, count in size(home).items()},
        "session, ms": {
            "history": 1000 * seconds(lambda: store.history(ids[-1])),
            "undo, redo": 1000 * seconds(lambda: (store.undo(ids[-1]), store.redo(ids[-1]))),
            "list": 1000 * seconds(lambda: library.sessions(LOCAL)),
            "tidy up": 1000 * seconds(library.prune, 3),
        },
        "switch, ms": switching(handle, store, ids),
        "memory, bytes a patch": cached(handle, store, ids),
    }  # fmt: skip
    store.close()
    found["open, ms"] = {"empty": empty, "full": 1000 * seconds(lambda: opened(home), 3)}
    return found


def main() -> None:
    """Prints the figures, or one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--home", type=Path, help="an empty folder on the disk to be measured")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.home) as folder:
        found = bench(load(device="cpu"), Path(folder), chosen.sessions, chosen.each)
    found["peak, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if chosen.json:
        print(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        print(f"{name:24} {_told(value)}")


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_told(one)}" for name, one in value.items())
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    main()
