"""Every fault the product must survive, row by row, and the test that states it.

| row | fault | tests |
|---|---|---|
| 1 | reload, click or closed tab in the middle of an edit | test_engine::test_a_reload_finds_its_session_and_its_job, test_page::test_a_reload_finds_the_running_edit_and_the_form_again, test_visitors::test_two_visitors_edit_side_by_side_and_a_reload_in_the_middle_finds_its_edit |
| 2 | cancel at any step | test_methods::test_cancel_is_honoured_at_every_step, test_engine::test_cancel_between_steps_keeps_nothing |
| 3 | exception inside a method | test_engine::test_a_failed_edit_says_why_and_keeps_nothing, test_methods::test_a_listener_that_raises_leaves_no_trace |
| 4 | out of memory in an edit | test_engine::test_a_failed_edit_says_why_and_keeps_nothing, test_faults::test_running_out_of_memory_is_told_with_numbers_and_makes_room |
| 5 | poisoned accelerator | test_engine::test_a_poisoned_accelerator_replaces_the_worker, test_faults::test_after_a_poisoned_accelerator_every_session_is_as_its_log_says |
| 6 | engine killed in the middle of an edit | test_engine::test_kill_in_the_middle_of_an_edit_loses_only_that_edit, test_journeys::test_killing_the_engine_loses_nothing_committed |
| 7 | page killed or asked to end | test_visitors::test_a_page_that_was_killed_comes_back_with_history_form_and_a_word_about_the_edit_cut_off, test_faults::test_an_edit_that_runs_when_the_page_ends_is_told_when_it_is_back, test_engine::test_sigterm_lets_the_running_edit_finish, test_faults::test_a_page_that_is_asked_to_end_lets_the_running_edit_finish_and_no_other_begin, test_history_page::test_an_edit_that_was_cut_off_is_run_again_as_it_was_asked_by_one_click |
| 8 | disk full or read-only while saving | test_faults::test_a_disk_that_fills_up_keeps_nothing_and_says_so, test_store::test_a_full_disk_leaves_no_row_and_no_half_patch, test_export::test_a_full_disk_is_told_with_the_bytes_needed_and_leaves_nothing, test_faults::test_every_writer_says_that_the_disk_is_full_and_leaves_no_half_file |
| 9 | SQLite locked or corrupted | test_faults::test_a_store_that_is_locked_in_the_middle_of_a_run_is_said_and_then_works, test_faults::test_a_store_damaged_in_the_middle_of_a_run_is_said_and_set_aside_at_the_next_start, test_store::test_a_damaged_database_is_set_aside_and_said, test_postgres::test_a_server_that_goes_away_in_the_middle_of_an_edit_costs_that_edit_alone |
| 10 | queue full | test_engine::test_a_full_queue_refuses_at_once |
| 11 | hung step | test_faults::test_a_slow_step_is_cancelled, test_faults::test_a_hung_step_costs_its_worker_and_nothing_that_was_applied, test_faults::test_a_question_that_hangs_costs_the_worker_too |
| 12 | hub unreachable | test_faults::test_a_hub_that_cannot_be_reached_is_said_without_waiting_for_retries |
| 13 | connection lost, and back | test_visitors::test_a_connection_that_drops_for_a_while_comes_back_to_the_same_page, test_page::test_a_reload_shows_the_finished_edit |
| 14 | clock jump, not a number in a metric | test_faults::test_a_clock_that_jumps_changes_no_duration_and_interrupts_nobody, test_charts::test_a_number_that_is_none_is_written_and_not_drawn_as_zero, test_report::test_a_value_that_is_no_number_is_written_and_not_drawn |
"""  # noqa: E501

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_desk
import pytest

from editcore import local, opening
from editcore.engine import InlineEngine, LocalEngine, client, faults, new_session
from editcore.engine.watchdog import Sign, Watchdog
from editcore.errors import EngineError, ModelError
from editcore.records import EditRequest
from editcore.store import Store, blobs, database

HERE = Path(__file__).resolve().parent
REQUEST = EditRequest("The capital of France is", "Rome", subject="France")
ROWS = re.findall(r"^\| (\d+) \|.*\| (.+) \|$", __doc__ or "", re.MULTILINE)


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parent), str(HERE)]))


@pytest.fixture
def inline(tmp_path):
    engine = InlineEngine("fake", tmp_path, fake_desk.open_desk)
    yield engine
    engine.close()


def watched(home, after, grace=0.2):
    """A worker whose watchdog has this much patience, in seconds."""
    dog = Watchdog(after, grace)
    return contextlib.closing(LocalEngine("fake", home, "fake_desk:open_desk", backoff=0.05, watchdog=dog))


def until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def submit(engine, session, key="k", **settings):
    return engine.submit(session, [REQUEST], "rome", settings, key)


def finish(engine, job):
    until(lambda: engine.poll(job).finished)
    return engine.poll(job)


def test_every_row_of_the_table_names_tests_that_exist():
    assert [int(number) for number, _ in ROWS] == list(range(1, 15))
    for _, tests in ROWS:
        for name in tests.split(", "):
            file, _, test = name.partition("::")
            tree = ast.parse((HERE / f"{file}.py").read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


# the disk and the store -------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_keeps_nothing_and_says_so(inline, tmp_path, monkeypatch):
    session = new_session()

    def refuse(path):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(blobs, "flush", refuse)
        state = finish(inline, submit(inline, session))
    assert state.status == "failed" and "no space left on device" in state.error and "Free space" in state.error
    assert not inline.sessions.state(session).rows and not list((tmp_path / "scratch").iterdir())
    assert finish(inline, submit(inline, session, "again")).status == "done"


def test_every_writer_says_that_the_disk_is_full_and_leaves_no_half_file(tmp_path):
    command = [sys.executable, "-m", "tests.full_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert set(told) == {"store", "patch", "statistics", "editor", "export", "upload"}
    for writer, (said, left) in told.items():
        assert "space" in said or "too large" in said.lower(), said
        assert "incident" not in said and (len(left) == 1 if writer == "store" else not left), writer


def test_running_out_of_memory_is_told_with_numbers_and_makes_room(inline):
    job = finish(inline, submit(inline, new_session(), fail="memory"))
    assert "2.00 GiB more where 1.25 GiB is free" in job.error and "Nothing of it was kept" in job.error
    compared = inline.compare(new_session(), REQUEST, [("ft", {"fail": "memory"}), ("rome", {})], "k")
    assert [o.report is not None for o in finish(inline, compared).outcomes] == [False, True]
    assert inline.ask("seen")["freed"] == 2
    refused = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes."
    told = faults.explain(RuntimeError(refused), "", "")
    assert "asked for 4000000000000 bytes more" in str(told)


def test_after_a_poisoned_accelerator_every_session_is_as_its_log_says(tmp_path):
    session = new_session()
    with watched(tmp_path, after=600) as engine:
        finish(engine, submit(engine, session))
        assert finish(engine, submit(engine, session, "poison", fail="poison")).status in ("failed", "lost")
        until(lambda: engine._worker.generation == 2)
        assert engine.health().state in ("restarting", "ready")
        assert engine.probe(session, ["?"])[0]["edited"]["all"] == ["Rome"]


def test_a_store_that_is_locked_in_the_middle_of_a_run_is_said_and_then_works(tmp_path, monkeypatch):
    monkeypatch.setenv("EDITCORE_DATABASE_PATIENCE", "0.2")
    session = new_session()
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as engine:
        job = submit(engine, session, steps=5, pause=0.1)
        with contextlib.closing(sqlite3.connect(tmp_path / database.FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            state = finish(engine, job)
            with pytest.raises(EngineError, match="in use by another program"):
                submit(engine, new_session())
            other.execute("ROLLBACK")
        assert state.status == "failed" and "in use by another program" in state.error
        assert not engine.sessions.state(session).rows
        assert finish(engine, submit(engine, session, "again")).status == "done"


def test_a_store_damaged_in_the_middle_of_a_run_is_said_and_set_aside_at_the_next_start(tmp_path):
    session, file = new_session(), tmp_path / database.FILE
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as engine:
        finish(engine, submit(engine, session))
        until(lambda: engine.health().busy is None)  # what follows an edit is written too
        engine._store.database.close()  # connections that are open have read it already
        with contextlib.closing(sqlite3.connect(file)) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the write-ahead log holds a copy of what was written
        file.write_bytes(b"\1" * file.stat().st_size)
        with pytest.raises(EngineError, match="The store of sessions does not answer"):
            submit(engine, session, "again")
        assert engine.health().state == "ready"
    again = Store(tmp_path)
    assert "could not be read" in again.note and again.history(session).rows == ()
    again.close()


def test_an_edit_that_runs_when_the_page_ends_is_told_when_it_is_back(tmp_path):
    session = new_session()
    with watched(tmp_path, after=600) as engine:
        job = submit(engine, session, steps=400, pause=0.02)
        until(lambda: engine.poll(job).sequence > 0)
    with watched(tmp_path, after=600) as engine:
        state = engine.sessions.state(session)
        assert "An edit was interrupted" in state.interrupted and state.cut == job
        assert finish(engine, engine.again(session, job, "again")).status == "done"
        state = engine.sessions.state(session)
        assert (state.interrupted, state.cut, [row.target for row in state.rows]) == ("", "", ["Rome"])


def test_a_page_that_is_asked_to_end_lets_the_running_edit_finish_and_no_other_begin(tmp_path):
    """The page's process, as far as the engine is concerned: it is asked to end by a signal, and exits."""
    program = (
        "import signal, sys, time; from pathlib import Path; from tests.test_faults import *\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "engine = LocalEngine('fake', Path(sys.argv[1]), 'fake_desk:open_desk')\n"
        "until(lambda: engine.health().state == 'ready', 150.0)\n"
        "job = submit(engine, sys.argv[2], steps=30, pause=0.05)\n"
        "until(lambda: engine.poll(job).sequence > 0, 60.0)\n"
        "print(job, submit(engine, sys.argv[3]), flush=True)\n"
        "time.sleep(60)\n"
    )
    session, other = new_session(), new_session()
    command = [sys.executable, "-c", program, str(tmp_path), session, other]
    page = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    job, waits = page.stdout.readline().split()
    page.terminate()
    assert page.wait(150) == 0
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as engine:
        state = engine.sessions.state(session)
        assert [row.edit for row in state.rows] == [job] and not state.interrupted
        assert engine.sessions.state(other).cut == waits


# work that hangs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signs", "said"),
    [
        ([("edit", 1)] * 4, ["fine", "fine", "cancel", "replace"]),
        ([("edit", 1), ("edit", 2), ("edit", 3), ("edit", 4)], ["fine"] * 4),
        ([(None, 1)] * 4, ["fine"] * 4),
        ([("loading", 1)] * 4, ["fine"] * 4),
        ([("preparation", 1)] * 4, ["fine"] * 4),
        ([("edit", 1)] * 3 + [(None, 1)], ["fine", "fine", "cancel", "fine"]),
    ],
)
def test_only_work_that_gives_no_sign_is_called_hung(signs, said):
    dog = Watchdog(after=600, grace=30)
    times = (0, 599, 600, 630)
    assert [dog.judge(Sign(busy, (state,)), at) for (busy, state), at in zip(signs, times, strict=True)] == said


def test_the_patience_is_ten_minutes_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("EDITCORE_HUNG_AFTER", raising=False)
    assert Watchdog().after == 600
    monkeypatch.setenv("EDITCORE_HUNG_AFTER", "5")
    assert Watchdog().after == 5


def test_a_slow_step_is_cancelled(tmp_path):
    with watched(tmp_path, after=0.6, grace=60) as engine:
        state = finish(engine, submit(engine, new_session(), steps=9, pause=2.0))
        assert (state.status, engine._worker.generation) == ("cancelled", 1)


def test_a_hung_step_costs_its_worker_and_nothing_that_was_applied(tmp_path):
    session = new_session()
    with watched(tmp_path, after=0.6) as engine:
        done = submit(engine, session)
        assert finish(engine, done).status == "done"
        state = finish(engine, submit(engine, session, "hangs", pause=600))
        assert state.status == "lost" and "gave no sign of life" in state.error and "Run it again" in state.error
        assert [row.edit for row in engine.sessions.state(session).rows] == [done]
        assert finish(engine, submit(engine, session, "again")).status == "done"


def test_a_question_that_hangs_costs_the_worker_too(tmp_path):
    with watched(tmp_path, after=0.6) as engine:
        with pytest.raises(EngineError):
            engine.ask("sleep", 0.3, seconds=600)
        until(lambda: engine._worker.generation == 2)
        assert engine.ask("preflight")["name"] == "preflight"


def test_a_job_of_a_worker_that_is_slow_to_answer_is_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "HEALTH_TIMEOUT", 0.2)
    with watched(tmp_path, after=600) as engine:
        job = submit(engine, new_session(), steps=400, pause=0.02)
        until(lambda: engine.poll(job).sequence > 0)
        os.kill(engine._worker.process.pid, signal.SIGSTOP)
        state = engine.poll(job)
        os.kill(engine._worker.process.pid, signal.SIGCONT)
        assert (state.status, state.job) == ("running", job)
        until(lambda: engine.poll(job).sequence > state.sequence)


def test_a_training_between_two_checkpoints_is_left_alone(tmp_path):
    with watched(tmp_path, after=0.3) as engine:
        examples = {"edits": "{}", "locality": "1.5", "steps": 1}
        state = finish(engine, engine.prepare(new_session(), "mend", examples, "p"))
        assert state.status == "done" and engine._worker.generation == 1


# the network and the clock ----------------------------------------------------------------------------------------


def test_a_hub_that_cannot_be_reached_is_said_without_waiting_for_retries(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError(101, "Network is unreachable")

    slept = []
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(ModelError, match="is not on this machine, and the hub cannot be reached"):
        opening.load(f"nobody/{tmp_path.name}", device="cpu")
    assert sum(slept) + local.PATIENCE < 5.0


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(local.urllib.request, "urlopen", lambda *_, **__: never.wait())
    assert not local.hub_answers(patience=0.1)
    never.set()


def test_a_clock_that_jumps_changes_no_duration_and_interrupts_nobody(inline, monkeypatch):
    session, now = new_session(), time.time
    began = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: now() - 86_400.0)
    job = submit(inline, session, steps=20, pause=0.02)
    until(lambda: inline.poll(job).sequence > 5)
    assert inline.sessions.state(session).interrupted == ""
    monkeypatch.setattr(time, "time", lambda: now() + 86_400.0)
    state = finish(inline, job)
    assert state.status == "done" and 0 < state.seconds < time.monotonic() - began
    left = [event.seconds_left for event in state.events if event.seconds_left is not None]
    assert all(0 <= seconds < 60 for seconds in left)
    assert [row.target for row in inline.sessions.state(session).rows] == ["Rome"]
