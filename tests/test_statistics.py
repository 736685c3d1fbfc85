"""Second moments: every real token counts once, files are used again, a damaged file is replaced."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from editcore import corpus, statistics
from editcore.errors import Cancelled
from tests import models

ROWS = [
    torch.randint(1, models.VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (3, 17, 8, 1, 30)
]


@pytest.fixture(autouse=True)
def little_text(monkeypatch):
    monkeypatch.setattr(statistics, "LEAST_TOKENS", 300)
    monkeypatch.setattr(statistics, "PER_WIDTH", 1)


@pytest.fixture
def handle():
    """A handle that remembers nothing yet."""
    return models.handle.__wrapped__("gpt2")


def direct(handle, site, rows):
    keys = []
    hook = site.module.register_forward_hook(lambda m, args, out: keys.append(args[0].reshape(-1, site.d_in).double()))
    for row in rows:
        handle.model(input_ids=torch.tensor([row]), use_cache=False)
    hook.remove()
    every = torch.cat(keys)
    return every.T @ every / len(every), len(every)


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom", "gptj"])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_the_moment_is_the_mean_over_real_tokens(name, size):
    handle = models.handle(name)
    site = handle.anatomy.site(2)
    second, tokens = statistics.second_moment(handle, site, ROWS, size=size)
    wanted, count = direct(handle, site, ROWS)
    assert tokens == count == sum(map(len, ROWS))
    assert (second - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_solving_inverts_the_moment_with_its_ridge():
    handle = models.handle("gpt2")
    second, tokens = statistics.second_moment(handle, handle.anatomy.site(1), ROWS)
    found = statistics.Moment("x", tokens, "", statistics.factorise(second))
    keys = torch.randn(len(second), 2, generator=torch.Generator().manual_seed(0))
    ridge = statistics.RIDGE * second.diagonal().mean() * torch.eye(len(second), dtype=torch.float64)
    back = (second + ridge) @ found.solve(keys)
    assert (back - keys).abs().max() < 1e-6


def test_a_cached_file_is_read_again(handle, tmp_path, monkeypatch):
    site = handle.anatomy.site(1)
    assert not statistics.ready(handle, site, tmp_path)
    first = statistics.moment(handle, site, tmp_path)
    (file,) = (tmp_path / "statistics").iterdir()
    assert handle.fingerprint in file.name and site.path in file.name
    assert statistics.moment(handle, site, tmp_path) is first
    fresh = models.handle.__wrapped__("gpt2")
    assert statistics.ready(fresh, site, tmp_path)
    monkeypatch.setattr(statistics, "second_moment", None)
    again = statistics.moment(fresh, site, tmp_path)
    assert (again.tokens, again.source) == (first.tokens, first.source) and first.tokens >= 300
    assert (again.factor - first.factor).abs().max() < 1e-5 * first.factor.abs().max()


def stored(file):
    """The moment in a file, copied: reading maps the file into memory."""
    return load_file(file)["second_moment"].clone()


def garbage(file):
    file.write_bytes(b"nothing of use")


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def another_shape(file):
    save_file({"second_moment": torch.eye(3)}, file)


def another_name(file):
    save_file({"moment": stored(file)}, file)


def not_finite(file):
    save_file({"second_moment": stored(file) * float("nan")}, file)


def not_a_moment(file):
    save_file({"second_moment": -stored(file)}, file)


@pytest.mark.parametrize("damage", [garbage, cut, another_shape, another_name, not_finite, not_a_moment])
def test_a_damaged_file_is_replaced(handle, tmp_path, damage, monkeypatch):
    monkeypatch.setattr(corpus, "own_words", lambda *_: ROWS)
    site = handle.anatomy.site(1)
    first = statistics.moment(handle, site, tmp_path)
    (file,) = (tmp_path / "statistics").iterdir()
    whole = stored(file)
    damage(file)
    again = statistics.moment(models.handle.__wrapped__("gpt2"), site, tmp_path)
    assert torch.equal(again.factor, first.factor)
    assert torch.equal(stored(file), whole)


def test_stopping_keeps_nothing(handle, tmp_path):
    site, heard = handle.anatomy.site(1), []
    for last in (0, 1):  # before the model writes its text, and before it is read
        heard.clear()
        with pytest.raises(Cancelled):
            statistics.moment(handle, site, tmp_path, heard.append, lambda last=last: len(heard) >= last)
        assert len(heard) == last and {p.stage for p in heard} <= {"statistics"}
    assert not list(tmp_path.rglob("*.safetensors")) and not statistics.ready(handle, site, tmp_path)


def test_the_text_is_the_same_each_time_and_nobody_elses_randomness_moves():
    handle = models.handle("llama")
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = corpus.own_words(handle, 200)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert corpus.own_words(handle, 200) == one
    assert sum(map(len, one)) >= 200 and max(map(len, one)) <= handle.context
