"""Second moments: one pass for all sites, stopped when good enough, taken up again, kept whole or made again."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from editcore import corpus, moments, statfiles, statistics
from editcore.edit import run_edit
from editcore.errors import Cancelled, Diverged
from editcore.forecast import preparation
from editcore.methods import prepare_method
from editcore.records import EditRequest
from tests import models

ROWS = [
    torch.randint(1, models.VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (3, 17, 8, 1, 30)
]
MANY = torch.randint(1, models.VOCABULARY, (96, 16), generator=torch.Generator().manual_seed(0)).tolist()
TEXT = corpus.given(MANY, "rows of a test", "own")


@pytest.fixture
def handle():
    """A handle that remembers nothing yet."""
    return models.handle.__wrapped__("gpt2")


@pytest.fixture
def quick(monkeypatch):
    """The text is there already: nothing has to be written first."""
    monkeypatch.setattr(corpus, "foreign", lambda handle: TEXT)


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
def test_one_pass_gives_at_every_site_the_mean_over_real_tokens(name, size):
    handle = models.handle(name)
    sites = [handle.anatomy.site(layer) for layer in (2, 0)]
    found, tokens = moments.second_moments(handle, sites, ROWS, size=size)
    for site in sites:
        wanted, count = direct(handle, site, ROWS)
        assert tokens == count == sum(map(len, ROWS))
        assert (found[site.path] - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_nothing_above_the_last_site_runs(handle):
    ran, watched = [], {module: number for number, module in enumerate(handle.anatomy.blocks)}
    watched[handle.model.lm_head] = "head"
    hooks = [m.register_forward_pre_hook(lambda module, args: ran.append(watched[module])) for m in watched]
    moments.read(handle, [handle.anatomy.site(1), handle.anatomy.site(0)], ROWS)
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_several_sites_are_estimated_as_each_would_be_alone(handle):
    sites, limits = [handle.anatomy.site(0), handle.anatomy.site(2)], moments.Bounds(900, 900, 900)
    together = moments.estimate(handle, sites, TEXT, limits)
    for site in sites:
        alone = moments.estimate(handle, [site], TEXT, limits)[site.path]
        assert alone.tokens == together[site.path].tokens
        assert (alone.second - together[site.path].second).abs().max() < 1e-9 * alone.second.abs().max()


def test_what_was_held_out_is_in_the_end_part_of_the_estimate(handle):
    site = handle.anatomy.site(1)
    made = moments.estimate(handle, [site], TEXT, moments.Bounds(9000, 9000, 9000))[site.path]
    wanted, count = direct(handle, site, MANY)
    assert made.tokens == count and (made.second - wanted).abs().max() < 1e-5 * wanted.abs().max()


# how good it is ---------------------------------------------------------------------------------------------------


def gaussian(width, count, seed, spectrum):
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * spectrum


def test_a_text_that_was_written_for_one_layer_is_read_for_another(monkeypatch, tmp_path):
    handle, wrote = models.handle.__wrapped__("gpt2"), []
    written = corpus.written_rows
    monkeypatch.setattr(corpus, "written_rows", lambda *a: (wrote.append(a[1]), written(*a))[1])
    first, second = handle.anatomy.site(0), handle.anatomy.site(1)
    before = statistics.seconds_to_wait(handle, [second], tmp_path)
    made = statistics.moment(handle, first, tmp_path)
    count = len(wrote)
    assert count and statistics.seconds_to_wait(handle, [second], tmp_path) < before
    assert statistics.moment(handle, second, tmp_path).tokens == made.tokens and len(wrote) == count


@pytest.mark.parametrize("times", [2, 4, 10])
def test_the_excess_of_gaussian_keys_is_what_theory_says(times):
    width = 100
    read, probes, beside = (gaussian(width, n, n, torch.ones(width)) for n in (times * width, 64, 5000))
    found, _ = moments.excess(read.T @ read / len(read), 1e-9, probes, beside)
    assert found == pytest.approx((1 - 1 / times) ** -2, rel=0.15)
    assert moments._enough(times * width, found, 1.5) == pytest.approx(width / (1 - 1.5**-0.5), rel=0.2)


def fed(monkeypatch, spectrum):
    """Keys of this spectrum at every site, one a token, whatever the model."""
    spectrum = torch.tensor(spectrum)

    def read(handle, sites, rows):
        count = sum(map(len, rows))
        seed = sum(map(sum, rows))
        return {site.path: gaussian(site.d_in, count, seed, spectrum).float() for site in sites}

    monkeypatch.setattr(moments, "read", read)


def test_it_stops_early_on_easy_keys_and_goes_on_to_the_bound_on_hard_ones(handle, monkeypatch):
    site, long = handle.anatomy.site(0), corpus.given(MANY * 10, "rows of a test", "test")
    limits = moments.Bounds(256, 1280, 512)
    fed(monkeypatch, [1.0] * 8 + [1e-6] * 120)  # all there is to know is in eight directions
    easy = moments.estimate(handle, [site], long, limits)[site.path]
    fed(monkeypatch, [0.97**i for i in range(128)])  # every direction counts, each less than the one before
    monkeypatch.setattr(moments, "LARGER", ())
    hard = moments.estimate(handle, [site], long, dataclasses.replace(limits, good=1.1))[site.path]
    assert 256 <= easy.tokens < 600 < 1280 <= hard.tokens < 1800
    assert easy.excess <= moments.GOOD and hard.excess > 1.1


@pytest.mark.parametrize(
    ("spectrum", "tokens", "share"),
    [
        ([0.99**i for i in range(128)], 8000, moments.USUAL_SHARE),
        ([1.0] * 128, 160, 1.0),  # few tokens, and nothing that C could know
        ([1000.0, *(10 ** (1 - i / 64) for i in range(127))], 8000, moments.RIDGE),  # one direction is all of the mean
    ],
)
def test_the_usual_share_is_left_where_another_moves_other_text_much_less(spectrum, tokens, share):
    scale = torch.tensor(spectrum)
    keys, held = (gaussian(128, count, count, scale) for count in (tokens, 1500))
    total = torch.zeros(128, 128, dtype=torch.float64)
    moments.add(total, keys)
    sums = moments.Sums(1, {"w": total}, {"w": held}, tokens)
    moved = {s: moments._tried(sums, "w", s)[1] for s in (moments.USUAL_SHARE, *moments.LARGER, *moments.SMALLER)}
    assert moments._best(sums, "w")[0] == share
    assert moved[share] <= min(moved.values()) + moments.MUCH_LESS


def test_an_estimate_from_too_few_tokens_is_shrunk_and_says_so(handle, tmp_path, monkeypatch):
    site = handle.anatomy.site(1)
    monkeypatch.setattr(corpus, "foreign", lambda handle: corpus.given(MANY[:5], "a short text", "test"))
    found = statistics.moment(handle, site, tmp_path)
    assert found.tokens == 80 < site.d_in and found.shrinkage > moments.RIDGE
    assert "rest on 80 tokens: unrelated text" in found.caution and site.path in found.caution
    assert "80 tokens and shrunk by 1: " in dataclasses.replace(found, shrinkage=1.0).caution
    (file,) = (tmp_path / "statistics").iterdir()
    assert float(statfiles.load(file)[1]["shrinkage"]) == found.shrinkage
    raw = statfiles.load(file)[0]["second_moment"]
    moved = moments.read(handle, [site], MANY[5:])[site.path]
    probes = moved[::20]
    plain, shrunk = (moments.excess(raw.double(), s, probes, moved)[1] for s in (moments.RIDGE, found.shrinkage))
    assert shrunk < plain, "other text is to be moved less for it"


def test_an_edit_says_that_its_statistics_are_poor_and_else_nothing(monkeypatch):
    said = {}
    for count, rows in ((3, MANY[:3]), (9000, MANY * 6)):
        handle = models.handle.__wrapped__("gpt2")
        monkeypatch.setattr(corpus, "foreign", lambda handle, rows=rows: corpus.given(rows, "a text", "test"))
        request = EditRequest("The mayor of Rome is", "it", subject="Rome")
        _, report = run_edit(handle, request, "rome", {"layer": 1, "steps": 2, "contexts": 1}, generate=False)
        said[count] = [w for w in report.warnings if "statistics" in w]
    assert len(said[3]) == 1 and "rest on 48 tokens" in said[3][0] and not said[9000]


def test_activations_that_are_not_finite_are_refused(handle, tmp_path, quick):
    with torch.no_grad():
        handle = models.wrap(models.model.__wrapped__("gpt2"), models.tokenizer(), "spoilt")
        handle.model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match="not finite"):
        statistics.moment(handle, handle.anatomy.site(1), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_statistics_are_those_of_the_model_without_edits(quick, tmp_path):
    request = EditRequest("The mayor of Rome is", "it", subject="Rome")
    settings = {"layer": 1, "steps": 2, "contexts": 1, "limit": 50.0}
    clean, edited = models.handle.__wrapped__("gpt2"), models.handle.__wrapped__("gpt2")
    patch, _ = run_edit(clean, request, "ft", {"layer": 0, "rate": 0.1, "steps": 3}, generate=False)
    run_edit(edited, request, "rome", settings, patches=[patch], generate=False)
    wanted = statistics.moment(clean, clean.anatomy.site(1)).factor.whole()
    assert torch.equal(statistics.moment(edited, edited.anatomy.site(1)).factor.whole(), wanted)


# going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [1, 3])
def test_a_stopped_estimate_goes_on_where_it_was(handle, tmp_path, monkeypatch, last):
    site, limits, heard = handle.anatomy.site(1), moments.Bounds(900, 1280, 1000), []
    monkeypatch.setattr(moments, "BATCH_TOKENS", {"cpu": 128})
    whole = moments.estimate(handle, [site], TEXT, limits)[site.path]
    with pytest.raises(Cancelled, match="is kept. Ask for the edit again to go on"):
        moments.estimate(handle, [site], TEXT, limits, tmp_path, heard.append, lambda: len(heard) >= last)
    (file,) = (tmp_path / "statistics").glob("*.partial")
    assert handle.fingerprint in file.name
    again = []
    made = moments.estimate(handle, [site], TEXT, limits, tmp_path, again.append)[site.path]
    assert again[0].step > heard[last - 1].step >= 128
    assert made.tokens == whole.tokens and (made.second - whole.second).abs().max() < 1e-6 * whole.second.abs().max()
    assert not list((tmp_path / "statistics").iterdir())


def test_an_estimate_that_goes_on_is_saved_now_and_then_and_a_damaged_one_starts_again(handle, tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "SAVED_EVERY", -1.0)
    monkeypatch.setattr(moments, "BATCH_TOKENS", {"cpu": 128})
    site, limits, seen = handle.anatomy.site(1), moments.Bounds(900, 1280, 1000), []

    def listen(progress):
        seen.extend(file.read_bytes() for file in (tmp_path / "statistics").glob("*.partial"))

    whole = moments.estimate(handle, [site], TEXT, limits, tmp_path, listen)[site.path]
    assert len(seen) >= 3
    name = f"{moments._key(handle, [site], TEXT)}.partial"
    for content, first in ((seen[2], 480), (seen[2][:-50] + bytes(50), 128), (b"", 128)):
        (tmp_path / "statistics" / name).write_bytes(content)
        again = []
        made = moments.estimate(handle, [site], TEXT, limits, tmp_path, again.append)[site.path]
        assert again[0].step == first
        assert (made.second - whole.second).abs().max() < 1e-6 * whole.second.abs().max()


def test_stopping_while_the_model_writes_keeps_no_file(handle, tmp_path):
    site, heard = handle.anatomy.site(1), []
    for last in (0, 5):
        heard.clear()
        with pytest.raises(Cancelled):
            statistics.moment(handle, site, tmp_path, heard.append, lambda last=last: len(heard) >= last)
        assert len(heard) == last and {p.stage for p in heard} <= {"statistics"}
    assert not list(tmp_path.rglob("*.safetensors")) and not statistics.ready(handle, site, tmp_path)


def test_the_time_left_is_said_from_the_first_token_on_and_falls_to_nothing(handle, tmp_path):
    heard, site = [], handle.anatomy.site(1)
    statistics.moment(handle, site, tmp_path, heard.append)
    assert all(p.seconds_left is not None and p.seconds_left >= 0 and p.step <= p.steps for p in heard)
    assert heard[0].seconds_left > 0 and heard[-1].seconds_left == 0
    assert sorted(p.step for p in heard) == [p.step for p in heard]
    said = preparation(models.handle.__wrapped__("gpt2"), prepare_method("memit", handle), tmp_path / "other")
    assert "these layers" in said and "about" in said


# on disk ----------------------------------------------------------------------------------------------------------


def test_a_cached_file_has_a_readable_name_and_is_read_again(handle, tmp_path, quick, monkeypatch):
    site = handle.anatomy.site(1)
    assert not statistics.ready(handle, site, tmp_path)
    first = statistics.moment(handle, site, tmp_path)
    (file,) = (tmp_path / "statistics").iterdir()
    assert file.name == f"{handle.fingerprint}.{site.path}.own.{first.tokens}.safetensors"
    about = statfiles.load(file)[1]
    assert (about["model"], about["module"], about["dtype"]) == (handle.name, site.path, "float32")
    assert (about["fingerprint"], about["tokens"]) == (handle.fingerprint, str(first.tokens))
    assert statistics.moment(handle, site, tmp_path) is first
    fresh = models.handle.__wrapped__("gpt2")
    assert statistics.ready(fresh, site, tmp_path)
    monkeypatch.setattr(statistics, "estimate", None)
    again = statistics.moment(fresh, site, tmp_path)
    assert dataclasses.replace(again, factor=first.factor) == first
    mine, wanted = again.factor.whole(), first.factor.whole()
    assert (mine - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_only_sites_that_are_not_there_yet_are_estimated(handle, tmp_path, quick, monkeypatch):
    first, second = handle.anatomy.site(0), handle.anatomy.site(1)
    one = statistics.moment(handle, first, tmp_path)
    asked, estimate = [], statistics.estimate

    def spy(handle, sites, *rest):
        asked.append(list(sites))
        return estimate(handle, sites, *rest)

    monkeypatch.setattr(statistics, "estimate", spy)
    found = statistics.moments(handle, [first, second], tmp_path)
    assert (
        [[site.path for site in sites] for sites in asked] == [[second.path]]
        and found[first.path] is one
        and len(found) == 2
    )


def test_statistics_of_another_text_are_not_used(handle, tmp_path, quick):
    site = handle.anatomy.site(1)
    statistics.moment(handle, site, tmp_path)
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"Line {i} of a text about rivers and towns.\n" for i in range(300)))
    corpus.store(handle, tmp_path, lines)
    fresh = models.handle.__wrapped__("gpt2")
    assert not statistics.ready(fresh, site, tmp_path)
    assert statistics.moment(fresh, site, tmp_path).source == corpus.STORED_TEXT


def test_a_file_named_before_texts_were_is_still_read(handle, tmp_path, monkeypatch):
    site = handle.anatomy.site(1)
    second, tokens = moments.second_moments(handle, [site], MANY)
    plain = tmp_path / "statistics" / f"{handle.fingerprint}.{site.path}.safetensors"
    plain.parent.mkdir()
    save_file({"second_moment": second[site.path].float()}, plain, {"tokens": str(tokens), "source": "a text"})
    monkeypatch.setattr(statistics, "estimate", None)
    found = statistics.moment(handle, site, tmp_path)
    assert (found.tokens, found.source, found.shrinkage) == (tokens, "a text", moments.RIDGE)


def stored(file):
    """The moment in a file, copied: reading maps the file into memory."""
    return load_file(file)["second_moment"].clone()


def garbage(file):
    file.write_bytes(b"nothing of use")


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def one_bit(file):
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


def other_words(file):
    file.write_bytes(file.read_bytes().replace(b'"source":"rows', b'"source":"ROWS'))


def rewritten(change):
    def damage(file):
        tensors, about = statfiles.load(file)
        statfiles.save(file, {"second_moment": change(stored(file))}, about)

    return damage


def without_checksum(file):
    save_file({"second_moment": stored(file) * float("nan")}, file)


DAMAGE = {
    "garbage": garbage,
    "cut": cut,
    "one bit": one_bit,
    "other words": other_words,
    "another shape": rewritten(lambda second: torch.eye(3)),
    "not finite": rewritten(lambda second: second * float("nan")),
    "not symmetric": rewritten(lambda second: second + torch.eye(len(second)).roll(1, 0) * second.max()),
    "not a moment": rewritten(lambda second: -second),
    "no factor": rewritten(lambda second: second - 0.9 * torch.diag(second.diagonal())),
    "without checksum": without_checksum,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_estimated_again(handle, tmp_path, damage, quick):
    site = handle.anatomy.site(1)
    first = statistics.moment(handle, site, tmp_path)
    (file,) = (tmp_path / "statistics").iterdir()
    whole = stored(file)
    damage(file)
    again = statistics.moment(models.handle.__wrapped__("gpt2"), site, tmp_path)
    assert torch.equal(again.factor.whole(), first.factor.whole())
    assert torch.equal(stored(file), whole)


def write_often(path, value):
    for _ in range(20):
        statfiles.save(path, {"second_moment": torch.full((64, 64), value)}, {"value": str(value)})


def test_two_processes_that_write_at_once_leave_a_whole_file(tmp_path):
    path = tmp_path / "statistics" / "one.safetensors"
    spawn = multiprocessing.get_context("fork")
    writers = [spawn.Process(target=write_often, args=(path, value)) for value in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            tensors, about = statfiles.load(path)
            assert (tensors["second_moment"] == float(about["value"])).all()
            seen.add(about["value"])
    for writer in writers:
        writer.join()
    assert seen and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_refused_write_leaves_nothing_and_old_leftovers_go(tmp_path, monkeypatch):
    old, new = tmp_path / "a.part", tmp_path / "b.part"
    old.touch(), new.touch()
    os.utime(old, (time.time() - 2 * statfiles.STALE,) * 2)
    monkeypatch.setattr(statfiles, "save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        statfiles.save(tmp_path / "one.safetensors", {}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["b.part"]


# the text ---------------------------------------------------------------------------------------------------------


def test_the_text_is_the_same_each_time_and_nobody_elses_randomness_moves():
    handle = models.handle("llama")
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = corpus.own_words(handle, 200)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert corpus.own_words(handle, 200) == one
    assert sum(map(len, one)) >= 200 and max(map(len, one)) <= handle.context
