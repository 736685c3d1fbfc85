"""The history at the engine's door: computing again, bringing in, taking away, looking at it from several sides."""

from __future__ import annotations

import contextlib
import io
import json
import time
import zipfile
from pathlib import Path

import fake_desk
import pytest

from editcore.engine import InlineEngine, new_session
from editcore.errors import BadRequest, EngineBusy
from editcore.history import Move
from editcore.records import EditRequest

ROME, OSLO, LIMA = (EditRequest(f"The capital of {c} is", t) for c, t in (("a", "Rome"), ("b", "Oslo"), ("c", "Lima")))


@pytest.fixture
def engine(tmp_path):
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as made:
        yield made


def finish(engine, job):
    end = time.monotonic() + 20
    while not engine.poll(job).finished:
        assert time.monotonic() < end
        time.sleep(0.005)
    return engine.poll(job)


def applied(engine, session, *requests, **settings):
    return [finish(engine, engine.submit(session, [r], "rome", settings, r.target)).job for r in requests]


def says(engine, session):
    edited = engine.probe(session, ["?"])[0]["edited"]
    return edited and list(zip(edited["all"], edited["at"], strict=True))


def zipped(**files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()


def test_switches_and_strengths_decide_what_the_model_says(engine):
    session = new_session()
    first, second = applied(engine, session, ROME, OSLO)
    assert says(engine, session) == [("Rome", 1.0), ("Oslo", 1.0)]
    engine.sessions.move(session, Move("scale", first, 0.5))
    engine.sessions.move(session, Move("toggle", second, 0))
    assert says(engine, session) == [("Rome", 0.5)]
    engine.sessions.undo(session)
    engine.sessions.undo(session)
    assert says(engine, session) == [("Rome", 1.0), ("Oslo", 1.0)]
    for _ in range(2):
        engine.sessions.undo(session)
    assert says(engine, session) is None and not engine.sessions.state(session).edited


def test_several_requests_are_one_edit(engine):
    session = new_session()
    finish(engine, engine.submit(session, [ROME, OSLO], "memit", {}, "k"))
    (row,) = engine.sessions.state(session).rows
    assert (row.requests, row.sentence) == (2, "2 edits in one patch; 2 took.")
    assert [r.request for r in engine.sessions.reports(session, row.edit)] == [ROME, OSLO]


@pytest.mark.parametrize("requests", [[], [ROME] * 1001])
def test_a_list_nobody_could_apply_is_never_queued(engine, requests):
    with pytest.raises(BadRequest):
        engine.submit(new_session(), requests, "rome", {}, "k")


def test_computing_again_makes_everything_above_anew_in_one_step(engine, tmp_path):
    session = new_session()
    first, second, third = applied(engine, session, ROME, OSLO, LIMA)
    engine.sessions.move(session, Move("scale", third, 0.5))
    engine.sessions.move(session, Move("remove", first))
    assert [row.shifted for row in engine.sessions.state(session).rows] == [True, True]
    state = finish(engine, engine.recompute(session, second, "r"))
    assert (state.status, state.kind) == ("done", "recomputation")
    rows = engine.sessions.state(session).rows
    assert [(r.target, r.number, r.strength, r.shifted) for r in rows] == [
        ("Oslo", 4, 1.0, False),
        ("Lima", 5, 0.5, False),
    ]
    assert engine.sessions.state(session).undo == "compute #2 and 1 more again"
    folder = engine._store.edit(session, rows[1].edit).folder
    assert json.loads((folder / "patch.json").read_text())["on"] == ["Oslo"]
    engine.sessions.undo(session)
    assert [row.edit for row in engine.sessions.state(session).rows] == [second, third]
    assert not list((tmp_path / "scratch").iterdir())


def test_computing_again_tells_how_each_edit_stood_before_and_how_it_stands_now(engine):
    session = new_session()
    first, second, third = applied(engine, session, ROME, OSLO, LIMA)
    assert engine.sessions.remade(session, third) == ()
    engine.sessions.move(session, Move("remove", first))
    finish(engine, engine.recompute(session, second, "r"))
    rows = engine.sessions.state(session).rows
    told = engine.sessions.remade(session, rows[0].edit)
    assert told == engine.sessions.remade(session, rows[1].edit)
    assert [(one.old, one.number, one.new, one.target) for one in told] == [
        (second, 2, rows[0].edit, "Oslo"),
        (third, 3, rows[1].edit, "Lima"),
    ]
    assert [(one.before.holds, one.after.holds) for one in told] == [(False, True), (False, True)]


def test_a_recomputation_that_is_stopped_changes_nothing(engine, tmp_path):
    session = new_session()
    first, second = applied(engine, session, ROME, OSLO, steps=50, pause=0.005)
    engine.sessions.move(session, Move("toggle", first, 0))
    job = engine.recompute(session, first, "r")
    with pytest.raises(EngineBusy):
        engine.sessions.undo(session)
    engine.cancel(job)
    assert finish(engine, job).status == "cancelled"
    assert [row.edit for row in engine.sessions.state(session).rows] == [first, second]
    assert not list((tmp_path / "scratch").iterdir())


def test_what_is_not_in_the_history_cannot_be_computed_again(engine):
    state = finish(engine, engine.recompute(new_session(), "nothing", "r"))
    assert (state.status, state.error_kind) == ("failed", "BadRequest")


def test_a_view_is_read_once_for_what_is_in_place(engine):
    session = new_session()
    first, second = applied(engine, session, ROME, OSLO)
    assert engine.view(session, first, "edited").probes[0].kl == 2.0
    assert engine.view(session, first, "only").probes[0].kl == 1.0
    engine.sessions.move(session, Move("toggle", second, 0))
    assert engine.view(session, first, "edited").probes[0].kl == 1.0
    engine.sessions.undo(session)
    assert engine.view(session, first, "edited").probes[0].kl == 2.0
    assert engine.ask("seen")["viewed"] == 3
    with pytest.raises(BadRequest):
        engine.view(new_session(), first, "edited")


def test_the_health_after_every_edit_is_kept(engine):
    session = new_session()
    applied(engine, session, ROME, OSLO)
    engine.ask("check_up", session=session)  # behind the last one, so that it has been written
    course = engine.sessions.course(session)
    assert [(number, len(c.held), c.perplexity) for number, c in course] == [(1, 1, 11.0), (2, 2, 12.0)]


def test_a_patch_comes_in_as_an_edit_and_can_be_undone(engine, tmp_path):
    session = new_session()
    applied(engine, session, ROME)
    data = zipped(**{"patch.json": json.dumps({"says": "Oslo"}), "evil.py": "boom"})
    assert finish(engine, engine.adopt(session, data, "oslo.zip", OSLO, "k")).status == "done"
    assert [row.target for row in engine.sessions.state(session).rows] == ["Rome", "Oslo"]
    assert engine.sessions.undo(session).redo == "bring in oslo.zip"
    assert not list((tmp_path / "scratch").iterdir())


def test_a_patch_that_is_damaged_changes_nothing(engine, tmp_path):
    session = new_session()
    data = zipped(**{"patch.json": json.dumps({"says": "Oslo", "bad": True})})
    state = finish(engine, engine.adopt(session, data, "oslo.zip", OSLO, "k"))
    assert (state.status, state.error_kind) == ("failed", "PatchError") and not engine.sessions.state(session).rows
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a zip archive"),
        (b"PK\3\4 nothing", "not a zip archive"),
        (zipped(**{"a.py": "x"}), "holds no patch"),
        (zipped(**{"../patch.json": "{}"}), "lead out of it"),
        (zipped(**{"/etc/patch.json": "{}"}), "lead out of it"),
        (zipped(**{"C:\\patch.json": "{}"}), "lead out of it"),
        (zipped(**{f"{i}.json": "" for i in range(2001)}), "2,001 files"),
        (b"0" * 25_000_001, "25,000,001 bytes"),
    ],
)
def test_a_file_that_is_no_patch_is_never_queued(engine, tmp_path, data, said):
    with pytest.raises(BadRequest, match=said):
        engine.adopt(new_session(), data, "upload.zip", OSLO, "k")
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix not in (".db", ".db-wal", ".db-shm")]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(engine, tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(6):
            archive.writestr(f"{i}.safetensors", b"\0" * 100_000_000)
    with pytest.raises(BadRequest, match="unpacks to 600,000,000 bytes"):
        engine.adopt(new_session(), data.getvalue(), "bomb.zip", OSLO, "k")


def test_an_export_is_a_file_with_what_counts(engine):
    session = new_session()
    first, second = applied(engine, session, ROME, OSLO)
    engine.sessions.move(session, Move("scale", first, 0.5))
    state = finish(engine, engine.export(session, "patch", {}, "e"))
    with zipfile.ZipFile(state.file) as archive:
        assert json.loads(archive.read("edits.json")) == [[0.5, 1], [1.0, 1]]
    one = finish(engine, engine.export(session, "patch", {"edits": [second]}, "f"))
    with zipfile.ZipFile(one.file) as archive:
        assert json.loads(archive.read("edits.json")) == [[1.0, 1]]
    assert Path(state.file).name == "editcore-patch.zip" and not engine.sessions.state(session).job


def test_a_job_cut_off_with_the_program_is_told_when_it_is_back(tmp_path):
    session = new_session()
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as engine:
        applied(engine, session, ROME)
        engine._store.begin_job(session, "cut off", "edit", ["rome"])  # as a program leaves it that is killed
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as engine:
        state = engine.sessions.state(session)
        assert "interrupted" in state.interrupted and [row.target for row in state.rows] == ["Rome"]
        assert not state.cut and engine.sessions.state(session).interrupted == state.interrupted
        with pytest.raises(BadRequest, match="cannot be run again"):
            engine.again(session, "cut off", "k")
        engine.sessions.dismiss(session)
        assert engine.sessions.state(session).interrupted == ""
