"""The engine's promises, kept in front of a fake desk: in this process, and through a real worker process."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_desk
import pytest

from editcore.engine import InlineEngine, LocalEngine, client, menu, new_session
from editcore.engine.contract import outdated
from editcore.errors import BadInput, BadRequest, EngineBusy, EngineError, ModelError, SubjectNotFound
from editcore.history import Move
from editcore.records import EditRequest

HERE = Path(__file__).resolve().parent
REQUEST = EditRequest("The capital of France is", "Rome", subject="France")
LONG = {"steps": 400, "pause": 0.02}


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parent), str(HERE)]))


@pytest.fixture
def inline(tmp_path):
    engine = InlineEngine("fake", tmp_path, fake_desk.open_desk)
    yield engine
    engine.close()


def worker(home, model="fake", desk="fake_desk:open_desk"):
    return contextlib.closing(LocalEngine(model, home, desk=desk, backoff=0.05))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parent), str(HERE)]))
        engine = LocalEngine("fake", tmp_path_factory.mktemp("home"), desk="fake_desk:open_desk", backoff=0.05)
    yield engine
    engine.close()


@pytest.fixture(params=["inline", "local"])
def engine(request):
    return request.getfixturevalue(request.param)


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def submit(engine, session, key="k", request=REQUEST, **settings):
    return engine.submit(session, [request], "rome", settings, key)


def reset(engine, session):
    return engine.sessions.move(session, Move("reset"))


def finish(engine, job):
    until(lambda: engine.poll(job).finished)
    return engine.poll(job)


def running(engine, job):
    until(lambda: engine.poll(job).status == "running" and engine.poll(job).sequence > 0)


def answer(engine, session):
    edited = engine.probe(session, ["?"])[0]["edited"]
    return edited and edited["answer"]


# the same contract, inline and through a process --------------------------------------------------------------


def test_an_edit_is_done_and_applied(engine):
    session = new_session()
    state = finish(engine, submit(engine, session))
    assert (state.status, state.error, state.sequence) == ("done", "", 2)
    assert state.report.request == REQUEST and Path(state.report.patch.path).is_dir()
    (applied,) = engine.sessions.state(session).rows
    assert (applied.edit, applied.prompt, applied.target) == (state.job, REQUEST.prompt, "Rome")
    (report,) = engine.sessions.reports(session, applied.edit)
    assert (report.request, report.patch) == (REQUEST, state.report.patch)
    assert engine.sessions.state(session).edited and engine.sessions.state(session).job is None
    assert answer(engine, session) == "Rome"


def test_events_after_a_number_are_the_rest(engine):
    job = submit(engine, new_session(), steps=5)
    finish(engine, job)
    steps = [event.step for event in engine.poll(job, after=3).events]
    assert steps == [4, 5] and engine.poll(job, after=5).events == ()


def test_not_a_number_survives(engine):
    assert math.isnan(engine.ask("preflight", x=1)["nan"])
    job = submit(engine, new_session())
    finish(engine, job)
    assert all(math.isnan(event.loss) for event in engine.poll(job).events)


def test_a_double_click_is_one_job(engine):
    session, jobs = new_session(), []
    clicks = [threading.Thread(target=lambda: jobs.append(submit(engine, session, pause=0.05))) for _ in range(4)]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    assert len(jobs) == 4 and len(set(jobs)) == 1
    finish(engine, jobs[0])
    assert submit(engine, session) == jobs[0]


def test_a_second_edit_of_a_session_is_refused_by_name(engine):
    session = new_session()
    job = submit(engine, session, "a", **LONG)
    assert engine.sessions.state(session).job == job
    with pytest.raises(EngineBusy, match=job):
        submit(engine, session, "b")
    with pytest.raises(EngineBusy, match=job):
        reset(engine, session)
    engine.cancel(job)
    finish(engine, job)


def test_cancel_between_steps_keeps_nothing(engine):
    session = new_session()
    job = submit(engine, session, **LONG)
    running(engine, job)
    engine.cancel(job)
    state = finish(engine, job)
    assert state.status == "cancelled" and state.error_kind == "Cancelled" and state.sequence < 400
    assert not engine.sessions.state(session).edited
    assert answer(engine, session) is None


def test_a_queued_job_knows_its_place_and_can_be_dropped(engine):
    first, second = new_session(), new_session()
    job = submit(engine, first, **LONG)
    until(lambda: engine.poll(job).sequence > 2)
    waits = submit(engine, second)
    state = engine.poll(waits)
    assert (state.status, state.position, state.seconds) == ("queued", 1, 0.0)
    assert state.progress.stage == "queued" and state.progress.seconds_left > 1.0
    assert engine.health().queue == 1 and engine.health().busy == "edit"
    engine.cancel(waits)
    assert engine.poll(waits).status == "cancelled"
    engine.cancel(job)
    finish(engine, job)


def test_sessions_do_not_meet(engine):
    mine, yours, other = new_session(), new_session(), new_session()
    jobs = [submit(engine, mine), submit(engine, yours, request=EditRequest("The capital of Peru is", "Cusco"))]
    for job in jobs:
        finish(engine, job)
    reset(engine, mine)
    assert [answer(engine, s) for s in (mine, yours, other)] == [None, "Cusco", None]
    assert [engine.sessions.state(s).edited for s in (mine, yours, other)] == [False, True, False]


def test_the_next_edit_is_made_on_top_of_the_last(engine):
    session = new_session()
    finish(engine, submit(engine, session, "a"))
    finish(engine, submit(engine, session, "b", EditRequest("The capital of Peru is", "Cusco")))
    rows = engine.sessions.state(session).rows
    assert [(row.number, row.target, row.shifted) for row in rows] == [(1, "Rome", False), (2, "Cusco", False)]
    (told,) = engine.probe(session, ["?"])
    assert told["edited"]["all"] == ["Rome", "Cusco"]


@pytest.mark.parametrize(
    ("fail", "kind", "words"),
    [
        ("diverged", "Diverged", "not finite"),
        ("bug", "EngineError", "incident"),
        ("exit", "EngineError", "incident"),
        ("memory", "EngineError", "memory"),
        ("disk", "EngineError", "no space left"),
    ],
)
def test_a_failed_edit_says_why_and_keeps_nothing(engine, fail, kind, words):
    session = new_session()
    state = finish(engine, submit(engine, session, fail=fail))
    assert (state.status, state.error_kind) == ("failed", kind)
    assert words in state.error and "secret" not in state.error
    assert not engine.sessions.state(session).edited
    assert finish(engine, submit(engine, session, "again")).status == "done"


def test_errors_of_questions_arrive_as_themselves(engine):
    with pytest.raises(ModelError) as caught:
        engine.ask("wrong")
    assert (caught.value.seen, caught.value.try_) == ("This model has no layers.", "Pick another.")
    with pytest.raises(EngineError, match="incident") as caught:
        engine.ask("crash")
    assert "secret" not in str(caught.value)


def test_a_question_waits_no_longer_than_it_says(engine):
    job = submit(engine, new_session(), steps=2, pause=2.0)
    running(engine, job)
    start = time.monotonic()
    with pytest.raises(EngineError, match=r"'preflight' was not answered within 0.2 s"):
        engine.ask("preflight", timeout=0.2)
    assert time.monotonic() - start < 2.0
    engine.cancel(job)
    finish(engine, job)


@pytest.mark.parametrize("session", ["short", "../../../etc/passwd", "a" * 65, "a/b" * 8, "a.b" * 8, ""])
def test_only_session_ids_become_folders(engine, session):
    for call in (
        engine.sessions.state,
        lambda s: reset(engine, s),
        lambda s: submit(engine, s),
        lambda s: engine.probe(s, ["?"]),
    ):
        with pytest.raises(BadRequest, match="not a session"):
            call(session)


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (EditRequest(" ", "Rome"), BadRequest),
        (EditRequest("Where?", "\n"), BadRequest),
        (EditRequest("x" * 1_000_000, "Rome"), BadRequest),
        (EditRequest("Where \ud800?", "Rome"), BadRequest),
        (EditRequest("Where?", "Rome", subject="France"), SubjectNotFound),
    ],
)
def test_what_no_model_can_do_is_never_queued(engine, request_, kind):
    with pytest.raises(kind):
        submit(engine, new_session(), request=request_)


def test_an_unknown_job_is_refused(engine):
    with pytest.raises(BadInput, match="no such job"):
        engine.poll("nonsense")


# the queue --------------------------------------------------------------------------------------------------------


def test_a_job_that_is_taken_too_late_for_whoever_asked_is_a_job_all_the_same(tmp_path, monkeypatch):
    session = new_session()
    with worker(tmp_path) as engine:
        until(lambda: engine.health().state == "ready")
        monkeypatch.setattr(client, "CONTROL_TIMEOUT", 0.2)
        os.kill(engine._worker.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineError, match="has not taken this within 0.2 s") as caught:
            submit(engine, session)
        assert "never carried out twice" in caught.value.try_
        os.kill(engine._worker.process.pid, signal.SIGCONT)
        monkeypatch.undo()
        until(lambda: engine.sessions.state(session).job or engine.sessions.state(session).rows)
        job = submit(engine, session)
        until(lambda: engine.poll(job).finished)
        assert [row.edit for row in engine.sessions.state(session).rows] == [job]


def test_a_full_queue_refuses_at_once(inline):
    first = submit(inline, new_session(), **LONG)
    running(inline, first)
    jobs = [submit(inline, new_session()) for _ in range(16)]
    with pytest.raises(EngineBusy, match="16 edits are waiting.*Try again in"):
        submit(inline, new_session())
    inline.cancel(first)
    assert {finish(inline, job).status for job in jobs} == {"done"}


def test_short_questions_are_answered_between_the_steps_of_an_edit_and_long_ones_are_not(engine):
    session, other = new_session(), new_session()
    finish(engine, submit(engine, other))
    job = submit(engine, session, **LONG)
    running(engine, job)
    assert answer(engine, other) == "Rome" and answer(engine, session) is None
    assert engine.ask("preflight")["name"] == "preflight" and engine.poll(job).status == "running"
    with pytest.raises(EngineError, match="not answered within"):
        engine.ask("check_up", 0.2, session=other)
    engine.cancel(job)
    finish(engine, job)


def test_questions_take_no_more_than_a_share_of_an_edit(inline):
    job = submit(inline, new_session(), steps=40, pause=0.02)
    running(inline, job)
    during, asked = [], [inline._room.ask("preflight", {"sleep": 0.3}, 60.0) for _ in range(8)]
    for one in asked:
        one.add_done_callback(lambda _: during.append(inline.poll(job).status))
    until(lambda: inline.poll(job).finished, 60.0)
    assert all(one.result(60.0)["name"] == "preflight" for one in asked)
    assert 1 <= during.count("running") <= 1 + inline.poll(job).seconds / 3 / 0.3


def test_questions_pass_queued_edits(inline):
    first = submit(inline, new_session(), steps=10, pause=0.02)
    running(inline, first)
    later = submit(inline, new_session(), **LONG)
    inline.ask("preflight")
    assert inline.poll(later).sequence < 400 and not inline.poll(later).finished
    inline.cancel(later)


# comparisons ------------------------------------------------------------------------------------------------------


def compare(engine, session, *methods, key="c", request=REQUEST):
    return engine.compare(session, request, methods, key)


def outcomes(engine, job):
    return [(o.method, o.report is not None) for o in engine.poll(job).outcomes]


def test_a_comparison_tries_every_method_in_order_and_applies_nothing(engine):
    session = new_session()
    job = compare(engine, session, ("rome", {}), ("ft", {"steps": 3}), ("rome", {"steps": 4}))
    state = finish(engine, job)
    assert (state.status, state.kind, state.methods, state.report) == (
        "done",
        "comparison",
        ("rome", "ft", "rome"),
        None,
    )
    assert [(o.method, o.settings, o.report.request, o.error) for o in state.outcomes] == [
        ("rome", {}, REQUEST, ""), ("ft", {"steps": 3}, REQUEST, ""), ("rome", {"steps": 4}, REQUEST, "")
    ]  # fmt: skip
    assert not engine.sessions.state(session).edited and engine.sessions.state(session).job is None
    assert answer(engine, session) is None
    assert [e.text for e in state.events if e.stage == "read"] == ["rome, 1 of 3", "ft, 2 of 3", "rome, 3 of 3"]


def test_outcomes_appear_one_by_one_and_a_reload_finds_them(engine):
    session = new_session()
    job = compare(engine, session, ("rome", {}), ("ft", LONG))
    until(lambda: engine.poll(job).outcomes)
    state = engine.poll(job)
    assert (state.status, state.outcomes[0].method, len(state.outcomes)) == ("running", "rome", 1)
    assert engine.sessions.state(session).job == job and engine.health().busy == "comparison"
    assert engine.poll(job).outcomes == state.outcomes
    with pytest.raises(EngineBusy, match=f"comparison.*{job}"):
        submit(engine, session, "other")
    engine.cancel(job)
    state = finish(engine, job)
    assert (state.status, outcomes(engine, job)) == ("cancelled", [("rome", True)])
    assert "are kept" in state.error or "stopped" in state.error.lower()


def test_a_session_keeps_its_edit_through_a_comparison(engine):
    session = new_session()
    finish(engine, submit(engine, session))
    finish(engine, compare(engine, session, ("ft", {}), request=EditRequest("Where?", "Oslo")))
    assert answer(engine, session) == "Rome"
    assert [row.method for row in engine.sessions.state(session).rows] == ["rome"]


@pytest.mark.parametrize(
    ("fail", "kind", "words"),
    [("diverged", "Diverged", "not finite"), ("bug", "EngineError", "incident"), ("exit", "EngineError", "incident"),
     ("memory", "EngineError", "memory")],
)  # fmt: skip
def test_a_method_that_fails_says_why_and_stops_nobody_else(engine, fail, kind, words):
    job = compare(engine, new_session(), ("rome", {}), ("ft", {"fail": fail}), ("ft-l", {}))
    state = finish(engine, job)
    assert state.status == "done" and outcomes(engine, job) == [("rome", True), ("ft", False), ("ft-l", True)]
    failed = state.outcomes[1]
    assert failed.error_kind == kind and words in failed.error and "secret" not in failed.error


def test_a_request_nobody_can_read_fails_the_comparison(engine):
    state = finish(engine, compare(engine, new_session(), ("rome", {}), request=EditRequest("Where?", "nowhere")))
    assert (state.status, state.error_kind, state.outcomes) == ("failed", "ModelError", ())
    assert "cannot read this" in state.error


def test_the_same_comparison_twice_is_one_job(engine):
    session = new_session()
    job = compare(engine, session, ("rome", {}))
    assert compare(engine, session, ("rome", {})) == job
    finish(engine, job)


@pytest.mark.parametrize("methods", [[], [("rome", {})] * 33, [("x" * 101, {})], [("rome", {}), ("ft", {"a": []})]])
def test_a_comparison_of_nothing_or_of_nonsense_is_never_queued(engine, methods):
    with pytest.raises(BadInput):
        compare(engine, new_session(), *methods)


def test_a_kill_in_the_middle_of_a_comparison_keeps_what_was_seen(tmp_path):
    session = new_session()
    with worker(tmp_path) as engine:
        finish(engine, submit(engine, session))
        job = compare(engine, session, ("rome", {}), ("ft", LONG))
        until(lambda: engine.poll(job).outcomes)
        os.kill(engine._worker.process.pid, signal.SIGKILL)
        until(lambda: engine.poll(job).finished)
        state = engine.poll(job)
        assert (state.status, [o.method for o in state.outcomes]) == ("lost", ["rome"])
        assert "Run it again" in state.error
        assert engine.sessions.state(session).edited and engine.sessions.state(session).job is None


def test_a_poisoned_accelerator_ends_the_comparison(tmp_path):
    with worker(tmp_path) as engine:
        job = compare(engine, new_session(), ("rome", {}), ("ft", {"fail": "poison"}), ("ft-l", {}))
        state = finish(engine, job)
        assert state.status in ("failed", "lost") and [o.method for o in state.outcomes] in (["rome"], [])
        until(lambda: engine._worker.generation == 2)


def test_old_comparisons_are_forgotten_before_old_edits():
    jobs = [("a", "edit"), ("b", "comparison"), ("c", "comparison"), ("d", "edit"), ("e", "comparison")]
    assert outdated(jobs, 5, 3) == [] and outdated(jobs, 5, 1) == ["b", "c"] and outdated(jobs, 3, 2) == ["a", "b"]


# the process ------------------------------------------------------------------------------------------------------


def test_what_libraries_print_stays_out_of_the_protocol(local):
    assert local.ask("noise")["name"] == "noise"
    assert local.ask("preflight")["name"] == "preflight"


def test_control_calls_are_answered_while_the_model_loads(tmp_path):
    with worker(tmp_path, "slow") as engine:
        assert engine.health().state == "starting"
        until(lambda: "Loading 1.0 GB" in engine.health().message)
        job = submit(engine, new_session())
        assert engine.poll(job).status == "queued" and engine.health().state == "starting"
        assert engine.ask("preflight")["name"] == "preflight"
        assert engine.health().state == "ready" and engine.health().model.name == "slow"
        assert finish(engine, job).status == "done"


def test_a_model_that_cannot_be_loaded_is_said(tmp_path):
    with worker(tmp_path, "missing") as engine:
        until(lambda: engine.health().state == "failed")
        assert "no model called missing" in engine.health().message
        with pytest.raises(ModelError, match="no model called missing"):
            engine.ask("preflight")
        with pytest.raises(ModelError):
            submit(engine, new_session())


def test_kill_in_the_middle_of_an_edit_loses_only_that_edit(tmp_path):
    session, other = new_session(), new_session()
    with worker(tmp_path) as engine:
        done = submit(engine, session, "a")
        finish(engine, done)
        job = submit(engine, session, "b", EditRequest("Where?", "Oslo"), **LONG)
        running(engine, job)
        waits = submit(engine, other)
        pid = engine._worker.process.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: engine.poll(job).finished)
        state = engine.poll(job)
        assert state.status == "lost" and "Run it again" in state.error and state.error_kind == "EngineError"
        assert len(state.events) == state.sequence > 0
        assert engine.poll(waits).status == "lost"
        assert engine.health().state in ("restarting", "ready")
        assert engine.sessions.state(session).edited
        assert answer(engine, session) == "Rome"
        assert engine.poll(done).status == "done" and len(engine.poll(done).events) == 2
        assert engine.ask("pid") != pid
        assert finish(engine, submit(engine, session, "c", EditRequest("Where?", "Oslo"))).status == "done"
        assert not list((tmp_path / "scratch").iterdir())


def test_an_edit_committed_just_before_a_kill_is_done(tmp_path):
    session = new_session()
    with worker(tmp_path) as engine:
        job = submit(engine, session)
        until(lambda: engine.sessions.state(session).edited and engine.sessions.state(session).job is None)
        os.kill(engine._worker.process.pid, signal.SIGKILL)
        until(lambda: engine._worker.generation == 2)
        state = engine.poll(job)
        assert state.status == "done" and state.report.request == REQUEST


def test_a_question_to_a_dying_worker_fails_at_once(tmp_path):
    with worker(tmp_path) as engine:
        start = time.monotonic()
        with pytest.raises(EngineError, match="stopped before it could answer"):
            engine.ask("die")
        assert time.monotonic() - start < 5.0
        assert engine.ask("preflight")["name"] == "preflight"


def test_a_poisoned_accelerator_replaces_the_worker(tmp_path, monkeypatch):
    with worker(tmp_path) as engine:
        pid = engine.ask("pid")
        state = finish(engine, submit(engine, new_session(), fail="poison"))
        assert state.status == "failed" and "incident" in state.error
        until(lambda: engine._worker.generation == 2)
        assert engine.ask("pid") != pid


def test_a_worker_that_keeps_dying_is_given_up(tmp_path):
    with worker(tmp_path, desk="fake_desk:dies") as engine:
        engine._worker.backoff = 0.01
        until(lambda: engine.health().state == "failed", 20.0)
        assert "5 times within a minute" in engine.health().message
        with pytest.raises(EngineError, match="5 times within a minute"):
            engine.ask("preflight")
        assert engine.sessions.state(new_session()).rows == ()


def test_a_reload_finds_its_session_and_its_job(local):
    session = new_session()
    job = submit(local, session, **LONG)
    running(local, job)
    found = local.sessions.state(session).job
    assert found == job and local.poll(found).progress.stage == "edit"
    local.cancel(job)
    finish(local, job)


def test_a_new_client_finds_committed_edits(tmp_path):
    session = new_session()
    with worker(tmp_path) as engine:
        finish(engine, submit(engine, session))
    with worker(tmp_path) as engine:
        assert engine.sessions.state(session).rows[0].prompt == REQUEST.prompt
        assert answer(engine, session) == "Rome"


def test_sigterm_lets_the_running_edit_finish(tmp_path):
    session = new_session()
    with worker(tmp_path) as engine:
        job = submit(engine, session, steps=20, pause=0.02)
        running(engine, job)
        os.kill(engine._worker.process.pid, signal.SIGTERM)
        until(lambda: engine._worker.generation == 2)
        assert engine.poll(job).status == "done" and engine.sessions.state(session).edited


def test_ctrl_c_is_left_to_the_page(local):
    pid = local.ask("pid")
    os.kill(pid, signal.SIGINT)
    assert local.ask("pid") == pid


def test_closing_ends_the_worker_and_twice_is_fine(tmp_path):
    with worker(tmp_path) as engine:
        job = submit(engine, new_session(), **LONG)
        running(engine, job)
        process, start = engine._worker.process, time.monotonic()
        engine.close()
        engine.close()
        assert process.returncode == 0 and time.monotonic() - start < 4.0
        assert engine.poll(job).status == "lost"
        with pytest.raises(EngineError, match="closed"):
            engine.ask("preflight")


def test_importing_the_engine_imports_no_torch():
    heavy = {"torch", "transformers", "numpy", "streamlit"}
    work = "import sys, editcore.engine.worker; from editcore.engine.menu import method_menu; method_menu(); "
    code = f"{work} print({heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_menu_without_torch_is_the_menu_of_the_methods(inline):
    described = menu.described_menu()
    assert menu.method_menu() == described and described, "run python -m editcore.engine.menu"
    assert inline.methods() == menu.method_menu(inline.opening.model)


# preparations ---------------------------------------------------------------------------------------------------


def prepare(engine, session, key="p", edits="{}", pause="", steps=3):
    return engine.prepare(session, "mend", {"edits": edits, "locality": pause, "steps": steps}, key)


def test_a_preparation_runs_like_a_job_and_applies_nothing(engine):
    session = new_session()
    job = prepare(engine, session)
    state = finish(engine, job)
    assert (state.status, state.kind, state.methods, state.report) == ("done", "preparation", ("mend",), None)
    assert state.sequence == 3 and not engine.sessions.state(session).edited
    assert prepare(engine, session) == job


def test_a_preparation_can_be_stopped_and_says_that_it_goes_on_later(engine):
    job = prepare(engine, new_session(), pause="0.02", steps=400)
    running(engine, job)
    assert engine.health().busy == "preparation"
    engine.cancel(job)
    state = finish(engine, job)
    assert state.status == "cancelled"


def test_a_preparation_that_fails_says_why(engine):
    state = finish(engine, prepare(engine, new_session(), edits="useless"))
    assert state.status == "failed" and "Give other examples" in state.error


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ({"edits": "x" * 5_000_001, "locality": "", "steps": 1}, "5,000,001 characters"),
        ({"edits": "x\0", "locality": "", "steps": 1}, "no text"),
        ({"edits": "x", "locality": "", "steps": 0}, "0 steps"),
        ({"edits": "x", "locality": ""}, "None steps"),
        ({"edits": "x", "edits_name": "x" * 256, "locality": "", "steps": 1}, "name of the file of example edits"),
    ],
)
def test_examples_no_method_can_learn_from_are_never_queued(engine, examples, said):
    with pytest.raises(BadRequest, match=said):
        engine.prepare(new_session(), "mend", examples, "k")
