"""What the equations of each method say about its result, checked against plain computations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from editcore import algebra, corpus, factors, moments, spans, statistics, subject
from editcore.errors import Diverged
from editcore.methods import Work, prepare_method
from editcore.records import EditRequest
from editcore.subject import sentences
from tests import models

FAMILIES = ("gpt2", "llama", "gemma2")
REQUEST = EditRequest("The capital of Poland, they say, is", "Łódź, in the United Kingdom", subject="Poland")
SHORT = EditRequest("The mayor of Rome is", "it", subject="Rome")
LAYER = 1


def rome(handle, monkeypatch, *, change=lambda value: value, **settings):
    """A ROME patch, what its value search found, and the rows it searched on."""
    found = []
    search = algebra.search_value

    def spy(*args, **kwargs):
        found.append((change(search(*args, **kwargs)), args[2].rows))
        return found[-1][0]

    monkeypatch.setattr(algebra, "search_value", spy)
    values = {"layer": LAYER, "steps": 4, "contexts": 4, **settings}
    work = Work(handle)
    patch = prepare_method("rome", handle, values).edit(work, [REQUEST])
    monkeypatch.setattr(algebra, "search_value", search)
    return patch, *found[0]


def keys_and_values(handle, rows):
    """Input and output of the site at the subject's last token, one plain pass for each row, fp64."""
    keys, values = [], []
    for row in rows:
        seen = {}

        def keep(_m, args, out, seen=seen):
            seen.update(x=args[0], y=out)

        hook = handle.anatomy.site(LAYER).module.register_forward_hook(keep)
        handle.model(input_ids=torch.tensor([row.ids]), use_cache=False)
        hook.remove()
        keys.append(seen["x"][0, row.subject].double())
        values.append(seen["y"][0, row.subject].double())
    return torch.stack(keys), torch.stack(values)


def module(handle, patch, key):
    """The edited matrix applied to a key, fp64."""
    site, (part,) = handle.anatomy.site(LAYER), patch.parts
    bias = site.bias()
    after = (site.weight().double() + part.delta().double()) @ key
    return after if bias is None else after + bias.double()


@pytest.mark.parametrize("bos", [False, True], ids=["plain", "bos"])
def test_the_value_is_searched_behind_every_context_with_the_bare_prompt_first(bos, monkeypatch):
    handle = models.handle("llama", bos)
    _, _, rows = rome(handle, monkeypatch, steps=1)
    bare = spans.encode(handle.tokenizer, REQUEST.prompt, REQUEST.target, REQUEST.subject)
    assert len(rows) == 5 and rows[0] == bare
    for row in rows:
        text = handle.tokenizer.decode(row.ids[bos:])
        assert text.endswith(f"{REQUEST.prompt} {REQUEST.target}") and row.ids[:bos] == bare.ids[:bos]
        assert row.answer == bare.answer
        upto = handle.tokenizer.decode(row.ids[: row.subject + 1])
        assert upto.endswith(REQUEST.subject)
    assert len({row.ids for row in rows}) == 5


@pytest.mark.parametrize("covariance", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_r_rome_maps_the_mean_key_to_the_new_value(family, covariance, monkeypatch):
    handle = models.handle(family)
    patch, value, rows = rome(handle, monkeypatch, covariance=covariance)
    keys, values = keys_and_values(handle, rows)
    wanted = values[0] + value.delta.double()
    assert value.delta.norm() > 0.1
    assert (module(handle, patch, keys.mean(0)) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_r_rome_with_keys_read_at_the_subject_adds_the_delta_at_their_mean(family, monkeypatch):
    handle = models.handle(family)
    patch, value, rows = rome(handle, monkeypatch, key="subject")
    subject = REQUEST.subject
    about = sentences(handle, subject)
    keys, values = keys_and_values(handle, [rows[0], *about])
    assert len({tuple(k.tolist()) for k in keys}) > 5
    assert value.delta.norm() > 0.1
    assert (module(handle, patch, keys.mean(0)) - values.mean(0) - value.delta.double()).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_wide_form_gives_the_subject_the_whole_change_and_other_words_next_to_none(family, monkeypatch):
    handle = models.handle(family)
    patch, value, rows = rome(handle, monkeypatch, form="wide", contexts=0, limit=20.0, decay=0.0)
    keys, wanted = subject.every_key(handle, handle.anatomy.site(LAYER), rows)
    assert wanted.sum() == 1 and len(wanted) > 8
    added = keys @ patch.parts[0].read[0].double()
    assert value.delta.norm() > 0.1 and torch.equal(patch.parts[0].write[0], value.delta)
    assert abs(float(added[wanted > 0]) - 1) < 0.1 and added[wanted == 0].abs().max() < 0.1


def test_fitting_every_key_is_a_ridge_regression():
    keys, wanted, wide = columns(6, 9, 30), columns(7, 9), columns(8, 30, 50)
    second = wide @ wide.T / 50
    moment = statistics.Moment("w", 50, "", factors.factorise(second, 0.0))
    slack = 0.3 * float((keys @ torch.linalg.solve(second, keys.T)).diagonal().mean())
    large = torch.linalg.solve(second + keys.T @ keys / slack, keys.T @ wanted / slack)
    assert (algebra.fit_all(moment.solve, keys, wanted, 0.3) - large).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_original_form_maps_the_bare_key_to_the_new_value(family, monkeypatch):
    handle = models.handle(family)
    patch, value, rows = rome(handle, monkeypatch, form="original")
    keys, values = keys_and_values(handle, rows)
    assert (module(handle, patch, keys[0]) - values[0] - value.delta.double()).abs().max() < 1e-4
    other, _, _ = rome(handle, monkeypatch)
    assert (module(handle, other, keys[0]) - values[0] - value.delta.double()).abs().max() > 1e-3


def test_without_contexts_both_forms_are_one(monkeypatch):
    handle = models.handle("gpt2")
    (one,), (other,) = (rome(handle, monkeypatch, form=f, contexts=0)[0].parts for f in ("r-rome", "original"))
    assert (one.delta() - other.delta()).abs().max() < 1e-6


def test_without_covariance_the_direction_is_the_key(monkeypatch):
    handle = models.handle("gpt2")
    patch, _, rows = rome(handle, monkeypatch, covariance=False)
    mean = keys_and_values(handle, rows)[0].mean(0)
    assert torch.cosine_similarity(patch.parts[0].read[0].double(), mean, dim=0) > 1 - 1e-6


def test_with_covariance_the_direction_is_the_whitened_key(monkeypatch):
    handle = models.handle("gpt2")
    patch, _, rows = rome(handle, monkeypatch, covariance=True)
    site, mean = handle.anatomy.site(LAYER), keys_and_values(handle, rows)[0].mean(0)
    text, limits = corpus.foreign(handle), moments.bounds([site])
    made = moments.estimate(handle, [site], text, limits)[site.path]
    ridge = made.shrinkage * made.second.diagonal().mean() * torch.eye(site.d_in, dtype=torch.float64)
    wanted = torch.linalg.solve(made.second + ridge, mean)
    read = patch.parts[0].read[0].double()
    assert torch.cosine_similarity(read, wanted, dim=0) > 1 - 1e-6
    assert torch.cosine_similarity(read, mean, dim=0) < 0.999


def test_the_original_form_refuses_to_divide_by_almost_nothing(monkeypatch):
    handle = models.handle("gpt2")

    def orthogonal(value):
        bare = value.keys[0]
        other = torch.randn(len(bare), generator=torch.Generator().manual_seed(0))
        other -= (other @ bare) / (bare @ bare) * bare
        return dataclasses.replace(value, keys=torch.stack([bare, 2 * other - bare]))  # whose mean is `other`

    settings = {"change": orthogonal, "contexts": 1, "covariance": False}
    with pytest.raises(Diverged, match="almost nothing"):
        rome(handle, monkeypatch, form="original", **settings)


def test_the_value_keeps_within_its_limit(monkeypatch):
    handle = models.handle("gpt2")
    _, value, _ = rome(handle, monkeypatch, limit=0.1, rate=5.0)
    assert value.delta.norm() <= 0.1 * value.values[0].norm() * (1 + 1e-5)
    assert value.clamped


def columns(seed: int, *shape: int):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_searched_together_are_those_searched_alone(family):
    """Also where one of them is done long before the others."""
    handle = models.handle(family)
    requests = (REQUEST, SHORT, EditRequest("Two and two make", "The", subject="two"))
    wishes = [algebra.Wish(subject.prompts(handle, r, 2), subject.essence(handle, r.subject)) for r in requests]
    losses = []
    dials = algebra.Search(steps=9, rate=0.02, momentum=0.5, decay=0.0, limit=20.0, kl=0.0625, enough=0.0)
    site = handle.anatomy.site(LAYER)
    algebra.search_value(handle, site, wishes[0], dials, lambda step, loss: losses.append(loss))
    dials = dataclasses.replace(dials, enough=(losses[3] + losses[4]) / 2)  # the first is done at step 5
    together = algebra.search_values(handle, site, wishes, dials)
    assert len({value.steps for value in together}) > 1
    for wish, value in zip(wishes, together, strict=True):
        alone = algebra.search_value(handle, site, wish, dials)
        assert alone.steps == value.steps
        assert torch.allclose(alone.delta, value.delta, atol=2e-3 * float(alone.delta.norm()))
        assert torch.allclose(alone.keys, value.keys, atol=1e-5)
        assert torch.allclose(alone.values, value.values, atol=1e-5)


def test_the_small_ridge_solve_is_the_large_one():
    keys, wide = columns(1, 40, 3), columns(2, 40, 60)
    second = wide @ wide.T / 60
    moment = statistics.Moment("w", 60, "", factors.factorise(second, 0.0))
    for weight in (0.01, 5.0):
        large = torch.linalg.solve(weight * second + keys @ keys.T, keys)
        assert (algebra.ridge(moment.solve, keys, weight) - large).abs().max() < 1e-9
    one = algebra.ridge(moment.solve, keys[:, :1], 0.0)  # without slack and for one key: the r-ROME direction
    read, write = algebra.rank_one(moment.solve(keys[:, 0])[:, 0], keys[:, 0], torch.ones(2))
    assert (torch.outer(write, read) - torch.ones(2, 1) @ one.T.float()).abs().max() < 1e-6


@pytest.mark.parametrize("band", [1, 7, 40, 64])
def test_a_factor_in_bands_solves_as_the_square_one_and_holds_what_is_told(monkeypatch, band):
    wide, keys = columns(7, 40, 90), columns(8, 40, 3)
    monkeypatch.setattr(factors, "BAND", band)
    factor = factors.factorise(wide @ wide.T / 90, 0.03)
    second = wide @ wide.T / 90
    second = second + 0.03 * second.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    assert (factor.whole() @ factor.whole().T - second).abs().max() < 1e-12 and len(factor) == 40
    assert (factor.solve(keys) - torch.linalg.solve(second, keys)).abs().max() < 1e-9
    assert sum(t.numel() * t.element_size() for t in factor.bands) == factors.bytes_of_factor(40)
    assert factor.bands[0].untyped_storage().nbytes() == factor.bands[0].nbytes  # no view of the square


def test_the_small_null_space_solve_is_the_large_one_and_keeps_what_is_stored():
    new, old, wide = columns(3, 40, 3), columns(4, 40, 2), columns(5, 40, 12)
    moment = statistics.Moment("w", 12, "", factors.factorise(wide @ wide.T))
    handle = models.handle("gpt2")
    handle.memory.pop(("spectrum", "w"), None)
    unused = statistics.null_space(handle, moment, 1e-1, relative=False)
    assert unused.size == 28  # 40 directions, 12 of them used
    projection = unused.project(torch.eye(40))
    large = torch.linalg.solve(projection @ (new @ new.T + old @ old.T) + 0.5 * torch.eye(40), projection @ new)
    small = algebra.null_space_ridge(unused.project, new, old, 0.5)
    assert (small - large).abs().max() < 1e-9
    assert (small.T @ wide).abs().max() < 1e-9


@pytest.mark.parametrize("relative", [False, True])
def test_how_much_a_moment_is_shrunk_leaves_which_directions_are_free(relative):
    handle, wide = models.handle("gpt2"), columns(6, 40, 80) * torch.logspace(0, -1, 40, dtype=torch.float64)[:, None]
    sizes = []
    for share in (factors.RIDGE, 0.03, 1.0):
        handle.memory.pop(("spectrum", "w"), None)
        moment = statistics.Moment("w", 80, "", factors.factorise(wide @ wide.T / 80, share), share)
        sizes.append([statistics.null_space(handle, moment, cut, relative).size for cut in (0.02, 0.1, 0.3, 0.9)])
    assert sizes[0] == sizes[1] == sizes[2] and 0 < sizes[0][0] < sizes[0][1] < sizes[0][2] < 40


def test_keys_that_cannot_be_told_apart_are_refused():
    moment = statistics.Moment("w", 9, "", factors.factorise(torch.eye(9), 0.0))
    with pytest.raises(Diverged, match="told apart"):
        algebra.ridge(moment.solve, torch.ones(9, 2), 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_emmet_is_memit_in_one_layer(family):
    handle, requests = models.handle(family), (REQUEST, SHORT)
    dials = {"steps": 3, "contexts": 2, "limit": 20.0, "decay": 0.0}
    one = prepare_method("emmet", handle, {**dials, "layer": LAYER, "slack": 0.2, "weight": 3.0})
    other = prepare_method("memit", handle, {**dials, "first": LAYER, "last": LAYER, "weight": 0.2 * 3.0})
    (left,), (right,) = (m.edit(Work(handle), requests).parts for m in (one, other))
    assert left.delta().norm() > 1e-6
    assert (left.delta() - right.delta()).abs().max() < 1e-6 * left.delta().abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layers", [(1, 1), (0, 2)])
def test_memit_reaches_its_values_when_nothing_holds_it_back(family, layers):
    """Without weight on what is stored, the last layer gets all that is missing: the state behind it is z."""
    handle, requests = models.handle(family), (REQUEST, SHORT)
    method = prepare_method("memit", handle, {
        "first": layers[0], "last": layers[1], "weight": 1e-7, "contexts": 0, "steps": 4, "limit": 20.0, "decay": 0.0,
    })  # fmt: skip
    found, search = [], algebra.search_values
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(algebra, "search_values", lambda *a, **k: found.extend(search(*a, **k)) or found)
        patch = method.edit(Work(handle), requests)
    rows = [subject.prompts(handle, r, 0)[0] for r in requests]
    with handle.using([patch]):
        after = subject.outputs(handle, layers[1], rows)
    for value, state in zip(found, after, strict=True):
        assert value.delta.norm() > 0.1
        assert (state - value.values[0] - value.delta).norm() < 0.02 * value.delta.norm()


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("family", ("gptj", *FAMILIES))
def test_pmet_writes_towards_the_matrix_own_value_by_the_root_of_the_layers_left(family, attention):
    """Each layer gets what is missing at the last one, divided so; the last gets all of it and reaches the value."""
    handle, requests = models.handle(family), (REQUEST, SHORT)
    method = prepare_method("pmet", handle, {
        "first": 0, "last": 2, "weight": 1e-7, "contexts": 0, "steps": 4, "limit": 20.0, "decay": 0.0, "kl": 0.1,
        "attention": attention,
    })  # fmt: skip
    found, search = [], algebra.search_values
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(algebra, "search_values", lambda *a, **k: found.extend(search(*a, **k)) or found)
        patch = method.edit(Work(handle), requests)
    rows = [subject.prompts(handle, r, 0)[0] for r in requests]
    wanted = torch.stack([value.values[0] + value.delta for value in found])
    for done, part in enumerate(patch.parts):
        with handle.using([dataclasses.replace(patch, parts=patch.parts[:done])]):
            missing = wanted - subject.outputs(handle, 2, rows, inside=True)
        assert torch.allclose(part.write * (len(patch.parts) - done) ** 0.5, missing, atol=1e-4)
    with handle.using([patch]):
        after = subject.outputs(handle, 2, rows, inside=True)
    for value, want, state in zip(found, wanted, after, strict=True):
        assert value.delta.norm() > 0.1
        assert (state - want).norm() < 0.02 * value.delta.norm()


@pytest.mark.parametrize("family", ("gptj", *FAMILIES))
def test_pmet_without_attention_and_memit_agree_in_one_layer(family):
    """There the matrix's value and the residual stream behind it differ by what does not move."""
    handle, requests = models.handle(family), (REQUEST, SHORT)
    dials = {"first": LAYER, "last": LAYER, "steps": 4, "contexts": 2, "limit": 50.0, "decay": 0.0}
    dials |= {"rate": 0.5, "kl": 0.5, "enough": 0.0, "weight": 0.5}
    own = {"eased": 1.0, "calm": 0.0}
    (memit,) = prepare_method("memit", handle, dials).edit(Work(handle), requests).parts
    for attention, same in ((False, True), (True, False)):
        (part,) = prepare_method("pmet", handle, {**dials, **own, "attention": attention}).edit(
            Work(handle), requests
        ).parts  # fmt: skip
        apart = (part.delta() - memit.delta()).abs().max() / memit.delta().abs().max()
        assert bool(apart < 1e-3) is same


def test_a_search_is_eased_and_ends_once_the_answer_is_the_most_likely_one():
    handle = models.handle("llama")
    rows = [spans.Row((7, 8, 9, answer), start=3, subject=2) for answer in (300, 300)]  # one token right behind
    wish = algebra.Wish(rows, subject.essence(handle, SHORT.subject))
    dials = algebra.Search(steps=40, rate=0.5, momentum=0.5, decay=0.0, limit=50.0, kl=0.0, enough=0.0)
    site, ends = handle.anatomy.site(models.LAYERS - 1), {}
    for name, calm, eased in (("calm", 1e9, 1.0), ("restless", -1.0, 1.0), ("eased", -1.0, 0.0)):
        ends[name] = algebra.search_value(handle, site, wish, dataclasses.replace(dials, calm=calm, eased=eased))
    assert ends["calm"].steps < ends["restless"].steps == ends["eased"].steps == 39
    assert ends["restless"].loss < min(ends["eased"].loss, ends["calm"].loss) - 0.5


def test_alphaedit_minds_its_own_earlier_edits_only():
    handle = models.handle("gpt2")
    dials = {"steps": 3, "contexts": 2, "limit": 20.0, "decay": 0.0, "first": 0, "last": 1, "penalty": 1e-3}
    dials |= {"relative": True, "cut": 1.0}
    method = prepare_method("alphaedit", handle, dials)
    first = method.edit(Work(handle), [REQUEST])
    other = dataclasses.replace(first, method="memit")
    with handle.using([first]):
        aware, blind = (method.edit(Work(handle, patches=(p,)), [SHORT]) for p in (first, other))
        key = subject.keys(handle, handle.anatomy.site(1), [subject.prompts(handle, REQUEST, 0)[0]])[0]
    assert (aware.parts[1].delta() @ key).norm() < 0.9 * (blind.parts[1].delta() @ key).norm()


def descended(handle, name: str, requests=(REQUEST,), heard=None, **settings):
    method = prepare_method(name, handle, {"layer": LAYER, "steps": 5, "enough": 0.0, **settings})
    listen = (lambda p: None) if heard is None else heard.append
    (part,) = method.edit(Work(handle, listen), requests).parts
    return part


@pytest.mark.parametrize("distance", [1e-5, 1e-3])
@pytest.mark.parametrize("family", FAMILIES)
def test_ft_l_keeps_every_entry_within_its_distance(family, distance):
    handle = models.handle(family)
    part = descended(handle, "ft-l", distance=distance, rate=1e-2)
    rounding = 1e-6 * float(handle.anatomy.site(LAYER).weight().abs().max())
    for tensor in part.tensors.values():
        assert 0.9 * distance < tensor.abs().max() <= distance + rounding


@pytest.mark.parametrize("distance", [1e-3, 1e-1])
@pytest.mark.parametrize("family", FAMILIES)
def test_ft_l_keeps_the_root_of_squares_within_its_distance(family, distance):
    handle = models.handle(family)
    part = descended(handle, "ft-l", distance=distance, rate=1e-2, norm="l2")
    for tensor in part.tensors.values():
        assert 0.9 * distance < tensor.norm() <= distance * (1 + 1e-3)


@pytest.mark.parametrize("name", ["ft", "ft-l"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_usual_one_on_the_answer_tokens(family, name):
    handle, heard = models.handle(family), []
    descended(handle, name, (REQUEST, SHORT), heard, steps=1)
    losses = []
    for request in (REQUEST, SHORT):
        row = spans.encode(handle.tokenizer, request.prompt, request.target)
        labels = torch.tensor([[-100] * row.start + list(row.answer)])
        losses.append(float(handle.model(input_ids=torch.tensor([row.ids]), labels=labels).loss))
    assert len(spans.encode(handle.tokenizer, REQUEST.prompt, REQUEST.target).answer) >= 4
    assert heard[0].loss == pytest.approx(sum(losses) / 2, abs=1e-4)


@pytest.mark.parametrize("norm, slack", [("linf", 0.0), ("l2", 1e-6)])
def test_a_huge_distance_is_no_bound(norm, slack):
    handle = models.handle("gpt2")
    free = descended(handle, "ft")
    bound = descended(handle, "ft-l", norm=norm, distance=1e3)
    for name, tensor in free.tensors.items():
        assert (tensor - bound.tensors[name]).abs().max() <= slack


@pytest.mark.parametrize("family", FAMILIES)
def test_ft_is_adam_on_the_matrix_itself(family):
    handle = models.handle(family)
    part = descended(handle, "ft", (REQUEST, SHORT), steps=4)
    twin = models.model.__wrapped__(family)
    linear = twin.get_submodule(part.path)
    before = {n: p.detach().clone() for n, p in linear.named_parameters()}
    optimiser = torch.optim.Adam([p.requires_grad_() for p in linear.parameters()], lr=5e-4)
    for _ in range(3):  # the last of four passes is not followed by an update
        losses = []
        for request in (REQUEST, SHORT):
            row = spans.encode(handle.tokenizer, request.prompt, request.target)
            labels = torch.tensor([[-100] * row.start + list(row.answer)])
            losses.append(twin(input_ids=torch.tensor([row.ids]), labels=labels).loss)
        optimiser.zero_grad()
        torch.stack(losses).mean().backward()
        optimiser.step()
    transposed = handle.anatomy.site(LAYER).transposed
    for name, after in linear.named_parameters():
        change = after.detach() - before[name]
        change = change.T if transposed and name == "weight" else change
        # Adam divides by the gradient's own size: entries whose gradient is rounding move by any sign.
        assert (change - part.tensors[name]).abs().mean() < 1e-6
