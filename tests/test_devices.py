"""A model over several devices is edited as one on a single device: everything goes to where the matrix lies.

Two GPUs are pretended (`shards`): tensors that would not meet on real ones do not meet here.
"""

from __future__ import annotations

import accelerate
import pytest
import torch

from editcore import measure
from editcore.anatomy import _block_list
from editcore.edit import run_edit
from editcore.errors import ModelError
from editcore.methods import Work, find_method
from editcore.opening import wrap
from tests import models, shards
from tests.cases import ONE
from tests.shards import FIRST, SECOND, place, put
from tests.test_methods import NAMES, QUICK, TRAINED, made

LAYER = 2  # on the second device


@pytest.fixture(scope="module")
def halved():
    with shards.two_devices():
        model = models.model.__wrapped__("llama")
        shards.halved(model, _block_list(model, model.config.get_text_config())[1])
        handle = wrap(model, models.tokenizer(), "halved")
    # There is no clock of a device that is only pretended.
    handle.memory |= {"pace": (1e-3, 1e-2), "pace of writing": 1e-2}
    return handle


def test_tensors_of_two_devices_do_not_meet():
    with shards.two_devices():
        one, other = put(torch.ones(2, 2), FIRST), put(torch.ones(2, 2), SECOND)
        for act in (lambda: one + other, lambda: one @ other, lambda: torch.cat([one, other]), lambda: one[other > 0]):
            with pytest.raises(RuntimeError, match="same device.*cuda:0.*cuda:1"):
                act()
        with pytest.raises(TypeError, match="numpy"):
            one.numpy()
        assert place((one + other.to(one.device)).sum()) == FIRST == one.device
        assert torch.zeros(2, device=other.device).device == SECOND
        assert (one * torch.tensor(2.0)).device == FIRST and one[torch.tensor([0])].device == FIRST


def test_a_model_on_two_devices_reads_as_on_one(halved):
    plain = models.handle("llama")
    rows = [plain.row(ONE.prompt, ONE.target), plain.row("Spain", "yes")]
    assert halved.fingerprint == plain.fingerprint
    wanted, text = plain.logits(rows), plain.generate([rows[0].ids], 4)
    with shards.two_devices():
        assert halved.devices == (str(FIRST), str(SECOND)) and halved.device == FIRST
        assert halved.info().device == "cuda:0 and cuda:1"
        found, told = halved.logits(rows), halved.generate([rows[0].ids], 4)
    assert told == text and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def dials(name: str) -> dict[str, int]:
    fields = find_method(name).__dataclass_fields__
    at = {"layer": LAYER} if "layer" in fields else {"first": 1, "last": LAYER} if "first" in fields else {}
    return {**at, **({"steps": 3} if "steps" in fields else {})}


@pytest.mark.parametrize("name", NAMES)
def test_a_method_edits_a_model_on_two_devices_as_on_one(halved, name):
    plain, asked = models.handle("llama"), dials(name)
    wanted = made(name, plain, **asked).edit(Work(plain), [ONE])
    row = plain.row(ONE.prompt, ONE.target)
    with shards.two_devices():
        found = made(name, halved, **asked).edit(Work(halved), [ONE])
        found.check_finite()
        with halved.using([found]):
            (after,) = halved.logits([row])
            text = halved.generate([row.ids[: row.start]], 3)
    assert [part.path for part in found.parts] == [part.path for part in wanted.parts]
    for one, other in zip(found.parts, wanted.parts, strict=True):
        for what, tensor in one.tensors.items():
            assert tensor.shape == other.tensors[what].shape
            if name not in TRAINED:  # what learns is trained anew, on other random numbers
                assert torch.allclose(tensor.float(), other.tensors[what].float(), rtol=1e-3, atol=1e-5), what
    if name not in TRAINED:
        with plain.using([wanted]):
            assert torch.allclose(after, plain.logits([row])[0], atol=1e-4)
            assert text == plain.generate([row.ids[: row.start]], 3)


def test_a_patch_from_one_device_is_used_where_the_matrix_lies(halved):
    plain = models.handle("llama")
    patch = made("ft", plain, layer=LAYER, steps=3).edit(Work(plain), [ONE])
    with shards.two_devices():
        for part in patch.parts:
            put(part.tensors, FIRST)
        readings = measure.answer(halved, [ONE.prompt], [patch])
        info = patch.info(halved.model)
    assert readings[0].text == measure.answer(plain, [ONE.prompt], [patch])[0].text
    assert info.norm > 0


def test_a_report_is_made_over_two_devices(halved, tmp_path, monkeypatch):
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 0)
    with shards.two_devices():
        _, report = run_edit(halved, ONE, "rome", {**QUICK["rome"], "layer": LAYER, "steps": 3}, home=tmp_path)
    assert report.probes[0].after.new is not None


@pytest.mark.parametrize("offload", [accelerate.cpu_offload, accelerate.disk_offload])
def test_a_model_that_accelerate_offloads_is_refused_with_the_reason(offload, tmp_path):
    model = models.model.__wrapped__("llama")
    more = {"offload_dir": str(tmp_path)} if offload is accelerate.disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **more)
    with pytest.raises(ModelError, match="not in memory .*offloaded") as caught:
        wrap(model, models.tokenizer(), "offloaded")
    assert "silently change nothing" in caught.value.wanted


def test_a_model_that_accelerate_dispatched_is_edited_through_its_hooks():
    model = models.model.__wrapped__("llama")
    places = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")}
    accelerate.dispatch_model(
        model, {**places, **{f"model.layers.{i}": "cpu" for i in range(models.LAYERS)}}, force_hooks=True
    )
    assert hasattr(model.model.layers[0], "_hf_hook")
    handle, plain = wrap(model, models.tokenizer(), "dispatched"), models.handle("llama")
    patch = made("rome", handle).edit(Work(handle), [ONE])
    wanted = made("rome", plain).edit(Work(plain), [ONE])
    assert torch.allclose(patch.parts[0].write, wanted.parts[0].write, atol=1e-5)
    row, before = plain.row(ONE.prompt, ONE.target), plain.logits([plain.row(ONE.prompt, ONE.target)])[0]
    with handle.using([patch]):
        assert not torch.equal(handle.logits([row])[0], before)
    assert torch.equal(handle.logits([row])[0], before)
