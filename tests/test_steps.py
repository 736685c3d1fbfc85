"""A descent's steps, played from what was recorded or run as they are written: the same numbers either way.

There is no GPU here: what is recorded is played by running it again. `tests/on_gpu.py` tries real recordings.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from editcore import steps
from editcore.handle import Handle
from editcore.methods import Work
from editcore.steps import Steps, adam
from tests import models
from tests.cases import ONE
from tests.test_methods import made

TRY, LOOK, MOVE = "_try", "_look", "_move"


class Recorder:
    """Stands in for a GPU; recording fails with `error` where the name of a job is among `fails`."""

    def __init__(self, monkeypatch, fails=(), error: Exception | None = None) -> None:
        self.fails, self.error, self.recorded, self.played = fails, error, [], 0
        monkeypatch.setattr(steps, "recordable", lambda handle: steps.WRITTEN not in handle.memory)
        monkeypatch.setattr(steps, "_stream", lambda handle: None)
        monkeypatch.setattr(steps, "_let_go", lambda handle: self.recorded.clear())
        monkeypatch.setattr(steps, "_record", self.record)
        monkeypatch.setattr(steps, "_unwaiting", self.unwaiting)

    @contextmanager
    def unwaiting(self):
        yield
        if TRY in self.fails:
            raise self.error

    def record(self, handle, job):
        if job.__name__ in self.fails:
            if job.__name__ == MOVE:
                job.__self__._loss = None  # what was recorded of the gradient is gone
            raise self.error
        self.recorded.append(job.__name__)
        return Recording(self, job)


class Recording:
    def __init__(self, recorder: Recorder, job) -> None:
        self.recorder, self.job = recorder, job

    def replay(self) -> None:
        self.recorder.played += 1
        self.job()


@pytest.fixture
def handle():
    handle: Handle = models.handle("llama")
    known = dict(handle.memory)
    yield handle
    for key in [k for k in handle.memory if k not in known]:
        del handle.memory[key]


def descended(handle: Handle, turns: int = 5, way: str = "direct") -> tuple[torch.Tensor, list[float]]:
    """Where a descent ends, and the loss it saw at each step."""
    value, told = torch.tensor([3.0, -2.0], requires_grad=True), []

    def look():
        loss = (value**2).sum()
        return loss, loss

    descent = Steps(handle, look, adam(handle, [value], 0.1), lambda: value.clamp_(-2.5, 2.5), way)
    for _ in range(turns):
        told.append(float(descent.look()))
        descent.move()
    return value.detach(), told


def test_the_second_step_is_recorded_and_all_others_are_played(handle, monkeypatch):
    wanted, told = descended(handle)
    recorder = Recorder(monkeypatch)
    found, heard = descended(handle)
    assert recorder.recorded == [LOOK, MOVE] and recorder.played == 2 * 4
    descended(handle)  # what is made once was made: the first step is recorded
    assert recorder.recorded == [LOOK, MOVE] * 2 and recorder.played == 2 * 4 + 2 * 5
    assert torch.equal(found, wanted) and heard == told and told[1] < told[0]


def test_a_descent_of_a_single_step_records_nothing(handle, monkeypatch):
    recorder = Recorder(monkeypatch)
    descended(handle, turns=1)
    assert not recorder.recorded


@pytest.mark.parametrize("job", [TRY, LOOK, MOVE])
def test_what_cannot_be_recorded_is_run_and_not_tried_again(handle, monkeypatch, job):
    wanted, told = descended(handle)
    recorder = Recorder(monkeypatch, [job], RuntimeError("operation not permitted when stream is capturing"))
    found, heard = descended(handle)
    assert torch.equal(found, wanted) and heard == told
    assert handle.memory["recordable", "direct"] is False and not recorder.recorded
    descended(handle)
    assert not recorder.recorded
    recorder.fails = ()
    descended(handle, way="whole")  # of which nothing is known yet
    assert recorder.recorded == [LOOK, MOVE]


@pytest.mark.parametrize("job", [TRY, LOOK, MOVE])
def test_memory_that_is_short_while_recording_says_nothing_about_the_model(handle, monkeypatch, job):
    wanted, _ = descended(handle)
    recorder = Recorder(monkeypatch, [job], torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert torch.equal(descended(handle)[0], wanted)
    recorder.fails = ()
    recorder.recorded.clear()
    descended(handle)
    assert recorder.recorded == [LOOK, MOVE]


@pytest.mark.parametrize("name", ["rome", "memit", "ft-l", "ft-replay", "lora", "grace", "wise"])
def test_a_method_may_record_its_steps(handle, monkeypatch, name):
    """Each step does the same work on the same tensors: it could not be played otherwise."""
    method = made(name, handle, steps=5)
    wanted = method.edit(Work(handle), [ONE])
    recorder = Recorder(monkeypatch)
    found = method.edit(Work(handle), [ONE])
    assert recorder.recorded == [LOOK, MOVE]
    for one, other in zip(found.parts, wanted.parts, strict=True):
        assert all(torch.equal(t, other.tensors[n]) for n, t in one.tensors.items())


def test_a_way_that_was_recorded_says_nothing_about_another(handle, monkeypatch):
    recorder = Recorder(monkeypatch)
    descended(handle)
    recorder.fails, recorder.error = [TRY], RuntimeError("called a synchronizing CUDA operation")
    descended(handle, way="whole")  # is tried before it is recorded
    assert recorder.recorded == [LOOK, MOVE] and handle.memory["recordable", "whole"] is False


def test_what_is_to_run_as_written_is_not_recorded(handle, monkeypatch):
    recorder = Recorder(monkeypatch)
    with steps.as_written(handle):
        descended(handle)
    assert not recorder.recorded
    descended(handle)
    assert recorder.recorded == [LOOK, MOVE]


def test_nothing_is_recorded_without_a_gpu(handle):
    assert not steps.on_one_gpu(handle) and not steps.recordable(handle)
