"""An adapter gives the logits of the edits it was made from, through `peft` itself; what would not is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from editcore import run_edit, suggested
from editcore.errors import BadRequest, EditcoreError, PatchError, WrongModel
from editcore.export import adapter, export_adapter, import_adapter, import_edits
from editcore.methods import METHODS
from editcore.opening import wrap
from editcore.patch import Dense, LowRank, Patch, attached
from editcore.records import EditRequest
from tests import models
from tests.taken import REQUEST, handle, low, plain

peft = pytest.importorskip("peft")
STORY = "Who is the Prime Minister of the United Kingdom?"
FAMILIES = ("gpt2", "opt", "llama", "gemma2", "tied-gpt2", "tied-llama")


def fresh(h):
    """A separate copy of the handle's model."""
    import copy

    return copy.deepcopy(h.model)


def next_logits(model, h, text: str):
    with torch.no_grad():
        return model(input_ids=torch.tensor([h.tokenizer(text)["input_ids"]], device=h.device)).logits


def test_an_adapter_of_rome_gives_the_same_logits_through_peft(world_handle, tmp_path):
    h = world_handle
    patch, report = run_edit(h, suggested(h, STORY, "Boris Johnson"), "rome")
    made = export_adapter(h, [(patch, report)], tmp_path / "a")
    loaded = peft.PeftModel.from_pretrained(fresh(h), str(tmp_path / "a"))
    assert made.difference <= made.tolerance and made.effect > 1
    for result in report.probes:
        with attached(h.model, [patch]):
            wanted = next_logits(h.model, h, result.probe.prompt)
        assert (next_logits(loaded, h, result.probe.prompt) - wanted).abs().max() <= made.tolerance
        with loaded.disable_adapter():
            assert torch.equal(
                next_logits(loaded, h, result.probe.prompt), next_logits(h.model, h, result.probe.prompt)
            )
    (again,) = made.reports[0]
    assert again.took and again.scores.generality == report.scores.generality


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stack_on_shared_modules_is_one_adapter_of_the_summed_rank(name, tmp_path):
    h = handle(name)
    patches = (low(h, 1, 1, 0), low(h, 1, 2, 1, 0.5), low(h, 3, 1, 2, -1.0), low(h, 2, 1, 3, 0.0))
    edits = [(patch, None) for patch in patches]
    before = {n: t.clone() for n, t in h.model.state_dict().items()}
    made = export_adapter(h, edits, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    one, three = h.anatomy.site(1).path, h.anatomy.site(3).path
    assert (config["r"], config["rank_pattern"], config["target_modules"]) == (3, {three: 1}, [one, three])
    assert config["lora_alpha"] == 3 and config["alpha_pattern"] == {three: 1}
    assert config["fan_in_fan_out"] == h.anatomy.site(1).transposed
    assert made.difference <= made.tolerance < made.effect / 10
    loaded = peft.PeftModel.from_pretrained(fresh(h), str(tmp_path / "a"))
    with attached(h.model, [patch for patch, _ in edits]):
        wanted = next_logits(h.model, h, "Iron is a metal")
    assert (next_logits(loaded, h, "Iron is a metal") - wanted).abs().max() < 1e-4 * float(wanted.abs().max())
    assert all(torch.equal(t, before[n]) for n, t in h.model.state_dict().items())
    assert not any("lora" in n for n, _ in h.model.named_modules())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_half_precision_model_is_compared_in_its_own_arithmetic(name, tmp_path):
    half = wrap(fresh(handle(name)).to(torch.bfloat16), models.tokenizer(), "half")
    made = export_adapter(half, [(low(half, 1, 2, 0), None)], tmp_path / "a")
    assert made.difference <= made.tolerance
    assert (
        load_file(tmp_path / "a" / adapter.WEIGHTS)[f"{adapter.PREFIX}{half.anatomy.site(1).path}.lora_A.weight"].dtype
        == torch.float32
    )


def test_an_adapter_comes_back_as_the_patch_it_was(tmp_path):
    h = handle("gpt2")
    edit = low(h, 1, 2, 0, 0.5)
    export_adapter(h, [(edit, None)], tmp_path / "a")
    ((back, reports),) = import_edits(h, tmp_path / "a")
    assert (back.method, back.settings, back.requests) == (edit.method, edit.settings, edit.requests)
    assert torch.equal(back.parts[0].read, edit.parts[0].read) and len(reports) == 1
    assert torch.equal(back.parts[0].write, 0.5 * edit.parts[0].write) and back.strength == 1.0


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"mlp.c_proj": 2}, "alpha_pattern": {"h.1.mlp.c_proj": 5}}]
)
def test_an_adapter_trained_elsewhere_is_a_patch_with_the_same_logits(options, tmp_path):
    h = handle("gpt2")
    targets = ["transformer.h.1.mlp.c_proj", "c_attn"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, **options)
    other = peft.get_peft_model(fresh(h), config)
    other.save_pretrained(tmp_path / "a")
    with attached(h.model, [import_adapter(h, tmp_path / "a")]):
        found = next_logits(h.model, h, "Iron is a metal")
    wanted = next_logits(other, h, "Iron is a metal")
    assert (found - wanted).abs().max() < 1e-4 * float(wanted.abs().max())
    assert (wanted - next_logits(h.model, h, "Iron is a metal")).abs().max() > 0.01


def test_an_adapter_peft_would_ignore_is_never_offered(monkeypatch, tmp_path):
    h = handle("gpt2")
    monkeypatch.setattr(adapter, "PREFIX", "base_model.modle.")
    with pytest.raises(EditcoreError, match="other logits"):
        export_adapter(h, [(low(h, 1, 1, 0), None)], tmp_path / "a")
    assert not list(tmp_path.iterdir())


def dense(h, bias: bool) -> Patch:
    made, site = torch.Generator().manual_seed(0), h.anatomy.site(1)
    weight = torch.randn(site.d_out, 3, generator=made) @ torch.randn(3, site.d_in, generator=made)
    part = Dense(site.path, 0.1 * weight, torch.randn(site.d_out, generator=made) if bias else None)
    return Patch((part,), h.name, h.fingerprint, "ft", {}, (plain(REQUEST),))


def test_a_dense_edit_is_cut_only_when_asked_and_the_loss_is_told(tmp_path):
    h = handle("gpt2")
    with pytest.raises(BadRequest, match=r"FT changes all directions.*Give a rank"):
        export_adapter(h, [(dense(h, False), None)], tmp_path / "a")
    exact = export_adapter(h, [(dense(h, False), None)], tmp_path / "a", dense_rank=3)
    assert exact.lost == () or exact.lost[0][1] < 1e-5
    cut = export_adapter(h, [(dense(h, False), None)], tmp_path / "b", dense_rank=1)
    values = torch.linalg.svdvals(dense(h, False).parts[0].weight)
    assert cut.lost[0][1] == pytest.approx(float(values[1:].norm() / values.norm()), rel=1e-4)
    told = (tmp_path / "b" / "README.md").read_text()
    assert "of the norm of the change is not in the adapter" in told and "attached patch" in told


def test_a_bias_has_no_place_in_an_adapter_and_that_is_said(tmp_path):
    h = handle("gpt2")
    made = export_adapter(h, [(dense(h, True), None)], tmp_path / "a", dense_rank=3)
    assert any("bias" in note for note in made.notes) and made.lost[0][1] > 0.1


def test_every_method_on_the_menu_exports_or_says_why_not(world_handle, tmp_path):
    h = world_handle
    request = EditRequest(STORY, "Boris Johnson", "United Kingdom")
    for method in METHODS:
        patch, report = run_edit(h, request, method.name, generate=False)
        try:
            made = export_adapter(h, [(patch, report)], tmp_path / method.name)
        except BadRequest as error:
            assert (
                method.title in str(error)
                and "Export it as a patch" in str(error)
                or "export it as a patch" in str(error)
            )
            assert not all(isinstance(part, LowRank) for part in patch.parts)
        else:
            assert made.difference <= made.tolerance and made.reports[0][0].scores.generation is None


def config(**changes):
    def change(folder):
        data = json.loads((folder / adapter.CONFIG).read_text())
        (folder / adapter.CONFIG).write_text(json.dumps({**data, **changes}))

    return change


def tensors(change):
    def apply(folder):
        held = load_file(folder / adapter.WEIGHTS)
        (folder / adapter.WEIGHTS).unlink()
        save_file({k: v.contiguous() for k, v in change(held).items()}, folder / adapter.WEIGHTS)

    return apply


def first(held, side, value):
    name = next(n for n in held if f"lora_{side}" in n)
    return {**held, name: value(held[name])}


BAD = {
    "dora": (config(use_dora=True), "use_dora"),
    "bias": (config(bias="all"), "bias"),
    "saved modules": (config(modules_to_save=["lm_head"]), "modules_to_save"),
    "pissa": (config(init_lora_weights="pissa"), "init_lora_weights"),
    "an option of tomorrow": (config(brand_new=3), "brand_new"),
    "another kind": (config(peft_type="IA3"), "LORA was wanted"),
    "no rank": (config(r="8"), "the r '8'"),
    "another rank": (config(r=7), "Rank 7"),
    "other targets": (config(target_modules=["q_proj"]), "target_modules leave out"),
    "a clever pattern": (config(alpha_pattern={"(a+)+$": 3}), "alpha_pattern"),
    "infinite scale": (config(lora_alpha=1e999), "finite"),
    "no json": (lambda f: (f / adapter.CONFIG).write_text("[" * 100_000), "cannot be read"),
    "not a number": (tensors(lambda t: first(t, "A", lambda x: x * float("nan"))), "finite"),
    "wrong shape": (tensors(lambda t: first(t, "A", lambda x: x[:, :-1])), "shape"),
    "three dimensions": (tensors(lambda t: first(t, "B", lambda x: x[None])), "no matrix"),
    "whole numbers": (tensors(lambda t: first(t, "B", lambda x: x.long())), "no matrix"),
    "half a pair": (tensors(lambda t: dict(list(t.items())[:1])), "half a pair"),
    "nothing": (tensors(lambda t: {}), "holds nothing"),
    "unknown key": (
        tensors(lambda t: {**t, "base_model.model.x.lora_magnitude_vector": torch.ones(2)}),
        "lora_magnitude",
    ),
    "unknown module": (
        tensors(lambda t: {n.replace("c_proj", "c_prog"): v for n, v in t.items()}),
        "no such linear map",
    ),
    "no linear map": (
        tensors(lambda t: {n.replace("mlp.c_proj", "ln_1"): v for n, v in t.items()}),
        "no such linear map",
    ),
    "truncated": (lambda f: (f / adapter.WEIGHTS).write_bytes((f / adapter.WEIGHTS).read_bytes()[:-9]), "damaged"),
    "no tensors": (lambda f: (f / adapter.WEIGHTS).unlink(), "damaged or missing"),
    "side file": (lambda f: (f / adapter.SIDE).write_text('{"format": 1}'), "made for None"),
}


@pytest.fixture
def exported(tmp_path):
    h = handle("gpt2")
    export_adapter(h, [(low(h, 1, 2, 0), None)], tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("name", BAD)
def test_an_adapter_that_is_not_understood_to_the_last_field_is_refused(name, exported):
    harm, said = BAD[name]
    harm(exported)
    with pytest.raises((PatchError, WrongModel)) as caught:
        import_adapter(handle("gpt2"), exported)
    assert said in str(caught.value)


def test_an_adapter_of_another_base_is_refused_with_both_fingerprints(exported):
    other = wrap(models.model("gpt2", seed=1), models.tokenizer(), "other")
    with pytest.raises(WrongModel) as caught:
        import_adapter(other, exported)
    assert other.fingerprint in str(caught.value) and handle("gpt2").fingerprint in str(caught.value)


def test_the_card_shows_hostile_text_as_text_and_cannot_be_given_fields(tmp_path):
    import yaml

    bad = 'x\n---\nlicense: evil\n"|`<script>alert(1)</script> ![i](http://a.b/c) | [l](http://d)'
    h = replace(handle("gpt2"), name=bad)
    edit = replace(low(h, 1, 1, 0), requests=(plain(EditRequest(bad, "<b>")),), settings={"a": "`</code>`\n# x"})
    export_adapter(h, [(edit, None)], tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert head["base_model"] == bad and "license" not in head and "model-editing" in head["tags"]
    body = re.sub(r"```.*?```", "", card.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert "<script>" not in body.replace("\\<script\\>", "") and "![" not in body.replace("\\!\\[", "")
    assert "://a.b" not in body and head["base_model_relation"] == "adapter" and head["library_name"] == "peft"
