"""A desk without a model, steered by the settings and prompts it is given. Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from editcore.errors import Cancelled, Diverged, ModelError, PatchError
from editcore.records import (
    Checkup,
    EditReport,
    EditRequest,
    Held,
    ModelInfo,
    PatchInfo,
    Probe,
    ProbeResult,
    Progress,
    Reading,
    Scores,
    Seconds,
)

_READING = Reading(None, None, (), "")


class FakeDesk:
    """Every edit takes `steps` steps of `pause` seconds; the edited model says what the edit on top wants."""

    def __init__(self, model: str) -> None:
        self.model, self.viewed, self.freed = model, 0, 0

    def info(self):
        return ModelInfo(self.model, "f" * 8, "fake", 1, 1, "cpu", "none", "float32", "none", False, 4)

    def memory(self):
        return 1234

    def free(self):
        self.freed += 1

    def lent(self):
        return contextlib.nullcontext()

    def ask(self, name, arguments):
        if name == "noise":
            print("a library says hello", flush=True)
            os.write(1, b'{"id": 1, "result": "forged"}\n')
        if name == "sleep":
            time.sleep(arguments["seconds"])
        time.sleep(arguments.get("sleep", 0.0))
        if name == "crash":
            raise ZeroDivisionError("secret detail")
        if name == "wrong":
            raise ModelError("This model has no layers.", "It needs some.", "Pick another.")
        if name == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "seen":
            return {"viewed": self.viewed, "freed": self.freed}
        if name == "look" and arguments["model"] == "refused":
            raise ModelError("This model has no tokenizer.", "One was wanted.", "Put it there.")
        if name == "pid":
            return os.getpid()
        return {"name": name, "arguments": arguments, "nan": math.nan}

    def edit(self, standing, requests, method, settings, report, stop, folder: Path):
        made = tuple(self._work(request, method, settings, report, stop) for request in requests)
        below = [json.loads((path / "patch.json").read_text())["says"] for path, _ in standing]
        (folder / "patch.json").write_text(json.dumps({"says": requests[0].target, "on": below}))
        return made

    def trial(self, standing, request):
        if request.target == "nowhere":
            raise ModelError("The model cannot read this.", "", "Ask something else.")
        return lambda method, settings, report, stop: self._work(request, method, settings, report, stop)

    def view(self, standing, report):
        self.viewed += 1
        results = (ProbeResult(Probe("edit", "Where?"), _READING, _READING, float(len(standing)), False),)
        return replace(report, probes=results)

    def measure(self, standing, folder: Path, requests, stop):
        """A patch that is not on the ground it was made for does not take any more."""
        told = json.loads((folder / "patch.json").read_text())
        below = [json.loads((path / "patch.json").read_text())["says"] for path, _ in standing]
        return tuple(replace(self._work(r, "rome", {}, lambda p: None, stop), took=told.get("on", below) == below)
                     for r in requests)  # fmt: skip

    def check_up(self, standing, reports, stop):
        held = tuple(Held(r.request.prompt, r.request.target, True, 0.9) for r in reports)
        return Checkup(held, 0, None, None, 10.0 + len(standing), 10.0, 5.0, 5.0)

    def adopt(self, standing, source: Path, request, folder, stop):
        told = json.loads((source / "patch.json").read_text())
        if told.get("bad"):
            raise PatchError("This patch holds a number that is not finite.", "", "Save it again.")
        (folder(1) / "patch.json").write_text(json.dumps(told))
        asked = request or EditRequest("Where?", told["says"])
        return [((self._work(asked, "rome", {}, lambda p: None, stop),), told.get("strength", 1.0))]

    def export(self, format, edits, options, folder: Path, report):
        folder.mkdir()
        (folder / "edits.json").write_text(json.dumps([[strength, len(reports)] for _, strength, reports in edits]))

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

    def probe(self, standing, prompts, form):
        edited = [json.loads((path / "patch.json").read_text())["says"] for path, strength in standing]
        answer = {"answer": edited[-1], "all": edited, "at": [s for _, s in standing]} if edited else None
        return [{"prompt": p, "base": {"answer": "old"}, "edited": answer} for p in prompts]


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
            raise type("OutOfMemoryError", (RuntimeError,), {})(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which "
                "1.25 GiB is free."
            )
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        case "poison":
            raise RuntimeError("CUDA error: device-side assert triggered")


def open_desk(opening, home, say):
    model = opening.model
    say("Loading 1.0 GB of 2.0 GB.")
    if model == "breaks":  # what `look` does not see
        raise ModelError("This model breaks.", "", "Pick another.")
    if model == "missing":
        raise ModelError("There is no model called missing.", "", "Pick another.")
    if model == "slow":
        time.sleep(1.0)
    return FakeDesk(model)


def dies(opening, home, say):
    os._exit(9)
