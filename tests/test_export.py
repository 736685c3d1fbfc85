"""What is taken away is whole, is what it says it is, and comes back; what is damaged or foreign is refused."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import editcore
from editcore import cli
from editcore import opening as handle_module
from editcore.errors import BadRequest, EditcoreError, PatchError, WrongModel
from editcore.export import export_merged, export_patch, import_edits, load_edits, stack, whole
from editcore.methods import METHODS
from editcore.opening import wrap
from editcore.patch import Dense, Patch, attached
from editcore.records import EditRequest
from tests import models
from tests.taken import REQUEST, handle, low

STORY = "Who is the Prime Minister of the United Kingdom?"


def next_logits(model, h, text: str = "Iron is a metal"):
    with torch.no_grad():
        return model(input_ids=torch.tensor([h.tokenizer(text)["input_ids"]])).logits


@pytest.fixture(scope="module")
def edit():
    """One small edit of a tiny model, with its report."""
    return editcore.run_edit(handle("gpt2"), REQUEST, "ft", {"steps": 2})


# patches and stacks


def test_one_edit_and_its_report_come_back_as_they_were(edit, tmp_path):
    made = export_patch([edit], tmp_path / "p")
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == ["patch.json", "patch.safetensors", "report.json"]
    ((patch, reports),) = load_edits(tmp_path / "p", handle("gpt2").fingerprint)
    assert reports == (edit[1],) == made.reports[0] and patch.settings == edit[0].settings
    assert all(torch.equal(t, patch.parts[0].tensors[n]) for n, t in edit[0].parts[0].tensors.items())
    assert made.bytes == sum(f.stat().st_size for f in (tmp_path / "p").iterdir())


def test_a_stack_keeps_its_order_and_strengths_and_leaves_out_what_is_off(edit, tmp_path):
    h = handle("gpt2")
    weak, off, top = low(h, 1, 1, 0, 0.5), low(h, 2, 1, 1, 0.0), low(h, 1, 2, 2)
    edits = [(weak, None), (off, None), (edit[0].scaled(1.5), edit[1]), (top, ())]
    export_patch(edits, tmp_path / "s")
    back = import_edits(h, tmp_path / "s")
    assert [patch.strength for patch, _ in back] == [0.5, 1.5, 1.0]
    assert [len(reports) for _, reports in back] == [0, 1, 0]
    with attached(h.model, [patch for patch, _ in edits]):
        wanted = next_logits(h.model, h)
    with attached(h.model, [patch for patch, _ in back]):
        assert torch.equal(next_logits(h.model, h), wanted)


def test_a_patch_saved_without_a_report_is_read_too(edit, tmp_path):
    edit[0].save(tmp_path / "p")
    ((_, reports),) = load_edits(tmp_path / "p")
    assert reports == ()


def test_edits_of_one_list_keep_all_their_reports(tmp_path):
    h = handle("gpt2")
    made = editcore.run_edits(h, [REQUEST, EditRequest("It is", "so")], "ft", {"steps": 2})
    export_patch([made], tmp_path / "p")
    ((_, reports),) = load_edits(tmp_path / "p", h.fingerprint)
    assert reports == made[1]


def test_numbers_that_are_none_survive_as_null(edit, tmp_path):
    results = tuple(replace(r, kl=float("nan")) for r in edit[1].probes)
    export_patch([(edit[0], replace(edit[1], probes=results))], tmp_path / "p")
    assert "NaN" not in (tmp_path / "p" / "report.json").read_text()
    ((_, (report,)),) = load_edits(tmp_path / "p")
    assert all(r.kl != r.kl for r in report.probes)


def test_nothing_to_export_is_said(edit, tmp_path):
    for edits in ([], [(edit[0].scaled(0.0), edit[1])]):
        with pytest.raises(BadRequest, match="no edit to export"):
            export_patch(edits, tmp_path / "p")


def test_edits_of_two_models_are_no_stack(edit, tmp_path):
    with pytest.raises(WrongModel):
        export_patch([edit, (low(handle("llama"), 1, 1, 0), None)], tmp_path / "p")


@pytest.fixture
def saved(edit, tmp_path):
    export_patch([edit, (low(handle("gpt2"), 1, 1, 0), None)], tmp_path / "s")
    return tmp_path / "s"


def head(folder, name, **changes):
    data = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**data, **changes}))


def nan(folder):
    patch = low(handle("gpt2"), 1, 1, 0)
    patch.parts[0].write[0, 0] = float("nan")
    for file in (folder / "002").iterdir():
        file.unlink()
    (folder / "002").rmdir()
    patch.save(folder / "002")


def linked(folder):
    (folder / "001" / "report.json").unlink()
    (folder / "001" / "report.json").symlink_to("/etc/hostname")


DAMAGE = {
    "a step up": lambda f: head(f, "stack.json", edits=["../s/001"]),
    "two dots": lambda f: head(f, "stack.json", edits=[".."]),
    "an absolute path": lambda f: head(f, "stack.json", edits=["/etc"]),
    "a name twice": lambda f: head(f, "stack.json", edits=["001", "001"]),
    "a number for a name": lambda f: head(f, "stack.json", edits=[1]),
    "no edits": lambda f: head(f, "stack.json", edits=[]),
    "a missing edit": lambda f: head(f, "stack.json", edits=["001", "009"]),
    "another format": lambda f: head(f, "stack.json", format=2),
    "no object": lambda f: (f / "stack.json").write_text("[]"),
    "deep": lambda f: (f / "stack.json").write_text("[" * 200_000),
    "not text": lambda f: (f / "stack.json").write_bytes(b"\xff\xfe"),
    "truncated": lambda f: (f / "001" / "patch.safetensors").write_bytes(b"x" * 30),
    "not a number": nan,
    "a link": linked,
    "an endless strength": lambda f: head(f / "001", "patch.json", strength=float("inf")),
    "a strength in words": lambda f: head(f / "001", "patch.json", strength="much"),
    "a model that is no text": lambda f: head(f / "001", "patch.json", model=[1]),
    "requests that are no objects": lambda f: head(f / "001", "patch.json", requests=["x"]),
    "a report of another format": lambda f: head(f / "001", "report.json", format=9),
    "a report that is none": lambda f: head(f / "001", "report.json", reports=[{"model": "x"}]),
    "a report with a text for a number": lambda f: (f / "001" / "report.json").write_text(
        (f / "001" / "report.json").read_text().replace('"norm": ', '"norm": "=cmd()", "x": ')
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_or_treacherous_stack_is_refused(name, saved):
    DAMAGE[name](saved)
    with pytest.raises(PatchError):
        load_edits(saved, handle("gpt2").fingerprint)


def test_another_base_is_refused_with_both_fingerprints(saved):
    with pytest.raises(WrongModel) as caught:
        load_edits(saved, handle("llama").fingerprint)
    assert all(handle(name).fingerprint in str(caught.value) for name in ("gpt2", "llama"))


def test_a_patch_that_claims_the_base_but_does_not_fit_is_refused(tmp_path):
    h = handle("gpt2")
    foreign = replace(low(handle("llama"), 1, 1, 0), fingerprint=h.fingerprint)
    export_patch([(foreign, None)], tmp_path / "p")
    with pytest.raises(PatchError, match="no such module"):
        import_edits(h, tmp_path / "p")


# folders


def test_a_folder_that_is_not_empty_or_is_a_file_is_left_alone(edit, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(BadRequest, match="new or an empty folder"):
            export_patch([edit], folder)
    (tmp_path / "empty").mkdir()
    export_patch([edit], tmp_path / "empty")
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "empty" / "patch.json").exists()


def test_a_full_disk_is_told_with_the_bytes_needed_and_leaves_nothing(edit, tmp_path, monkeypatch):
    space = whole.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(whole.shutil, "disk_usage", lambda path: space)
    with pytest.raises(EditcoreError, match=rf"{edit[0].bytes + whole.SPARE:,} bytes are needed and 1,000 are free"):
        export_patch([edit], tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_writing_leaves_nothing(edit, tmp_path, monkeypatch):
    def full(folder, reports):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stack, "save_reports", full)
    with pytest.raises(EditcoreError, match="no room for 'p'"):
        export_patch([edit], tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing(edit, tmp_path, monkeypatch):
    def stopped(folder, reports):
        raise KeyboardInterrupt

    monkeypatch.setattr(stack, "save_reports", stopped)
    with pytest.raises(KeyboardInterrupt):
        export_patch([edit], tmp_path / "p")
    assert not list(tmp_path.iterdir())


# merged


def dense(h, layer: int, bias: bool) -> Patch:
    made, site = torch.Generator().manual_seed(layer), h.anatomy.site(layer)
    shift = torch.randn(site.d_out, generator=made) if bias else None
    part = Dense(site.path, 0.1 * torch.randn(site.d_out, site.d_in, generator=made), shift)
    return Patch((part,), h.name, h.fingerprint, "ft", {}, low(h, layer, 1, 0).requests)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gemma2", "tied-gpt2", "tied-llama"])
def test_a_merged_checkpoint_loads_anywhere_and_answers_as_the_stack(name, tmp_path):
    h = handle(name)
    before = {n: t.clone() for n, t in h.model.state_dict().items()}
    config = h.model.config.to_dict()
    patches = [low(h, 1, 2, 0), dense(h, 1, h.anatomy.site(1).bias() is not None), low(h, 2, 1, 3, -0.5)]
    made = export_merged(h, [(patch, None) for patch in patches], tmp_path / "m")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    with attached(h.model, patches):
        wanted = next_logits(h.model, h)
    assert (next_logits(loaded, h) - wanted).abs().max() < 1e-4 * float(wanted.abs().max())
    assert made.difference < made.effect / 100 and max(share for _, share in made.lost) < 1e-5
    assert all(torch.equal(t, before[n]) for n, t in h.model.state_dict().items())
    assert h.model.config.to_dict() == config
    names = {f.name for f in (tmp_path / "m").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not name.startswith("tied-")


def test_half_precision_distorts_small_changes_and_that_is_measured_on_the_files(world_handle, tmp_path):
    h = world_handle
    edit = editcore.run_edit(h, EditRequest(STORY, "Boris Johnson", "United Kingdom"), "rome")
    made = {kind: export_merged(h, [edit], tmp_path / kind, kind) for kind in ("float32", "float16", "bfloat16")}
    exact, half, brain = (made[kind].lost[0][1] for kind in ("float32", "float16", "bfloat16"))
    assert exact < 1e-6 < half < brain < 0.05
    apart = [made[kind].difference for kind in ("float32", "float16", "bfloat16")]
    assert apart == sorted(apart) and apart[0] < 1e-3 and 0.01 < apart[2] < made["bfloat16"].effect
    for kind, one in made.items():
        stored = load_file(tmp_path / kind / "model.safetensors")
        assert {str(t.dtype).removeprefix("torch.") for t in stored.values()} == {kind}
        arithmetic = "float32" if kind == "float16" else kind
        loaded = handle_module.load(str(tmp_path / kind), device="cpu", dtype=arithmetic)
        row = loaded.row(STORY, "Boris Johnson")
        chance = (
            torch.log_softmax(loaded.logits([row])[0], -1).gather(1, torch.tensor(row.answer)[:, None]).mean().exp()
        )
        assert one.reports[0][0].probes[0].after.new.mean == pytest.approx(float(chance), rel=1e-4)
        assert f"these files, {kind}" in (tmp_path / kind / "README.md").read_text()
        assert json.loads((tmp_path / kind / "config.json").read_text())["dtype"] == kind
    assert (tmp_path / "float32" / "README.md").read_text().count("license") == 1


def test_the_smaller_the_change_the_more_of_it_rounding_takes(tmp_path):
    h = handle("llama")
    lost = [
        export_merged(h, [(low(h, 1, 1, 0, strength), None)], tmp_path / str(strength), "bfloat16").lost[0][1]
        for strength in (1.0, 1e-2, 1e-4)
    ]
    assert lost[0] < lost[1] < lost[2] and lost[0] < 0.02 and lost[2] > 0.3


def test_every_method_on_the_menu_merges_or_says_why_not(world_handle, tmp_path):
    h = world_handle
    for method in METHODS:
        edit = editcore.run_edit(h, EditRequest(STORY, "Boris Johnson", "United Kingdom"), method.name, generate=False)
        export_patch([edit], tmp_path / f"{method.name}-patch")
        try:
            made = export_merged(h, [edit], tmp_path / method.name)
        except BadRequest as error:
            assert f"by {method.title} has no merged form" in str(error) and "as a patch" in str(error)
            assert not (tmp_path / method.name).exists()
        else:
            assert made.difference < 1e-3 * made.effect


def test_a_shared_matrix_and_a_bias_where_none_is_are_not_merged(tmp_path):
    h = handle("tied-gpt2")
    width, vocabulary = models.WIDTH, models.VOCABULARY
    head_ = Dense("lm_head", torch.ones(vocabulary, width))
    llama = handle("llama")
    site = llama.anatomy.site(0)
    bias = Dense(site.path, torch.zeros(site.d_out, site.d_in), torch.ones(site.d_out))
    for where, part, said in ((h, head_, "is shared"), (llama, bias, "which has none")):
        with pytest.raises(BadRequest, match=said):
            export_merged(where, [(Patch((part,), where.name, where.fingerprint, "ft"), None)], tmp_path / "m")


def test_an_edit_of_another_base_is_not_merged(tmp_path):
    other = wrap(models.model("gpt2", seed=1), models.tokenizer(), "other")
    with pytest.raises(WrongModel):
        export_merged(other, [(low(handle("gpt2"), 1, 1, 0), None)], tmp_path / "m")


# the command line


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs `editcore ...` on a tiny model in this process: (exit code, standard output, standard error)."""
    load = handle_module.load
    monkeypatch.setattr(
        handle_module, "load", lambda n, **o: load(n, **o) if Path(n).is_dir() else models.handle("gpt2")
    )
    monkeypatch.setenv("EDITCORE_HOME", str(tmp_path / "home"))

    def call(*words: str):
        monkeypatch.setattr(sys, "argv", ["editcore", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return caught.value.code or 0, shown.out, " ".join(shown.err.split())

    return call


def test_a_saved_edit_is_exported_in_every_form(run, tmp_path):
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for folder, prompt in ((one, "The capital of Poland is"), (two, "It is")):
        words = ("-p", prompt, "-t", "so", "--method", "lora", "--set", "steps=2", "--save", folder)
        assert run("edit", *words)[0] == 0 and (Path(folder) / "report.json").exists()
    forms = {"patch": "stack.json", "peft": "adapter_config.json", "merged": "config.json", "report": "report.html"}
    for form, file in forms.items():
        words = ("--patch", one, "--patch", two, "--format", form, "--to", str(tmp_path / form), "--json")
        code, text, error = run("export", *words)
        assert code == 0, error
        told = json.loads(text)
        assert told["kind"] == form and told["bytes"] > 0 and (tmp_path / form / file).exists()
    assert run("export", "--patch", str(tmp_path / "peft"), "--format", "patch", "--to", str(tmp_path / "x"))[0] == 0
    assert run("probe", "It is", "--patch", str(tmp_path / "x"))[0] == 0
    assert run("export", "--patch", str(tmp_path / "patch"), "--format", "peft", "--to", str(tmp_path / "y"))[0] == 0


def test_a_report_of_a_patch_without_one_reads_the_model(run, tmp_path, edit):
    edit[0].save(tmp_path / "p")
    code, _, _ = run("export", "--patch", str(tmp_path / "p"), "--format", "report", "--to", str(tmp_path / "r"))
    told = json.loads((tmp_path / "r" / "report.json").read_text())
    assert code == 0 and told["edits"][0]["scores"]["reliability"] is not None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "No edit is named"),
        (("--patch", "{p}", "--format", "magic"), 2, "'magic' is not one of"),
        (("--patch", "{p}", "--format", "peft"), 2, "Give a rank"),
        (("--patch", "{p}", "--format", "merged", "--rank", "3"), 2, "no option of merged"),
        (("--patch", "{p}", "--format", "peft", "--dtype", "float16"), 2, "no option of peft"),
        (("--patch", "{p}", "--format", "merged", "--dtype", "int4"), 2, "'int4' is unknown"),
        (("--patch", "{p}", "--to", "{p}"), 2, "is not empty"),
        (("--patch", "{absent}"), 2, "/absent'. A folder that `editcore edit --save` or `editcore export` has written"),
    ],
)
def test_what_cannot_be_exported_is_said_with_the_right_code(words, code, said, run, edit, tmp_path):
    edit[0].save(tmp_path / "p")
    names = {"{p}": str(tmp_path / "p"), "{absent}": str(tmp_path / "absent")}
    words = ("--format", "patch", "--to", str(tmp_path / "to"), *(names.get(word, word) for word in words))
    found, text, error = run("export", *words)
    assert found == code and said in error and not text.strip() and not (tmp_path / "to").exists()
