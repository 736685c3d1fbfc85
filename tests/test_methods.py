"""What every method in the menu promises, over several families: a patch, and no trace in the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from editcore.bench import counterfactuals
from editcore.errors import BadSetting, Cancelled, Diverged, SubjectNotFound, UnknownMethod
from editcore.methods import METHODS, Work, find_method, menu, prepare_method
from editcore.opening import wrap
from editcore.training import trainable
from editcore.world.facts import load_world
from tests import models
from tests.cases import EIGHT, ONE, TWO
from tests.schooled import school, show

FAMILIES = ("gpt2", "llama", "gemma2", "opt-post-norm", "bloom")
MORE_FAMILIES = ("gptj", "gpt-neox", "opt", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "falcon")
SEARCH = {"contexts": 2, "steps": 6, "limit": 50.0, "decay": 0.0}
WEAK = {"weight": 1e-3}  # what a random model usually stores is nothing worth keeping
SPREAD = {**SEARCH, "first": 0, "last": 1}
QUICK = {
    "rome": {**SEARCH, "layer": 1, "covariance": False},
    "emmet": {**SEARCH, **WEAK, "layer": 1},
    "memit": {**SPREAD, **WEAK},
    "pmet": {**SPREAD, **WEAK},
    "alphaedit": {**SPREAD, "relative": True, "cut": 1.0, "penalty": 1e-3},
    "grace": {"layer": 1, "start": "warm", "rate": 0.1},
    "wise": {"layer": 1, "contexts": 0, "rate": 0.3, "relative": True, "alpha": 0.1, "beta": 0.2, "gamma": 0.1},
    "ice": {},
    "mend": {},
    "malmen": {},
    "enn": {},
    "ke": {},
    "serac": {},
    "ike": {"count": 4},
    "ultraedit": {"first": 0, "last": 1, "rate": 1e-4},
}
AT_THE_SUBJECT = tuple(m.name for m in METHODS if "subject" in m.needs)
NAMES = tuple(m.name for m in METHODS)
LEARNING = tuple(m.name for m in METHODS if "steps" in m.__dataclass_fields__)  # the others write something down
TRAINED = trainable()  # these learned before
ONE_GRADIENT = (*TRAINED, "ultraedit")
BESIDE = ("serac",)  # changes no matrix
MEMORIES = ("grace",)  # nothing of what they store depends on an edit of another prompt


def made(name: str, handle, **values):
    if name in TRAINED:
        school(handle, name)
    if "demonstrations" in find_method(name).needs:
        show(handle)
    steps = {"steps": 4} if name in LEARNING else {}
    return prepare_method(name, handle, {**steps, **QUICK.get(name, {"layer": 1}), **values})


def state(model) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items()}


def rows(handle, requests=(ONE, TWO)):
    return [handle.row(r.prompt, r.target) for r in requests]


def losses(handle, requests, patches=()):
    with handle.using(patches):
        read = rows(handle, requests)
        logits = handle.logits(read)
    return [
        float(torch.nn.functional.cross_entropy(x, torch.tensor(row.answer)))
        for x, row in zip(logits, read, strict=True)
    ]


class Untouched:
    """Holds what a model was, and checks that it still is: weights, logits, hooks, mode, random state."""

    def __init__(self, handle) -> None:
        self.handle, self.weights, self.random = handle, state(handle.model), torch.random.get_rng_state()
        self.logits = handle.logits(rows(handle))
        self.blocks = getattr(handle.anatomy.holder, handle.anatomy.attribute)

    def check(self) -> None:
        model, anatomy = self.handle.model, self.handle.anatomy
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert getattr(anatomy.holder, anatomy.attribute) is self.blocks
        assert not model.training and not any(p.requires_grad or p.grad is not None for p in model.parameters())
        now = model.state_dict()
        assert now.keys() == self.weights.keys()
        assert all(torch.equal(t, now[n]) for n, t in self.weights.items())
        assert all(torch.equal(a, b) for a, b in zip(self.logits, self.handle.logits(rows(self.handle)), strict=True))
        assert torch.equal(self.random, torch.random.get_rng_state())


@pytest.mark.parametrize("requests", [(ONE,), EIGHT], ids=["one", "eight"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_returns_a_patch_that_helps_and_leaves_no_trace(family, name, requests):
    handle = models.handle(family)
    before, untouched = losses(handle, requests), Untouched(handle)
    heard = []
    # Words in front mean nothing to a random model: there, the claim is about the bare prompt,
    # and small steps, because a large value spills over to other words.
    # Where a norm follows the block, a value has to be larger to count as much.
    size = {"steps": 30, "rate": 0.05} if family == "opt-post-norm" else {"steps": 12, "rate": 0.02}
    bare = {"contexts": 0, **size} if name in AT_THE_SUBJECT else {}
    patch = made(name, handle, **bare).edit(Work(handle, heard.append), requests)
    untouched.check()
    patch.check_finite()
    after = sum(losses(handle, requests, [patch]))
    learns = name in LEARNING + ONE_GRADIENT  # a random model believes nothing it reads
    assert after < sum(before) if learns else after != sum(before)
    assert (patch.method, patch.fingerprint) == (name, handle.fingerprint)
    assert [r["target"] for r in patch.requests] == [r.target for r in requests]
    layers = (0, 1) if "first" in patch.settings and all(handle.anatomy.additive) else (1,)
    layers = layers if learns and name not in BESIDE else ()
    assert set(patch.info(handle.model).modules) == {handle.anatomy.site(layer).path for layer in layers}
    assert heard and all(0 < p.step <= p.steps and p.loss == p.loss for p in heard if p.stage == "edit")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_a_method_edits_further_families_and_leaves_no_trace(family, name):
    handle = models.handle(family)
    untouched = Untouched(handle)
    fields = find_method(name).__dataclass_fields__
    few = {what: value for what, value in (("contexts", 0), ("steps", 2)) if what in fields}
    patch = made(name, handle, **few).edit(Work(handle), [ONE])
    patch.check_finite()
    with handle.using([patch]):
        changed = handle.logits([handle.row(ONE.prompt, ONE.target)])[0]
    assert not torch.equal(changed, untouched.logits[0])
    untouched.check()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_patch(name):
    twice = []
    for seed in (1, 2):  # whatever the caller's random state is
        handle = models.handle.__wrapped__("gpt2")  # nothing remembered
        torch.manual_seed(seed)
        twice.append(made(name, handle).edit(Work(handle), [ONE]))
    for one, other in zip(twice[0].parts, twice[1].parts, strict=True):
        assert all(torch.equal(t, other.tensors[n]) for n, t in one.tensors.items())


@pytest.mark.parametrize("name", NAMES)
def test_cancel_is_honoured_at_every_step(name):
    handle = models.handle("llama")
    untouched, steps = Untouched(handle), []
    made(name, handle).edit(Work(handle, steps.append), [ONE])
    assert len(steps) >= (3 if name in LEARNING else 1)
    for last in range(1, len(steps) + 1):
        heard = []
        with pytest.raises(Cancelled):
            made(name, handle).edit(Work(handle, heard.append, lambda heard=heard, n=last: len(heard) >= n), [ONE])
        assert len(heard) == last
    untouched.check()


@pytest.mark.parametrize("name", NAMES)
def test_a_listener_that_raises_leaves_no_trace(name):
    handle = models.handle("gemma2")
    untouched = Untouched(handle)

    def tired(progress):
        if progress.step >= min(2, progress.steps):
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        made(name, handle).edit(Work(handle, tired), [ONE, TWO])
    untouched.check()


@pytest.mark.parametrize("kind", METHODS, ids=NAMES)
def test_every_setting_says_what_it_is_and_keeps_its_bounds(kind):
    (info,) = [m for m in menu() if m.name == kind.name]
    handle = models.handle("gpt2")
    made(kind.name, handle)  # what it learns from is there
    assert [d.name for d in info.settings] == [f.name for f in dataclasses.fields(kind)]
    assert info.title and info.sentence.endswith(".") and "arXiv" in info.paper
    for dial in info.settings:
        assert len(dial.help) > 10
        assert dial.optional or prepare_method(kind.name, handle, {dial.name: dial.default})
        wrong = ["many", "nan", [1]]
        if dial.kind in ("int", "float"):
            assert dial.low is not None and dial.high is not None
            wrong += [dial.low - 1, dial.high * 2 + 1, float("nan"), float("inf"), -float("inf"), 10**400, True]
        if dial.kind == "int":
            wrong.append(1.5)
        if not dial.optional:
            wrong += [None, "", "none"]
        for value in wrong:
            with pytest.raises(BadSetting, match=dial.name):
                prepare_method(kind.name, handle, {dial.name: value})


@pytest.mark.parametrize(
    "values",
    [
        {"colour": 1}, {"last": 99}, {"last": 4}, {"rate": 1e9}, {"rate": 0}, {"rate": "NaN"}, {"steps": 0},
        {"steps": 1e7}, {"preset": "x"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_cannot_work_is_refused(name, values):
    if "layer" in {f.name for f in dataclasses.fields(find_method(name))} and "last" in values:
        values = {"layer": values["last"]}
    with pytest.raises(BadSetting) as caught:
        prepare_method(name, models.handle("gpt2"), values)
    assert str(next(iter(values.values()))) in str(caught.value) or next(iter(values)) in str(caught.value)


def test_text_values_mean_what_they_say():
    handle = models.handle("gpt2")
    rome = prepare_method("ROME", handle, {"covariance": "no", "steps": "7", "rate": "1e-2", "layer": "auto"})
    assert (rome.covariance, rome.steps, rome.rate, rome.layer) == (False, 7, 0.01, None)
    with pytest.raises(UnknownMethod, match="rome, emmet, memit, pmet, alphaedit, ft, ft-l"):
        find_method("magic")


@pytest.mark.parametrize("name", LEARNING)
def test_an_edit_that_diverges_says_so_and_leaves_no_trace(name):
    broken = models.model.__wrapped__("gpt2")
    handle = wrap(broken, models.tokenizer(), "broken")
    broken.lm_head.weight[3] = float("nan")  # as an overflow in half precision would
    weights = state(broken)
    with pytest.raises(Diverged, match="diverged"):
        made(name, handle, **({"contexts": 0} if "contexts" in find_method(name).__dataclass_fields__ else {})).edit(
            Work(handle), [ONE]
        )
    assert all(torch.equal(t.nan_to_num(), broken.state_dict()[n].nan_to_num()) for n, t in weights.items())
    assert not any(m._forward_hooks for m in broken.modules())


def test_a_rate_past_all_bounds_diverges_and_leaves_no_trace():
    handle = models.handle("gpt2")
    untouched = Untouched(handle)
    with pytest.raises(Diverged, match="not finite|diverged"):
        dataclasses.replace(made("ft", handle), rate=1e30).edit(Work(handle), [ONE]).check_finite()
    untouched.check()


@pytest.mark.parametrize("name", AT_THE_SUBJECT)
def test_an_edit_at_the_subject_needs_a_subject(name):
    handle = models.handle("gpt2")
    untouched = Untouched(handle)
    for subject in (None, "", "Spain"):
        with pytest.raises(SubjectNotFound):
            made(name, handle).edit(Work(handle), [dataclasses.replace(ONE, subject=subject)])
    untouched.check()


@pytest.mark.parametrize("name", LEARNING)
def test_an_edit_on_top_of_another_sees_it(name):
    handle = models.handle("llama")
    first = made(name, handle).edit(Work(handle), [ONE])
    with handle.using([first]):
        second = made(name, handle).edit(Work(handle), [TWO])
    alone = made(name, handle).edit(Work(handle), [TWO])
    assert name in MEMORIES or not all(
        torch.equal(t, alone.parts[0].tensors[n]) for n, t in second.parts[0].tensors.items()
    )
    assert losses(handle, [TWO], [first, second])[0] < losses(handle, [TWO], [first])[0]


@pytest.mark.parametrize("count", [1, 8], ids=["one", "eight"])
@pytest.mark.parametrize("name", [n for n in NAMES if n not in TRAINED])
def test_with_its_own_settings_a_method_helps_on_the_embedded_model(name, count, world_handle):
    requests = counterfactuals(load_world(), count, seed=5)
    before, untouched = losses(world_handle, requests), Untouched(world_handle)
    patch = prepare_method(name, world_handle).edit(Work(world_handle), requests)
    untouched.check()
    patch.check_finite()
    assert sum(losses(world_handle, requests, [patch])) < sum(before)
    assert len(patch.requests) == count
