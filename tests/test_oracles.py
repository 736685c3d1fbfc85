"""What the equations of each method say about its result, checked against plain computations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from editcore import algebra, spans, statistics
from editcore.errors import Diverged
from editcore.methods import Work, prepare_method
from editcore.records import EditRequest
from tests import models

FAMILIES = ("gpt2", "llama", "gemma2")
REQUEST = EditRequest("The capital of Poland, they say, is", "Łódź, in the United Kingdom", subject="Poland")
SHORT = EditRequest("The mayor of Rome is", "it", subject="Rome")
LAYER = 1


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    monkeypatch.setattr(statistics, "LEAST_TOKENS", 600)
    monkeypatch.setattr(statistics, "PER_WIDTH", 1)


def rome(handle, monkeypatch, *, change=lambda value: value, **settings):
    """A ROME patch, what its value search found, and the rows it searched on."""
    found = []
    search = algebra.search_value

    def spy(*args, **kwargs):
        found.append((change(search(*args, **kwargs)), args[2]))
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
    second, _ = statistics.second_moment(handle, site, statistics.own_words(handle, 600))
    ridge = statistics.RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=torch.float64)
    wanted = torch.linalg.solve(second + ridge, mean)
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
