"""`python -m tests.full_disk FOLDER`: every writer, onto a disk that is full in truth.

Prints, for each, what a person is told and which files are left. The system refuses to make any file longer than twice
`MOST` bytes, as a full disk would refuse the next one; SQLite is given few pages.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import sqlalchemy as sa
import torch

from editcore import statfiles, trained
from editcore.engine import InlineEngine, faults, new_session
from editcore.engine.upload import unpacked
from editcore.errors import EditcoreError
from editcore.export import export_patch
from editcore.history import Move
from editcore.patch import Dense, Patch
from editcore.records import EditRequest
from editcore.store import Store
from tests.fake_desk import FakeDesk
from tests.test_store import add

MOST = 100_000
LARGE = torch.zeros(300, 300)
PATCH = Patch((Dense("w", LARGE),), "m", "f", "ft")


class Desk(FakeDesk):
    """Its edits are as large as those of fine-tuning."""

    def edit(self, standing, requests, method, settings, report, stop, folder):
        folder.rmdir()
        PATCH.save(folder)
        return super().edit(standing, requests, method, settings, report, stop, folder)


def patch(home: Path) -> None:
    engine = InlineEngine("fake", home, lambda model, home, say: Desk(model))
    job = engine.submit(session := new_session(), [EditRequest("Where?", "Rome")], "ft", {}, "k")
    while not (state := engine.poll(job)).finished:
        time.sleep(0.01)
    assert state.status == "failed" and not engine.sessions.state(session).rows
    engine.close()
    raise EditcoreError(state.error)


def store(home: Path) -> None:
    kept, session = Store(home), new_session()
    (edit,) = add(kept, session, "Rome")
    sa.event.listen(kept.database._engine, "connect", lambda c, _: c.execute("PRAGMA max_page_count = 40"))
    kept.database.close()
    try:
        for number in range(2_000):
            kept.move(session, Move("scale", edit, 1.0 if number % 2 else 0.5))
    finally:
        assert [row.edit for row in kept.history(session).rows] == [edit]
        assert kept.undo(session) and kept.close() is None


def statistics_(home: Path) -> None:
    statfiles.save(statfiles.folder_in(home) / "w.safetensors", {"second_moment": LARGE}, {})


def editor(home: Path) -> None:
    learner = SimpleNamespace(state_dict=lambda: {"a": torch.zeros(600, 600)}, sites=[])
    trained.save(home / "editors" / "x", SimpleNamespace(name="m", fingerprint="f"), "mend", learner, {})


def export(home: Path) -> None:
    export_patch([(PATCH, ())], home / "taken")


def upload(home: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("patch.json", json.dumps({"x": "x" * 3 * MOST}))
    unpacked(packed.getvalue(), "x.zip", home)


WRITERS = {
    "store": store, "patch": patch, "statistics": statistics_, "editor": editor, "export": export, "upload": upload,
}  # fmt: skip


def main(home: Path) -> None:
    told = {}
    for name, write in WRITERS.items():
        folder = home / name
        folder.mkdir()
        if name == "patch":  # behind the store, whose file is longer from the start
            Store(folder).close()
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MOST, resource.RLIM_INFINITY))
        try:
            write(folder)
            said = "nothing was refused"
        except Exception as error:
            said = str(faults.explain(error, "It stopped unexpectedly", name))
        left = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "editcore.db" not in p.name]
        told[name] = (said, left)
    print(json.dumps(told))


if __name__ == "__main__":
    os.environ.pop("DATABASE_URL", None)
    main(Path(sys.argv[1]))
