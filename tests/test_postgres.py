"""A store on PostgreSQL for a team: what is said when it cannot be used, and what it survives."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import pytest

from editcore.engine import InlineEngine, LocalEngine, new_session
from editcore.errors import EngineError
from editcore.records import EditRequest
from editcore.store import Library, Store
from editcore.store.blobs import STALE
from editcore.store.inventory import inventory
from tests import fake_desk
from tests.test_store import add, kept_patches

REQUEST = EditRequest("The capital of France is", "Rome", subject="France")


@pytest.fixture
def team(monkeypatch, postgres):
    """A fresh database that the settings name."""
    address = postgres.fresh()
    monkeypatch.setenv("DATABASE_URL", address)
    return address


def finish(engine, job):
    end = time.monotonic() + 60
    while not (state := engine.poll(job)).finished:
        assert time.monotonic() < end
        time.sleep(0.02)
    return state


# what cannot be used ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mysql://root:tr0ub4dor@localhost/x", "names 'mysql'"), ("sqlite://", "names 'sqlite'"),
        ("tr0ub4dor", "cannot be read"), ("postgresql+psycopg2://me:tr0ub4dor@localhost/x", r"'postgresql\+psycopg2'"),
    ],
)  # fmt: skip
def test_another_database_is_refused_without_repeating_its_address(tmp_path, monkeypatch, address, said):
    monkeypatch.setenv("DATABASE_URL", address)
    with pytest.raises(EngineError, match=said) as caught:
        Store(tmp_path)
    assert "tr0ub4dor" not in str(caught.value) and caught.value.try_
    assert said.strip("'").split("\\")[0] in str(inventory(tmp_path)["database"])


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_without_its_driver_what_to_install_is_said(tmp_path, monkeypatch, scheme):
    for name in [n for n in sys.modules if n.partition(".")[0].startswith("psycopg")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("DATABASE_URL", f"{scheme}://me:tr0ub4dor@localhost/x")
    with pytest.raises(EngineError, match=r'pip install "editcore\[postgres\]"'):
        Store(tmp_path)
    told = str(inventory(tmp_path)["database"])
    assert "psycopg" in told and "tr0ub4dor" not in told


@pytest.mark.parametrize("lacking", ["server", "database", "user"])
def test_a_server_that_is_away_is_said_without_its_address(tmp_path, monkeypatch, postgres, lacking):
    wrong = {
        "server": f"postgresql://me@/x?host={tmp_path}",
        "database": postgres.address("nowhere"),
        "user": postgres.address("postgres").replace("//editcore", "//nobody"),
    }
    monkeypatch.setenv("DATABASE_URL", wrong[lacking])
    with pytest.raises(EngineError, match="cannot be reached") as caught:
        Store(tmp_path)
    assert "DATABASE_URL" in caught.value.try_ and str(tmp_path) not in str(caught.value)
    assert "does not answer" in str(inventory(tmp_path)["database"])


# what it survives -------------------------------------------------------------------------------------------------


def test_a_server_that_goes_away_in_the_middle_of_an_edit_costs_that_edit_alone(tmp_path, team, postgres):
    session = new_session()
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as engine:
        finish(engine, engine.submit(session, [REQUEST], "rome", {}, "a"))
        job = engine.submit(session, [REQUEST], "rome", {"steps": 20, "pause": 0.05}, "b")
        postgres.stop()
        try:
            state = finish(engine, job)
            with pytest.raises(EngineError, match="cannot be reached"):
                engine.sessions.state(session)
            with pytest.raises(EngineError, match="cannot be reached"):
                engine.submit(new_session(), [REQUEST], "rome", {}, "c")
        finally:
            postgres.start()
        assert state.status == "failed" and "cannot be reached" in state.error
        assert [row.target for row in engine.sessions.state(session).rows] == ["Rome"]
        assert finish(engine, engine.submit(session, [REQUEST], "rome", {}, "d")).status == "done"


def test_a_killed_engine_and_a_killed_page_lose_nothing_that_was_applied(tmp_path, team, monkeypatch):
    here = os.path.dirname(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), here]))
    session, slow = new_session(), {"steps": 400, "pause": 0.02}
    with contextlib.closing(LocalEngine("fake", tmp_path, "fake_desk:open_desk", backoff=0.05)) as engine:
        done = finish(engine, engine.submit(session, [REQUEST], "rome", {}, "a"))
        job = engine.submit(session, [REQUEST], "rome", slow, "b")
        while not engine.poll(job).sequence:
            time.sleep(0.01)
        os.kill(engine._worker.process.pid, signal.SIGKILL)
        assert finish(engine, job).status == "lost"
        assert engine.probe(session, ["?"])[0]["edited"]["answer"] == "Rome"
        cut = engine.submit(session, [REQUEST], "rome", slow, "c")
        while not engine.poll(cut).sequence:
            time.sleep(0.01)
    with contextlib.closing(InlineEngine("fake", tmp_path, fake_desk.open_desk)) as engine:
        state = engine.sessions.state(session)
        assert [row.edit for row in state.rows] == [done.job] and state.cut == cut
        assert engine.probe(session, ["?"])[0]["edited"]["answer"] == "Rome"


def test_two_databases_of_one_folder_leave_each_others_patches_alone(tmp_path, monkeypatch, postgres):
    later, stores = time.time() + 2 * STALE, []
    for address in ("", postgres.fresh(), postgres.fresh()):
        monkeypatch.setenv("DATABASE_URL", address)
        stores.append(Store(tmp_path))
        add(stores[-1], new_session(), "Rome")
    for store in stores:
        assert Library(store).prune(later) == (0, 0)
    assert [len(kept_patches(store)) for store in stores] == [1, 1, 1]
    monkeypatch.setenv("DATABASE_URL", address)
    again = Store(tmp_path)
    assert kept_patches(again) == kept_patches(stores[-1])
    for store in (*stores, again):
        store.close()


def test_doctor_counts_what_is_in_it(tmp_path, team):
    store = Store(tmp_path)
    add(store, new_session(), "Rome")
    store.close()
    found = inventory(tmp_path)
    assert (found["sessions"], found["edits"], found["schema version"]) == (1, 1, "0002")
    assert str(found["database"]).startswith("postgresql+psycopg://editcore@")
