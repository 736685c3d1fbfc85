"""The shortened pass is exact: in every family it gives what the plain pass gives, and so do its gradients."""

from __future__ import annotations

import pytest
import torch

from editcore.anatomy import attention_output
from editcore.opening import wrap
from editcore.resume import Upper
from editcore.standins import Note
from tests import models

# Rows of different lengths whose change begins at different tokens: (ids, first changed position, positions read).
IDS = torch.randint(1, models.VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(3)).tolist()
ROWS = (
    (tuple(IDS[0][:7]), 3, (5, 6)),
    (tuple(IDS[1][:14]), 9, (9, 12)),
    (tuple(IDS[2][:10]), 0, (8,)),
)
FROM_THE_START = tuple((ids, 0, reads) for ids, _, reads in ROWS)
# Position biases and short windows enter attention where a shortened pass cannot give them.
WHOLE = {"bloom", "mpt", "falcon-alibi", "mistral-window", "gemma3-window", "gpt-neo-window"}
# What the head gives there is scaled or capped before it is read.
SCALED = {"gemma2", "cohere", "cohere2", "vaultgemma", "nanochat"}


def upper(name: str, layer: int, rows=ROWS, block=False) -> Upper:
    handle = models.handle(name)
    return Upper(handle, handle.anatomy.site(layer), *(tuple(column) for column in zip(*rows, strict=True)), block)


def at_first(delta):
    """Adds `delta` to the site's output at the first token of every tail, and a tenth of it at the others."""

    def change(x, y):
        return y + torch.cat([delta.expand_as(y[:, :1]), 0.1 * delta.expand_as(y[:, 1:])], 1)

    return change


def one_by_one(name: str, layer: int, delta, rows=ROWS, block=False):
    """The same log-probabilities from plain passes over single rows without padding."""
    handle = models.handle(name)
    found = []
    for ids, start, reads in rows:

        def add(_m, _i, out, start=start):
            y = out[0] if isinstance(out, tuple) else out
            wide = y.reshape(1, -1, models.WIDTH)
            new = torch.cat([wide[:, :start], at_first(delta)(None, wide[:, start:])], 1).reshape(y.shape)
            return (new, *out[1:]) if isinstance(out, tuple) else new

        module = handle.anatomy.blocks[layer] if block else handle.anatomy.site(layer).module
        hook = module.register_forward_hook(add)
        try:
            logits = handle.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        finally:
            hook.remove()
        found.append(torch.log_softmax(logits, -1)[list(reads)])
    return torch.cat(found)


def random_delta(seed: int = 0):
    return torch.randn(models.WIDTH, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("block", [False, True], ids=["matrix", "block"])
@pytest.mark.parametrize("layer", [1, models.LAYERS - 1])
@pytest.mark.parametrize("rows", [ROWS, FROM_THE_START], ids=["prefixes", "from-the-start"])
@pytest.mark.parametrize("name", models.DENSE)
def test_shortened_pass_equals_plain_passes(name, layer, rows, block):
    delta, twin = random_delta(), random_delta()
    short = upper(name, layer, rows, block).run(at_first(delta))
    plain = one_by_one(name, layer, twin, rows, block)
    assert (short - plain).abs().max() < 1e-4
    goal = torch.linspace(-1, 1, short.numel()).reshape(short.shape)
    (short * goal).sum().backward()
    (plain * goal).sum().backward()
    assert (delta.grad - twin.grad).norm() < 1e-4 * twin.grad.norm()


@pytest.mark.parametrize("rows", [ROWS, FROM_THE_START], ids=["prefixes", "from-the-start"])
@pytest.mark.parametrize("name", models.DENSE)
def test_attention_and_mlp_changed_in_one_pass_are_what_plain_passes_give(name, rows):
    handle, deltas, twins = models.handle(name), [random_delta(i) for i in (0, 1)], [random_delta(i) for i in (0, 1)]
    beside = attention_output(handle.model, handle.anatomy.blocks[1], models.WIDTH)
    found = Upper(handle, handle.anatomy.site(1), *(tuple(c) for c in zip(*rows, strict=True)), beside=beside)
    assert found.shortened is (name not in WHOLE)
    short = found.run(*map(at_first, deltas))
    plain = []
    for row in rows:  # the second change is in place while the first is made

        def add(_m, _i, out, start=row[1]):
            wide = out.reshape(1, -1, models.WIDTH)
            return torch.cat([wide[:, :start], at_first(twins[1])(None, wide[:, start:])], 1).reshape(out.shape)

        hook = beside.register_forward_hook(add)
        plain.append(one_by_one(name, 1, twins[0], (row,)))
        hook.remove()
    assert (short - torch.cat(plain)).abs().max() < 1e-4
    goal = torch.linspace(-1, 1, short.numel()).reshape(short.shape)
    (short * goal).sum().backward()
    (torch.cat(plain) * goal).sum().backward()
    for delta, twin in zip(deltas, twins, strict=True):
        assert twin.grad.norm() > 0
        assert (delta.grad - twin.grad).norm() < 1e-4 * twin.grad.norm()


@pytest.mark.parametrize("block", [False, True], ids=["matrix", "block"])
@pytest.mark.parametrize("rows", [ROWS, FROM_THE_START], ids=["prefixes", "from-the-start"])
@pytest.mark.parametrize("name", models.DENSE)
def test_a_pass_that_follows_another_equals_plain_passes(name, rows, block):
    found, delta, twin = upper(name, 1, rows, block), random_delta(), random_delta()
    found.run(at_first(random_delta(1)))
    again, plain = found.run(at_first(delta)), one_by_one(name, 1, twin, rows, block)
    assert (again - plain).abs().max() < 1e-4
    goal = torch.linspace(-1, 1, again.numel()).reshape(again.shape)
    (again * goal).sum().backward()
    (plain * goal).sum().backward()
    assert (delta.grad - twin.grad).norm() < 1e-4 * twin.grad.norm()


@pytest.mark.parametrize("name", models.DENSE)
def test_only_families_with_a_scale_behind_the_head_need_the_model_around_their_blocks(name):
    assert upper(name, 1).direct is (name not in WHOLE | SCALED)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", *sorted(SCALED)])
def test_a_small_scale_behind_the_head_is_seen_in_half_precision_too(name, kind):
    """Roundings there are larger than what the scale changes in a likely answer."""
    handle = wrap(models.model.__wrapped__(name).to(kind), models.tokenizer(), name)
    found = Upper(handle, handle.anatomy.site(1), *(tuple(part) for part in zip(*ROWS, strict=True)))
    assert found.direct is (name not in SCALED)
    first, second = (found.run(at_first(random_delta().to(kind))) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", models.DENSE)
def test_only_families_with_biased_attention_fall_back(name):
    assert upper(name, 1).shortened is (name not in WHOLE)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gptj", "bloom"])
def test_the_model_is_whole_after_a_run(name):
    handle = models.handle(name)
    ids = torch.tensor([ROWS[1][0]])
    before, blocks = handle.model(input_ids=ids).logits, handle.anatomy.blocks
    found = upper(name, 1)
    found.run(at_first(random_delta()))
    with pytest.raises(ZeroDivisionError):
        found.run(lambda x, y: y / (1 // 0))
    assert tuple(getattr(handle.anatomy.holder, handle.anatomy.attribute)) == blocks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in handle.model.modules())
    assert torch.equal(handle.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("name", ["gpt2", "gemma3-window"])
def test_longer_rows_are_proven_again(name):
    handle = models.handle(name)
    handle.memory.clear()
    short = tuple((ids[:5], start and 2, (4,)) for ids, start, _ in ROWS)
    assert upper(name, 1, short).shortened
    delta, twin = random_delta(), random_delta()
    found = upper(name, 1)
    assert found.shortened is (name not in WHOLE)
    assert (found.run(at_first(delta)) - one_by_one(name, 1, twin)).abs().max() < 1e-4


def test_a_proven_pass_does_no_more_than_it_must():
    upper("llama", 2, FROM_THE_START)
    handle, ran = models.handle("llama"), []
    hooks = [b.register_forward_hook(lambda m, i, o, n=n: ran.append(n)) for n, b in enumerate(handle.anatomy.blocks)]
    again = upper("llama", 2, FROM_THE_START)
    for hook in hooks:
        hook.remove()
    assert again.shortened and ran == [0, 1, 2]


def test_calls_that_were_noted_in_vain_are_not_made(monkeypatch):
    known = upper("llama", 1, FROM_THE_START)
    noting = Note.forward
    with monkeypatch.context() as patch:
        patch.setattr(Note, "forward", lambda self, *args, **named: (noting(self, *args, **named), 1 // 0)[0])
        with pytest.raises(ZeroDivisionError):
            upper("llama", 1, FROM_THE_START)
    again, delta = upper("llama", 1, FROM_THE_START), random_delta()
    assert len(again._calls) == len(known._calls) == models.LAYERS - 2
    assert torch.equal(again.run(at_first(delta)), known.run(at_first(delta)))


def test_a_shortened_pass_runs_only_the_blocks_above(monkeypatch):
    found = upper("llama", 2)
    ran = []
    hooks = [
        block.register_forward_hook(lambda m, i, o, n=n: ran.append(n))
        for n, block in enumerate(found.handle.anatomy.blocks)
    ]
    found.run(at_first(random_delta()))
    for hook in hooks:
        hook.remove()
    assert ran == [3]
