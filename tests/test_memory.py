"""What is remembered beside the model: each row is decided at its own prompt, held, and gone with its patch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from editcore import measure
from editcore.edit import run_edit
from editcore.errors import BadRequest, PatchError
from editcore.memory import Codebook, Header, Shelf, Side
from editcore.methods import Work, prepare_method
from editcore.methods.grace import SAME, Entry, number_of, place
from editcore.patch import Patch, attached, load_patch
from editcore.prompts import being_read
from editcore.records import EditRequest, Probe
from editcore.spans import Row
from tests import models

FAMILIES = ("gpt2", "llama", "gemma2", "opt-post-norm", "bloom")
LAYER = 1
IDS = torch.randint(1, models.VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(5)).tolist()
# Prompts of many lengths, with and without an answer; a memory knows the first two.
ROWS = (
    Row(tuple(IDS[0][:9]), 6), Row(tuple(IDS[1][:5]), 5), Row(tuple(IDS[2][:24]), 20), Row(tuple(IDS[3][:3]), 1),
    Row(tuple(IDS[4][:12]), 11),
)  # fmt: skip
ONE = EditRequest("The capital of Poland is", "Łódź", subject="Poland")
LEARN = {"layer": LAYER, "start": "warm", "rate": 0.1, "steps": 12, "radius": 0.05, "relative": True}


def inputs(handle, row):
    """The site's input at every token of the row, one plain pass [tokens, d_in]."""
    seen = {}
    site = handle.anatomy.site(LAYER)
    hook = site.module.register_forward_hook(lambda _m, args, _out: seen.update(x=args[0]))
    handle.model(input_ids=torch.tensor([row.ids]), use_cache=False)
    hook.remove()
    return seen["x"].reshape(len(row.ids), -1).float()


def whole(handle, *parts, strength=1.0):
    return Patch(parts, handle.name, handle.fingerprint, "test", strength=strength)


def codebook(handle, known=ROWS[:2], span=1, radius=1e-3, narrowed=()):
    site, made = handle.anatomy.site(LAYER), torch.Generator().manual_seed(1)
    return Codebook(
        site.path,
        torch.stack([inputs(handle, row)[row.start - 1] for row in known]),
        3 * torch.randn(len(known), site.d_out, generator=made),
        torch.full((len(known),), radius),
        torch.full((len(known),), span),
        torch.arange(len(known)),
        torch.stack(list(narrowed)) if narrowed else torch.zeros(0, site.d_in),
        torch.full((len(narrowed),), radius / 10),
    )


def side(handle, known=ROWS[0], share=0.5, seed=0):
    """A side matrix that the prompt of `known` excites just enough."""
    site, made = handle.anatomy.site(LAYER), torch.Generator().manual_seed(seed)
    size = site.d_in * site.d_out
    index = torch.randperm(size, generator=made)[: int(share * size)].sort().values.int()
    part = Side(site.path, index, torch.randn(len(index), generator=made), torch.zeros(1), torch.tensor([0]))
    found = inputs(handle, known)[: known.start] @ part.delta(site.d_in, site.d_out).T
    return replace(part, threshold=found.norm(dim=-1).mean()[None] * 0.999)


def alone(handle, patches, rows=ROWS):
    with handle.using(patches):
        return [handle.logits([row])[0] for row in rows]


def by_hand(handle, row, change):
    """Logits of one row with the site's output changed by change(x, y), both [tokens, width]."""
    site = handle.anatomy.site(LAYER)

    def put(_m, args, out):
        wide = (len(row.ids), -1)
        return change(args[0].reshape(wide), out.reshape(wide)).reshape(out.shape)

    hook = site.module.register_forward_hook(put)
    logits = handle.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
    hook.remove()
    return logits[row.start - 1 : len(row.ids) - 1] if row.answer else logits[-1:]


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("span", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_codebook_puts_its_value_at_the_end_of_a_prompt_it_knows(family, span, strength):
    handle = models.handle(family)
    book, base = codebook(handle, span=span), alone(handle, ())
    found = alone(handle, [whole(handle, book, strength=strength)])
    for i, row in enumerate(ROWS):
        if i >= 2:
            assert torch.equal(found[i], base[i])
            continue

        def put(_x, y, i=i, row=row):
            y = y.clone()
            at = slice(row.start - 1, row.start - 1 + span)
            y[at] = torch.lerp(y[at], book.values[i], strength)
            return y

        assert (found[i] - by_hand(handle, row, put)).abs().max() < 1e-4
        assert (found[i] - base[i]).abs().max() > 0.05


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_side_matrix_adds_to_prompt_and_answer_of_the_rows_it_takes(family, strength):
    handle = models.handle(family)
    part, base = side(handle), alone(handle, ())
    found, taken = alone(handle, [whole(handle, part, strength=strength)]), 0
    delta = part.delta(*inputs(handle, ROWS[0]).shape[1:], models.WIDTH)
    for row, now, before in zip(ROWS, found, base, strict=True):
        excited = (inputs(handle, row)[: row.start] @ delta.T).norm(dim=-1).mean()
        if excited < part.threshold:
            assert torch.equal(now, before)
            continue
        taken += 1
        assert (now - by_hand(handle, row, lambda x, y: y + strength * (x @ delta.T))).abs().max() < 2e-4
    assert 0 < taken < len(ROWS)


def test_a_prompt_goes_to_the_side_it_excites_most():
    handle = models.handle("gpt2")
    one, two = side(handle), side(handle, seed=3)
    two = replace(two, threshold=two.threshold / 2)
    together = alone(handle, [whole(handle, one), whole(handle, two)], ROWS[:1])[0]
    assert torch.equal(together, alone(handle, [whole(handle, two)], ROWS[:1])[0])
    assert not torch.equal(together, alone(handle, [whole(handle, one)], ROWS[:1])[0])


def parts(handle):
    return {"codebook": codebook(handle, span=2), "side": side(handle)}


@pytest.mark.parametrize("kind", ["codebook", "side"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_else_is_in_the_batch_decides_nothing(family, kind):
    handle = models.handle(family)
    patches = [whole(handle, parts(handle)[kind])]
    with handle.using(patches):
        for together, single in zip(handle.logits(ROWS), alone(handle, ()), strict=True):
            assert (together - single).abs().max() < 2e-4
        prompts = [row.ids[: row.start] for row in ROWS]
        assert handle.generate(prompts, 6) == [handle.generate([p], 6)[0] for p in prompts]


@pytest.mark.parametrize("kind", ["codebook", "side"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_decided_at_the_prompt_holds_while_the_answer_is_written(family, kind):
    handle = models.handle(family)
    prompt, changed = ROWS[0].ids[: ROWS[0].start], []
    for patches in ([], [whole(handle, parts(handle)[kind])]):
        with handle.using(patches):
            text, ids = handle.generate([prompt], 5)[0], list(prompt)
            for _ in range(5):  # each token read off a whole pass in which the rest is answer
                row = Row((*ids, 1), len(prompt))
                ids.append(int(handle.logits([row])[0][-1].argmax()))
        assert 0 not in ids[len(prompt) :], "the end marker would stop generation"
        assert text == handle.tokenizer.decode(ids[len(prompt) :])
        changed.append(text)
    assert changed[0] != changed[1]


@pytest.mark.parametrize("kind", ["codebook", "side"])
def test_without_a_prompt_a_memory_is_silent(kind):
    handle = models.handle("llama")
    ids = torch.tensor([ROWS[0].ids])
    base = handle.model(input_ids=ids).logits
    with handle.using([whole(handle, parts(handle)[kind])]):
        assert torch.equal(handle.model(input_ids=ids).logits, base)
        assert being_read() is None


@pytest.mark.parametrize("kind", ["codebook", "side"])
def test_strength_zero_is_the_base_bit_by_bit(kind):
    handle = models.handle("gpt2")
    base = alone(handle, ())
    for now, before in zip(alone(handle, [whole(handle, parts(handle)[kind], strength=0.0)]), base, strict=True):
        assert torch.equal(now, before)


def test_wrong_shapes_are_refused():
    handle = models.handle("gpt2")
    book, part = codebook(handle), side(handle)
    wrong = [
        *(replace(book, **{name: getattr(book, name)[:1]}) for name in ("keys", "values", "spans", "answers")),
        replace(book, keys=book.keys[:, 1:]), replace(book, values=book.values[:, 1:]),
        replace(book, narrowed=torch.zeros(1, 3)), replace(part, values=part.values[1:]),
        replace(part, threshold=torch.zeros(2)),
    ]  # fmt: skip
    for piece in wrong:
        with pytest.raises(PatchError, match="shape"), attached(handle.model, [whole(handle, piece)]):
            pass
    for index in (part.index - 1_000_000, part.index + 1_000_000):
        with (
            pytest.raises(PatchError, match="outside"),
            attached(handle.model, [whole(handle, replace(part, index=index))]),
        ):
            pass
    assert not any(m._forward_hooks for m in handle.model.modules())


def test_every_part_survives_the_disk_and_weighs_what_it_holds(tmp_path):
    handle = models.handle("gpt2")
    site = handle.anatomy.site(LAYER)
    key = inputs(handle, ROWS[3])[0]
    pieces = (codebook(handle), codebook(handle, narrowed=[key]), side(handle), Header.of("Ł is ö.\n"))
    patch = whole(handle, *pieces)
    patch.save(tmp_path / "memory")
    found = load_patch(tmp_path / "memory", handle.fingerprint, handle.device)
    for mine, theirs in zip(patch.parts, found.parts, strict=True):
        assert type(mine) is type(theirs) and mine.path == theirs.path and set(mine.tensors) == set(theirs.tensors)
        for name, tensor in mine.tensors.items():
            assert tensor.dtype == theirs.tensors[name].dtype and torch.equal(tensor, theirs.tensors[name])
    assert str(found.parts[3]) == "Ł is ö.\n"
    info = whole(handle, pieces[0]).info(handle.model)
    assert (info.rank, info.norm, info.relative_norm, info.modules) == (0, 0.0, 0.0, (site.path,))
    assert info.bytes == 2 * (4 * (site.d_in + site.d_out + 1) + 16)
    info = whole(handle, pieces[2]).info(handle.model)
    assert info.rank is None and info.norm == pytest.approx(float(pieces[2].delta(site.d_in, site.d_out).norm()))
    info = whole(handle, pieces[3]).info(handle.model)
    assert (info.rank, info.norm, info.relative_norm, info.modules, info.bytes) == (0, 0.0, 0.0, (), 10)


# What is there: (key, radius, answer, below); what comes: (key, answer), radius 1.
# What is there afterwards, in order: (key, radius, answer, own); and the key of the entry that answers.
PLACES = {
    "nothing there: add": ([], (0.0, 1), [(0.0, 1.0, 1, True)], 0.0),
    "far away: add": ([(0.0, 1.0, 1, True)], (2.1, 1), [(0.0, 1.0, 1, False), (2.1, 1.0, 1, True)], 2.1),
    "just in reach, same answer: expand": ([(0.0, 1.0, 1, False)], (2.0, 1), [(0.0, 2.0, 1, True)], 0.0),
    "inside, same answer: as it was": ([(0.0, 1.0, 1, False)], (0.5, 1), [(0.0, 1.0, 1, True)], 0.0),
    "same answer, below: a copy is expanded": ([(0.0, 1.0, 1, True)], (1.5, 1), [(0.0, 1.5, 1, True)], 0.0),
    "another answer: split": ([(0.0, 1.0, 1, False)], (1.5, 2), [(0.0, 0.75, 1, True), (1.5, 0.75, 2, True)], 1.5),
    "another answer, below: split": (
        [(0.0, 1.0, 1, True)], (1.5, 2), [(0.0, 0.75, 1, False), (1.5, 0.75, 2, True)], 1.5,
    ),
    "a narrow one is not widened by a split": (
        [(0.0, 0.2, 1, True)], (1.1, 2), [(0.0, 0.2, 1, False), (1.1, 0.55, 2, True)], 1.1,
    ),
    "only the nearest counts": (
        [(0.0, 1.0, 1, False), (2.0, 1.0, 2, False)], (1.6, 2), [(0.0, 1.0, 1, True), (2.0, 1.0, 2, True)], 2.0,
    ),
    "the same prompt again, another answer": ([(1.0, 1.0, 1, True)], (1.0 + SAME / 2, 2), [(1.0, 1.0, 2, True)], 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_where_entries_meet(name):
    there, (at, answer), wanted, answers_at = PLACES[name]

    def entry(key, radius, number, below=False):
        return Entry(torch.tensor([float(key), 0.0]), torch.zeros(3), radius, 1, number, below)

    entries = [entry(*row) for row in there]
    given = [(e.key.clone(), e) for e in entries]
    found = place(entries, entry(at, 1.0, answer))
    assert [(float(e.key[0]), pytest.approx(e.radius), e.answer, not e.below) for e in entries] == [
        (pytest.approx(key), radius, number, own) for key, radius, number, own in wanted
    ]
    assert float(found.key[0]) == pytest.approx(answers_at) and found.answer == answer and not found.below
    assert all(e.narrowed == (e.radius < 1.0) for e in entries if e.below and e.radius != 0.2)
    assert all(torch.equal(key, e.key) for key, e in given)


def test_one_prompt_with_two_new_answers_is_refused():
    handle = models.handle("gpt2")
    with pytest.raises(BadRequest, match="different answers"):
        prepare_method("grace", handle, LEARN).edit(Work(handle), [ONE, replace(ONE, target="Rome")])


def test_the_top_codebook_counts_where_keys_are_equal_and_narrows_those_below():
    handle = models.handle("gpt2")
    low = codebook(handle, radius=1.0)
    top = replace(codebook(handle, ROWS[1:3], radius=2.0, narrowed=[low.keys[0]]), answers=torch.tensor([7, 8]))
    shelf = Shelf([(low, 1.0), (top, 0.5)])
    assert shelf.entries["answers"].tolist() == [0, 7, 8]
    assert shelf.entries["radii"].tolist() == pytest.approx([0.2, 2.0, 2.0])
    assert shelf.entries["strengths"].tolist() == [1.0, 0.5, 0.5]
    assert Shelf([(low, 1.0), (top, 0.0)]).entries["radii"].tolist() == [1.0, 1.0]
    assert Shelf([(top, 1.0)]).size == 2 and Shelf([]).size == 0


def believes(handle, patches, request):
    with handle.using(patches):
        row = handle.row(request.prompt, request.target)
        return float(torch.log_softmax(handle.logits([row])[0], -1).gather(1, torch.tensor(row.answer)[:, None]).sum())


@pytest.mark.parametrize("order", ["in one edit", "one after the other"])
def test_grace_narrows_in_the_new_patch_only_and_either_patch_can_go(order):
    handle = models.handle("llama")
    method = prepare_method("grace", handle, {**LEARN, "radius": 1.0, "hold": True})
    two = replace(ONE, prompt="The capital of Poland, they say, is", target="Rome")
    if order == "in one edit":
        (part,) = method.edit(Work(handle), [ONE, two]).parts
        assert float(part.radii[0]) == float(part.radii[1]) == float((part.keys[0] - part.keys[1]).norm()) / 2
        assert not len(part.limits)
        return
    first = method.edit(Work(handle), [ONE])
    kept = {name: tensor.clone() for name, tensor in first.parts[0].tensors.items()}
    with handle.using([first]):
        second = method.edit(Work(handle, patches=[first]), [two])
    low, top = first.parts[0], second.parts[0]
    distance = float((low.keys[0] - top.keys[0]).norm())
    assert all(torch.equal(tensor, low.tensors[name]) for name, tensor in kept.items())
    assert torch.equal(top.narrowed, low.keys) and len(top.keys) == 1
    assert (
        float(low.radii[0]) > distance / 2 == pytest.approx(float(top.limits[0])) == pytest.approx(float(top.radii[0]))
    )
    for request in (ONE, two):
        own = first if request is ONE else second
        both = believes(handle, [first, second], request)
        assert both == pytest.approx(believes(handle, [own], request), abs=1e-4)
        assert both > believes(handle, [], request)
    assert Shelf([(low, 1.0)]).entries["radii"].tolist() == low.radii.tolist()


def test_the_same_answer_to_a_prompt_nearby_is_kept_in_a_wider_copy():
    handle = models.handle("llama")
    method = prepare_method("grace", handle, {**LEARN, "radius": 1.0})
    near = replace(ONE, prompt="The capital of Poland, they say, is")
    first = method.edit(Work(handle), [ONE])
    with handle.using([first]):
        second = method.edit(Work(handle), [near])
    low, top = first.parts[0], second.parts[0]
    assert torch.equal(low.keys, top.keys) and not len(top.limits) and float(top.radii[0]) >= float(low.radii[0])
    assert believes(handle, [second], near) > believes(handle, [], near)
    (both,) = method.edit(Work(handle), [ONE, near]).parts
    assert len(both.keys) == 1


def test_another_prompt_is_not_recognised_and_nothing_moves():
    handle = models.handle("gemma2")
    patch = prepare_method("grace", handle, LEARN).edit(Work(handle), [ONE])
    far = [handle.row("Messi plays for", "Rome"), handle.row("In France, people live in")]
    for now, before in zip(alone(handle, [patch], far), alone(handle, (), far), strict=True):
        assert torch.equal(now, before)


def test_numbers_stand_for_answers():
    assert number_of("Rome") == number_of(" Rome ") != number_of("rome") and 0 <= number_of("Łódź") < 2**63


@pytest.mark.parametrize("kind", ["codebook", "side"])
@pytest.mark.parametrize("layer", [0, 2])
def test_an_edit_beside_a_memory_descends_on_the_model_as_it_then_answers(kind, layer):
    handle, heard = models.handle("llama"), []
    row = handle.row(ONE.prompt, ONE.target)
    made = {"codebook": lambda: codebook(handle, [row]), "side": lambda: side(handle, row)}
    patch = whole(handle, made[kind]())
    with handle.using([patch]):
        method = prepare_method("ft", handle, {"layer": layer, "steps": 1})
        method.edit(Work(handle, heard.append, patches=[patch]), [ONE])
    wanted = -believes(handle, [patch], ONE) / len(row.answer)
    assert heard[0].loss == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted + believes(handle, [], ONE) / len(row.answer)) > 1e-3


@pytest.mark.parametrize("form", ["prompt", "sentence"])
@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_a_header_reads_like_the_same_text_typed_by_hand(form, bos):
    handle = models.handle("llama", bos)
    patch = prepare_method("ice", handle, {"form": form}).edit(Work(handle), [ONE, replace(ONE, target="D.C.")])
    typed = {
        "prompt": f"New Fact: {ONE.prompt} Łódź\nNew Fact: {ONE.prompt} D.C.\nPrompt: ",
        "sentence": f"New fact: {ONE.prompt} Łódź. New fact: {ONE.prompt} D.C. ",
    }[form]
    assert str(patch.parts[0]) == typed
    prompts = ("Messi plays for", ONE.prompt)

    def read(front, patches):
        probes = [Probe("far", front + p) for p in prompts]
        return measure.read(handle, probes, "Łódź", ["Rome"] * len(prompts), patches)

    for mine, wanted in zip(read("", [patch]), read(typed, ()), strict=True):
        assert torch.equal(mine.next, wanted.next) and mine.reading == wanted.reading
    assert read("", [patch.scaled(0.0)])[0].reading == read("", ())[0].reading
    with handle.using([patch]):
        assert handle.row(ONE.prompt, "Rome", "Poland").ids == handle.row(ONE.prompt, "Rome").ids
        row = handle.row(ONE.prompt, "Rome", "Poland")
        assert handle.tokenizer.decode(row.ids[: row.subject + 1]).endswith(f"{typed}The capital of Poland")
    assert handle.header == ""


def test_headers_stand_one_behind_the_other():
    handle = models.handle("gpt2")
    made = [
        prepare_method("ice", handle, {"form": "sentence"}).edit(Work(handle), [replace(ONE, target=target)])
        for target in ("Łódź", "Rome")
    ]
    with handle.using(made):
        assert handle.header == f"New fact: {ONE.prompt} Łódź. New fact: {ONE.prompt} Rome. "


def test_a_header_that_leaves_no_room_is_refused_with_its_length():
    handle = models.handle("gpt2")
    long = EditRequest("is" + " is" * 120, "it")
    with pytest.raises(BadRequest, match=r"text in front takes 1..\."):
        prepare_method("ice", handle).edit(Work(handle), [long])
    with pytest.raises(BadRequest, match="in front of them"):
        run_edit(handle, replace(ONE, probes=(Probe("far", "is" + " is" * 240),)), "ice")
    assert handle.header == "" and handle.standing == ()


def test_the_report_says_what_the_header_costs():
    handle = models.handle("gpt2")
    patch, report = run_edit(handle, ONE, "ice")
    tokens = len(handle.tokenizer(str(patch.parts[0]))["input_ids"])
    assert any(f"{tokens} of the 256 tokens" in w for w in report.warnings)
    assert report.patch.modules == () and report.patch.bytes == len(str(patch.parts[0]).encode())


def sided(handle, heard=None, requests=(ONE,), **values):
    settings = {"layer": LAYER, "contexts": 1, "others": 4, "relative": True, "alpha": 0.1, "beta": 0.2, "gamma": 0.1}
    method = prepare_method("wise", handle, {**settings, "steps": 6, **values})
    return method.edit(Work(handle, heard.append if heard is not None else lambda p: None), requests)


@pytest.mark.parametrize("window", [0, 1, 3])
def test_wise_sets_its_gate_by_the_least_excited_edited_prompt(window):
    handle = models.handle("llama")
    two = replace(ONE, prompt="In France, people live in", target="Rome")
    (part,) = sided(handle, requests=(ONE, two), window=window, ratio=0.8).parts
    site = handle.anatomy.site(LAYER)
    found = []
    for request in (ONE, two):
        row = handle.row(request.prompt)
        moved = (inputs(handle, row) @ part.delta(site.d_in, site.d_out).T).norm(dim=-1)
        found.append(float(moved[-window:].mean()))
    assert float(part.threshold) == pytest.approx(0.8 * min(found), rel=1e-4)
    assert all(believes(handle, [Patch((part,), "x", "x", "x")], r) != believes(handle, [], r) for r in (ONE, two))


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_wise_moves_no_more_entries_and_no_further_than_it_is_told(share):
    handle = models.handle("gemma2")
    site = handle.anatomy.site(LAYER)
    (part,) = sided(handle, share=share, limit=0.01, rate=10.0).parts
    assert len(part.index) == round(share * site.d_in * site.d_out) == len(set(part.index.tolist()))
    assert float(part.values.abs().max()) == pytest.approx(0.01)
    other = sided(handle, share=share, seed=1).parts[0]
    assert torch.equal(other.index, part.index) == (share == 1.0)


def test_wise_keeps_the_margins_it_is_given():
    handle = models.handle("llama")
    site = handle.anatomy.site(LAYER)
    heard = []
    (part,) = sided(
        handle, heard, steps=300, share=1.0, rate=0.05, relative=False, alpha=1.0, beta=2.0, gamma=0.5, ratio=1.0,
        contexts=0, enough=10.0,
    ).parts  # fmt: skip
    assert len([p for p in heard if p.stage == "edit"]) < 300  # it stops once they hold
    assert float(part.threshold) >= 2.0 - 1e-4
    row = handle.row(ONE.prompt)
    moved = (inputs(handle, row) @ part.delta(site.d_in, site.d_out).T).norm(dim=-1)
    assert float(moved.mean()) == pytest.approx(float(part.threshold), rel=1e-4)


@pytest.mark.parametrize("name", ["rome", "ft"])
def test_an_edit_behind_a_header_is_made_on_what_the_model_then_reads(name):
    handle, heard = models.handle("gpt2"), []
    patch = prepare_method("ice", handle, {"form": "sentence"}).edit(Work(handle), [replace(ONE, target="Rome")])
    dials = {"layer": LAYER, "steps": 1} | ({"contexts": 0, "covariance": False} if name == "rome" else {})
    with handle.using([patch]):
        prepare_method(name, handle, dials).edit(Work(handle, heard.append), [ONE])
        spaced, header = handle.row(ONE.prompt, spaced=True), handle.header
    tokens = len(handle.row(ONE.prompt, ONE.target).answer)
    assert heard[0].loss == pytest.approx(-believes(handle, [patch], ONE) / tokens, abs=1e-4)
    assert abs(heard[0].loss + believes(handle, [], ONE) / tokens) > 1e-3
    assert handle.tokenizer.decode(spaced.ids) == f" {header}{ONE.prompt}"
