"""The real page under load: started as a person does, looked at from outside, its engine killed. Knows processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

MIB = 1 << 20


class Work:
    """Who keeps the processors busy, in seconds of one processor: the page, all that this load started, everybody."""

    def __init__(self, page: psutil.Process) -> None:
        self._page, self._last = page, self._read()
        self._began, self._all = time.monotonic(), _busy()
        self.page = self.mine = 0.0

    def _read(self) -> dict[int, float]:
        found = {}
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found[process.pid] = sum(process.cpu_times()[:2])
        return found

    def look(self) -> None:
        """Add what was used since the last look; the last moments of a process that ended are missed."""
        now = self._read()
        used = {pid: seconds - self._last.get(pid, 0.0) for pid, seconds in now.items()}
        self.page, self.mine, self._last = (
            self.page + used.get(self._page.pid, 0.0),
            self.mine + sum(used.values()),
            now,
        )

    def shares(self) -> tuple[float, float, float]:
        """Processors that the page, this load with the page, and everybody else kept busy, on average."""
        seconds = time.monotonic() - self._began
        return self.page / seconds, self.mine / seconds, max(0.0, _busy() - self._all - self.mine) / seconds


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


class Served:
    """A running page."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.address = f"127.0.0.1:{port}"
        self._process = process
        self.memory: list[tuple[float, int]] = []  # (monotonic seconds, bytes) of the page's process
        self.work = Work(process)

    def look(self) -> None:
        """Note what the page's process holds, and who kept the processors busy since the last look."""
        self.memory.append((time.monotonic(), int(self._process.memory_info().rss)))
        self.work.look()

    async def watch(self, every: float = 2.0) -> None:
        """Look until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(every)

    def worker(self) -> psutil.Process | None:
        """The engine's process, when there is one."""
        children = self._process.children(recursive=True)
        return next((p for p in children if "editcore.engine.worker" in " ".join(p.cmdline())), None)

    async def kill_worker(self) -> bool:
        """End the engine's process from one moment to the next; True once another one has taken its place."""
        found = self.worker()
        if found is None:
            return False
        found.kill()
        for _ in range(600):
            await asyncio.sleep(0.1)
            with contextlib.suppress(psutil.Error):
                fresh = self.worker()
                if fresh is not None and fresh.pid != found.pid:
                    return True
        return False


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def served(home: Path) -> Iterator[Served]:
    """The page on the embedded model with its data in `home`; ended with everything it started."""
    port, log = free_port(), (home / "page.log").open("wb")
    command = [sys.executable, "-m", "editcore.cli", "dashboard", "--headless", "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "EDITCORE_HOME": str(home)}, stdout=log, stderr=log)
    try:
        wait_until_up(f"127.0.0.1:{port}", process)
        yield Served(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        log.close()


def wait_until_up(address: str, process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    """Return once the page's web server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{address}/_stcore/health", timeout=1).read()
            return
        time.sleep(0.1)
    raise RuntimeError("the page did not start")
