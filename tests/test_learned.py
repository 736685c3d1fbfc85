"""Editors that are trained: their gradients, their training, and the artifact that belongs to one model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from editcore import examples, gradients, learned, spans, trained, training
from editcore.bench import counterfactuals
from editcore.errors import BadRequest, Cancelled, ModelError, Untrained, WrongModel
from editcore.forecast import forecast
from editcore.methods import Work, prepare_method
from editcore.methods.enn import ENNEditor
from editcore.methods.ke import KEEditor
from editcore.methods.malmen import MALMENEditor
from editcore.methods.mend import MENDEditor
from editcore.patch import LowRank, Patch, attached
from editcore.records import EditRequest
from editcore.world.facts import load_world
from tests import models
from tests.schooled import LAYER, PROMPTS, example, school

ROWS = (
    ("The river Rhine flows through", "Basel"),
    ("A short one is", "two or three words"),
    ("Łódź lies in", "Poland"),
)


def batch(handle, rows=ROWS):
    return gradients.texts(handle, [spans.encode(handle.tokenizer, *row) for row in rows])


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt-post-norm"])
def test_the_factors_multiply_out_to_the_gradient_of_each_text_alone(family):
    handle = models.handle(family)
    site = handle.anatomy.site(LAYER)
    factors, log_p = gradients.gradients(handle, [site], batch(handle))
    each = gradients.losses(log_p, batch(handle))
    for i, row in enumerate(ROWS):
        weight = site.module.weight
        weight.requires_grad_(True)
        alone = batch(handle, [row])
        loss = gradients.losses(gradients.log_probabilities(handle, alone), alone).sum()
        (wanted,) = torch.autograd.grad(loss, weight)
        weight.requires_grad_(False)
        found = factors.write[0][i].T @ factors.read[0][i]
        assert torch.allclose(found, wanted.T if site.transposed else wanted, atol=1e-6)
        assert torch.allclose(each[i], loss, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom"])
def test_every_row_has_its_own_change_and_nobody_elses(family):
    handle = models.handle(family)
    sites = [handle.anatomy.site(0), handle.anatomy.site(1)]
    factors, _ = gradients.gradients(handle, sites, batch(handle))
    together = batch(handle)
    with torch.no_grad(), gradients.changed(sites, factors):
        every = gradients.log_probabilities(handle, together)
    for i, row in enumerate(ROWS):
        parts = tuple(LowRank(s.path, r[i], w[i]) for s, r, w in zip(sites, factors.read, factors.write, strict=True))
        with torch.no_grad(), attached(handle.model, [Patch(parts, "", "", "")]):
            alone = gradients.log_probabilities(handle, batch(handle, [row]))
        assert torch.allclose(every[together.line == i], alone, atol=1e-5)
    assert not any(m._forward_hooks for m in handle.model.modules())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "bloom"])
def test_enns_steps_without_reading_again_below_them_are_what_plain_steps_are(family):
    handle = models.handle(family)
    editor = ENNEditor([handle.anatomy.site(1), handle.anatomy.site(2)], steps=3)
    for matrix in editor.matrices:
        matrix.data.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    with handle.using([]), editor.start():
        plain, short = editor.change(handle, batch(handle)), editor.together(handle, batch(handle))
    for wanted, found in zip((*plain.read, *plain.write), (*short.read, *short.write), strict=True):
        real = batch(handle).mask.repeat(1, 3)[..., None]
        assert wanted.norm() > 0 and ((found - wanted) * real).norm() < 1e-4 * wanted.norm()
    assert not any(m._forward_hooks for m in handle.model.modules())


def test_mend_starts_as_the_normalised_gradient_and_every_part_can_learn():
    handle = models.handle("gpt2")
    editor = MENDEditor([handle.anatomy.site(LAYER)])
    editor.calibrate(handle, [batch(handle)])
    raw, _ = gradients.gradients(handle, editor.sites, batch(handle))
    x, delta = raw.read[0], raw.write[0]
    counts = delta.abs().amax(-1) > 0
    made = editor.change(handle, batch(handle))
    normal = (torch.cat([x, delta], -1) - editor.mean[0]) / editor.std[0]
    network = torch.where(normal > 0, normal, normal)  # U = 0 and o = 0 add nothing
    assert torch.allclose(made.read[0][counts], network[..., : x.shape[-1]][counts], atol=1e-5)
    wanted = -editor.log_step.exp() * network[..., x.shape[-1] :]
    assert torch.allclose(made.write[0][counts], wanted[counts], atol=1e-6)
    assert not made.write[0][~counts].any(), "tokens that matter to no answer"
    sum(t.square().sum() for t in (*made.read, *made.write)).backward()
    for name in ("up.0", "up.1", "bias.0", "offset.0", "log_step"):
        gradient = editor.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name
    together = [p for group in editor.groups(1e-3) for p in group["params"]]
    assert len({id(p) for p in together}) == len(together), "no parameter learns at two rates"
    assert {id(p) for p in together} == {id(p) for p in editor.parameters() if p.requires_grad}


def told(handle):
    """A KE editor that says something of its own about every text."""
    editor, random = KEEditor([handle.anatomy.site(LAYER)]), torch.Generator().manual_seed(5)
    editor.calibrate(handle, [batch(handle)])
    for parameter in editor.outer.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)
    return editor


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt-post-norm"])
def test_ke_in_factors_is_the_masked_gradient_and_one_rank_more(family):
    handle, seen = models.handle(family), []
    editor, site = told(handle), handle.anatomy.site(LAYER)
    editor.requires_grad_(False)
    editor.outer[0].register_forward_hook(lambda m, i, o: seen.append(o))
    made = editor.change(handle, batch(handle))
    raw, _ = gradients.gradients(handle, editor.sites, batch(handle))
    dense = raw.write[0].mT @ raw.read[0] / editor.size
    d_out, d_in = site.d_out, site.d_in
    for i, said in enumerate(seen[0]):
        alpha, beta, gamma, delta, eta = torch.split(said, [d_out, d_out, d_in, d_in, 1])
        mask = torch.outer(d_out * alpha.softmax(0), gamma)
        more = torch.outer(d_out * beta.softmax(0), delta) / (d_in * d_out) ** 0.5
        wanted = editor.log_step.exp() * eta.sigmoid() * (mask * dense[i] + more)
        assert torch.allclose(made.write[0][i].T @ made.read[0][i], wanted, atol=1e-5 * float(wanted.abs().max()))
    assert len({tuple(said.tolist()) for said in seen[0]}) == len(ROWS)


def test_ke_starts_as_plain_descent_and_every_part_can_learn():
    handle = models.handle("llama")
    first = KEEditor([handle.anatomy.site(LAYER)])
    first.calibrate(handle, [batch(handle)])
    raw, _ = gradients.gradients(handle, first.sites, batch(handle))
    gradient = raw.write[0].mT @ raw.read[0]
    assert gradient.flatten(1).norm(dim=1).mean() == pytest.approx(float(first.size), rel=1e-4)
    made = first.change(handle, batch(handle))
    step = 0.5 * first.log_step.exp() / first.size
    assert torch.allclose(made.write[0].mT @ made.read[0], -step * gradient, atol=1e-6)
    editor = told(handle)
    made = editor.change(handle, batch(handle))
    sum(t.square().sum() for t in (*made.read, *made.write)).backward()
    learning = {n: p for n, p in editor.named_parameters() if p.requires_grad}
    assert {id(p) for group in editor.groups(1e-3) for p in group["params"]} == {id(p) for p in learning.values()}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learning.values())


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_what_ke_says_about_a_text_depends_on_prompt_and_answer_and_on_no_other_text(family):
    handle = models.handle(family)
    editor = told(handle).requires_grad_(False)
    every = editor.change(handle, batch(handle))
    for i, row in enumerate(ROWS):
        alone = editor.change(handle, batch(handle, [row]))
        change = every.write[0][i].T @ every.read[0][i]
        assert torch.allclose(alone.write[0][0].T @ alone.read[0][0], change, atol=1e-5 * float(change.abs().max()))
    texts = [batch(handle, [("Rome lies in", answer)]) for answer in ("Peru", "Asia")]
    first, second = (editor.last_states(handle, t, gradients.log_probabilities(handle, t).argmax(-1)) for t in texts)
    assert (first - second).abs().max() > 1e-3


def test_enn_differentiates_through_its_steps():
    """The slope of the loss after the steps, along a direction of the start, against a difference quotient."""
    handle = models.handle("gpt2")
    editor = ENNEditor([handle.anatomy.site(LAYER)], steps=2)
    editor.log_step.data.fill_(0.5)
    direction = torch.randn(editor.matrices[0].shape, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()

    def loss(training=True):
        with editor.start():
            change = editor.change(handle, batch(handle), training=training)
            with gradients.changed(editor.sites, change):
                return gradients.losses(gradients.log_probabilities(handle, batch(handle)), batch(handle)).mean()

    loss().backward()
    slope = float((editor.matrices[0].grad * direction).sum())
    step, at = 2e-2, []
    for sign in (1, -1):
        editor.matrices[0].data = sign * step * direction
        at.append(float(loss(training=False).detach()))
    assert slope == pytest.approx((at[0] - at[1]) / (2 * step), rel=0.05)


def learn(handle, work, steps, stop=lambda: False, kind=ENNEditor):
    editor = kind([handle.anatomy.site(LAYER)])
    dials = learned.Dials(steps=12, edits=2, rate=1e-2, check_every=3)
    seen = []

    def listen(heard):
        seen.append(heard)

    try:
        figures = learned.train(
            handle, editor, lambda rng: example(handle, rng.randrange(2)), [example(handle, 0)], dials, work, listen,
            lambda: stop() or len(seen) >= steps,
        )  # fmt: skip
    except Cancelled:
        figures = None
    return editor, seen, figures


def test_training_gets_better_and_goes_on_where_it_was_stopped(tmp_path):
    handle = models.handle("gpt2")
    whole, seen, figures = learn(handle, tmp_path / "whole", 99)
    assert figures["asked"] < seen[0].loss and figures["steps"] in (3, 6, 9, 12)
    _, first, none = learn(handle, tmp_path / "parts", 7)  # the checkpoint is of step 6
    assert none is None and len(first) == 7
    again, rest, _ = learn(handle, tmp_path / "parts", 99)
    assert [h.step for h in rest] == [7, 8, 9, 10, 11, 12]
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in whole.state_dict().items())


@pytest.fixture
def artifact(tmp_path):
    handle = models.handle.__wrapped__("gpt2")
    editor = MENDEditor([handle.anatomy.site(LAYER)])
    path = trained.path_in(tmp_path, handle, "mend")
    trained.save(path, handle, "mend", editor, {"moved": 0.0})
    handle.home = tmp_path
    return handle, path


def test_an_artifact_comes_back_as_it_was(artifact):
    handle, _ = artifact
    assert prepare_method("mend", handle).layers(handle) == (LAYER,)
    editor = trained.ready(handle, "mend", MENDEditor)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(
        editor.parameters(), MENDEditor([handle.anatomy.site(LAYER)]).parameters(), strict=True))  # fmt: skip


def test_an_editor_is_made_by_the_forecast_of_its_edit_from_what_was_read(artifact):
    handle, _ = artifact
    forecast(handle, prepare_method("mend", handle), EditRequest(*PROMPTS[0]))
    editor, read = handle.memory["ready", "mend"], handle.memory["editor", "mend"].state
    held = dict(editor.named_parameters())
    assert held and {n: p.data_ptr() for n, p in held.items()} == {n: t.data_ptr() for n, t in read.items()}


def other_model(path):
    head = {"format": "1", "method": "mend", "fingerprint": "0123456789abcdef", "layers": "[1]", "about": "{}"}
    save_file(load_file(path), path, head)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def not_finite(path):
    tensors = load_file(path)
    tensors["log_step"][0] = float("nan")
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(size))["__metadata__"]
    save_file(tensors, path, head)


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (other_model, WrongModel, "0123456789abcdef"),
        (cut, ModelError, "damaged"),
        (not_finite, ModelError, "not finite"),
    ],
)
def test_what_does_not_belong_here_is_refused(artifact, damage, error, said):
    handle, path = artifact
    damage(path)
    with pytest.raises(error, match=said) as caught:
        trained.find(handle, "mend")
    if error is WrongModel:
        assert handle.fingerprint in str(caught.value)
    assert trained.command(handle, "mend") in str(caught.value)


def test_without_training_the_command_is_named():
    handle = models.handle.__wrapped__("gpt2")
    with pytest.raises(Untrained) as caught:
        prepare_method("enn", handle)
    assert caught.value.try_ == f"Run `editcore train enn --model {handle.name} --edits edits.jsonl`."


def test_the_embedded_model_needs_no_file_of_examples():
    embedded, other = (SimpleNamespace(name="m", embedded=own) for own in (True, False))
    assert trained.command(embedded, "mend") == "`editcore train mend --model m`"
    assert trained.command(other, "mend") == "`editcore train mend --model m --edits edits.jsonl`"


@pytest.mark.parametrize("name", ["mend", "enn", "ke"])
def test_several_requests_are_the_sum_of_their_edits(name):
    handle = models.handle("llama")
    school(handle, name)
    requests = [EditRequest(*prompt) for prompt in PROMPTS]

    def delta(which):
        parts = prepare_method(name, handle).edit(Work(handle), which).parts
        return sum(part.delta() for part in parts if isinstance(part, LowRank))

    assert torch.allclose(delta(requests), delta(requests[:1]) + delta(requests[1:]), atol=1e-6)


def test_malmen_meets_all_answer_tokens_by_ridge_regression():
    handle = models.handle("llama")
    school(handle, "malmen")
    requests = [EditRequest(*prompt) for prompt in PROMPTS]
    editor = trained.ready(handle, "malmen", MALMENEditor)
    texts = batch(handle, PROMPTS)
    (part,) = prepare_method("malmen", handle).edit(Work(handle), requests).parts
    (turned,) = editor.turned(handle, texts, False)
    x, x_, delta_ = (t.double() for t in turned[:3])
    asked = -editor.log_step.exp() * (x * x_).sum(1, keepdim=True) * delta_
    large = torch.linalg.solve(x.T @ x + editor.log_weight.exp() * torch.eye(x.shape[1]), x.T @ asked)
    assert torch.allclose(part.delta().double(), large.T, atol=1e-5 * float(large.abs().max()))
    assert part.rank == len(texts.line)


def cases(*lines):
    return "\n".join(json.dumps(line) for line in lines)


PLAIN = [{"prompt": f"Town number {i} lies in", "target_new": "Peru", "probes": [f"River {i} is"]} for i in range(30)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (PLAIN[:3], "holds 3 edits"),
        ([*PLAIN, {**PLAIN[4], "target_new": "Chile"}], "Rows 5 and 31 of .* 'Peru', 'Chile'"),
        ([{**line, "probes": []} for line in PLAIN], "'edits.jsonl' holds edits without probes.*with --locality"),
    ],
    ids=["few", "contradiction", "nothing held"],
)
def test_examples_that_teach_nothing_are_refused(tmp_path, lines, said):
    file = tmp_path / "edits.jsonl"
    file.write_text(cases(*lines))
    with pytest.raises(BadRequest, match=said):
        examples.of_files(models.handle("gpt2"), file, None)


def test_a_method_is_trained_from_files_and_then_works(tmp_path):
    handle = models.handle.__wrapped__("gpt2")
    edits, text = tmp_path / "edits.jsonl", tmp_path / "text.txt"
    edits.write_text(cases(*({**line, "probes": []} for line in PLAIN)))
    text.write_text("".join(f"Line {i} about nothing much.\n" for i in range(30)))
    about = training.train_method(
        handle, "mend", tmp_path / "work", tmp_path, edits=edits, locality=text,
        dials=learned.Dials(steps=4, edits=4, check_every=2),
    )  # fmt: skip
    assert about["examples"] == "edits.jsonl" and about["moved"] == 0.0
    handle.home = tmp_path
    patch = prepare_method("mend", handle).edit(Work(handle), [EditRequest("Town number 2 lies in", "Peru")])
    assert [p.path for p in patch.parts] == [handle.anatomy.site(i).path for i in training.default_layers(handle)]
    with pytest.raises(BadRequest, match="needs no training"):
        training.train_method(handle, "rome", tmp_path, tmp_path)


def test_entities_that_are_scored_are_never_trained_on():
    world = load_world()
    shares = {name: {s for s in world.by_subject if world.share(s) == name} for name in ("train", "validation", "test")}
    assert sum(map(len, shares.values())) == len(world.by_subject)
    assert 0.2 < len(shares["test"]) / len(world.by_subject) < 0.3
    names = {n[:1].upper() + n[1:]: n for n in world.by_subject} | {n: n for n in world.by_subject}
    assert {world.share(names[case.subject]) for case in counterfactuals(world, 60, seed=3)} == {"test"}
