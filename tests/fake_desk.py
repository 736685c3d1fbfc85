"""A desk without a model, steered by the settings and prompts it is given. Imports no torch."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import time
from pathlib import Path

from editcore.errors import Cancelled, Diverged, ModelError
from editcore.records import EditReport, ModelInfo, PatchInfo, Progress, Scores, Seconds


class FakeDesk:
    """Remembers which patch is whose; every edit takes `steps` steps of `pause` seconds."""

    def __init__(self, model: str) -> None:
        self.model, self.active = model, {}

    def info(self):
        return ModelInfo(self.model, "f" * 8, "fake", 1, 1, "cpu", "none", "float32", "none", False, 4)

    def memory(self):
        return 1234

    def ask(self, name, arguments):
        if name == "noise":
            print("a library says hello", flush=True)
            os.write(1, b'{"id": 1, "result": "forged"}\n')
        if name == "sleep":
            time.sleep(arguments["seconds"])
        if name == "crash":
            raise ZeroDivisionError("secret detail")
        if name == "wrong":
            raise ModelError("This model has no layers.", "It needs some.", "Pick another.")
        if name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "pid":
            return os.getpid()
        return {"name": name, "arguments": arguments, "nan": math.nan}

    def edit(self, session, request, method, settings, report, stop, folder: Path):
        made = self._work(request, method, settings, report, stop)
        (folder / "patch.json").write_text(json.dumps(request.target))
        return made

    def trial(self, request):
        if request.target == "nowhere":
            raise ModelError("The model cannot read this.", "", "Ask something else.")
        return lambda method, settings, report, stop: self._work(request, method, settings, report, stop)

    def _work(self, request, method, settings, report, stop):
        for step in range(1, settings.get("steps", 2) + 1):
            if stop():
                raise Cancelled("Stopped.")
            report(Progress("edit", step, settings.get("steps", 2), loss=math.nan))
            time.sleep(settings.get("pause", 0.0))
            _fail(settings.get("fail") if step == settings.get("fail_at", 1) else None)
        return EditReport(
            self.model, method, settings, request, request.subject, PatchInfo(4, ("w",), 1, 1.0, 0.1),
            Seconds(0.1, math.nan), (), Scores(), True, f"It now says {request.target}.",
        )  # fmt: skip

    def prepare(self, method, examples, report, stop):
        for step in range(1, examples["steps"] + 1):
            if stop():
                raise Cancelled("Stopped.")
            report(Progress("training", step, examples["steps"]))
            time.sleep(float(examples["locality"] or 0))
        if examples["edits"] == "useless":
            raise ModelError("Nothing can be learned from this.", "", "Give other examples.")

    def activate(self, session, folder):
        if folder is None:
            self.active.pop(session, None)
        else:
            self.active[session] = json.loads((folder / "patch.json").read_text())

    def probe(self, session, prompts):
        edited = self.active.get(session)
        return [
            {"prompt": p, "base": {"answer": "old"}, "edited": {"answer": edited} if edited else None} for p in prompts
        ]


def _fail(kind):
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "diverged":
            raise Diverged("The loss is not finite.")
        case "bug":
            raise ZeroDivisionError("secret detail")
        case "exit":
            raise SystemExit(3)
        case "memory":
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory")
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "poison":
            raise RuntimeError("CUDA error: device-side assert triggered")


def open_desk(model, home):
    if model == "missing":
        raise ModelError("There is no model called missing.", "", "Pick another.")
    if model == "slow":
        time.sleep(1.0)
    return FakeDesk(model)


def dies(model, home):
    os._exit(9)
