"""A PostgreSQL of our own for as long as the tests run: in a temporary folder, reached by a socket in it alone."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import sqlalchemy as sa

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/pgsql/bin")
MISSING = """PostgreSQL or its driver is not installed, so the store was not tried on it: `apt-get install postgresql` \
(macOS: `brew install postgresql`) and `pip install --group dev`."""
USER = "editcore"


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`; None when there is none, or no driver."""
    if find_spec("psycopg") is None:
        return None
    named = shutil.which("initdb")
    found = [Path(named).resolve().parent] if named else []
    for place in PLACES:
        found += sorted(Path("/").glob(place.lstrip("/")), reverse=True)
    return next((folder for folder in found if (folder / "postgres").exists()), None)


class Cluster:
    """A server with databases to be used once; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._programs, self._numbers = folder, itertools.count(1)
        self.home = Path(tempfile.mkdtemp(prefix="editcore-pg-"))
        self._as = {}
        if os.name == "posix" and os.getuid() == 0:  # the server refuses to be root
            shutil.chown(self.home, "postgres", "postgres")
            self._as = {"user": "postgres", "group": "postgres", "extra_groups": []}
        make = [folder / "initdb", "-D", self.home / "data", "-U", USER, "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*make, "--locale=C"], check=True, cwd=self.home, stdout=subprocess.DEVNULL, **self._as)
        self.start()

    def start(self) -> None:
        command = [self._programs / "postgres", "-D", self.home / "data", "-k", self.home, "-c", "listen_addresses="]
        with (self.home / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*command, "-c", "fsync=off"], cwd=self.home, stdout=log, stderr=log, **self._as
            )
        for _ in range(300):
            try:
                self.run("SELECT 1")
                return
            except sa.exc.OperationalError:
                assert self._server.poll() is None, (self.home / "log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def stop(self) -> None:
        """Connections are cut, as by a restart of the machine it runs on."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(30)

    def end(self) -> None:
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def address(self, name: str, driver: str = "postgresql") -> str:
        return f"{driver}://{USER}@/{name}?host={self.home}"

    def run(self, words: str) -> None:
        engine = sa.create_engine(
            self.address("postgres", "postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )
        with engine.connect() as at:
            at.exec_driver_sql(words)

    def fresh(self) -> str:
        """The address of a new, empty database."""
        name = f"store{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.address(name)
