"""Who gets in, what is opened for him, and what is never run: each test states one promise to whoever hosts a page."""

from __future__ import annotations

import ast
import os
import sys
import tomllib
from pathlib import Path

import pytest
import streamlit as st
from streamlit import config

from dashboard import resources
from dashboard.tries import LONGEST, QUIET, Tries
from editcore import admission, cli, engine, settings
from editcore.admission import admitted
from editcore.errors import BadSetting, ModelError
from editcore.settings import Settings
from tests import fake_engine
from tests.test_page import APP, applied, checked, filled, fresh, keys, opened, session_of, words

__all__ = ["fresh"]
ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "editcore").rglob("*.py"), *(ROOT / "dashboard").rglob("*.py")]
PASSWORD = "correct horse"


# the address ------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch, capsys):
    """Starts `editcore dashboard`: what would take this process's place, and what was said."""

    def call(*words_: str) -> tuple[list[str], str]:
        commands: list[list[str]] = []
        monkeypatch.setattr(os, "environ", dict(os.environ))
        monkeypatch.setattr(os, "chdir", lambda folder: None)
        monkeypatch.setattr(os, "execv", lambda program, command: commands.append(command) or sys.exit(0))
        monkeypatch.setattr(sys, "argv", ["editcore", "dashboard", *words_])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (commands[0] if commands else [str(caught.value.code)]), " ".join(capsys.readouterr().err.split())

    return call


def test_only_this_machine_can_open_the_page_unless_told_otherwise(started):
    command, said = started()
    assert "--server.address=127.0.0.1" in command and not said
    hosts = [word.partition("=")[2] for word in command if word.startswith("--server.allowedHosts")]
    assert set(hosts) == {"localhost", "127.0.0.1", "::1"}
    assert 'address = "127.0.0.1"' in (ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8")


def test_a_visitor_s_page_is_drawn_by_one_run_at_a_time():
    """Two runs share what the page remembers, each under a lock of its own: one can undo a click the other was sent."""
    runner = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text(encoding="utf-8"))["runner"]
    assert runner["fastReruns"] is False


def test_a_page_for_others_without_a_password_is_warned_of(started, monkeypatch):
    command, said = started("--address", "0.0.0.0", "--set", "hosts=edit.example.org", "--set", "largest_upload=9")
    assert "--server.address=0.0.0.0" in command and "--server.allowedHosts=edit.example.org" in command
    assert "--server.maxUploadSize=9" in command and "No password is set" in said
    monkeypatch.setenv("EDITCORE_PASSWORD", PASSWORD)
    assert not started("--address", "0.0.0.0")[1]


def test_flags_reach_the_page_and_its_worker_through_the_environment(started, tmp_path):
    started("--model", "gpt2", "--set", "most_probes=9")
    assert (os.environ["EDITCORE_MODEL"], settings.chosen().most_probes) == ("gpt2", 9)
    assert Path(os.environ["EDITCORE_HOME"]).is_absolute()
    assert started("--set", "most_probes=none")[0] == ["2"]


# the password and the login ---------------------------------------------------------------------------------------


@pytest.fixture
def guarded(monkeypatch):
    monkeypatch.setenv("EDITCORE_PASSWORD", PASSWORD)
    clock = [0.0]
    resources.tries.clear()
    monkeypatch.setattr(resources, "Tries", lambda: Tries(lambda: clock[0]))
    yield clock
    resources.tries.clear()


def knock(page, given: str):
    page.text_input(key="given").set_value(given)
    return checked(page.button(key="open").click().run())


@pytest.mark.parametrize("view", ["edit", "compare", "sessions", "shared"])
def test_every_page_asks_first_and_touches_neither_engine_nor_store(guarded, monkeypatch, view):
    page = opened(steps=1)
    page.query_params["link"] = "s" * 25
    page.query_params["session"] = "A" * 22
    with monkeypatch.context() as patch:
        for name in ("engine", "library", "drafts", "health"):
            patch.setattr(resources, name, lambda *_: pytest.fail("it was touched"))
        page = checked(page.switch_page(f"views/{view}.py").run())
    assert page.subheader[0].value == "This page asks for a password." and keys(page) == {"open"}
    assert len(words(page)) < 100


def test_the_password_opens_the_page_for_this_visit_and_no_other(guarded):
    page = knock(opened(steps=1), PASSWORD)
    assert "apply" in keys(page) and "open" not in keys(page)
    page = applied(filled(page))
    assert PASSWORD not in str(page.session_state) and "open" in keys(opened(session_of(page)))


def test_every_wrong_try_makes_the_next_wait_longer_for_everybody(guarded):
    page = knock(opened(steps=1), "wrong")
    assert "in 1 s" in page.error[0].value
    guarded[0] = 1.0
    assert "in 2 s" in knock(page, "wronger").error[0].value
    other = knock(opened("A" * 22), PASSWORD)
    assert "apply" not in keys(other) and "in 2 s" in other.error[0].value
    guarded[0] = 3.0
    assert "apply" in keys(knock(other, PASSWORD))


def test_the_wait_is_bounded_and_forgotten_after_a_while():
    now = [0.0]
    tries = Tries(lambda: now[0])
    for _ in range(20):
        assert not tries.right("x", PASSWORD)
        now[0] += LONGEST
    assert tries.wait() == 0 and not tries.right("\ud800", PASSWORD) and tries.wait() == LONGEST
    now[0] += QUIET
    assert tries.right(PASSWORD, PASSWORD) and tries.wait() == 0


def test_share_links_open_without_the_password_only_when_that_is_set(guarded, monkeypatch):
    page = opened(steps=1)
    assert keys(checked(page.switch_page("views/shared.py").run())) == {"open"}
    monkeypatch.setenv("EDITCORE_PUBLIC_LINKS", "yes")
    page = checked(page.run())
    assert page.subheader[0].value == "There is nothing at this address."
    assert keys(checked(page.switch_page("views/sessions.py").run())) == {"open"}


def test_a_page_that_asks_lists_nobody_elses_sessions(guarded):
    applied(filled(knock(opened(steps=1), PASSWORD)))
    other = knock(opened("B" * 22), PASSWORD)
    assert "No session holds an edit yet" in words(checked(other.switch_page("views/sessions.py").run()))


def test_the_frameworks_login_is_asked_when_it_is_set_up_and_each_person_has_a_list(monkeypatch):
    page = opened(steps=1)
    page.secrets["auth"] = {"client_id": "x"}
    page.user = {"is_logged_in": False}
    assert keys(checked(page.run())) == {"login"}
    page.user = {"is_logged_in": True, "sub": "ada"}
    page = applied(filled(checked(page.run())))
    assert "apply" in keys(page)
    owner = fake_engine.current().sessions.library.owner(session_of(page))
    (listed,) = fake_engine.current().sessions.library.sessions(owner)
    assert owner.startswith("user-") and listed.session == session_of(page)
    page.user = {"is_logged_in": True, "sub": "bob"}
    assert "No session holds an edit yet" in words(checked(page.switch_page("views/sessions.py").run()))


def test_a_secrets_file_that_cannot_be_read_lets_nobody_in(monkeypatch, tmp_path):
    (tmp_path / "secrets.toml").write_text("[auth\n")
    option = st.get_option
    files = [str(tmp_path / "secrets.toml")]
    monkeypatch.setattr(st, "get_option", lambda name: files if name == "secrets.files" else option(name))
    real = config.get_option
    monkeypatch.setattr(config, "get_option", lambda name: files if name == "secrets.files" else real(name))
    st.secrets._reset()
    page = opened(steps=1)
    assert "secrets file cannot be read" in page.error[0].value and not keys(page)


def test_a_wrong_setting_is_said_instead_of_a_page(monkeypatch):
    page = opened(steps=1)
    monkeypatch.setenv("EDITCORE_MOST_PROBES", "many")
    page = checked(page.run())
    assert "most\\_probes" in page.error[0].value and not keys(page)
    with pytest.raises(BadSetting):
        settings.chosen()


# models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A root with a model in it, another beside it, and ways that lead from one to the other."""
    for name in ("root/mine", "beside/theirs", "root-too/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root" / "out").symlink_to(tmp_path / "beside" / "theirs")
    (tmp_path / "root" / "round").symlink_to(tmp_path / "root" / "round")
    (tmp_path / "root" / "file").write_text("x")
    monkeypatch.chdir(tmp_path / "beside")
    return tmp_path


def limits(places, **more) -> Settings:
    return settings.read({"model_roots": [str(places / "root")], **more})


@pytest.mark.parametrize(
    "name",
    [
        "../../x", "theirs", "./theirs", "../root/../beside/theirs", "/etc", "/", "~", "~nobody/x", "//etc", "",
        "{home}/beside/theirs", "{home}/root/out", "{home}/root/round", "{home}/root/../beside/theirs",
        "{home}/root-too/x", "{home}/root/file", "{home}/root/nothing", "http://example.org/model",
        "https://huggingface.co/gpt2", "file:///etc", "file://{home}/root/mine", "a/b/c", "gpt2/..", "a..b", "a\0b",
        "C:\\models\\x", "\\\\server\\x", "%2e%2e/x", "gpt2 ", "-x", "x" * 5_000, "\ud800",
    ],
)  # fmt: skip
def test_a_model_from_outside_is_refused_alike_whatever_is_on_the_disk(places, name):
    name = name.replace("{home}", str(places))
    with pytest.raises(ModelError) as caught:
        admitted(name, limits(places))
    assert caught.value.seen == f"The model {name[:120]!r} may not be opened here."
    assert not any(word in str(caught.value).lower() for word in ("exist", "no such", "directory", "link", "found"))


@pytest.mark.parametrize("name", ["world-2019", "gpt2", "EleutherAI/gpt-j-6b", "{home}/root/mine", "../root/mine"])
def test_the_embedded_model_hub_ids_and_folders_within_the_roots_are_opened(places, name):
    found = admitted(name.replace("{home}", str(places)), limits(places))
    assert found == (str(places / "root" / "mine") if "mine" in name else name)


def test_only_the_named_hub_ids_are_opened_where_some_are_named(places):
    some = limits(places, models=["gpt2"])
    assert admitted("gpt2", some) == "gpt2" and admitted("world-2019", some) == "world-2019"
    with pytest.raises(ModelError):
        admitted("gpt2-xl", some)


def test_whoever_starts_a_page_may_open_any_folder_of_his_and_the_page_no_other(places, started, monkeypatch):
    monkeypatch.setenv("EDITCORE_HOME", "data")
    started("--model", "theirs")
    assert os.environ["EDITCORE_MODEL"] == str(places / "beside" / "theirs")
    assert os.environ["EDITCORE_HOME"] == str(places / "beside" / "data")
    assert resources.model_name() == str(places / "beside" / "theirs")
    monkeypatch.setitem(os.environ, "EDITCORE_MODEL", str(places / "root" / "mine"))
    with pytest.raises(ModelError):
        resources.model_name()


def test_roots_bind_whoever_starts_the_page_too(places, started):
    root = f"model_roots={places / 'root'}"
    assert started("--model", "theirs", "--set", root)[0] == ["1"]
    assert started("--model", str(places / "root" / "mine"), "--set", root)[0][0] == sys.executable


def test_a_page_on_a_model_that_may_not_be_opened_says_so_and_starts_no_engine(monkeypatch, places):
    page = opened(steps=1)
    monkeypatch.setenv("EDITCORE_MODEL", "../../etc")
    monkeypatch.setattr(engine, "LocalEngine", lambda **_: pytest.fail("an engine was started"))
    page = checked(page.run())
    assert "may not be opened here" in page.error[0].value and not keys(page)


def test_no_call_of_the_engine_names_a_model():
    """The browser reaches the engine through these alone."""
    tree = ast.parse((ROOT / "editcore" / "engine" / "contract.py").read_text(encoding="utf-8"))
    arguments = {a.arg for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for a in node.args.args}
    assert arguments and not arguments & {"model", "path", "folder", "url", "home"}
    loaders = [f for f in SOURCES if f.parts[-2] == "engine" and "opening import" in f.read_text(encoding="utf-8")]
    assert [f.name for f in loaders] == ["desk.py"] and "admission" in Path(admission.__file__).name


# what is never run ------------------------------------------------------------------------------------------------


def calls():
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file, ast.unparse(node.func), {k.arg: k.value for k in node.keywords}, node.args


def test_nothing_that_could_hold_code_is_unpickled_or_run():
    for file, name, named, _ in calls():
        assert name not in ("eval", "exec", "compile", "__import__", "os.system"), file
        assert not ({"shell", "unsafe_allow_html", "allow_pickle"} & set(named)), f"{file}: {name}"
        if name == "torch.load":
            assert ast.unparse(named["weights_only"]) == "True", file
        if "trust_remote_code" in named:
            assert ast.unparse(named["trust_remote_code"]) == "False", file
        if name.endswith(".from_pretrained") and name.startswith(("Auto", "maker")):
            assert None in named, f"{file}: {name} goes without the options that forbid code"
    text = {file: file.read_text(encoding="utf-8") for file in SOURCES}
    for file, source in text.items():
        assert not any(word in source for word in ('"trust_remote_code": True', "import pickle", "import dill")), file
        assert not any(word in source for word in ("import joblib", "import marshal", "import shelve")), file
    assert '"trust_remote_code": False' in text[ROOT / "editcore" / "weights.py"]
    assert "use_safetensors=True" in text[ROOT / "editcore" / "weights.py"]


def test_markup_is_never_made_of_anything_but_constants():
    for file, name, named, given in calls():
        if name in ("st.html", "st.iframe", "components.html", "components.iframe", "st.components.v1.html"):
            assert all(isinstance(value, ast.Constant) for value in (*given, *named.values())), f"{file}: {name}"


def test_app_is_the_only_way_in():
    assert Path(APP).read_text(encoding="utf-8").index("door.opens") < Path(APP).read_text().index("page.run()")
