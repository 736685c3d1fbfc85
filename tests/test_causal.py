"""Causal tracing against plain passes: in every family the shortened computation is the whole one."""

from __future__ import annotations

import pytest
import torch

from editcore import causal
from tests import models

PROMPT, SUBJECT = "The capital of the United Kingdom is", "United Kingdom"
DIALS = causal.Dials(samples=2, noise=6.0)
KINDS = ("block", "mlp", "attention")


def belief(name: str, prompt: str = PROMPT, subject: str = SUBJECT):
    return causal.believe(models.handle(name), [(prompt, subject)])[0]


def blurred(name: str, token: int):
    handle, fact = models.handle(name), belief(name)
    return causal.Blurred(handle, [(fact, token)], DIALS, causal.deviation(handle, [fact], DIALS))


def hooks_of(handle) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in handle.model.modules())


def plain_pass(name: str, noise, back=()) -> float:
    """The same probability by plain passes of one row each: noise on the embeddings, states of a clean pass back."""
    handle, fact = models.handle(name), belief(name)
    ids, found = torch.tensor([fact.row.ids]), []
    for draw in noise:
        hooks = [handle.model.get_input_embeddings().register_forward_hook(lambda m, a, y, d=draw: y + d)]
        for module, token, value in back:

            def replace(_m, _a, out, token=token, value=value):
                y = out[0] if isinstance(out, tuple) else out
                wide = y.reshape(1, -1, y.shape[-1]).clone()
                wide[0, token] = value
                return (wide.reshape(y.shape), *out[1:]) if isinstance(out, tuple) else wide.reshape(y.shape)

            hooks.append(module.register_forward_hook(replace))
        with torch.no_grad():
            logits = handle.model(input_ids=ids, use_cache=False).logits[0, -1]
        for hook in hooks:
            hook.remove()
        found.append(float(torch.softmax(logits, -1)[fact.answer]))
    return sum(found) / len(found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models.DENSE)
def test_every_effect_is_what_plain_passes_give(name, kind):
    handle, fact = models.handle(name), belief(name)
    before = hooks_of(handle)
    places = [(fact, token) for token in (fact.subject_tokens[-1], len(fact.row.ids) - 2)]
    low, effects = causal.indirect_effects(handle, places, kind, 2, DIALS)
    assert hooks_of(handle) == before
    modules = causal.parts(handle, kind)
    clean = causal.states(handle, [fact], modules)
    noise = blurred(name, places[0][1])._noise
    assert float(low[0]) == pytest.approx(plain_pass(name, noise), abs=1e-6)
    for place, layer in ((0, 0), (0, 2), (1, 1)):
        token, inside = places[place][1], range(max(0, layer - 1), layer + 1)
        back = [(modules[i], token, clean[i][0, token]) for i in inside]
        wanted = plain_pass(name, noise, back) - float(low[place])
        assert float(effects[place, layer]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("layer", [0, models.LAYERS - 1])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gptj", "bloom", "opt-post-norm"])
def test_putting_every_state_back_is_the_clean_run_and_none_the_blurred_one(name, layer):
    handle, fact = models.handle(name), belief(name)
    one = blurred(name, fact.subject_tokens[0])
    states = causal.states(handle, [fact], handle.anatomy.blocks)
    everything = {handle.anatomy.blocks[layer]: states[layer][:, fact.subject_tokens[0] :]}
    assert float(one.read(layer, everything)) == pytest.approx(fact.clean, abs=1e-6)
    assert float(one.read(layer, {})) == pytest.approx(plain_pass(name, one._noise), abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "gemma2"])
def test_what_lies_below_a_put_back_state_is_not_run_again(name):
    handle, one = models.handle(name), blurred(name, 4)
    state = {handle.anatomy.blocks[2]: torch.zeros(1, 1, models.WIDTH)}
    ran: list[tuple[int, int]] = []
    hooks = [
        block.register_forward_hook(
            lambda m, a, out, i=i: ran.append((i, out[0].shape[-2]) if isinstance(out, tuple) else (i, out.shape[-2]))
        )
        for i, block in enumerate(handle.anatomy.blocks)
    ]
    one.read(2, state)
    for hook in hooks:
        hook.remove()
    assert ran == [(i, len(belief(name).row.ids) - 4) for i in (2, 3)]


def test_facts_of_different_lengths_in_one_pass_do_not_meet():
    handle = models.handle("llama")
    facts = causal.believe(handle, [(PROMPT, SUBJECT), ("Where is the United Kingdom on the map? It is in", SUBJECT),
                                    ("Q: What is gold? A: gold is", "gold")])  # fmt: skip
    places = [(fact, fact.subject_tokens[-1]) for fact in facts]
    blur = causal.deviation(handle, facts, DIALS)
    together = causal.Blurred(handle, places, DIALS, blur).read(1, {})
    alone = [float(causal.Blurred(handle, [place], DIALS, blur).read(1, {})) for place in places]
    assert together.tolist() == pytest.approx(alone, abs=1e-6)
    for _ in range(2):  # what was tried the first time is known the second time
        assert causal.blurred_chances(handle, facts, DIALS, blur).tolist() == pytest.approx(alone, abs=1e-6)
    low, effects = causal.indirect_effects(handle, places, "mlp", 2, DIALS)
    again = causal.indirect_effects(handle, places[::-1], "mlp", 2, DIALS)
    assert torch.allclose(low, again[0].flip(0), atol=1e-6) and torch.allclose(effects, again[1].flip(0), atol=1e-6)


def test_a_trace_names_the_part_each_token_plays():
    handle = models.handle("gpt2")
    found = causal.trace(handle, "In the United Kingdom the sea is", "the United Kingdom", dials=DIALS)
    assert found.roles[0] == "first subject" and found.roles[-1] == "last" and "first after" in found.roles
    assert found.roles.count("last subject") == 1 and "".join(found.tokens).strip().startswith("the United Kingdom")
    assert [len(row) for row in found.effects] == [models.LAYERS] * len(found.tokens)
    assert causal.role(belief("gpt2"), 0) == "before"
    assert found.effects[-1][-1] == pytest.approx(found.clean - found.blurred, abs=1e-6)  # the last state says it all


def test_the_same_seed_draws_the_same_noise_and_another_seed_does_not():
    handle, fact = models.handle("qwen2"), belief("qwen2")
    place = [(fact, fact.subject_tokens[-1])]
    first, again, other = (
        float(causal.indirect_effects(handle, place, "mlp", 1, causal.Dials(2, 3.0, seed))[0]) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_a_trace_that_is_stopped_says_so():
    from editcore.errors import Cancelled

    fact = belief("gpt2")
    with pytest.raises(Cancelled, match="stopped"):
        causal.indirect_effects(models.handle("gpt2"), [(fact, 4)], "mlp", 1, DIALS, stop=lambda: True)
