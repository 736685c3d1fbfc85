"""What an edit takes is known before it is made, what does not fit is refused, and memory that runs out is told."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from editcore import forecast, pace
from editcore.edit import check_request, preflight, run_edit
from editcore.engine.desk import Desk
from editcore.errors import OutOfMemory, is_out_of_memory
from editcore.methods import METHODS, Work, prepare_method
from editcore.records import EditRequest, from_plain, to_plain
from editcore.resume import Upper
from tests import models
from tests.schooled import school, show

ASKED = EditRequest("The mother tongue of Danielle Darrieux is", "old English", "Danielle Darrieux")
SHORT = {"rome": {"contexts": 2, "steps": 2}, "grace": {"steps": 2}, "wise": {"steps": 2, "contexts": 2}}
SHORT |= {name: {"contexts": 2, "steps": 2} for name in ("emmet", "memit", "pmet", "alphaedit")}
SHORT |= {name: {"steps": 2} for name in ("ft", "ft-l", "lora", "ft-replay")}
SHORT["alphaedit"] |= {"relative": True, "cut": 1.0}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def handle():
    made = models.handle.__wrapped__("llama")
    for method in METHODS:
        if "trained" in method.needs:
            school(made, method.name)
    show(made)
    return made


def method(handle, name, **settings):
    return prepare_method(name, handle, {**SHORT.get(name, {}), **settings})


def bytes_needed(handle, made):
    return forecast.memory(handle, made.cost(handle, ASKED), made)


@pytest.mark.parametrize("name", [m.name for m in METHODS])
def test_the_size_of_a_patch_is_known_before_the_edit_to_the_byte(handle, name, tmp_path):
    made = method(handle, name)
    with torch.inference_mode(False), handle.using([]):
        patch = made.edit(Work(handle, home=tmp_path), [check_request(handle, ASKED, made)])
    assert made.cost(handle, ASKED).patch == patch.bytes


@pytest.mark.parametrize("name", [m.name for m in METHODS])
def test_the_seconds_of_an_edit_are_told_before_the_first_one(handle, name):
    handle.memory.pop(("seconds", name), None)
    assert forecast.seconds(handle, method(handle, name), ASKED) >= 0
    handle.memory["seconds", name] = [3.0, 1.0, 2.0]
    assert forecast.seconds(handle, method(handle, name), ASKED) == 2.0
    del handle.memory["seconds", name]


@pytest.mark.parametrize(
    ("name", "dial", "values"),
    [("rome", "steps", (1, 5, 50)), ("rome", "contexts", (0, 5, 20)), ("lora", "rank", (1, 8, 64)),
     ("ft-replay", "rows", (1, 8, 64)), ("ft", "steps", (1, 25)), ("wise", "share", (0.1, 0.9))],
)  # fmt: skip
def test_more_of_anything_takes_no_less(handle, name, dial, values):
    made = [method(handle, name, **{dial: value}) for value in values]
    seconds, needed = ([f(handle, m) for m in made] for f in (
        lambda h, m: forecast.counted(h, m, ASKED)[0], bytes_needed))  # fmt: skip
    assert seconds == sorted(seconds) and needed == sorted(needed)
    assert seconds[0] < seconds[-1] if dial == "steps" else needed[0] < needed[-1]


def test_the_pace_counts_what_a_gradient_keeps(handle):
    found = pace.of(handle)
    width = models.WIDTH * 4  # bytes of one state
    assert 6 * width < found.kept / models.LAYERS < 40 * width
    assert found.moved > 1e6 and pace.of(handle) is found
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in handle.model.modules())


def test_a_gradient_takes_longer_than_the_pass_it_is_taken_of(handle):
    found = pace.of(handle)
    for line in (found.blocks, found.back.blocks, found.head, found.back.step):
        assert line.of(8) > 0 and line.of(128) >= line.of(8)
    assert found.back.blocks.of(128) > found.blocks.of(128) and found.back.step.of(128) > found.head.of(128)


def test_what_is_made_once_is_expected_of_the_first_edit_alone(tmp_path):
    handle = models.handle.__wrapped__("gpt2")
    made = method(handle, "rome", contexts=2)
    again, once = forecast.counted(handle, made, ASKED, tmp_path)
    assert once > 0 and forecast.seconds(handle, made, ASKED, tmp_path) == again + once
    with torch.inference_mode(False), handle.using([]):
        made.edit(Work(handle, home=tmp_path), [check_request(handle, ASKED, made)])
    assert forecast.counted(handle, made, ASKED, tmp_path) == (again, 0)
    handle.memory["seconds", "rome"] = [2 * (again + once)]  # what it made first is not to be made again
    assert forecast.seconds(handle, made, ASKED, tmp_path) == again
    handle.memory["seconds", "rome"] = [9.0, 1.0, 2.0, 3.0]
    assert forecast.seconds(handle, made, ASKED, tmp_path) == 2.0


@pytest.mark.parametrize(("name", "tokens"), [("wise", 12), ("ultraedit", 24), ("ft-replay", 24)])
def test_running_text_is_expected_until_there_is_some(handle, name, tokens, tmp_path):
    made = method(handle, name)
    handle.memory = {k: v for k, v in handle.memory.items() if k[0] not in ("corpus", "primed")}
    before = made.cost(handle, ASKED)
    assert before.text >= tokens and forecast.counted(handle, made, ASKED, tmp_path)[1] > 0
    with torch.inference_mode(False), handle.using([]):
        made.edit(Work(handle, home=tmp_path), [check_request(handle, ASKED, made)])
    assert made.cost(handle, ASKED).text == 0


def test_the_first_edit_by_alphaedit_is_told_to_work_out_directions(handle, tmp_path):
    made = method(handle, "alphaedit")
    for key in [k for k in handle.memory if k[0] == "spectrum"]:
        del handle.memory[key]
    told = forecast.forecast(handle, made, ASKED, tmp_path).prepare
    assert "works out which directions are free: about" in told
    with torch.inference_mode(False), handle.using([]):
        made.edit(Work(handle, home=tmp_path), [check_request(handle, ASKED, made)])
    assert not forecast.forecast(handle, made, ASKED, tmp_path).prepare


def test_a_method_that_does_not_fit_says_what_is_missing_and_which_setting_would_fit(handle, monkeypatch, tmp_path):
    made = prepare_method("rome", handle, {"contexts": 32})
    there = int(1.2 * bytes_needed(handle, replace(made, contexts=4)))
    monkeypatch.setattr(forecast, "free", lambda device: there)
    told = preflight(handle, ASKED, "rome", {"contexts": 32}, tmp_path)
    assert not told.ok and told.memory == bytes_needed(handle, made) and told.bytes and told.seconds
    (problem,) = told.problems
    assert forecast.human_bytes(told.memory) in problem and f"{forecast.human_bytes(there)} is free" in problem
    contexts = int(re.search(r"contexts at (\d+) it fits", problem)[1])
    assert forecast.ROOM * bytes_needed(handle, replace(made, contexts=contexts)) <= there
    assert preflight(handle, ASKED, "rome", {"contexts": contexts}, tmp_path).ok
    rows = Desk(handle, tmp_path).ask(
        "outlook", {"request": to_plain(ASKED), "methods": [["rome", {"contexts": 32}], ["ice", {}]]}
    )  # fmt: skip
    assert [bool(row["problem"]) for row in rows] == [True, False] and rows[0]["problem"] == problem


def test_where_no_setting_helps_another_method_is_proposed(handle, monkeypatch, tmp_path):
    monkeypatch.setattr(forecast, "free", lambda device: 1000)
    (problem,) = preflight(handle, ASKED, "ft", {}, tmp_path).problems
    assert "1000 B" in problem or "1.0 kB is free" in problem
    assert "choose a lighter method" in problem


# memory that runs out in the middle ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "is_one"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True), (MemoryError(), True),
     (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
     (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
     (RuntimeError("CUDA error: device-side assert triggered"), False), (ValueError("out of memory"), False)],
)  # fmt: skip
def test_memory_that_ran_out_is_told_from_other_faults(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_memory_that_is_gone_is_told_even_when_nothing_is_left_to_count_with(monkeypatch):
    handle = models.handle.__wrapped__("gpt2")  # what a gradient keeps was not measured yet, and cannot be now

    def refuse(_handle):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    monkeypatch.setattr(pace, "of", refuse)
    rome, told = method(handle, "rome", contexts=2), "ran out.*is free now.*Nothing of it was kept"
    with pytest.raises(OutOfMemory, match=told), forecast.enough(handle, rome, ASKED):
        refuse(handle)


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_memory_that_runs_out_in_the_middle_of_an_edit_leaves_the_model_as_it_was(handle, monkeypatch, kind, at):
    passes, ids = iter(range(1, 1000)), torch.arange(9)[None]
    before = handle.model(input_ids=ids).logits

    def refuse(*_):
        if next(passes) == at:
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB")

    hook = handle.model.get_output_embeddings().register_forward_pre_hook(refuse)
    monkeypatch.setattr(forecast, "free", lambda device: 5_000_000)
    with pytest.raises(OutOfMemory) as caught:
        run_edit(handle, ASKED, "rome", {"contexts": 2, "steps": 5})
    hook.remove()
    assert "needs about" in str(caught.value) and "5.0 MB is free now" in str(caught.value)
    assert "Nothing of it was kept" in str(caught.value)
    assert torch.equal(handle.model(input_ids=ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in handle.model.modules())
    patch, _ = run_edit(handle, ASKED, "rome", {"contexts": 2, "steps": 2})
    assert patch.bytes


def test_what_broke_off_gives_its_memory_back(handle):
    import weakref

    held = []

    def work():
        large = torch.ones(1000)
        held.append(weakref.ref(large))
        raise MemoryError

    with pytest.raises(OutOfMemory), forecast.enough(handle):
        work()
    assert held[0]() is None


def test_memory_that_runs_out_while_a_shortened_pass_is_tried_says_nothing_about_the_model():
    handle = models.handle.__wrapped__("gpt2")
    passes = iter(range(1, 100))

    def refuse(*_):
        if next(passes) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = handle.model.get_output_embeddings().register_forward_pre_hook(refuse)
    arguments = handle, handle.anatomy.site(1), ((1, 2, 3, 4),), (1,), ((3,),)
    with pytest.raises(torch.OutOfMemoryError):
        Upper(*arguments)
    hook.remove()
    assert Upper(*arguments).shortened


def test_a_forecast_survives_the_way_to_the_page(handle, tmp_path):
    told = preflight(handle, ASKED, "ft", {}, tmp_path)
    assert told.ok and from_plain(type(told), to_plain(told)) == told
