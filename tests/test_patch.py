"""An edit is a value: it attaches, scales, stacks and comes off without a trace; on disk it is whole or refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from editcore.errors import Diverged, PatchError, WrongModel
from editcore.patch import Dense, LowRank, Patch, attached, load_patch
from tests import models

IDS = torch.randint(1, models.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
FAMILIES = ("gpt2", "opt", "llama", "gemma2")  # Conv1D with bias, Linear with bias on flat rows, Linear, norm behind
KINDS = ("low_rank", "dense", "dense_bias")


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def part(site, kind: str, seed: int = 0):
    made = torch.Generator().manual_seed(seed)
    if kind == "low_rank":
        return LowRank(
            site.path, 0.1 * torch.randn(3, site.d_in, generator=made), torch.randn(3, site.d_out, generator=made)
        )
    bias = torch.randn(site.d_out, generator=made) if kind == "dense_bias" else None
    return Dense(site.path, 0.1 * torch.randn(site.d_out, site.d_in, generator=made), bias)


def patch(handle, kind: str = "low_rank", layer: int = 1, seed: int = 0) -> Patch:
    made = part(handle.anatomy.site(layer), kind, seed)
    return Patch((made,), handle.name, handle.fingerprint, "test", {"steps": 3}, ({"prompt": "Łódź"},))


def merged(name: str, patches):
    """Logits of a copy whose weights hold the patches, all in fp64."""
    twin = models.model.__wrapped__(name).double()
    for p in patches:
        for piece in p.parts:
            module = twin.get_submodule(piece.path)
            delta = p.strength * piece.delta().double()
            module.weight.add_(delta.T if isinstance(module, Conv1D) else delta)
            if getattr(piece, "bias", None) is not None:
                bias = torch.zeros(models.WIDTH) if module.bias is None else module.bias
                module.bias = torch.nn.Parameter(bias.double() + p.strength * piece.bias.double(), requires_grad=False)
    return logits(twin)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_hook_equals_merged_weights(name, kind):
    handle = models.handle(name)
    base, edit = logits(handle.model), patch(handle, kind)
    with attached(handle.model, [edit]):
        hooked = logits(handle.model)
    wanted = merged(name, [edit])
    assert (wanted - base).abs().max() > 0.05
    assert (hooked - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_detaching_gives_bit_identical_logits(name, kind):
    handle = models.handle(name)
    base = logits(handle.model)
    with pytest.raises(KeyError), attached(handle.model, [patch(handle, kind)]):
        assert not torch.equal(logits(handle.model), base)
        raise KeyError
    assert torch.equal(logits(handle.model), base)


def test_a_stack_pushed_and_popped_is_bit_identical_at_every_height():
    handle = models.handle("gpt2")
    stack = [patch(handle, KINDS[i % 3], i % models.LAYERS, i) for i in range(8)]
    up = []
    for height in range(len(stack) + 1):
        with attached(handle.model, stack[:height]):
            up.append(logits(handle.model))
    assert (up[-1] - merged("gpt2", stack)).abs().max() < 1e-3
    for height in reversed(range(len(stack) + 1)):
        with attached(handle.model, stack[:height]):
            assert torch.equal(logits(handle.model), up[height])


def test_patches_nest():
    handle = models.handle("llama")
    one, two = patch(handle, layer=0), patch(handle, layer=2, seed=1)
    with attached(handle.model, [one, two]):
        together = logits(handle.model)
    with attached(handle.model, [one]):
        alone = logits(handle.model)
        with attached(handle.model, [two]):
            assert torch.equal(logits(handle.model), together)
        assert torch.equal(logits(handle.model), alone)


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0, 2.0])
def test_strength_scales_the_change(strength):
    handle = models.handle("gpt2")
    edit = patch(handle, "dense_bias").scaled(strength)
    with attached(handle.model, [edit]):
        found = logits(handle.model)
    assert (found - merged("gpt2", [edit])).abs().max() < 1e-4
    assert edit.info(handle.model).norm == pytest.approx(abs(strength) * patch(handle, "dense_bias").parts[0].norm())


def test_strength_zero_is_the_base_bit_by_bit():
    handle = models.handle("gpt2")
    base = logits(handle.model)
    with attached(handle.model, [patch(handle).scaled(0.0)]):
        assert torch.equal(logits(handle.model), base)


def test_norm_rank_and_bytes():
    handle = models.handle("gpt2")
    site = handle.anatomy.site(1)
    edit = patch(handle)
    low = edit.parts[0]
    assert low.norm() == pytest.approx(float(low.delta().norm()), rel=1e-5)
    info = edit.info(handle.model)
    assert (info.rank, info.modules, info.bytes) == (3, (site.path,), 4 * 3 * (site.d_in + site.d_out))
    assert info.relative_norm == pytest.approx(float(low.delta().norm() / site.weight().norm()), rel=1e-5)
    assert patch(handle, "dense").info(handle.model).rank is None
    twice = replace(edit, parts=(low, low)).info(handle.model)
    assert twice.modules == info.modules  # a module with two parts is one module
    assert twice.relative_norm == pytest.approx(2**0.5 * info.relative_norm)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_give_an_equal_patch(tmp_path, kind):
    handle = models.handle("gpt2")
    edit = patch(handle, kind).scaled(0.7)
    edit.save(tmp_path / "edit")
    found = load_patch(tmp_path / "edit", handle.fingerprint, handle.device)
    for mine, theirs in zip(edit.parts, found.parts, strict=True):
        assert type(mine) is type(theirs) and mine.path == theirs.path and set(mine.tensors) == set(theirs.tensors)
        assert all(torch.equal(t, theirs.tensors[n]) for n, t in mine.tensors.items())
    for name in ("model", "fingerprint", "method", "settings", "requests", "strength"):
        assert getattr(edit, name) == getattr(found, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["edit"]


def test_another_model_is_refused_with_both_fingerprints_named(tmp_path):
    handle, other = models.handle("gpt2"), models.handle("llama")
    patch(handle).save(tmp_path / "edit")
    with pytest.raises(WrongModel) as caught:
        load_patch(tmp_path / "edit", other.fingerprint)
    assert handle.fingerprint in str(caught.value) and other.fingerprint in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    patch(models.handle("gpt2")).save(tmp_path / "edit")
    return tmp_path / "edit"


def head(folder, change):
    data = json.loads((folder / "patch.json").read_text())
    change(data)
    (folder / "patch.json").write_text(json.dumps(data))


DAMAGE = {
    "no json": lambda f: (f / "patch.json").unlink(),
    "no tensors": lambda f: (f / "patch.safetensors").unlink(),
    "half the tensors": lambda f: (f / "patch.safetensors").write_bytes((f / "patch.safetensors").read_bytes()[:-40]),
    "not json": lambda f: (f / "patch.json").write_text("{"),
    "not utf-8": lambda f: (f / "patch.json").write_bytes(b"\xff\xfe{}"),
    "a list": lambda f: (f / "patch.json").write_text("[]"),
    "a text": lambda f: (f / "patch.json").write_text('"patch"'),
    "null": lambda f: (f / "patch.json").write_text("null"),
    "another format": lambda f: head(f, lambda d: d.update(format=99)),
    "unknown field": lambda f: head(f, lambda d: d.update(colour="red")),
    "no fingerprint": lambda f: head(f, lambda d: d.pop("fingerprint")),
    "unknown kind": lambda f: head(f, lambda d: d["parts"][0].update(kind="magic")),
    "parts of another shape": lambda f: head(f, lambda d: d["parts"].append({"kind": "dense", "path": "x"})),
    "parts that are numbers": lambda f: head(f, lambda d: d.update(parts=[1])),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_refused(saved, name):
    DAMAGE[name](saved)
    with pytest.raises(PatchError):
        load_patch(saved)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PatchError, match="damaged or incomplete"):
        load_patch(tmp_path / "nothing")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_patch_that_is_not_finite_is_refused(tmp_path, number):
    handle = models.handle("gpt2")
    edit = patch(handle)
    edit.parts[0].write[0, 0] = number
    with pytest.raises(Diverged, match="not finite"):
        edit.check_finite()
    edit.save(tmp_path / "edit")
    with pytest.raises(PatchError, match="not finite"):
        load_patch(tmp_path / "edit")


def test_a_patch_for_a_missing_module_or_another_shape_is_refused_and_leaves_no_hook():
    handle = models.handle("gpt2")
    good, site = patch(handle), handle.anatomy.site(0)
    lost = Patch((LowRank("no.such.module", torch.ones(1, 4), torch.ones(1, 4)),), "x", "x", "x")
    wrong = (
        LowRank(site.path, torch.ones(1, site.d_in + 1), torch.ones(1, site.d_out)),
        LowRank(site.path, torch.ones(1, site.d_in), torch.ones(1, 1)),
        LowRank(site.path, torch.ones(2, site.d_in), torch.ones(1, site.d_out)),
        Dense(site.path, torch.ones(site.d_in, site.d_out)),
        Dense(site.path, torch.ones(site.d_out, site.d_in), torch.ones(1)),
    )
    with pytest.raises(PatchError, match="no such module"), attached(handle.model, [good, lost]):
        pass
    for piece in wrong:
        with pytest.raises(PatchError, match="shape"), attached(handle.model, [good, Patch((piece,), "x", "x", "x")]):
            pass
    assert not any(m._forward_hooks for m in handle.model.modules())
