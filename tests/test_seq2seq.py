"""Encoder-decoders: an encoder reads the prompt, a decoder says the answer; the rest of the product need not know."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import peft
import pytest
import torch

from editcore import checkup, cli, corpus, gradients, learned, passes, trained, training
from editcore.edit import preflight, run_edit, run_edits
from editcore.engine import InlineEngine, new_session
from editcore.errors import BadRequest, BadSetting, Cancelled, ModelError, SubjectNotFound, Unsuited
from editcore.export import export_adapter, export_merged, export_patch, import_adapter, load_edits
from editcore.forecast import preparation
from editcore.methods import METHODS, Work, prepare_method
from editcore.opening import load, wrap
from editcore.patch import load_patch
from editcore.records import EditRequest, Probe, to_plain
from editcore.resume import reads_of
from tests import pairs
from tests.cases import EIGHT, ONE, TWO
from tests.schooled import example, places, school, show

REFUSED = tuple(m.name for m in METHODS if m.one_stack)
WORKING = tuple(m.name for m in METHODS if not m.one_stack)
TRAINED = tuple(name for name in WORKING if name in training.trainable())
TEXTS = ("ice", "ike")  # a random model believes nothing it reads
QUICK = {"rate": 0.05, "steps": 6}
ASKED = replace(
    ONE, paraphrases=(Probe("paraphrase", "Poland's capital is"),), probes=(Probe("far", "Who wrote Dune?", "Rome"),)
)


@pytest.fixture(params=["t5", "bart"])
def handle(request):
    return pairs.handle(request.param)


def made(name: str, handle, **values):
    if name in TRAINED:
        school(handle, name)
    if name == "ike":
        show(handle)
        values = {"count": 2, **values}
    quick = QUICK if name.startswith("ft") or name == "lora" else {}
    few = {"rows": 4, "length": 6} if name == "ft-replay" else {}
    wide = {"distance": 1.0} if name == "ft-l" else {}
    return prepare_method(name, handle, {**quick, **few, **wide, **values})


def plain_logits(handle, row):
    """What the model gives for one row as transformers' own training reads it."""
    read, said = torch.tensor([row.ids[: row.start]]), torch.tensor([[*handle.opening, *row.answer]])
    out = handle.model(input_ids=read, decoder_input_ids=said, use_cache=False).logits[0]
    return out[len(handle.opening) - 1 :][: max(1, len(row.answer))].float()


def rows(handle):
    return [handle.row(ONE.prompt, ONE.target), handle.row(TWO.prompt, TWO.target), handle.row("What is")]


# the model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pairs.TWO_STACKS)
def test_both_stacks_are_found_the_encoders_first(name):
    anatomy, (_, _, first, second) = pairs.handle(name).anatomy, pairs.TWO_STACKS[name]
    wanted = [first.replace(".0.", f".{i}.", 1) for i in range(pairs.ENCODER)]
    wanted += [second.replace(".0.", f".{i}.", 1) for i in range(pairs.DECODER)]
    assert [site.path for site in anatomy.sites] == wanted
    assert [site.encoder for site in anatomy.sites] == [True] * pairs.ENCODER + [False] * pairs.DECODER
    assert list(anatomy.said_by) == [3, 4, 5, 6] and set(anatomy.additive) == {name != "bart"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pairs.model(name).modules())
    with pytest.raises(BadSetting, match="layers 0 to 6: the encoder's to 2, the decoder's from 3"):
        anatomy.site(7)


def test_a_model_whose_stacks_are_one_is_refused():
    model = pairs.model.__wrapped__("t5")
    model.decoder.block = model.encoder.block
    with pytest.raises(ModelError, match="decoder of T5ForConditionalGeneration has"):
        wrap(model, pairs.tokenizer(), "one")


def test_a_decoder_that_does_not_say_how_it_starts_is_refused():
    model = pairs.model.__wrapped__("t5")
    model.generation_config.decoder_start_token_id = model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="with which token its decoder starts"):
        wrap(model, pairs.tokenizer(), "unsaid")


def test_the_encoder_reads_the_prompt_and_the_decoder_says_the_answer_to_its_end():
    t5, bart = pairs.handle("t5"), pairs.handle("bart")
    assert (t5.opening, t5.closing, bart.opening, bart.closing) == ((0,), (1,), (1, 3), (1,))
    for handle in (t5, bart):
        row, tokenizer = handle.row("The capital of Poland is ", " Łódź"), handle.tokenizer
        assert list(row.ids[: row.start]) == tokenizer("The capital of Poland is")["input_ids"]
        assert list(row.answer) == [*tokenizer("Łódź", add_special_tokens=False)["input_ids"], 1]
        assert handle.row("The capital of Poland is").ids == row.ids[: row.start]
        with_subject = handle.row("The capital of Poland is", "Łódź", "Poland")
        assert tokenizer.decode(row.ids[: with_subject.subject + 1], skip_special_tokens=True).endswith("Poland")
        with pytest.raises(BadRequest, match="control token"):
            handle.row("It is", "<extra_id_0>")
        with pytest.raises(BadRequest, match="no token of its own"):
            handle.row("It is", " ")
        with pytest.raises(BadRequest, match="prompt has no token"):
            handle.row(" ", "so")
        with pytest.raises(SubjectNotFound):
            handle.row("It is", "so", "France")


@pytest.mark.parametrize("name", pairs.TWO_STACKS)
def test_a_batch_reads_like_single_rows(name):
    handle = pairs.handle(name)
    together = handle.logits(rows(handle))
    for row, found in zip(rows(handle), together, strict=True):
        wanted = plain_logits(handle, row)
        assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["t5", "t5-gated", "t5-untied", "umt5"])
def test_the_loss_of_an_answer_is_the_one_the_model_was_trained_with(name):
    handle = pairs.handle(name)
    row = rows(handle)[1]
    loss = handle.model(input_ids=torch.tensor([row.ids[: row.start]]), labels=torch.tensor([row.answer])).loss
    found = torch.nn.functional.cross_entropy(handle.logits([row])[0], torch.tensor(row.answer))
    assert float(found) == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("name", ["t5", "t5-untied", "bart", "pegasus"])
def test_what_is_written_is_the_likeliest_token_each_time_whatever_else_is_in_the_batch(name):
    handle = pairs.handle(name)
    prompts = [row.ids[: row.start] for row in rows(handle)]
    together = handle.generate(prompts, 5)
    for prompt, text in zip(prompts, together, strict=True):
        assert handle.generate([prompt], 5) == [text]
        said = list(handle.opening)
        while len(said) < len(handle.opening) + 5 and (said[len(handle.opening) :] or [0])[-1] != 1:
            out = handle.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([said])).logits
            said.append(int(out[0, -1].argmax()))
        assert text == handle.tokenizer.decode(said[len(handle.opening) :], skip_special_tokens=True)


def test_how_a_checkpoint_wants_to_be_sampled_changes_nothing(handle):
    model, row = copy.deepcopy(handle.model), rows(handle)[0]
    for name, value in (("num_beams", 3), ("no_repeat_ngram_size", 1), ("min_length", 12), ("forced_eos_token_id", 9)):
        setattr(model.generation_config, name, value)
    other = wrap(model, handle.tokenizer, "wilful")
    assert other.generate([row.ids[: row.start]], 4) == handle.generate([row.ids[: row.start]], 4)


# editing ------------------------------------------------------------------------------------------------------------


def losses(handle, requests, patches=()):
    with handle.using(patches):
        read = [handle.row(r.prompt, r.target) for r in requests]
        return [
            float(torch.nn.functional.cross_entropy(x, torch.tensor(row.answer)))
            for x, row in zip(handle.logits(read), read, strict=True)
        ]


@pytest.mark.parametrize(("name", "requests"), [("t5", (ONE,)), ("bart", EIGHT)], ids=["t5-one", "bart-eight"])
@pytest.mark.parametrize("method", WORKING)
def test_a_method_returns_a_patch_that_helps_and_leaves_no_trace(name, method, requests):
    handle, heard = pairs.handle(name), []
    model = handle.model
    weights, base = {n: t.clone() for n, t in model.state_dict().items()}, handle.logits(rows(handle))
    before, random = losses(handle, requests), torch.random.get_rng_state()
    patch = made(method, handle).edit(Work(handle, heard.append), requests)
    assert torch.equal(random, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
    patch.check_finite()
    after = losses(handle, requests, [patch])
    assert sum(after) < sum(before) if method not in TEXTS else after != before
    assert all(torch.equal(a, b) for a, b in zip(base, handle.logits(rows(handle)), strict=True))
    assert (patch.method, patch.fingerprint) == (method, handle.fingerprint)
    layers = () if method in TEXTS else places(handle, method) if method in TRAINED else (5,)
    assert patch.info(model).modules == tuple(handle.anatomy.site(layer).path for layer in layers)
    assert heard and all(0 < p.step <= p.steps and p.loss == p.loss for p in heard)


@pytest.mark.parametrize("name", ["t5-gated", "t5-untied", "mt5", "umt5", "mbart", "pegasus"])
def test_other_families_take_an_edit_in_either_stack(name):
    handle = pairs.handle(name)
    for layer in (1, 6):
        patch = prepare_method("ft", handle, {**QUICK, "layer": layer}).edit(Work(handle), [ONE])
        assert losses(handle, [ONE], [patch]) < losses(handle, [ONE])
        assert patch.parts[0].path == handle.anatomy.site(layer).path


def test_the_same_request_gives_the_same_patch():
    twice = []
    for seed in (1, 2):
        handle = pairs.handle.__wrapped__("t5")  # nothing remembered
        torch.manual_seed(seed)
        twice.append([made(name, handle).edit(Work(handle), [ONE]) for name in ("ft-replay", "lora", "enn")])
    for one, other in zip(*twice, strict=True):
        for a, b in zip(one.parts, other.parts, strict=True):
            assert all(torch.equal(t, b.tensors[n]) for n, t in a.tensors.items())


@pytest.mark.parametrize("method", ["ft", "ft-replay", "mend", "ice"])
def test_a_stop_is_honoured(method):
    handle = pairs.handle("t5")
    ready = made(method, handle)
    with pytest.raises(Cancelled):
        ready.edit(Work(handle, stop=lambda: True), [ONE])
    assert handle.standing == ()


def test_an_encoder_that_is_read_once_gives_the_same_to_the_last_bit(handle):
    read = rows(handle)[:2]
    site, reads = handle.anatomy.site(5), tuple(map(reads_of, read))
    kept, whole = (passes._Apart(handle, site, tuple(read), reads, kept=kept) for kept in (True, False))

    def louder(_x, y):
        return 1.5 * y

    assert kept._encoded is not None and whole._encoded is None
    assert torch.equal(kept.run(louder), whole.run(louder))
    assert not torch.equal(kept.run(louder), kept.run(lambda x, y: y))
    assert passes._Apart(handle, handle.anatomy.site(0), tuple(read), reads)._encoded is None
    wanted = torch.cat([plain_logits(handle, row) for row in read]).log_softmax(-1)
    assert (kept.run(lambda x, y: y) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["t5", "t5-untied", "bart"])
def test_the_factors_of_a_gradient_make_the_gradient_in_both_stacks(name):
    handle = pairs.handle(name)
    sites, row = [handle.anatomy.site(layer) for layer in (5, 1)], rows(handle)[0]  # in no particular order
    found, _ = gradients.gradients(handle, sites, gradients.texts(handle, [row, rows(handle)[1]]))
    twin = copy.deepcopy(handle.model).requires_grad_(True)
    log_p = plain_logits(replace(handle, model=twin), row).log_softmax(-1)
    loss = -log_p.gather(1, torch.tensor(row.answer)[:, None]).mean()
    wanted = torch.autograd.grad(loss, [twin.get_submodule(site.path).weight for site in sites])
    for grad, read, write in zip(wanted, found.read, found.write, strict=True):
        assert (write[0].T @ read[0] - grad).abs().max() < 1e-5 * max(1.0, float(grad.abs().max()))


def test_an_edit_takes_and_the_report_says_so():
    handle = pairs.handle("t5-untied")
    base = handle.logits(rows(handle))
    patch, report = run_edit(handle, ASKED, "ft", {"rate": 0.05, "steps": 60})
    first, other = report.probes[0], report.probes[-1]
    assert report.took and first.after.text == "Łódź" and first.after.new.exact and first.after.new.mean > 0.9
    assert first.before.new.mean < 0.1 and first.before.text != "Łódź" and "“Łódź”" in report.sentence
    assert first.after.new.tokens == len("▁Łódź") + 1, "the end of the answer is part of it"
    assert other.probe.prompt == "Who wrote Dune?" and other.kl > 0
    assert all(torch.equal(a, b) for a, b in zip(base, handle.logits(rows(handle)), strict=True))
    with handle.using([patch]):
        assert handle.generate([handle.row(ONE.prompt).ids], 8) == ["Łódź"]


def test_the_new_fact_stands_in_front_of_what_the_encoder_reads(handle):
    patch = made("ice", handle).edit(Work(handle), [TWO])
    bare = handle.row(ONE.prompt, ONE.target)
    with handle.using([patch]):
        row, header = handle.row(ONE.prompt, ONE.target), handle.header
    read = handle.tokenizer.decode(row.ids[: row.start], skip_special_tokens=True)
    assert row.answer == bare.answer and "live in Rome, in the United Kingdom" in header
    assert list(row.ids[: row.start]) == handle.tokenizer(header + ONE.prompt)["input_ids"]
    assert read.endswith(ONE.prompt) and "New Fact:" in read


def test_what_is_replayed_is_what_the_model_answers():
    handle = pairs.handle.__wrapped__("t5")
    answered, source = corpus.replayed(handle, 6, 5)
    assert source == corpus.OWN_ANSWERS and len(answered) == 6 and len({row.ids for row in answered}) == 6
    assert all(1 not in row.answer and len(row.answer) <= 5 for row in answered)
    assert all(row.ids[row.start - 1] == 1 for row in answered), "the prompt keeps its own end mark"
    assert corpus.replayed(pairs.handle.__wrapped__("t5"), 6, 5)[0] == answered


def test_a_stored_text_is_read_to_its_half_and_said_from_there(tmp_path):
    handle, file = pairs.handle.__wrapped__("t5"), tmp_path / "text.txt"
    file.write_text("".join(f"The capital of the {i} is a town of people\n" for i in range(40)))
    corpus.store(handle, tmp_path, file)
    texts, source = corpus.replayed(handle, 3, 8, tmp_path)
    assert source == "the text stored for this model"
    assert all(row.start == 5 and row.ids[4] == 1 and len(row.answer) == 4 for row in texts)


def test_replay_keeps_what_the_model_answers():
    handle = pairs.handle("t5")
    texts, _ = corpus.replayed(handle, 4, 6)
    moved = []
    for weight in (0.0, 100.0):
        patch = made("ft-replay", handle, weight=weight, steps=15).edit(Work(handle), [ONE])
        base = torch.cat(handle.logits(texts)).log_softmax(-1)
        with handle.using([patch]):
            now = torch.cat(handle.logits(texts)).log_softmax(-1)
        moved.append(float(torch.nn.functional.kl_div(now, base, log_target=True, reduction="batchmean")))
    assert moved[1] < 0.5 * moved[0]


# learning -----------------------------------------------------------------------------------------------------------


def test_editors_change_the_last_blocks_of_both_stacks_or_of_the_decoder():
    handle = pairs.handle("t5")
    kinds = {m.name: m.editor for m in METHODS if hasattr(m, "editor")}
    assert {training.default_layers(handle, kinds[n]) for n in ("mend", "enn", "ke")} == {(1, 2, 5, 6)}
    assert training.default_layers(handle, kinds["malmen"]) == (4, 5, 6)
    with pytest.raises(BadSetting, match="MALMEN was to edit a layer of the encoder"):
        kinds["malmen"]([handle.anatomy.site(0)])


@pytest.mark.parametrize("method", ["mend", "enn"])
def test_training_from_files_makes_an_artifact_that_edits(method, tmp_path):
    handle = pairs.handle.__wrapped__("bart")
    edits, text = tmp_path / "edits.jsonl", tmp_path / "text.txt"
    edits.write_text("".join(
        json.dumps({"prompt": f"Town {i} lies in", "target_new": "Peru", "paraphrases": [f"Where is town {i}?"]}) + "\n"
        for i in range(20)
    ))  # fmt: skip
    text.write_text("".join(f"The capital of {i} is a town\n" for i in range(30)))
    about = training.train_method(
        handle, method, tmp_path / "work", tmp_path, edits=edits, locality=text,
        dials=learned.Dials(steps=3, edits=3, check_every=3),
    )  # fmt: skip
    assert about["examples"] == "edits.jsonl" and (about["moved"] == 0.0 or method == "enn")
    handle.home = tmp_path
    patch = prepare_method(method, handle).edit(Work(handle), [ONE])
    assert {p.path for p in patch.parts} == {handle.anatomy.site(layer).path for layer in (1, 2, 5, 6)}
    assert trained.path_in(tmp_path, handle, method).exists()


@pytest.mark.parametrize(("name", "method"), [("t5", "mend"), ("bart", "enn")])
def test_training_makes_an_editor_better(name, method, tmp_path):
    handle = pairs.handle(name)
    kind = next(m.editor for m in METHODS if m.name == method)
    editor = kind([handle.anatomy.site(layer) for layer in places(handle, method)])
    some = [example(handle, i) for i in range(8)]
    looks = []
    learned.train(
        handle, editor, lambda rng: some[rng.randrange(8)], some,
        learned.Dials(steps=12, edits=4, rate=1e-2, check_every=4), tmp_path,
        lambda heard: looks.append(heard.validation),
    )  # fmt: skip
    seen = [look for look in looks if look is not None]
    assert len(seen) == 3 and seen[-1] < seen[0]


# refusing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", REFUSED)
def test_a_method_that_cannot_says_why_and_what_can(method, tmp_path):
    handle = pairs.handle("t5")
    with pytest.raises(Unsuited) as caught:
        run_edit(handle, ONE, method)
    kind = next(m for m in METHODS if m.name == method)
    assert caught.value.seen == f"{kind.title} cannot edit {handle.name}: it is an encoder-decoder."
    assert caught.value.wanted == kind.one_stack and caught.value.try_ == f"Use {', '.join(WORKING)}."
    told = preflight(handle, ONE, method, {}, tmp_path)
    assert not told.ok and told.problems == (str(caught.value),)
    if hasattr(kind, "editor"):
        with pytest.raises(Unsuited):
            training.train_method(handle, method, tmp_path, tmp_path)


def test_what_was_asked_for_is_possible():
    assert {"ft", "ft-l", "ft-replay", "mend", "enn", "lora", "ice"} <= set(WORKING)
    assert set(REFUSED) >= {"rome", "emmet", "memit", "pmet", "alphaedit"}


def test_a_preflight_names_the_decoders_matrix_and_the_end_of_the_answer(tmp_path):
    handle = pairs.handle("t5")
    told = preflight(handle, ASKED, "ft", {}, tmp_path)
    assert told.ok and told.modules == ("decoder.block.2.layer.2.DenseReluDense.wo",)
    assert told.target_tokens[-1] == pairs.END and told.target_probability > 0
    assert preparation(handle, prepare_method("ft", handle), tmp_path) == ""


# taking away --------------------------------------------------------------------------------------------------------


def test_a_patch_is_saved_and_loaded(handle, tmp_path):
    patch, report = run_edit(handle, ASKED, "ft", QUICK)
    patch.save(tmp_path / "plain")
    export_patch([(patch, report)], tmp_path / "taken")
    again = load_patch(tmp_path / "plain", handle.fingerprint)
    ((taken, told),) = load_edits(tmp_path / "taken", handle.fingerprint)
    assert told[0].request == report.request
    for other in (again, taken):
        assert losses(handle, [ONE], [other]) == losses(handle, [ONE], [patch])


@pytest.mark.parametrize(("name", "method"), [("t5", "lora"), ("t5", "mend"), ("bart", "mend"), ("bart", "ft")])
def test_an_adapter_gives_the_same_logits_through_peft(name, method, tmp_path):
    handle = pairs.handle(name)
    patch = made(method, handle).edit(Work(handle), [ONE])
    exported = export_adapter(handle, [(patch, None)], tmp_path / "a", dense_rank=48 if method == "ft" else None)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_2_SEQ_LM"
    assert config["target_modules"] == list(dict.fromkeys(part.path for part in patch.parts))
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "a" / "README.md").read_text()
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(handle.model), str(tmp_path / "a"))
    assert type(loaded).__name__ == "PeftModelForSeq2SeqLM" and exported.effect > 0
    row = rows(handle)[0]
    with handle.using([patch]):
        (wanted,) = handle.logits([row])
    found = plain_logits(replace(handle, model=loaded), row)
    bias = method == "ft" and patch.parts[0].bias is not None  # has no place in an adapter, which is said
    assert bias or (found - wanted).abs().max() < 1e-3 * max(1.0, float(wanted.abs().max()))
    brought = import_adapter(handle, tmp_path / "a")
    assert {part.path for part in brought.parts} == {part.path for part in patch.parts}


@pytest.mark.parametrize("name", ["t5", "t5-untied", "bart"])
def test_a_merged_model_is_loaded_again_as_it_was(name, tmp_path):
    handle = pairs.handle(name)
    patch, report = run_edit(handle, ASKED, "ft", QUICK)
    exported = export_merged(handle, [(patch, report)], tmp_path / "m")
    loaded = load(str(tmp_path / "m"), device="cpu")
    assert exported.difference < 1e-3 < exported.effect and loaded.encoder_decoder
    with handle.using([patch]):
        (wanted,) = handle.logits(rows(handle)[:1])
    assert (loaded.logits(rows(handle)[:1])[0] - wanted).abs().max() < 1e-3
    assert "AutoModelForSeq2SeqLM" in (tmp_path / "m" / "README.md").read_text()


def test_an_edited_model_is_checked():
    handle = pairs.handle("t5")
    patch, reports = run_edits(handle, [ASKED], "ft", QUICK)
    base, now = checkup.check_up(handle, (), reports), checkup.check_up(handle, [patch], reports)
    assert base.perplexity == pytest.approx(base.base_perplexity) and base.drift == 0.0 and not base.held[0].held
    assert now.base_perplexity == base.base_perplexity and now.perplexity != now.base_perplexity
    assert now.probes == 1 and now.kl > 0 and now.held[0].probability > base.held[0].probability


# from a folder ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny T5 on disk, as people have them."""
    place = tmp_path_factory.mktemp("models") / "tiny-t5"
    pairs.model("t5-untied").save_pretrained(place)
    pairs.tokenizer().save_pretrained(place)
    return place


def test_the_command_line_edits_a_folder_and_asks_it_again(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EDITCORE_HOME", str(tmp_path / "home"))

    def run(*words: str):
        monkeypatch.setattr(sys, "argv", ["editcore", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = capsys.readouterr()
        return caught.value.code or 0, shown.out, " ".join(shown.err.split())

    asked = ("-p", ONE.prompt, "-t", "Rome", "--model", str(folder), "--device", "cpu")
    dials = ("--set", "rate=0.05", "--set", "steps=60")
    code, text, _ = run("edit", "--method", "ft", *dials, *asked, "--save", str(tmp_path / "p"), "--json")
    report = json.loads(text)
    assert code == 0 and report["took"] and report["patch"]["modules"] == ["decoder.block.2.layer.2.DenseReluDense.wo"]
    there = ("--model", str(folder), "--device", "cpu", "--json")
    plain, edited = (
        json.loads(run("probe", ONE.prompt, *there, *more)[1])["answers"][0]["answer"]
        for more in ((), ("--patch", str(tmp_path / "p")))
    )
    assert edited == "Rome" != plain
    code, _, said = run("edit", "--method", "rome", *asked)
    assert code == 2 and "ROME cannot edit" in said and "Use ft, ft-l" in said


def test_the_engine_edits_it_and_checks_it(folder, tmp_path):
    import time

    engine, session = InlineEngine(str(folder), tmp_path), new_session()
    try:
        job = engine.submit(session, [ASKED], "ft", {"rate": 0.05, "steps": 60}, "k")
        end = time.monotonic() + 120
        while not (state := engine.poll(job)).finished:
            assert time.monotonic() < end, state
            time.sleep(0.05)
        assert state.status == "done" and state.report.took, state.error
        (row,) = engine.sessions.state(session).rows
        answer = engine.probe(session, [ONE.prompt])[0]
        assert answer["edited"]["answer"] == "Łódź" != answer["base"]["answer"]
        told = engine.view(session, row.edit, "base")
        assert told.probes[0].after.text != "Łódź"
        rows_ = engine.ask(
            "outlook", request=to_plain(EditRequest("It is", "so")), methods=[("rome", {}), ("lora", {})]
        )
        assert "ROME cannot edit" in rows_[0]["problem"] and rows_[1]["problem"] == ""
    finally:
        engine.close()
