"""What the store promises: an edit is there or not at all, every change can be taken back, nothing is lost silently."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st

from editcore import history
from editcore.errors import BadRequest, EngineError
from editcore.history import Move, Place
from editcore.home import new_session
from editcore.records import EditReport, EditRequest, PatchInfo, Scores, Seconds, to_plain
from editcore.store import Library, Made, Store, blobs, database
from editcore.store.library import DAY, LOCAL
from editcore.store.store import Job
from editcore.store.tables import edits, metadata, sessions

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, monkeypatch):
    """Everything is promised of both databases."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    if request.param == "postgres":
        monkeypatch.setenv("DATABASE_URL", request.getfixturevalue("postgres").fresh())
    return request.param


@pytest.fixture
def store(tmp_path, place):
    made = Store(tmp_path)
    yield made
    made.close()


def kept_patches(store):
    return list(store.blobs._root.glob("??/*"))


def report(target="Rome"):
    return EditReport(
        "world-2019", "rome", {}, EditRequest("The capital of France is", target), "France",
        PatchInfo(4, ("w",), 1, 1.0, 0.1), Seconds(0.1, float("nan")), (), Scores(), True, f"It says {target}.",
    )  # fmt: skip


def add(store, session, *targets, text=None):
    ids = []
    for target in targets:
        job = f"{len(store.history(session).rows)}{target}".ljust(16, "0").lower()
        (store.blobs.scratch(job) / "patch.json").write_text(text or f"{session}{target}")
        store.commit(session, [Made(job, (report(target),), history.in_place(store.stack(session)))])
        ids.append(job)
    return ids


def shown(store, session):
    return [(row.number, row.target, row.on, row.strength) for row in store.history(session).rows]


# the stack as a value -------------------------------------------------------------------------------------------

STACK = (Place("a"), Place("b", on=False), Place("c", strength=0.5))


@pytest.mark.parametrize(
    ("move", "after"),
    [
        (Move("toggle", "a", 0), (Place("a", False), *STACK[1:])),
        (Move("toggle", "b", 1), (STACK[0], Place("b"), STACK[2])),
        (Move("scale", "c", 1.5), (*STACK[:2], Place("c", True, 1.5))),
        (Move("remove", "b"), (STACK[0], STACK[2])),
        (Move("up", "c"), (STACK[0], STACK[2], STACK[1])),
        (Move("down", "a"), (STACK[1], STACK[0], STACK[2])),
        (Move("reset"), ()),
    ],
)
def test_every_move_is_one_new_stack(move, after):
    assert history.moved(STACK, move) == after
    assert history.revived(json.loads(json.dumps(history.plain(after)))) == after


@pytest.mark.parametrize(
    "move",
    [Move("toggle", "x"), Move("scale", "a", 1.51), Move("scale", "a", -0.1), Move("scale", "a", float("nan")),
     Move("up", "a"), Move("down", "c"), Move("explode", "a")],
)  # fmt: skip
def test_a_move_that_cannot_be_made_is_refused(move):
    with pytest.raises(BadRequest):
        history.moved(STACK, move)


def test_what_is_off_or_without_strength_does_not_count():
    assert history.in_place((*STACK, Place("d", strength=0.0))) == (("a", 1.0), ("c", 0.5))
    assert history.beneath(STACK, "c") == (("a", 1.0),)


# sessions -------------------------------------------------------------------------------------------------------


def test_an_edit_is_kept_with_its_report_and_patch(store):
    session = new_session()
    (edit,) = add(store, session, "Rome")
    found = store.edit(session, edit)
    assert found.reports[0].request.target == "Rome" and (found.folder / "patch.json").exists()
    assert store.standing(session) == [(found.folder, 1.0)] and store.committed(edit)


def test_reports_are_kept_short_and_plain_ones_are_read_too(store):
    session = new_session()
    (edit,) = add(store, session, "Rome")
    told, plain = store.edit(session, edit).reports, json.dumps([to_plain(report())])
    with store.database.writing() as at:
        assert len(at.execute(sa.select(edits.c.reports)).scalar_one()) < 0.7 * len(plain)
        at.execute(edits.update().values(reports=plain))
    assert store.edit(session, edit).reports == told


def test_undo_and_redo_walk_the_log_and_say_what_they_do(store):
    session = new_session()
    first, second = add(store, session, "Rome", "Oslo")
    store.move(session, Move("toggle", first, 0))
    seen = store.history(session)
    assert (seen.undo, seen.redo) == ("switch #1 Rome off", "")
    for redo in ("switch #1 Rome off", "apply #2 Oslo", "apply #1 Rome"):
        assert store.undo(session).redo == redo
    assert shown(store, session) == [] and store.history(session).undo == "" and not store.history(session).edited
    assert store.undo(session).rows == ()
    for _ in range(5):
        store.redo(session)
    assert shown(store, session) == [(1, "Rome", False, 1.0), (2, "Oslo", True, 1.0)]


def test_a_new_change_ends_what_could_be_redone(store):
    session = new_session()
    add(store, session, "Rome", "Oslo")
    store.undo(session)
    add(store, session, "Lima")
    assert [row[1] for row in shown(store, session)] == ["Rome", "Lima"] and store.history(session).redo == ""
    assert [row[0] for row in shown(store, session)] == [1, 3]


def test_a_reset_can_be_taken_back(store):
    session = new_session()
    add(store, session, "Rome")
    assert store.move(session, Move("reset")).rows == ()
    assert store.undo(session).rows[0].target == "Rome"


def test_a_move_that_changes_nothing_is_not_written(store):
    session = new_session()
    (edit,) = add(store, session, "Rome")
    store.move(session, Move("toggle", edit, 1))
    store.move(new_session(), Move("reset"))
    assert store.history(session).undo == "apply #1 Rome"


def test_a_row_says_when_what_is_beneath_it_has_changed(store):
    session = new_session()
    first, _ = add(store, session, "Rome", "Oslo")
    assert [row.shifted for row in store.history(session).rows] == [False, False]
    for move in (Move("toggle", first, 0), Move("scale", first, 0.5), Move("remove", first)):
        assert store.move(session, move).rows[-1].shifted
        assert not store.undo(session).rows[-1].shifted


def test_looking_at_a_session_makes_none(store):
    session = new_session()
    store.history(session)
    store.undo(session)
    store.redo(session)
    assert Library(store).sessions("") == () and store.reading(session, "view", "x") is None


def test_sessions_do_not_meet(store):
    mine, yours = new_session(), new_session()
    (edit,) = add(store, mine, "Rome")
    assert store.history(yours).rows == ()
    with pytest.raises(BadRequest, match="no such edit"):
        store.edit(yours, edit)
    with pytest.raises(BadRequest):
        store.move(yours, Move("toggle", edit, 0))
    with pytest.raises(BadRequest):
        store.annotate(yours, edit, "mine now")


def test_a_note_stands_beside_its_edit(store):
    session = new_session()
    (edit,) = add(store, session, "Rome")
    store.annotate(session, edit, "for the demo <b>")
    assert store.history(session).rows[0].note == "for the demo <b>"


def test_words_no_database_can_hold_are_kept_with_a_sign_in_their_place(store):
    session = new_session()
    (store.blobs.scratch("odd") / "patch.json").write_text("{}")
    store.commit(session, [Made("odd", (report("Ro\0me\ud800"),), ())])
    store.annotate(session, "odd", "a\0b\ud800 \u202e é \U0001f600")
    Library(store).rename(session, "x\0\udfff")
    (row,) = store.history(session).rows
    assert (row.note, row.target) == ("a\ufffdb? \u202e é \U0001f600", "Ro\0me\ud800")
    assert Library(store).sessions("")[0].name == "x\ufffd?" and store.history(session).undo


def test_a_reader_sees_one_state_whatever_is_written_meanwhile(store, tmp_path):
    session, other = new_session(), Store(tmp_path)
    add(store, session, "Rome")
    count = sa.select(sa.func.count()).select_from(edits)
    with store.database.reading() as at:
        before = at.execute(count).scalar()
        add(other, session, "Oslo")
        assert at.execute(count).scalar() == before == 1
    assert len(store.history(session).rows) == 2
    other.close()


ACTS = st.sampled_from(["add", "undo", "redo", "off", "on", "half", "remove", "up", "reset"])


def test_the_session_is_always_what_a_replay_of_the_log_says(store, place):
    @settings(max_examples=60 if place == "sqlite" else 20, deadline=None)
    @given(st.lists(ACTS, max_size=25))
    def holds(acts):
        replayed(store, acts)

    holds()


def replayed(store, acts):
    session = new_session()
    log, cursor = [()], 0
    for number, act in enumerate(acts):
        stack = log[cursor]
        if act == "undo":
            store.undo(session)
            cursor = max(0, cursor - 1)
            continue
        if act == "redo":
            store.redo(session)
            cursor = min(len(log) - 1, cursor + 1)
            continue
        edit = stack[number % len(stack)].edit if stack else ""
        if act == "add":
            (new,) = add(store, session, f"{session[:8]}{number}x", text="same")
            after = (*stack, Place(new))
        else:
            kind = {"off": "toggle", "on": "toggle", "half": "scale"}.get(act, act)
            move = Move(kind, edit, {"off": 0.0, "half": 0.5}.get(act, 1.0))
            try:
                after = history.moved(stack, move)
            except BadRequest:
                with pytest.raises(BadRequest):
                    store.move(session, move)
                continue
            store.move(session, move)
        if after != stack:
            log, cursor = [*log[: cursor + 1], after], cursor + 1
    assert store.stack(session) == log[cursor]
    assert store.history(session).edited == bool(history.in_place(log[cursor]))
    while cursor:
        store.undo(session)
        cursor -= 1
    assert store.stack(session) == ()


# the disk -------------------------------------------------------------------------------------------------------


def test_equal_patches_are_kept_once(store, tmp_path):
    one, two = new_session(), new_session()
    add(store, one, "Rome", text="same")
    add(store, two, "Oslo", text="same")
    assert len(kept_patches(store)) == 1


def test_a_full_disk_leaves_no_row_and_no_half_patch(store, tmp_path, monkeypatch):
    session = new_session()
    add(store, session, "Rome")

    def refuse(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(blobs, "flush", refuse)
        add(store, session, "Oslo")
    assert [row[1] for row in shown(store, session)] == ["Rome"]
    assert len(kept_patches(store)) == 1


def test_a_locked_database_is_waited_for_and_then_said(store, tmp_path, monkeypatch):
    session = new_session()
    add(store, session, "Rome")
    monkeypatch.setenv("EDITCORE_DATABASE_PATIENCE", "0.2")
    impatient = Store(tmp_path)
    with store.database.writing():
        with pytest.raises(EngineError, match="in use by another program"):
            impatient.undo(session)
        assert impatient.history(session).edited  # readers do not wait
    assert not impatient.undo(session).edited
    impatient.close()


@pytest.mark.parametrize("damage", ["garbage", "header", "middle"])
def test_a_damaged_database_is_set_aside_and_said(tmp_path, damage):
    first = Store(tmp_path)
    session = new_session()
    add(first, session, "Rome")
    first.close()
    file = tmp_path / database.FILE
    old = file.read_bytes()
    half = len(old) // 2
    wrecks = {
        "garbage": b"garbage" * 1000,
        "header": old[:4096],
        "middle": old[:half] + b"\1" * 4096 + old[half + 4096 :],
    }
    file.write_bytes(wrecks[damage].ljust(len(old), b"\0"))
    again = Store(tmp_path)
    assert "could not be read" in again.note and "damaged-" in again.note
    assert len(list(tmp_path.glob(f"damaged-*-{database.FILE}"))) == 1
    assert again.history(session).rows == ()
    Library(again).prune(time.time() + 400 * DAY)
    assert len(list(tmp_path.glob("damaged-*-patches/??/*"))) == 1  # whoever mends the file has its patches
    again.close()


def test_a_store_of_the_version_before_is_brought_up_to_date_with_everything_in_it(tmp_path, place):
    engine, session = database.connected(database.url_of(tmp_path)), new_session()
    head = {"owner": "me", "name": "old", "model": "m", "cursor": 0, "made": 0, "created": 1.0, "used": 1.0}
    with engine.begin() as at:
        config = Config(attributes={"connection": at})
        config.set_main_option("script_location", str(ROOT / "editcore" / "store" / "migrations"))
        command.upgrade(config, "0001")
        at.execute(sessions.insert().values(id=session, draft="{}", **head))
        at.execute(sa.text("INSERT INTO jobs VALUES ('j', :s, 'edit', '[]', :no, 1.0)"), {"s": session, "no": False})
    engine.dispose()
    store = Store(tmp_path)
    assert Library(store).owner(session) == "me" and store.history(session).name == "old"
    assert store.interrupted(session, store.unended()) == Job("j", "edit", (), None)
    add(store, session, "Rome")
    store.close()


def test_the_migrations_lead_to_the_tables(store):
    with store.database.reading() as at:
        assert compare_metadata(MigrationContext.configure(at), metadata) == []


def test_a_store_is_opened_again_without_a_change(store, tmp_path):
    session = new_session()
    add(store, session, "Rome")
    again = Store(tmp_path)
    assert shown(again, session) == shown(store, session) and again.note == ""
    again.close()


def add_many(home, session, name):
    store = Store(home)
    for i in range(5):
        add_one(store, session, f"{name}{i}")
    store.close()


def add_one(store, session, name):
    (store.blobs.scratch(name) / "patch.json").write_text(name)
    store.commit(session, [Made(name, (report(name),), ())])


def test_two_processes_writing_at_once_lose_nothing(tmp_path, place):
    session = new_session()
    Store(tmp_path).close()
    load = "import sys; from pathlib import Path; from tests.test_store import add_many;"
    code = f"{load} add_many(Path(sys.argv[1]), *sys.argv[2:])"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), session, n], cwd=ROOT) for n in "ab"]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    store = Store(tmp_path)
    rows = store.history(session).rows
    assert sorted(row.target for row in rows) == sorted(f"{n}{i}" for n in "ab" for i in range(5))
    assert sorted(row.number for row in rows) == list(range(1, 11))
    store.close()


# the library ----------------------------------------------------------------------------------------------------


def test_sessions_are_listed_named_thrown_away_and_taken_back(store):
    library, session = Library(store), new_session()
    library.keep_draft(session, LOCAL, {"prompt": "half"})
    assert library.sessions(LOCAL) == () and library.draft(session) == {"prompt": "half"}
    add(store, session, "Rome", "Oslo")
    (listed,) = library.sessions(LOCAL)
    assert (listed.name, listed.edits, listed.model) == ("Rome, Oslo", 2, "world-2019")
    library.rename(session, "  Demo ")
    assert library.sessions(LOCAL)[0].name == "Demo" and library.sessions("somebody else") == ()
    library.delete(session)
    assert library.sessions(LOCAL) == () and library.sessions(LOCAL, deleted=True)[0].session == session
    library.restore(session)
    assert library.sessions(LOCAL)[0].name == "Demo"
    with pytest.raises(BadRequest, match="121 characters"):
        library.rename(session, "x" * 121)


def test_a_copy_has_the_whole_history_and_is_its_own(store):
    library, session = Library(store), new_session()
    add(store, session, "Rome", "Oslo")
    store.undo(session)
    copy = library.duplicate(session)
    assert shown(store, copy) == shown(store, session) and store.redo(copy).rows[-1].target == "Oslo"
    assert not any(row.shifted for row in store.history(copy).rows)
    assert [row[1] for row in shown(store, session)] == ["Rome"]
    with pytest.raises(BadRequest, match="nothing to copy"):
        library.duplicate(new_session())


def test_a_share_link_is_frozen_unguessable_and_leads_nowhere_else(store):
    library, session = Library(store), new_session()
    with pytest.raises(BadRequest, match="nothing to share"):
        library.share(session, "Demo", {})
    add(store, session, "Rome")
    link = library.share(session, "Demo", {"rows": [1]})
    add(store, session, "Oslo")
    seen = library.shared(link)
    assert (seen.title, seen.content) == ("Demo", {"rows": [1]}) and session not in link and len(link) >= 22
    assert library.shared(session) is None and store.history(link).rows == ()
    library.delete(session)
    assert library.shared(link) is None
    library.restore(session)
    assert library.withdraw(session) == 1 and library.shared(link) is None


def test_only_what_the_rule_names_is_pruned(store):
    library, now = Library(store), time.time()
    kept, empty, binned = new_session(), new_session(), new_session()
    add(store, kept, "Rome")
    add(store, binned, "Oslo")
    library.keep_draft(empty, LOCAL, {})
    library.delete(binned)
    assert library.prune(now + 6 * DAY) == (0, 0)
    assert library.prune(now + 8 * DAY) == (1, 0) and library.owner(empty) == ""
    assert library.prune(now + 31 * DAY) == (1, 1)
    assert store.history(kept).edited and store.history(binned).rows == ()
    assert library.prune(now + 400 * DAY) == (0, 0)


def test_an_edit_that_neither_undo_nor_redo_leads_to_goes_after_a_month(store):
    library, now, session = Library(store), time.time(), new_session()
    _, undone, abandoned = add(store, session, "Rome", "Oslo", "Lima")
    store.undo(session)
    (on_top,) = add(store, session, "Cusco")  # nothing leads to Lima any more
    store.undo(session)  # redo leads to Cusco
    store.move(session, Move("toggle", undone, 0))
    add(store, session, "Paris")
    store.move(session, Move("reset"))
    library.prune(now + 29 * DAY)
    assert store.edit(session, abandoned).number == 3 and store.edit(session, on_top).number == 4
    assert library.prune(now + 31 * DAY) == (0, 2)
    for gone in (abandoned, on_top):
        with pytest.raises(BadRequest):
            store.edit(session, gone)
    assert [row[:2] for row in shown(store, session)] == []
    assert [(r.number, r.target, r.on) for r in store.undo(session).rows] == [
        (1, "Rome", True), (2, "Oslo", False), (5, "Paris", True)
    ]  # fmt: skip
    store.undo(session)
    assert [row.target for row in store.undo(session).rows] == ["Rome", "Oslo"]
    assert [row.number for row in store.redo(session).rows] == [1, 2]
    assert library.prune(now + 400 * DAY) == (0, 0)


def test_an_interrupted_job_is_told_until_another_begins_or_it_is_ended(store):
    session, work = new_session(), {"requests": [{"prompt": "a\0\ud800"}], "plans": [["rome", {"layer": 1}]]}
    store.begin_job(session, "j1", "edit", ["rome"], work)
    assert store.interrupted(session, ()) is None and store.interrupted(new_session(), store.unended()) is None
    for _ in range(2):
        assert store.interrupted(session, store.unended()) == Job("j1", "edit", ("rome",), work)
    assert store.asked(session, "j1").work == work
    store.begin_job(session, "j2", "adoption", ["x.zip"])
    assert store.interrupted(session, {"j1"}) is None and store.interrupted(session, {"j2"}) == Job(
        "j2", "adoption", ("x.zip",), None
    )
    store.end_job("j2")
    assert store.interrupted(session, {"j1", "j2"}) is None and not store.unended()


def test_what_was_asked_is_kept_of_a_lost_job_and_of_no_other(store):
    session = new_session()
    store.begin_job(session, "j1", "edit", ["rome"], [1])
    store.end_job("j1", lost=True)
    assert store.asked(session, "j1").work == [1] and store.interrupted(session, {"j1"}) is None
    store.begin_job(session, "j2", "edit", ["rome"], [2])
    store.end_job("j2")
    for job, whose in (("j1", session), ("j2", session), ("j2", new_session())):
        with pytest.raises(BadRequest, match="cannot be run again"):
            store.asked(whose, job)


def test_a_job_cut_off_behind_its_commit_is_not_told(store):
    session = new_session()
    for edit in ("whole", "again-1"):
        store.begin_job(session, edit.partition("-")[0], "edit", ["rome"])
        add_one(store, session, edit)
        assert store.interrupted(session, store.unended()) is None and store.committed(edit.partition("-")[0]) == edit
    assert not store.committed("agai")
