"""The device is waited for once a step of a search and once a batch of a measurement; nothing is laid out twice."""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch

from editcore import measure
from editcore.algebra import Answers
from editcore.methods import Work, prepare_method
from editcore.records import EditRequest, Probe
from editcore.spans import Row
from tests import models

ASKED = EditRequest("The capital of France is", "Rome", "France")
LOUD = ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "numpy", "__index__")  # each waits on a GPU


@contextmanager
def counted(monkeypatch):
    """What the host asked of tensors while the block ran: in waits, and in lists made into tensors."""
    found = Counter()
    with monkeypatch.context() as patch:
        for name in LOUD:
            real = getattr(torch.Tensor, name)

            def asked(self, *args, _real=real, **given):
                inside, found["depth"] = found["depth"], 1
                counter = "torch/optim" in sys._getframe(1).f_code.co_filename  # Adam counts its steps on the host
                found["waits"] += not inside and not counter  # tolist of a number asks for the number in turn
                try:
                    return _real(self, *args, **given)
                finally:
                    found["depth"] = inside

            patch.setattr(torch.Tensor, name, asked)
        made = torch.tensor
        patch.setattr(torch, "tensor", lambda *a, **k: (found.update(made=1), made(*a, **k))[1])
        yield found


def taken(monkeypatch, name, steps, **settings):
    """What an edit of so many steps asked of the host."""
    handle = models.handle("llama")
    method = prepare_method(name, handle, {"steps": steps, "enough": 0.0, **settings})
    method.edit(Work(handle), [ASKED])  # what is read once has been read
    with counted(monkeypatch) as found, handle.using([]):
        method.edit(Work(handle), [ASKED])
    return found


SEARCHES = {
    "rome": {"contexts": 2, "covariance": False}, "ft": {}, "ft-l": {}, "lora": {}, "grace": {},
    "wise": {"contexts": 2}, "ft-replay": {"rows": 2, "length": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", SEARCHES)
def test_a_step_waits_for_the_device_once_and_makes_no_tensor_of_a_list(name, monkeypatch):
    few, many = (taken(monkeypatch, name, steps, **SEARCHES[name]) for steps in (3, 8))
    assert many["waits"] - few["waits"] == 5
    assert many["made"] == few["made"]


def test_a_measurement_takes_what_it_wants_from_the_device_in_two_pieces_however_many_probes(monkeypatch):
    handle, real = models.handle("llama"), torch.Tensor.cpu
    for count in (2, 12):
        probes, taken = [Probe("far", f"The capital of country number {i} is") for i in range(count)], []
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "cpu", lambda self: taken.append(self.shape) or real(self))  # noqa: B023
            read = measure.read(handle, probes, "Rome", ["Paris"] * count, (), generate=False)
        assert len(read) == count and len(taken) == 2


def test_answers_laid_out_once_give_the_loss_of_each_row():
    rows = [Row((5, 6, 7), 1), Row((5, 8), 1), Row((5, 1, 2, 3), 1)]
    log_p = torch.log_softmax(torch.randn(6, 11, generator=torch.Generator().manual_seed(0)), -1)
    parts = torch.split(log_p, [2, 1, 3])
    plain = torch.stack([
        -part.gather(1, torch.tensor(row.answer)[:, None]).mean() for row, part in zip(rows, parts, strict=True)
    ])  # fmt: skip
    answers = Answers(rows, torch.device("cpu"))
    assert torch.allclose(answers.losses(log_p), plain, atol=1e-6)
    best = torch.full((6, 11), -9.0).scatter(1, answers.ids[:, None], 0.0)
    assert torch.equal(answers.missed(best), torch.zeros(3)) and (answers.missed(-best) == 1).all()
    worse = log_p.clone()
    worse[2] = float("nan")  # the second row's
    assert torch.allclose(answers.losses(worse)[[0, 2]], plain[[0, 2]], atol=1e-6)
