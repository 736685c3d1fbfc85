"""Another model in the place of the loaded one: through a real worker with a fake desk, and with real tiny models."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import fake_desk
import psutil
import pytest
from test_engine import LONG, REQUEST, answer, finish, importable, inline, reset, running, submit, until, worker
from test_loading import DAMAGE, cache, folder, made

from editcore import checkpoint
from editcore.admission import completed
from editcore.engine import InlineEngine, LocalEngine, Opening, menu, new_session, supervisor
from editcore.errors import EngineBusy, EngineError, ModelError
from editcore.history import Base
from editcore.opened import recalled_opening, remember_opening
from editcore.opening import look
from editcore.records import EditRequest
from editcore.settings import Settings
from tests import models

__all__ = ["cache", "folder", "importable", "inline", "made"]  # fixtures of other tests


@pytest.fixture
def local(tmp_path):
    with worker(tmp_path) as engine:
        yield engine


@pytest.fixture(params=["inline", "local"])
def engine(request):
    return request.getfixturevalue(request.param)


def opened(engine, model: str) -> None:
    engine.open(Opening(model))
    until(lambda: engine.health().state == "ready", 20.0)
    assert engine.health().model.name == model


# the same contract, inline and through a process --------------------------------------------------------------


def test_another_model_takes_the_place_of_the_loaded_one(engine):
    engine.ask("preflight")
    opened(engine, "other")
    assert engine.opening == Opening("other") and engine.ask("preflight")["name"] == "preflight"
    assert finish(engine, submit(engine, new_session())).report.model == "other"


def test_the_menu_of_methods_follows_the_model(engine):
    engine.ask("preflight")
    assert engine.methods() == menu.method_menu("fake")
    opened(engine, "gpt2-xl")
    assert engine.methods() == menu.method_menu("gpt2-xl") != menu.method_menu("fake")


@pytest.mark.parametrize("name", ["", "/etc", "../../etc", "a b", "\0", "x" * 5000])
def test_what_is_not_allowed_is_refused_and_the_loaded_model_stays(engine, name):
    engine.ask("preflight")
    with pytest.raises(ModelError, match="may not be opened here"):
        engine.open(Opening(name))
    assert engine.opening == Opening("fake") and engine.health().state == "ready"


def test_what_stands_against_a_model_is_told_before_the_loaded_one_goes(engine):
    engine.ask("preflight")
    with pytest.raises(ModelError) as caught:
        engine.open(Opening("refused"))
    told = caught.value
    assert (told.seen, told.wanted, told.try_) == ("This model has no tokenizer.", "One was wanted.", "Put it there.")
    assert engine.health().state == "ready" and engine.health().model.name == "fake"


def test_no_model_is_opened_while_anybodys_job_is_queued_or_running(engine):
    first, second = submit(engine, new_session(), **LONG), submit(engine, new_session(), "b")
    running(engine, first)
    with pytest.raises(EngineBusy, match="2 jobs are queued or running"):
        engine.open(Opening("other"))
    engine.cancel(second)
    with pytest.raises(EngineBusy, match="1 job is queued or running"):
        engine.open(Opening("other"))
    engine.cancel(first)
    finish(engine, first)
    opened(engine, "other")


def test_edits_of_one_model_are_refused_on_another_and_work_again_on_their_own(engine):
    session = new_session()
    finish(engine, submit(engine, session))
    assert engine.sessions.state(session).base == Base("fake", "")
    opened(engine, "other")
    state = finish(engine, submit(engine, session, "b", EditRequest("Where?", "Oslo")))
    assert (state.status, state.error_kind) == ("failed", "WrongModel")
    assert "were made on fake" in state.error and "other is open" in state.error
    with pytest.raises(ModelError, match="were made on fake"):
        answer(engine, session)
    engine.sessions.undo(session)  # what is stored can be taken back without its model
    assert engine.sessions.state(session).base is None
    engine.sessions.redo(session)
    opened(engine, "fake")
    assert answer(engine, session) == "Rome"
    assert finish(engine, submit(engine, session, "c", EditRequest("Where?", "Oslo"))).status == "done"


def test_edits_that_are_switched_off_still_belong_to_their_model(engine):
    session = new_session()
    job = submit(engine, session)
    finish(engine, job)
    engine.sessions.move(session, fake_move("toggle", job))
    opened(engine, "other")
    assert finish(engine, submit(engine, session, "b")).error_kind == "WrongModel"
    reset(engine, session)
    assert finish(engine, submit(engine, session, "c")).status == "done"


def fake_move(kind: str, job: str):
    from editcore.history import Move

    return Move(kind, job, 0.0)


def test_a_failed_model_can_be_left(tmp_path):
    for engine in (InlineEngine("missing", tmp_path, fake_desk.open_desk), LocalEngine(
        "missing", tmp_path, desk="fake_desk:open_desk", backoff=0.05
    )):  # fmt: skip
        with contextlib.closing(engine):
            until(lambda engine=engine: engine.health().state == "failed")
            opened(engine, "fake")
            engine.open(Opening("breaks"))
            until(lambda engine=engine: engine.health().state == "failed")
            assert "This model breaks" in engine.health().message and engine.opening.model == "breaks"
            opened(engine, "fake")


# the process ---------------------------------------------------------------------------------------------------


def test_the_old_worker_is_gone_before_the_new_one_is_begun_and_no_death_is_counted(local, monkeypatch):
    monkeypatch.setattr(supervisor, "GIVE_UP_AFTER", 2)
    local._worker.backoff = 60.0  # a death would cost a minute
    for model in ("other", "fake", "other"):
        old = local.ask("pid")
        opened(local, model)
        assert not psutil.pid_exists(old) and local.ask("pid") != old
    assert local._worker.generation == 4


def test_while_it_is_opened_the_engine_says_which_and_how_far(local):
    local.ask("preflight")
    local.open(Opening("slow"))
    health = local.health()
    assert (health.state, health.message, health.model) == ("restarting", "slow is being opened.", None)
    until(lambda: local.health().message == "slow is being opened. Loading 1.0 GB of 2.0 GB.")
    assert local.health().state == "restarting"
    assert local.ask("preflight")["name"] == "preflight" and local.health().state == "ready"


def test_the_same_click_twice_opens_it_once(local):
    local.ask("preflight")
    local.open(Opening("slow"))
    local.open(Opening("slow"))
    until(lambda: local.health().state == "ready", 20.0)
    assert local._worker.generation == 2


def test_a_worker_that_dies_after_the_change_is_a_death_like_any_other(local):
    local.ask("preflight")
    opened(local, "other")
    os.kill(local._worker.process.pid, signal.SIGKILL)
    until(lambda: local._worker.generation == 3)
    until(lambda: local.health().state == "ready")
    assert local.health().model.name == "other"


def test_an_engine_that_has_given_up_opens_another_model(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "GIVE_UP_AFTER", 2)
    with worker(tmp_path, desk="fake_desk:dies") as engine:
        engine._worker.backoff = 0.01
        until(lambda: engine.health().state == "failed", 20.0)
        engine._desk = "fake_desk:open_desk"
        opened(engine, "fake")
        assert engine.ask("preflight")["name"] == "preflight"


def test_a_question_to_the_old_worker_fails_at_once_and_says_why(local):
    answer, _ = local._worker.send("ask", 5.0, name="sleep", arguments={"seconds": 60}, timeout=60.0)
    local._look = lambda opening: None  # it would wait behind that question
    local.open(Opening("other"))
    with pytest.raises(EngineError, match="Another model is being opened"):
        answer.result(1.0)
    until(lambda: local.health().state == "ready", 20.0)


def test_a_job_handed_over_meanwhile_is_refused(local):
    local.ask("preflight")
    with local._no_job_begins():
        with pytest.raises(EngineBusy, match="Another model is being opened"):
            submit(local, new_session())
        with pytest.raises(EngineBusy):
            local.open(Opening("other"))
    finish(local, submit(local, new_session()))


def test_a_closed_engine_opens_nothing(local):
    local.close()
    with pytest.raises(EngineError, match="closed"):
        local.open(Opening("other"))


# what is left open -----------------------------------------------------------------------------------------------


def test_what_an_opening_leaves_open_is_as_the_settings_say():
    limits = Settings(model="gpt2", revision="r1", device="cpu", dtype="bfloat16")
    assert completed(Opening("gpt2"), limits) == Opening("gpt2", "r1", "cpu", "bfloat16", "")
    assert completed(Opening("distilgpt2"), limits).revision == ""  # which names a revision of another model
    assert completed(Opening("gpt2", "r2", dtype="float32"), limits) == Opening("gpt2", "r2", "cpu", "float32", "")
    spread = completed(Opening("gpt2", device_map="auto"), limits)
    assert (spread.device, spread.device_map) == ("", "auto")


def test_how_a_model_was_opened_is_recalled_by_its_fingerprint(tmp_path):
    opening = Opening("acme/tiny", "a" * 40, dtype="bfloat16")
    remember_opening(tmp_path, "0123456789abcdef", opening)
    assert recalled_opening(tmp_path, "0123456789abcdef") == opening
    assert recalled_opening(tmp_path, "fedcba9876543210") is None is recalled_opening(tmp_path, "../../x")
    (tmp_path / "models" / "0123456789abcdef.json").write_text("{}")
    assert recalled_opening(tmp_path, "0123456789abcdef") is None


# real models -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with two tiny models in it, and one without a tokenizer."""
    place = tmp_path_factory.mktemp("models")
    for name in ("gpt2", "llama"):
        models.model(name).save_pretrained(place / name)
        models.tokenizer().save_pretrained(place / name)
    models.model("gpt2").save_pretrained(place / "mute")
    (place / "notes").mkdir()
    return place


def test_the_models_of_the_allowed_folders_are_at_hand_and_open_one_after_another(root, tmp_path, monkeypatch):
    monkeypatch.setenv("EDITCORE_MODEL_ROOTS", str(root))
    first, session = str(root / "gpt2"), new_session()
    with contextlib.closing(InlineEngine(first, tmp_path)) as engine:
        hand = {one["shown"]: one for one in engine.ask("models", 60.0)}
        assert list(hand)[:4] == ["world-2019", "…/gpt2", "…/llama", "…/mute"]
        assert all(hand[name]["fits"] and hand[name]["disk"] for name in list(hand)[:3])
        assert hand["…/mute"]["problem"] == "'…/mute' has no tokenizer."
        assert {one["dtype"] for one in engine.ask("models", 60.0, dtype="bfloat16")} == {"bfloat16"}
        with pytest.raises(ModelError, match="cuda.*CUDA"):
            engine.ask("models", 60.0, device="cuda:7")
        for opening, said in (
            (Opening(str(root / "mute")), "no tokenizer"),
            (Opening(str(root / "notes")), "not a model folder"),
            (Opening(first, revision="main"), "has no revisions"),
            (Opening(first, dtype="float99"), "number format 'float99' is unknown"),
            (Opening(first, device="tpu"), "'tpu' is unknown"),
            (Opening(first, device="cuda:0"), "No CUDA device"),
            (Opening(first, device="cpu", device_map="auto"), "Both a device"),
            (Opening(first, device_map="somehow"), "device map 'somehow' is unknown"),
        ):
            with pytest.raises(ModelError, match=said) as caught:
                engine.open(opening)
            assert str(root) not in str(caught.value)
        job = engine.submit(session, [REQUEST], "ft", {"steps": 1}, "a")
        until(lambda: engine.poll(job).finished, 60.0)
        base = engine.sessions.state(session).base
        assert base == Base("…/gpt2", engine.health().model.fingerprint) and base.is_of(engine.health().model)
        engine.open(Opening(str(root / "llama"), dtype="bfloat16"))
        until(lambda: engine.health().state == "ready", 60.0)
        assert (engine.health().model.name, engine.health().model.dtype) == ("…/llama", "bfloat16")
        assert not base.is_of(engine.health().model)
        job = engine.submit(session, [REQUEST], "ft", {"steps": 1}, "b")
        until(lambda: engine.poll(job).finished, 60.0)
        assert engine.poll(job).error_kind == "WrongModel"
        again = engine.sessions.opening(base)
        assert again == Opening(first)
        engine.open(again)
        until(lambda: engine.health().state == "ready", 60.0)
        assert engine.probe(session, ["Where?"])[0]["edited"] is not None


def test_a_model_that_does_not_fit_says_which_formats_would(root, monkeypatch):
    from editcore import picker

    needed = picker.at_hand(roots=[str(root)])[1].needed
    monkeypatch.setattr("editcore.picker.free_memory", lambda *_: needed * 3 // 4)
    one = picker.at_hand(roots=[str(root)])[1]
    assert not one.fits and one.formats == ("bfloat16", "float16")
    assert picker.at_hand(roots=[str(root)], returned=lambda _: needed)[1].fits


def test_the_worker_passes_an_opening_on_as_it_was_given(local):
    wanted = Opening("other", "r1", "cpu", "float32")
    local.open(wanted)
    given = local._worker._command
    assert {f"--{k.replace('_', '-')}={v}" for k, v in dataclasses.asdict(wanted).items() if v} <= {*given}
    assert json.dumps(given)


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_folder_is_said_in_its_own_words_before_anything_is_loaded(folder, name):
    damage, said = DAMAGE[name]
    damage(folder)
    with pytest.raises(ModelError, match=said):
        look(str(folder), device="cpu")


def test_a_hub_id_that_is_not_here_and_one_whose_revision_is_not_have_their_own_messages(cache):
    look("acme/tiny", device="cpu")
    for name, revision, said in (
        ("acme/other", None, "'acme/other' is not on this machine, and the hub cannot be reached"),
        ("acme/tiny", "nope", "'acme/tiny' is on this machine, but not its revision 'nope'"),
    ):
        with pytest.raises(ModelError, match=said):
            look(name, revision=revision, device="cpu")


def test_of_a_model_that_is_only_on_the_hub_nothing_but_small_files_are_fetched(made, tmp_path, monkeypatch):
    asked, place = [], shutil.copytree(made, tmp_path / "fetched")
    (place / "model.safetensors").unlink()
    monkeypatch.setattr(checkpoint, "hub_answers", lambda: True)
    monkeypatch.setattr(checkpoint, "_download", lambda name, revision, patterns: (asked.append(patterns), place)[1])
    look("acme/far", device="cpu")
    assert asked == [checkpoint.SMALL]
    (place / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    with pytest.raises(ModelError, match="stored quantised"):
        look("acme/far", device="cpu")


def test_a_model_larger_than_what_will_be_free_is_refused_with_both_numbers(made, monkeypatch):
    monkeypatch.setattr("editcore.weights.free_memory", lambda *_: 1000)
    with pytest.raises(ModelError, match="GB in float32.*GB are free on cpu.*bfloat16"):
        look(str(made), device="cpu")
    look(str(made), device="cpu", returned=lambda device: 10**9)  # the loaded model goes first
