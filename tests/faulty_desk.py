"""The real desk over a real model, whose edits go wrong where a test planned it; what it made is kept as a value."""

from __future__ import annotations

import errno
import hashlib
import itertools
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from sqlalchemy.exc import OperationalError

from editcore import edit as editing
from editcore.engine.desk import Desk
from editcore.errors import Diverged
from editcore.methods import prepared
from editcore.patch import Patch
from editcore.records import EditRequest, Progress
from editcore.store import blobs
from editcore.store import store as stored
from tests.cases import ONE, TWO

STEPS = 2  # events of an edit that is only replayed; a real one has at least as many
ENDS = {  # how a job ends that this happens to
    "": "done",
    "raise": "failed",  # its listener raises at an event
    "cancel": "cancelled",  # it is stopped at an event
    "pass": "failed",  # the model raises in a pass, whatever is attached to it then
    "nan": "failed",  # a number is not finite
    "last": "cancelled",  # it is stopped when its patch has been written
    "blob": "failed",  # no space is left for the patch
    "row": "failed",  # none is left for the row, when the patch has its place
    "late": "done",  # it is stopped when it has been committed
    "check-up": "done",  # the reading after the commit breaks
}
ASKED = (ONE, TWO, EditRequest("Who wrote Dune?", "Jane Austen"))


@dataclass(frozen=True)
class Fault:
    """What happens to a job: a key of `ENDS`, and at which of its events or passes."""

    kind: str = ""
    step: int = 1


class Script:
    """What is to happen to each job, and what the edits were. Outlives the desk; safe to share between threads."""

    def __init__(self, cancel: Callable[[str], None]) -> None:
        self.cancel = cancel
        self.made: dict[str, Patch] = {}  # by edit, as its method returned it
        self.kept: dict[Any, Patch] = {}  # by method and requests, to be replayed
        self.replaying = False  # edits that were made once are not computed again
        self.fault, self.edit, self.armed = Fault(), "", ""  # of the edit being made; what the disk will refuse
        self._changed, self._planned = threading.Condition(), dict[str, Fault]()

    def plan(self, job: str, fault: Fault) -> None:
        """Say what happens to a job; it waits until this is said."""
        with self._changed:
            self._planned[job] = fault
            self._changed.notify_all()

    def planned(self, job: str) -> Fault:
        """What happens to a job."""
        with self._changed:
            assert self._changed.wait_for(lambda: job in self._planned, 60), "nobody said what happens"
            return self._planned[job]

    def knows(self, name: str, prompts: tuple[str, ...]) -> bool:
        """True when this edit is to be replayed."""
        return self.replaying and (name, prompts) in self.kept

    def prepare(self, name: str, handle: Any, values: Any = None) -> tuple[Any, str]:
        """`methods.prepared`, the method's `edit` watched, replayed or spoilt."""
        method, chosen_by = prepared(name, handle, values)
        real = method.edit

        def edit(work: Any, requests: Any) -> Patch:
            key = name, tuple(r.prompt for r in requests)
            patch = _replayed(work, self.kept[key]) if self.knows(*key) else real(work, requests)
            if self.fault.kind == "nan":
                return _spoilt(patch)
            self.kept.setdefault(key, patch)
            self.made[self.edit] = patch
            return patch

        object.__setattr__(method, "edit", edit)
        return method, chosen_by

    def refuse(self, monkeypatch: Any) -> None:
        """Put the watched methods and the disk that can refuse in place."""
        flush, act = blobs.flush, stored._act

        def full_for_blobs(path: Any) -> None:
            if self._strikes("blob"):
                raise OSError(errno.ENOSPC, "No space left on device")
            flush(path)

        def full_for_rows(*arguments: Any) -> None:
            if self._strikes("row"):
                raise OperationalError("INSERT", None, sqlite3.OperationalError("database or disk is full"))
            act(*arguments)

        monkeypatch.setattr(editing, "prepared", self.prepare)
        monkeypatch.setattr(blobs, "flush", full_for_blobs)
        monkeypatch.setattr(stored, "_act", full_for_rows)

    def _strikes(self, kind: str) -> bool:
        struck, self.armed = self.armed == kind, "" if self.armed == kind else self.armed
        return struck


def _replayed(work: Any, patch: Patch) -> Patch:
    for step in range(1, STEPS + 1):
        work.check()
        work.report(Progress("edit", step, STEPS, loss=1.0))
    work.check()
    return patch


def _spoilt(patch: Patch) -> Patch:
    """With one number that is not finite in every tensor; a text has none."""
    numbers = [t for part in patch.parts for t in part.tensors.values() if t.is_floating_point() and t.numel()]
    if not numbers:
        raise Diverged("The edit diverged.")
    parts = []
    for part in patch.parts:
        wrong = {n: t.clone() for n, t in part.tensors.items() if t.is_floating_point() and t.numel()}
        for tensor in wrong.values():
            tensor.view(-1)[0] = float("nan")
        parts.append(replace(part, **wrong))
    return replace(patch, parts=tuple(parts))


class FaultyDesk(Desk):
    """The desk. Asked for probes, it tells what the logits are, to the bit."""

    def __init__(self, handle: Any, home: Any, script: Script) -> None:
        super().__init__(handle, home)
        self.script = script

    def edit(self, standing, requests, method, settings, report, stop, folder):
        """See `Desk.edit`; what was planned for the job happens."""
        job, heard = folder.name.partition("-")[0], itertools.count(1)
        fault = self.script.fault = self.script.planned(job)
        self.script.edit = folder.name

        def listen(progress):
            report(progress)
            if fault.kind in ("raise", "cancel") and next(heard) == fault.step:
                self._strike(fault, job)

        quick = self.script.knows(method, tuple(r.prompt for r in requests))
        with self._breaking(fault), self._silent() if quick else nullcontext():
            made = super().edit(standing, requests, method, settings, listen, stop, folder)
        if fault.kind == "last":
            self.script.cancel(job)
        self.script.armed = fault.kind
        return made

    def _strike(self, fault: Fault, job: str) -> None:
        if fault.kind == "raise":
            raise ZeroDivisionError("planned")
        self.script.cancel(job)

    @contextmanager
    def _breaking(self, fault: Fault) -> Iterator[None]:
        """While the block runs, the model breaks in its pass of that number, behind the blocks: edits are attached."""
        passes = itertools.count(1)

        def count(*_: Any) -> None:
            if fault.kind == "pass" and next(passes) == fault.step:
                raise ZeroDivisionError("planned")

        hook = self.handle.model.get_output_embeddings().register_forward_pre_hook(count)
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """While the block runs, the model writes nothing: it is only scored, which takes half the time."""
        self.handle.generate = lambda prompts, *_: ["" for _ in prompts]
        try:
            yield
        finally:
            del self.handle.generate

    def check_up(self, standing, reports, stop):
        """See `Desk.check_up`; late faults happen here."""
        if self.script.fault.kind == "late":
            self.script.cancel(self.script.edit.partition("-")[0])
        if self.script.fault.kind == "check-up":
            raise ZeroDivisionError("planned")
        return super().check_up(standing, reports, stop)

    def probe(self, standing, prompts, form):
        """What each prompt's logits are without and with what is standing."""
        edited = logits(self.handle, self._patches(standing)) if standing else None
        return [{"prompt": prompts[0], "base": logits(self.handle, ()), "edited": edited}]


def logits(handle: Any, patches: Any) -> str:
    """A print of the logits at every asked answer, to the bit."""
    with handle.using(patches):
        found = handle.logits([handle.row(r.prompt, r.target) for r in ASKED])
    return hashlib.sha256(torch.cat(found).numpy().tobytes()).hexdigest()
