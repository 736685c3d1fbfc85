"""Half precision changes where a model is a little off, not what an edit is: patches and losses are fp32, solves fp64.

The same numbers, once as they are and once in fp32, are edited by every method that changes a matrix. bfloat16 keeps
8 bits of a number and float16 11: one rounding is up to 2^-9 (0.2 %) or 2^-12 (0.02 %) of it. Through the 4 blocks of
these models, whose logits reach about 10, roundings add up to some hundredths of a nat in bfloat16, and a search of a
few steps then starts from slightly other gradients. What an answer's loss may differ by is `TOLERANCE`.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import pytest
import torch

from editcore import statistics
from editcore.errors import Diverged
from editcore.handle import Handle
from editcore.methods import Work
from editcore.opening import wrap
from editcore.patch import LowRank
from tests import models
from tests.cases import ONE
from tests.test_methods import LEARNING, NAMES, losses, made, state

WITHOUT_MATRIX = ("serac", "ice", "ike")
EDITING = tuple(name for name in NAMES if name not in WITHOUT_MATRIX)
TOLERANCE = {torch.bfloat16: 0.25, torch.float16: 0.05}  # nats of the answer's loss
KINDS = pytest.mark.parametrize("kind", TOLERANCE, ids=["bfloat16", "float16"])


@lru_cache(maxsize=4)
def twice(kind: torch.dtype) -> tuple[Handle, Handle]:
    """A model in half precision, and the same numbers in fp32."""
    low = models.model.__wrapped__("llama").to(kind)
    return wrap(low, models.tokenizer(), "low"), wrap(copy.deepcopy(low).float(), models.tokenizer(), "full")


def edited(name: str, handle: Handle):
    return made(name, handle, **({"contexts": 0} if "contexts" in dials_of(name) else {})).edit(Work(handle), [ONE])


def dials_of(name: str) -> set[str]:
    from editcore.methods import find_method

    return set(find_method(name).__dataclass_fields__)


@KINDS
@pytest.mark.parametrize("name", EDITING)
def test_an_edit_in_half_precision_is_the_one_in_full_within_the_tolerance(name, kind):
    low, full = twice(kind)
    bare = losses(full, [ONE])[0]
    mine, wanted = edited(name, low), edited(name, full)
    for part in mine.parts:
        assert all(t.dtype == torch.float32 for t in part.tensors.values() if t.is_floating_point())
    expected = losses(full, [ONE], [wanted])[0]
    for handle in (low, full):  # the patch made in half precision, on either model
        assert abs(losses(handle, [ONE], [mine])[0] - expected) < TOLERANCE[kind]
    assert expected != bare


@KINDS
def test_losses_and_logits_are_read_in_full_precision(kind):
    low, full = twice(kind)
    (mine,), (wanted,) = (h.logits([h.row(ONE.prompt, ONE.target)]) for h in (low, full))
    assert mine.dtype == torch.float32 and low.dtype == kind
    assert (mine.log_softmax(-1) - wanted.log_softmax(-1)).abs().max() < TOLERANCE[kind]


@KINDS
def test_statistics_and_solves_are_in_double_precision(kind):
    low, full = twice(kind)
    mine, wanted = (statistics.moment(h, h.anatomy.site(1)) for h in (low, full))
    assert mine.factor.bands[0].dtype == torch.float64 == mine.solve(torch.ones(48)).dtype
    assert len(mine.factor) == len(wanted.factor)


@KINDS
def test_a_small_edit_is_not_rounded_away_while_it_is_attached(kind):
    low, _ = twice(kind)
    site = low.anatomy.site(1)
    patch = edited("ft", low)
    read, write = torch.randn(1, site.d_in), torch.randn(1, site.d_out)
    small = LowRank(site.path, read, write * 1e-3 * float(site.weight().float().norm() / (read.norm() * write.norm())))
    x = torch.randn(1, 3, site.d_in)
    wanted = x.to(kind).float() @ small.delta().T
    assert (small.apply(x.to(kind), torch.zeros(())) - wanted).norm() < 1e-5 * wanted.norm()
    rounded = (site.weight().float() + small.delta()).to(kind).float() - site.weight().float()
    if kind == torch.bfloat16:  # written into the weights instead, most of it would be lost
        assert (rounded - small.delta()).norm() > 0.3 * small.delta().norm()
    assert patch.fingerprint == low.fingerprint


@pytest.mark.parametrize("name", LEARNING)
def test_an_overflow_in_float16_ends_the_edit_and_leaves_no_trace(name):
    broken = models.model.__wrapped__("llama").half()
    handle = wrap(broken, models.tokenizer(), "overflows")
    broken.model.norm.weight.fill_(6e4)  # logits past 65,504
    before = state(broken)
    with pytest.raises(Diverged, match="diverged"):
        edited(name, handle)
    assert all(torch.equal(t, broken.state_dict()[n]) for n, t in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in broken.modules())
