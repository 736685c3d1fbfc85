"""What has to be tried on a real GPU: `make test ARGS=tests/on_gpu.py`. They fail without one; no other test needs it.

A GPU runs the same code as a CPU. Here both compute the same edits, and what only a GPU does is tried: recorded steps,
memory that runs out, bfloat16 as the usual format.
"""

from __future__ import annotations

import copy
import dataclasses
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from editcore import moments, statistics, steps
from editcore.edit import run_edit, suggested
from editcore.errors import OutOfMemory
from editcore.forecast import enough, forecast
from editcore.handle import Handle
from editcore.methods import METHODS, Work, prepare_method
from editcore.opening import load, wrap
from editcore.records import EditRequest
from tests import models, shapes
from tests.bench import PROMPT, SUBJECT, TARGET
from tests.cases import ONE, TWO
from tests.test_methods import made, state
from tests.test_precision import EDITING, TOLERANCE, dials_of, losses

GPU = torch.device("cuda")
FAMILIES = ("gpt2", "llama", "gemma2", "gptj")
LEFT = 32 << 20  # bytes that another process leaves
CARRIED = ("contexts", "corpus", "own answers", "own piece", "editor")
RECORDED = ("rome", "emmet", "memit", "pmet", "alphaedit", "ft", "ft-l", "ft-replay", "lora", "grace", "wise")


@pytest.fixture(scope="session", autouse=True)
def gpu():
    assert torch.cuda.is_available(), "No CUDA device is usable here: these tests want one."


@lru_cache(maxsize=8)
def twice(family: str, kind: torch.dtype = torch.float32) -> tuple[Handle, Handle]:
    """The same model on the CPU, in fp32, and on the GPU."""
    plain = models.model.__wrapped__(family).to(kind)
    there = copy.deepcopy(plain).to(GPU)
    return (
        wrap(plain.float(), models.tokenizer(), family),
        wrap(there, models.tokenizer(), family, GPU, "of this test", kind, "of this test"),
    )


def carry(here: Handle, there: Handle) -> None:
    """What was sampled on one device is read on the other: their random numbers differ."""
    for key, value in here.memory.items():
        if isinstance(value, statistics.Moment):
            there.memory[key] = dataclasses.replace(value, factor=value.factor.to(GPU))
        elif isinstance(key, tuple) and key[0] in CARRIED:
            there.memory[key] = value


@pytest.mark.parametrize("name", EDITING)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_on_the_gpu_is_the_one_on_the_cpu(family, name):
    here, there = twice(family)
    wanted = made(name, here).edit(Work(here), [ONE])
    carry(here, there)
    before = state(there.model)
    found = made(name, there).edit(Work(there), [ONE])
    assert all(torch.equal(t, there.model.state_dict()[n]) for n, t in before.items())
    for one, other in zip(found.parts, wanted.parts, strict=True):
        for what, tensor in one.tensors.items():
            assert tensor.device.type == "cuda"
            if what not in ("read", "write"):  # their signs and lengths may change places
                assert torch.allclose(tensor.cpu().double(), other.tensors[what].double(), rtol=1e-3, atol=1e-4), what
        if "read" in one.tensors:
            assert (one.delta().cpu() - other.delta()).norm() < 1e-3 * other.delta().norm()


@pytest.mark.parametrize("name", EDITING)
def test_an_edit_in_bfloat16_on_the_gpu_is_the_one_in_fp32_within_the_tolerance(name):
    here, there = twice("llama", torch.bfloat16)
    bare = {"contexts": 0} if "contexts" in dials_of(name) else {}
    wanted = made(name, here, **bare).edit(Work(here), [ONE])
    carry(here, there)
    found = made(name, there, **bare).edit(Work(there), [ONE])
    with there.using([found]):
        (logits,) = there.logits([there.row(ONE.prompt, ONE.target)])
    answer = torch.tensor(there.row(ONE.prompt, ONE.target).answer)
    mine = float(torch.nn.functional.cross_entropy(logits.cpu(), answer))
    assert abs(mine - losses(here, [ONE], [wanted])[0]) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_steps_give_the_same_numbers_bit_for_bit(family, name, kind, monkeypatch):
    _, there = twice(family, kind)
    seen, real = [], steps._record
    monkeypatch.setattr(steps, "_record", lambda *args: seen.append(1) or real(*args))
    method = made(name, there, steps=7, **({"enough": 0.0} if name != "wise" else {}))
    played = method.edit(Work(there), [ONE])
    assert len(seen) == 2, "nothing was recorded"
    with monkeypatch.context() as patch:
        patch.setattr(steps, "recordable", lambda handle: False)
        plain = method.edit(Work(there), [ONE])
    again = method.edit(Work(there), [ONE])
    for one, other, third in zip(played.parts, plain.parts, again.parts, strict=True):
        assert all(torch.equal(t, other.tensors[n]) for n, t in one.tensors.items())
        assert all(torch.equal(t, third.tensors[n]) for n, t in one.tensors.items())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_edit_of_a_model_in_bfloat16_is_the_second_one_too(family):
    _, used = twice(family, torch.bfloat16)
    there = wrap(used.model, used.tokenizer, family, GPU, "of this test", torch.bfloat16, "of this test")
    method = made("rome", there, steps=7, enough=0.0)
    first, second = (method.edit(Work(there), [ONE]) for _ in range(2))
    method.edit(Work(there), [TWO])  # a recording of other lengths
    third = method.edit(Work(there), [ONE])
    for other in (second, third):
        assert all(torch.equal(t, other.parts[0].tensors[n]) for n, t in first.parts[0].tensors.items())
    assert True in [found for key, found in there.memory.items() if key[0] == "recordable"]


def test_a_step_that_cannot_be_recorded_is_run_as_it_is_written():
    _, there = twice("llama")

    def descended(wait: str) -> torch.Tensor:
        value = torch.ones(3, device=GPU, requires_grad=True)
        turns = []

        def look():
            if wait == "at once" or (wait == "looking" and turns):
                float(value.sum())
            loss = value.square().sum()
            return loss, loss

        def after():
            if wait == "moving" and turns:
                float(value.sum())

        there.memory.pop(("recordable", ""), None)
        descent = steps.Steps(there, look, steps.adam(there, [value], 0.1), after)
        for turn in range(5):
            descent.look().tolist()
            descent.move()
            turns.append(turn)
        return value.detach().clone()

    wanted = descended("")
    assert there.memory["recordable", ""] is True
    for wait in ("at once", "looking", "moving"):  # the first is met when a step is tried, the others spoil a recording
        assert torch.equal(descended(wait), wanted)
        assert there.memory["recordable", ""] is False
        torch.manual_seed(0)  # random numbers are drawn as before
        assert torch.rand(3, device=GPU).isfinite().all() and torch.randn(3, device=GPU).isfinite().all()
        assert torch.equal(descended(""), wanted) and there.memory["recordable", ""] is True


def test_a_question_between_two_recorded_steps_changes_nothing():
    _, there = twice("llama")
    row = there.row("Where is Rome?")
    answers = []

    def ask(progress) -> None:
        if progress.stage == "edit":
            with there.lent():
                answers.append(there.logits([row])[0])

    method = made("rome", there, steps=6, enough=0.0)
    wanted = method.edit(Work(there), [ONE])
    found = method.edit(Work(there, ask), [ONE])
    assert all(torch.equal(t, wanted.parts[0].tensors[n]) for n, t in found.parts[0].tensors.items())
    assert len(answers) == 6 and all(torch.equal(a, answers[0]) for a in answers)


def test_memory_that_another_takes_in_the_middle_ends_the_edit_and_nothing_else(tmp_path):
    handle = shapes.build("gpt2", tmp_path, GPU)
    request = EditRequest(PROMPT, TARGET, SUBJECT)
    method = prepare_method("rome", handle, {"covariance": False, "enough": 0.0, "contexts": 60})
    before, taken = state(handle.model), []

    def take(progress) -> None:
        if progress.stage == "edit" and progress.step == 1 and not taken:
            torch.cuda.empty_cache()
            left = torch.cuda.mem_get_info()[0] - LEFT
            taken.append(torch.empty(left, dtype=torch.uint8, device=GPU))

    forecast(handle, method, request, tmp_path)
    try:
        with pytest.raises(OutOfMemory, match="ran out.*needs about.*free now"), enough(handle, method, request):
            method.edit(Work(handle, take, home=tmp_path), [request])
        assert taken
    finally:
        taken.clear()
        torch.cuda.empty_cache()
    assert all(torch.equal(t, handle.model.state_dict()[n]) for n, t in before.items())
    method.edit(Work(handle, home=tmp_path), [request]).check_finite()
    assert not any(found is False for key, found in handle.memory.items() if key[0] == "recordable")


def test_memory_is_as_expected_and_comes_back(tmp_path):
    handle = shapes.build("gpt2-medium", tmp_path, GPU)
    request = EditRequest(PROMPT, TARGET, SUBJECT)
    method = prepare_method("rome", handle, {"covariance": False, "enough": 0.0})
    method.edit(Work(handle, home=tmp_path), [request])
    held = []
    for _ in range(4):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        method.edit(Work(handle, home=tmp_path), [request])
        peak = torch.cuda.max_memory_allocated() - before
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[1] == held[2] == held[3]
    expected = forecast(handle, method, request, tmp_path).memory
    assert peak / 1.5 < expected < peak * 1.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_edit_works_with_every_method(dtype, tmp_path):
    handle = load("world-2019", dtype=dtype)
    assert handle.device.type == "cuda"
    request, missed = suggested(handle, PROMPT, TARGET), {}
    for method in METHODS:
        _, report = run_edit(handle, request, method.name, home=tmp_path)
        if report.scores.reliability != 1.0:
            missed[method.name] = report.sentence
    assert set(missed) <= {"ice", "ike", "ft-l", "ultraedit"}


def test_statistics_of_the_same_rows_are_the_same():
    here, there = load("world-2019", device="cpu"), load("world-2019", dtype="float32")
    site = here.anatomy.site(1)
    rows = [
        list(here.row(fact).ids) for fact in ("Rome is in Italy.", "Who wrote Dune?", "Gold has the symbol Au.")
    ] * 4
    mine, count = moments.second_moments(there, [there.anatomy.site(1)], rows)
    wanted, same = moments.second_moments(here, [site], rows)
    assert count == same
    assert (mine[site.path].cpu() - wanted[site.path]).norm() < 1e-5 * wanted[site.path].norm()


def test_a_device_map_puts_all_of_a_model_that_fits_on_the_gpu(tmp_path: Path):
    models.model("llama").save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    handle = load(tmp_path, device_map="auto")
    assert handle.devices == ("cuda:0",) and handle.dtype == torch.bfloat16
    row = handle.row(ONE.prompt, ONE.target)
    assert torch.isfinite(handle.logits([row])[0]).all()
