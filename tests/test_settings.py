"""Settings: a flag beats the environment, that beats the file, that beats the default; a wrong one is named."""

from __future__ import annotations

import json
import os
import sys

import pytest

from editcore import cli, gate, settings
from editcore.engine.queue import WorkQueue
from editcore.errors import BadRequest, BadSetting
from editcore.records import EditRequest, Probe
from editcore.settings import Settings, chosen, read, shown
from editcore.store import Library, Store
from editcore.store.inventory import inventory

NUMBERS = [n for n, f in Settings.model_fields.items() if f.annotation in (int, float)]


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("EDITCORE_") or n == "DATABASE_URL"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("EDITCORE_HOME", str(tmp_path))
    settings._read.cache_clear()
    yield tmp_path
    settings._read.cache_clear()


def origin(name: str, flags=None) -> tuple[str, str]:
    (found,) = [s for s in shown(flags) if s.name == name]
    return found.value, found.origin


def test_a_flag_beats_the_environment_that_beats_the_file_that_beats_the_default(home, monkeypatch):
    assert origin("most_probes") == ("1,000", "default")
    (home / settings.FILE).write_text("most_probes = 7\n", encoding="utf-8")
    assert origin("most_probes") == ("7", "file")
    monkeypatch.setenv("EDITCORE_MOST_PROBES", "8")
    assert origin("most_probes") == ("8", "environment") and chosen().most_probes == 8
    assert origin("most_probes", {"most_probes": "9"}) == ("9", "flag")
    monkeypatch.setenv("EDITCORE_MOST_PROBES", "")
    assert origin("most_probes") == ("7", "file")


def test_a_flag_reaches_the_processes_started_from_here_and_is_still_called_one(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    settings.export({"most_probes": "9", "hosts": ["a.example.org", "b.example.org"]})
    assert origin("most_probes") == ("9", "flag") and origin("hosts") == ("a.example.org, b.example.org", "flag")
    assert chosen().hosts == ("a.example.org", "b.example.org")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["", "many", "-1", "nan", "1e400", "99999999999999999999"])
def test_every_number_is_checked_and_the_message_says_where_it_was_found_and_what_fits(monkeypatch, name, value):
    monkeypatch.setenv(f"EDITCORE_{name.upper()}", value)
    if not value:
        assert getattr(chosen(), name) == Settings.model_fields[name].default
        return
    with pytest.raises(BadSetting) as caught:
        chosen()
    assert f"The setting {name} is {value!r} (from the environment, EDITCORE_{name.upper()})" in caught.value.seen
    assert "was wanted" in caught.value.wanted and "leave it out" in caught.value.try_


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("most_probs = 5", "'most_probs', which is no setting"),
        ("most_probes = 'a'", "most_probes is 'a' (from editcore.toml)"),
        ("most_probes = = 5", "cannot be read"),
        ("[models]\na = 1", "The setting models is"),
        ("password = 'short'", "password cannot be used (from editcore.toml). At least 8 characters"),
        ("\xff", "cannot be read"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(home, text, said):
    (home / settings.FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadSetting) as caught:
        read()
    assert said in str(caught.value) and "short" not in str(caught.value)


@pytest.mark.parametrize(("name", "said"), [("nope", "no setting 'nope'"), ("password", "could read it")])
def test_what_is_no_flag_is_refused(name, said):
    with pytest.raises(BadSetting, match=said):
        read({name: "something"})


def test_secrets_are_masked_wherever_settings_are_shown(monkeypatch):
    monkeypatch.setenv("EDITCORE_PASSWORD", "correct horse")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:tr0ub4dor@db.example.org/beliefs?sslpassword=tr0ub4dor")
    told = json.dumps([s.value for s in shown()]) + repr(chosen())
    assert "horse" not in told and "tr0ub4dor" not in told and "db.example.org/beliefs" in told
    assert origin("password") == ("********", "environment")


def test_the_limits_in_force_are_those_that_are_set(home, monkeypatch):
    request = EditRequest("It is so", "not", probes=(Probe("far", "a"), Probe("far", "b")))
    gate.check_request(request)
    for name, value, said in (("MOST_PROBES", "1", "At most 1 fit"), ("LONGEST_PROMPT", "7", "At most 7 fit"),
                              ("LONGEST_ANSWER", "2", "At most 2 fit")):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(f"EDITCORE_{name}", value)
            with pytest.raises(BadRequest, match=said):
                gate.check_request(request)
    monkeypatch.setenv("EDITCORE_MOST_WAITING", "3")
    assert WorkQueue()._limit == 3 and WorkQueue(5)._limit == 5


# what doctor says about it ----------------------------------------------------------------------------------------


def told(monkeypatch, capsys, *words: str):
    monkeypatch.setattr(sys, "argv", ["editcore", "doctor", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown_ = capsys.readouterr()
    return caught.value.code or 0, shown_.out, shown_.err


def test_doctor_lists_every_setting_with_its_value_and_origin(home, monkeypatch, capsys):
    monkeypatch.setenv("EDITCORE_MOST_METHODS", "4")
    monkeypatch.setenv("EDITCORE_MOST_METHOD", "4")
    monkeypatch.setenv("EDITCORE_PASSWORD", "correct horse")
    code, text, _ = told(monkeypatch, capsys, "--json", "--set", "bin_days=3")
    rows = {s["name"]: s for s in json.loads(text)["settings"]}
    assert code == 0 and set(rows) == set(Settings.model_fields)
    assert (rows["most_methods"]["value"], rows["most_methods"]["origin"]) == ("4", "environment")
    assert rows["bin_days"]["origin"] == "flag" and rows["empty_days"]["origin"] == "default"
    _, text, _ = told(monkeypatch, capsys)
    assert "EDITCORE_MOST_METHOD is no setting" in text and "horse" not in text and "********" in text


def test_doctor_goes_on_with_a_wrong_setting_and_names_it(monkeypatch, capsys):
    monkeypatch.setenv("EDITCORE_BIN_DAYS", "soon")
    code, text, _ = told(monkeypatch, capsys, "--json")
    assert code == 0 and "bin_days is 'soon'" in json.loads(text)["settings are wrong"]
    assert told(monkeypatch, capsys, "--set", "bin_days=later")[0] == 2


def test_doctor_counts_what_is_stored_and_makes_nothing(home, monkeypatch, capsys):
    facts = json.loads(told(monkeypatch, capsys, "--json")[1])
    assert facts["database"].endswith("editcore.db (not made yet)") and not list(home.iterdir())
    store = Store(home)
    Library(store).keep_draft("A" * 22, "me", {"prompt": "x"})
    store.close()
    (home / "patches").mkdir()
    (home / "patches" / "one").write_bytes(b"12345")
    facts = json.loads(told(monkeypatch, capsys, "--json")[1])
    assert (facts["sessions"], facts["edits"], facts["bytes of patches"]) == (1, 0, 5)
    assert facts["schema version"] and facts["data folder"] == str(home)


def test_a_database_that_does_not_answer_is_said_and_left_alone(home):
    (home / "editcore.db").write_bytes(b"no database at all, but long enough to be taken for one" * 40)
    before = (home / "editcore.db").read_bytes()
    assert "does not answer" in str(inventory(home)["database"]) and (home / "editcore.db").read_bytes() == before
