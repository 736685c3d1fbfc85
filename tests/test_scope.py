"""SERAC: each row is routed at its own prompt, answered by the counterfactual model, and gone with its patch."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from editcore import learned, spans, training
from editcore.edit import run_edit
from editcore.errors import BadSetting, PatchError, WrongModel
from editcore.learned import Example
from editcore.methods import Work, prepare_method
from editcore.methods.serac import SERACEditor, _made_up, laid_out
from editcore.patch import Patch, attached, load_patch
from editcore.records import EditRequest, Probe
from editcore.scope import OWN, EditMemory, Network, Pair, log_odds, look
from editcore.spans import Row
from tests import models
from tests.schooled import school

FAMILIES = ("gpt2", "llama", "gemma2", "opt-post-norm", "bloom")
LAYER = 2
IDS = torch.randint(1, models.VOCABULARY, (7, 24), generator=torch.Generator().manual_seed(5)).tolist()
# Prompts of many lengths, with and without an answer; a memory knows the first two.
ROWS = (
    Row(tuple(IDS[0][:9]), 6), Row(tuple(IDS[1][:5]), 5), Row(tuple(IDS[2][:24]), 20), Row(tuple(IDS[3][:3]), 1),
    Row(tuple(IDS[4][:12]), 11),
)  # fmt: skip
EDITS = (Row((*ROWS[0].ids[:6], *IDS[5][:3]), 6), Row((*ROWS[1].ids[:5], *IDS[6][:2]), 5))
ONE = EditRequest("The capital of Poland is", "Łódź", subject="Poland")


def network(seed=0):
    """A random one that tells any two prompts apart."""
    made, drawn = Network(models.WIDTH, 16, 8, 16), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=drawn)
    made.classifier.std.data.fill_(1.0)
    made.classifier.outer.weight.data *= 100
    return Network.of(made.sizes, made.flat())


def key(handle, net, row):
    block, seen = handle.anatomy.blocks[LAYER], {}
    hook = block.register_forward_hook(lambda _m, _a, out: seen.update(h=out[0] if isinstance(out, tuple) else out))
    handle.model(input_ids=torch.tensor([row.ids[: row.start]]), use_cache=False)
    hook.remove()
    return net.classifier(look(seen["h"].reshape(1, row.start, -1), torch.ones(1, row.start, dtype=torch.bool)))


def memory(handle, net, edits=EDITS, threshold=0.5):
    ids, lengths = laid_out(edits)
    return EditMemory(
        f"{handle.anatomy.path}.{LAYER}", torch.cat([key(handle, net, row) for row in edits]), ids.int(), lengths,
        torch.tensor([threshold]), torch.tensor(net.sizes), net.flat(),
    )  # fmt: skip


def whole(handle, part, strength=1.0):
    return Patch((part,), handle.name, handle.fingerprint, "test", strength=strength)


def alone(handle, patches, rows=ROWS):
    with handle.using(patches):
        return [handle.logits([row])[0] for row in rows]


def by_hand(handle, net, row, edit, strength=1.0):
    """Logits of one row with the last block's output replaced where the edit answers."""
    ids, lengths = laid_out([edit])
    own, last = torch.tensor([row.ids]), torch.tensor([row.start - 1])
    tables = (handle.model.get_input_embeddings().weight, handle.model.get_output_embeddings().weight)
    said = net.counterfactual(Pair.of(ids, lengths, own, torch.tensor([0]), last), *tables)[0]

    def put(_m, _args, out):
        wide = (out[0] if isinstance(out, tuple) else out).clone()
        flat = wide.reshape(len(row.ids), -1)
        here = slice(row.start - 1, row.start - 1 + len(edit.answer))
        flat[here] = torch.lerp(flat[here], said[here], strength)
        return (wide, *out[1:]) if isinstance(out, tuple) else wide

    hook = handle.anatomy.blocks[-1].register_forward_hook(put)
    logits = handle.model(input_ids=own, use_cache=False).logits[0].float()
    hook.remove()
    return logits[row.start - 1 : len(row.ids) - 1] if row.answer else logits[-1:]


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_counterfactual_model_answers_what_is_in_scope_and_nothing_else_moves(family, strength):
    handle, net = models.handle(family), network()
    base = alone(handle, ())
    found = alone(handle, [whole(handle, memory(handle, net), strength)])
    for i, row in enumerate(ROWS):
        if i >= len(EDITS):
            assert torch.equal(found[i], base[i])
            continue
        assert (found[i] - by_hand(handle, net, row, EDITS[i], strength)).abs().max() < 1e-4
        assert (found[i] - base[i]).abs().max() > 0.05
    assert all(torch.equal(a, b) for a, b in zip(alone(handle, ()), base, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_else_is_in_the_batch_decides_nothing(family):
    handle = models.handle(family)
    with handle.using([whole(handle, memory(handle, network()))]):
        for together, single in zip(handle.logits(ROWS), alone(handle, ()), strict=True):
            assert (together - single).abs().max() < 2e-4
        prompts = [row.ids[: row.start] for row in ROWS]
        assert handle.generate(prompts, 6) == [handle.generate([p], 6)[0] for p in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_route_is_held_for_as_many_tokens_as_the_answer_has(family):
    handle, net = models.handle(family), network()
    prompt, changed = ROWS[0].ids[:6], []
    for patches in ([], [whole(handle, memory(handle, net))]):
        with handle.using(patches):
            text, ids = handle.generate([prompt], 6)[0], list(prompt)
            for _ in range(6):  # each token read off a whole pass in which the rest is answer
                ids.append(int(handle.logits([Row((*ids, 1), len(prompt))])[0][-1].argmax()))
        assert 0 not in ids[len(prompt) :], "the end marker would stop generation"
        assert text == handle.tokenizer.decode(ids[len(prompt) :])
        changed.append(text)
    assert changed[0] != changed[1]
    long = Row((*ids, 1), len(prompt))
    now, base = (alone(handle, p, [long])[0] for p in ([whole(handle, memory(handle, net))], ()))
    moved = (now - base).abs().amax(-1) > 0
    assert moved.tolist() == [True] * 3 + [False] * 4


def test_padding_decides_nothing():
    net = network()
    edit, lengths = laid_out(EDITS[:1])
    tables = [torch.randn(models.VOCABULARY, models.WIDTH, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    own = torch.tensor([ROWS[0].ids])

    def said(front, own_front, behind):
        texts = Pair.of(
            torch.cat([torch.full((1, front), 7), edit], 1), lengths,
            torch.cat([torch.full((1, own_front), 7), own, torch.full((1, behind), 7)], 1),
            torch.tensor([own_front]), torch.tensor([own_front + 5]),
        )  # fmt: skip
        return net.counterfactual(texts, *tables)[:, own_front : own_front + 9]

    for padding in ((3, 0, 0), (0, 4, 0), (0, 0, 5), (2, 3, 4)):
        assert (said(*padding) - said(0, 0, 0)).abs().max() < 1e-5
    hidden = torch.randn(2, 7, models.WIDTH)
    tokens = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1, 1]]).bool()
    assert torch.allclose(look(hidden, tokens)[:1], look(hidden[:1, 2:5], torch.ones(1, 3).bool()), atol=1e-6)


def test_without_a_prompt_a_memory_is_silent_and_strength_zero_is_the_base():
    handle = models.handle("llama")
    ids, patch = torch.tensor([ROWS[0].ids]), whole(handle, memory(handle, network()))
    base = handle.model(input_ids=ids).logits
    with handle.using([patch]):
        assert torch.equal(handle.model(input_ids=ids).logits, base)
        assert handle.remembers
    off = alone(handle, [patch.scaled(0.0)])
    assert all(torch.equal(a, b) for a, b in zip(off, alone(handle, ()), strict=True))
    assert not any(m._forward_hooks for m in handle.model.modules())


@pytest.mark.parametrize("other", [0, 3], ids=["same networks", "other networks"])
def test_of_several_memories_the_most_probable_edit_answers_and_the_newest_of_equals(other):
    handle, net, second = models.handle("gpt2"), network(), network(other)
    again = Row((*EDITS[0].ids[:6], *IDS[6][5:9]), 6)
    low, top = memory(handle, net), memory(handle, second, [again])
    for order, wanted in (((low, top), (second, again)), ((top, low), (net, EDITS[0]))):
        found = alone(handle, [whole(handle, part) for part in order], ROWS[:2])
        assert (found[0] - by_hand(handle, wanted[0], ROWS[0], wanted[1])).abs().max() < 1e-4
        assert (found[1] - by_hand(handle, net, ROWS[1], EDITS[1])).abs().max() < 1e-4
    nudged = replace(top, keys=top.keys + 0.1)  # newer, but less probable
    found = alone(handle, [whole(handle, low), whole(handle, nudged)], ROWS[:1])
    assert (found[0] - alone(handle, [whole(handle, low)], ROWS[:1])[0]).abs().max() < 1e-4
    off = alone(handle, [whole(handle, low), whole(handle, top, 0.0)], ROWS[:1])
    assert torch.equal(off[0], alone(handle, [whole(handle, low)], ROWS[:1])[0])


def test_an_edit_answers_from_its_threshold_on():
    handle, net = models.handle("gpt2"), network()
    part, base = memory(handle, net), alone(handle, (), ROWS[:1])[0]
    away = replace(part, keys=part.keys + (1.0 / part.keys.shape[1]) ** 0.5)  # squared distance 1
    probability = float(log_odds(part.keys, away.keys)[0, 0].sigmoid())
    assert probability == pytest.approx(float(torch.tensor(OWN - 1).sigmoid()), abs=1e-3)
    for threshold, moves in ((probability - 0.01, True), (probability + 0.01, False)):
        now = alone(handle, [whole(handle, replace(away, threshold=torch.tensor([threshold])))], ROWS[:1])[0]
        assert torch.equal(now, base) != moves


def test_a_memory_survives_the_disk_and_belongs_to_one_model(tmp_path):
    handle = models.handle("gpt2")
    patch = whole(handle, memory(handle, network()))
    patch.save(tmp_path / "memory")
    found = load_patch(tmp_path / "memory", handle.fingerprint, handle.device)
    for name, tensor in patch.parts[0].tensors.items():
        theirs = found.parts[0].tensors[name]
        assert tensor.dtype == theirs.dtype and torch.equal(tensor, theirs)
    assert all(torch.equal(a, b) for a, b in zip(alone(handle, [found]), alone(handle, [patch]), strict=True))
    info = patch.info(handle.model)
    assert (info.rank, info.norm, info.relative_norm, info.modules) == (0, 0.0, 0.0, ())
    assert info.bytes == patch.bytes > 2 * patch.parts[0].network.numel()
    with pytest.raises(WrongModel, match=handle.fingerprint):
        load_patch(tmp_path / "memory", "0123456789abcdef")


def test_what_does_not_fit_the_model_is_refused():
    handle = models.handle("gpt2")
    part = memory(handle, network())
    wrong = (
        (replace(part, path="transformer.h.99"), "no such block"), (replace(part, path="transformer.ln_f"), "no such"),
        (replace(part, keys=part.keys[:, 1:]), "shape"), (replace(part, lengths=part.lengths[:1]), "shape"),
        (replace(part, ids=part.ids[:1]), "shape"), (replace(part, threshold=torch.zeros(2)), "shape"),
        (replace(part, network=part.network[1:]), "numbers"), (replace(part, ids=part.ids + 1000), "vocabulary"),
        (replace(part, lengths=part.lengths + 9), "lengths"),
        (replace(part, sizes=part.sizes + torch.tensor([1, 0, 0, 0])), "wide"),
    )  # fmt: skip
    for piece, said in wrong:
        with pytest.raises(PatchError, match=said), attached(handle.model, [whole(handle, piece)]):
            pass
    assert not any(m._forward_hooks for m in handle.model.modules())


def test_an_edit_is_kept_as_text_and_the_report_says_what_was_recognised():
    handle = models.handle("llama")
    school(handle, "serac")
    request = replace(ONE, paraphrases=(Probe("paraphrase", "Poland's capital is"),), probes=(Probe("far", "Gold is"),))
    patch, report = run_edit(handle, request, "serac")
    (part,) = patch.parts
    row = spans.encode(handle.tokenizer, ONE.prompt, ONE.target)
    assert part.ids.tolist() == [list(row.ids)] and part.lengths.tolist() == [[row.start, len(row.answer)]]
    assert report.patch.modules == ()
    assert any("of 1 paraphrases" in w for w in report.warnings)
    assert any("of 1 unrelated probes" in w for w in report.warnings)
    rows = [handle.row(ONE.prompt, ONE.target)]
    later = replace(ONE, target="Rome")
    both, last = (prepare_method("serac", handle).edit(Work(handle), asked) for asked in ([ONE, later], [later]))
    found = [alone(handle, [patch], [handle.row(later.prompt, later.target)])[0] for patch in (both, last)]
    assert (found[0] - found[1]).abs().max() < 1e-4, "of two answers to one prompt the last counts"
    with handle.using([patch]):  # an edit beside it descends on the model as it then answers
        heard = []
        prepare_method("ft", handle, {"layer": 0, "steps": 1}).edit(Work(handle, heard.append, patches=[patch]), [ONE])
    wanted = torch.nn.functional.cross_entropy(alone(handle, [patch], rows)[0], torch.tensor(rows[0].answer))
    assert heard[0].loss == pytest.approx(float(wanted), abs=1e-4)


def test_training_learns_both_and_teaches_to_repeat_what_was_never_seen():
    handle = models.handle("gpt2")
    editor = SERACEditor([handle.anatomy.site(LAYER)])
    cases = [
        Example(e, (e, Row((9, *e.ids), e.start + 1)), (Row((5, 6, number, 8), 3),)) for number, e in enumerate(EDITS)
    ]
    first = editor.parts(handle, cases)
    optimiser = torch.optim.Adam(editor.groups(3e-3)[0]["params"])
    for _ in range(40):
        optimiser.zero_grad()
        parts = editor.parts(handle, cases)
        (parts.asked + parts.held).backward()
        optimiser.step()
    # The norm and the random head behind it bound how sure of a token it can be made: log 512 - 3 or so.
    assert parts.asked < first.asked - 1.5 and parts.held < 0.1 * first.held and parts.drift == 0
    made = [_made_up(replace(cases[0], held=(Row((5, n, 8), 2),)), models.VOCABULARY) for n in range(40)]
    changed = [m for m in made if m.edit != cases[0].edit]
    assert 10 <= len(changed) <= 30
    assert all(row.answer == m.edit.answer and row.start == o.start for m in changed
               for row, o in zip(m.asked, cases[0].asked, strict=True))  # fmt: skip
    with pytest.raises(BadSetting, match="2 layers"):
        SERACEditor([handle.anatomy.site(0), handle.anatomy.site(1)])


def test_it_is_trained_from_files_and_then_works(tmp_path):
    handle = models.handle.__wrapped__("gpt2")
    edits = tmp_path / "edits.jsonl"
    lines = ({"prompt": f"Town number {i} lies in", "target_new": "Peru", "probes": ["River 7 is"]} for i in range(30))
    edits.write_text("\n".join(map(json.dumps, lines)))
    training.train_method(
        handle, "serac", tmp_path / "work", tmp_path, edits=edits, dials=learned.Dials(steps=4, edits=4, check_every=2)
    )
    handle.home = tmp_path
    patch = prepare_method("serac", handle).edit(Work(handle), [EditRequest("Town number 2 lies in", "Peru")])
    assert patch.parts[0].path == f"transformer.h.{3 * models.LAYERS // 4}"
