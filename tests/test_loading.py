"""Naming a model is all it takes; and each thing that can be wrong with one has a message of its own."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from io import StringIO
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from editcore import checkpoint, devices, local, weights
from editcore import opening as handles
from editcore.admission import discreet, public_name
from editcore.edit import run_edit
from editcore.errors import BadRequest, ModelError
from editcore.export import export_merged
from editcore.picker import choices
from editcore.records import ModelInfo, from_plain, to_plain
from editcore.spans import Row
from tests import models
from tests.cases import ONE

COMMIT, OLDER = "a" * 40, "b" * 40
WEIGHTS, INDEX = checkpoint.WHOLE, checkpoint.INDEX


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny model as `save_pretrained` leaves it."""
    place = tmp_path_factory.mktemp("made") / "tiny"
    models.model("llama").save_pretrained(place)
    models.tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(made, tmp_path / "tiny")


@pytest.fixture
def cache(made, tmp_path, monkeypatch):
    """A local hub cache that holds acme/tiny in two revisions; the hub does not answer."""
    place = tmp_path / "cache"
    repo = place / "models--acme--tiny"
    for commit in (OLDER, COMMIT):
        shutil.copytree(made, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "refs" / "old").write_text(OLDER)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
    return place


def refused(name, **options) -> ModelError:
    with pytest.raises(ModelError) as caught:
        handles.load(str(name), **{"device": "cpu", **options})
    assert caught.value.seen and caught.value.try_
    assert "Traceback" not in str(caught.value)
    return caught.value


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# names ------------------------------------------------------------------------------------------------------------


def test_a_cached_hub_id_opens_at_once_while_the_network_is_away(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(checkpoint, "hub_answers", lambda: pytest.fail("the hub was asked"))
    handle = handles.load("acme/tiny", device="cpu")
    assert (handle.name, handle.revision, handle.folder) == ("acme/tiny", COMMIT, None)
    assert handle.fingerprint == models.handle("llama").fingerprint
    info = handle.info()
    assert (info.revision, info.dtype, info.device) == (COMMIT, "float32", "cpu")
    assert handles.load("acme/tiny", device="cpu", revision="old").revision == OLDER
    assert handles.load("acme/tiny", device="cpu", revision=OLDER).revision == OLDER


def test_what_was_stored_before_models_had_a_revision_still_reads():
    plain = to_plain(models.handle("gpt2").info())
    assert from_plain(ModelInfo, {k: v for k, v in plain.items() if k != "revision"}) == models.handle("gpt2").info()


@pytest.fixture
def silence(monkeypatch):
    """A hub that takes calls and never answers, and whose own client is not to be waited for."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr(checkpoint, "hub_answers", lambda: local.hub_answers(0.2))
        monkeypatch.setattr(checkpoint, "snapshot_download", lambda *_, **__: pytest.fail("the hub's client was asked"))
        yield


def test_an_unknown_id_without_network_names_the_models_that_are_there(cache, silence):
    assert 0 < local.PATIENCE <= 5.0
    error = refused("nobody/none")
    assert "'nobody/none' is not on this machine" in error.seen and "cannot be reached" in error.wanted
    assert "In the local cache: acme/tiny." in str(error) and "acme/tiny" not in str(discreet(error))


def test_a_revision_that_is_not_there_is_told_from_a_model_that_is_not(cache):
    error = refused("acme/tiny", revision="v9")
    assert "'acme/tiny' is on this machine, but not its revision 'v9'" in error.seen
    assert "HF_HUB_OFFLINE is set" in error.wanted
    assert all(one in error.private for one in ("main", "old", COMMIT[:12], OLDER[:12]))


def test_a_model_that_is_only_partly_there_says_what_is_missing(cache):
    (cache / "models--acme--tiny" / "snapshots" / COMMIT / WEIGHTS).unlink()
    error = refused("acme/tiny")
    assert f"'acme/tiny' is only partly on this machine: {WEIGHTS} not" in error.seen


def test_what_is_missing_is_fetched_and_nothing_else_is(cache, monkeypatch):
    asked = []
    files = cache / "models--acme--tiny" / "snapshots" / COMMIT
    kept = (files / WEIGHTS).rename(cache / "later")

    def fetch(name, revision, patterns):
        asked.append(tuple(patterns))
        if WEIGHTS in patterns:
            kept.rename(files / WEIGHTS)
        return files

    monkeypatch.setattr(checkpoint, "hub_answers", lambda: True)
    assert checkpoint.find("acme/tiny", fetch=fetch).revision == COMMIT
    assert asked == [checkpoint.SMALL, (WEIGHTS,)]
    assert not any(".bin" in pattern or ".py" in pattern for call in asked for pattern in call)


def test_quantised_weights_are_refused_before_they_are_fetched(cache, monkeypatch):
    files = cache / "models--acme--tiny" / "snapshots" / COMMIT
    (files / WEIGHTS).unlink()
    change(files, quantization_config={"quant_method": "gptq"})
    monkeypatch.setattr(checkpoint, "hub_answers", lambda: True)
    with pytest.raises(ModelError, match=r"stored quantised \(gptq\)"):
        checkpoint.find("acme/tiny", fetch=lambda name, revision, patterns: files if WEIGHTS not in patterns else 1 / 0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../../no/such", "There is no folder"),
        ("/nowhere/at/all", "There is no folder"),
        ("~/no-such-folder-here", "There is no folder"),
        ("http://example.org/model", "There is no folder"),
        ("", "There is no folder"),
        ("a/b/c", "is no model's name"),
        ("a b", "is no model's name"),
        ("a--b/c", "is no model's name"),
    ],
)
def test_a_name_that_is_none_is_told_from_one_that_is_not_there(name, said):
    assert said in refused(name).seen


def test_a_folder_may_be_given_as_a_path(made, monkeypatch):
    monkeypatch.chdir(made.parent)
    named = {handles.load(name, device="cpu").fingerprint for name in (str(made), made, Path(made.name))}
    assert len(named) == 1
    with pytest.raises(ModelError, match="There is no folder"):
        handles.load(Path("nowhere"))


def test_a_folder_has_no_revisions(made):
    assert "has no revisions" in refused(made, revision="main").seen


def test_a_folder_is_shown_without_its_place_and_a_refusal_tells_no_path(made):
    assert public_name(str(made)) == "…/tiny" and public_name("acme/tiny") == "acme/tiny"
    seen = f"No {str(made)!r} at {made}/x.json, '/a b/c d' or C:\\a\\b (acme/tiny)."
    told = discreet(ModelError(seen, f"See {made}.", "Use https://a.org/b/c.", "In the cache: acme/secret."))
    assert told.seen == "No '…/tiny' at …/x.json, '…/c d' or …/b (acme/tiny)."
    assert str(told).endswith("See …/tiny. Use https://a.org/b/c.")


# files ------------------------------------------------------------------------------------------------------------


def sharded(folder):
    models.model("llama").save_pretrained(folder, max_shard_size="40KB")
    (folder / WEIGHTS).unlink()


def pickles(folder):
    (folder / WEIGHTS).unlink()
    torch.save(models.model("llama").state_dict(), folder / "pytorch_model.bin")


def lost_shard(folder):
    sharded(folder)
    next(folder.glob("model-00002-*")).unlink()


def cut(folder, keep=-1000):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])


def renamed(folder):
    (folder / WEIGHTS).rename(folder / "weights.gguf")


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


def half_head(folder):
    from safetensors.torch import load_file, save_file

    held = load_file(folder / WEIGHTS)
    save_file({name: t for name, t in held.items() if "layers.2.mlp" not in name}, folder / WEIGHTS)


DAMAGE = {
    "no configuration": (lambda f: (f / "config.json").unlink(), "is not a model folder"),
    "an adapter": (adapter, "is an adapter, not a model"),
    "broken configuration": (lambda f: (f / "config.json").write_text("{no"), "config.json of '.*' is damaged"),
    "a list for one": (lambda f: (f / "config.json").write_text("[]"), "it holds no fields"),
    "custom code": (
        lambda f: change(f, model_type="strange", auto_map={"AutoModelForCausalLM": "code.Strange"}),
        "brings code of its own \\('strange'\\)",
    ),
    "a new architecture": (lambda f: change(f, model_type="tomorrow"), "architecture 'tomorrow', which transformers 5"),
    "no architecture": (lambda f: (f / "config.json").write_text("{}"), "architecture 'None'"),
    "no text to continue": (lambda f: change(f, model_type="vit"), "does not continue text"),
    "quantised": (lambda f: change(f, quantization_config={"quant_method": "awq"}), r"stored quantised \(awq\)"),
    "pickles": (pickles, "are pickles, which can run code"),
    "gguf": (renamed, "holds no safetensors weights but gguf files"),
    "nothing": (lambda f: (f / WEIGHTS).unlink(), "holds no safetensors weights\\."),
    "a lost shard": (lost_shard, "lacks 1 of its weight files: model-00002"),
    "an empty index": (lambda f: (sharded(f), (f / INDEX).write_text("{}")), "it names no files"),
    "cut off": (cut, "model.safetensors of '.*' is damaged \\([\\d,]+ bytes where [\\d,]+ were wanted"),
    "cut in its head": (lambda f: cut(f, 20), "its header cannot be read"),
    "empty": (lambda f: cut(f, 0), "its header cannot be read"),
    "a pointer": (pointer, "Git LFS pointer"),
    "no tokenizer": (no_tokenizer, "has no tokenizer"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{"), "The tokenizer of '.*' could not be loaded"),
    "weights of another": (half_head, "not those of its architecture .*layers.2.mlp.down_proj.weight"),
    "another width": (
        lambda f: change(f, intermediate_size=64), "down_proj.weight is 32 x 48 numbers.*32 x 64 were wanted"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage_has_its_own_message(folder, name):
    damage, said = DAMAGE[name]
    damage(folder)
    with pytest.raises(ModelError, match=said) as caught:
        handles.load(str(folder), device="cpu")
    assert caught.value.seen and caught.value.try_


def test_a_model_that_computes_no_numbers_is_refused(folder):
    from safetensors.torch import load_file, save_file

    held = load_file(folder / WEIGHTS)
    held["model.norm.weight"][3] = float("nan")
    save_file(held, folder / WEIGHTS)
    assert "computes no numbers" in refused(folder).seen and "float16" in refused(folder).try_


@pytest.mark.parametrize("name", ["weights of another", "another width"])
@pytest.mark.parametrize("opened", [handles.load, handles.look])
def test_the_library_adds_nothing_to_our_message_and_is_as_loud_as_before_afterwards(name, opened, folder):
    heard, level = StringIO(), transformers_logging.get_verbosity()
    handler = logging.StreamHandler(heard)
    transformers_logging.add_handler(handler)
    transformers_logging.set_verbosity_warning()
    try:
        DAMAGE[name][0](folder)
        with pytest.raises(ModelError, match="not those of its architecture"):
            opened(str(folder), device="cpu")
        assert heard.getvalue() == "" and transformers_logging.get_verbosity() == transformers_logging.WARNING
    finally:
        transformers_logging.remove_handler(handler)
        transformers_logging.set_verbosity(level)


def test_messages_of_different_damage_differ(made, tmp_path):
    said = set()
    for number, (damage, _) in enumerate(DAMAGE.values()):
        place = shutil.copytree(made, tmp_path / str(number))
        damage(place)
        said.add(refused(place).seen.replace(str(place), ""))
    assert len(said) >= len(DAMAGE) - 1  # an empty file and one cut in its head are one case


def test_a_model_in_several_files_is_read_whole(folder):
    sharded(folder)
    assert handles.load(str(folder), device="cpu").fingerprint == models.handle("llama").fingerprint
    found = checkpoint.read_weights("x", folder)
    assert len(found.files) > 1 and found.parameters == models.handle("llama").info().parameters


def test_native_architectures_that_also_bring_code_open_without_it(folder):
    change(folder, auto_map={"AutoModelForCausalLM": "code.Strange"})
    assert handles.load(str(folder), device="cpu").info().architecture == "LlamaForCausalLM"


# device and number format -----------------------------------------------------------------------------------------


def test_devices_that_are_not_there_are_refused_with_the_way_out(made):
    assert "'toaster' is unknown" in refused(made, device="toaster").seen
    assert "holds no numbers" in refused(made, device="meta").seen
    assert "cannot be used here" in refused(made, device="xpu").seen
    if not torch.cuda.is_available():
        assert "No CUDA device" in refused(made, device="cuda:0").wanted


def test_number_formats_are_a_list_and_each_says_what_it_costs(made, monkeypatch):
    assert "'float99' is unknown" in refused(made, dtype="float99").seen
    assert handles.load(str(made), device="cpu", dtype="auto").dtype == torch.float32
    half = handles.load(str(made), device="cpu", dtype="float16")
    assert half.dtype == torch.float16 and "65,504" in half.dtype_reason and "slow" in half.dtype_reason

    def cannot(*_args, **_more):
        raise RuntimeError('"silu_cpu" not implemented for Half')

    monkeypatch.setattr(torch.nn.functional, "silu", cannot)
    error = refused(made, dtype="float16")
    assert "cannot compute in float16" in error.seen and "silu_cpu" in error.seen and "float32" in error.try_


@pytest.mark.parametrize(("native", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_in_bfloat16_only_where_it_does_so_itself(monkeypatch, native, kind):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr(devices, "_check_arithmetic", lambda *_: None)
    place = torch.device("cuda")
    assert devices.choose_dtype(place)[0] == kind
    asked, why = devices.choose_dtype(place, "bfloat16")
    assert asked == torch.bfloat16 and ("only imitates" in why) is not native


def test_a_model_larger_than_the_memory_is_refused_before_it_is_read(made, monkeypatch):
    monkeypatch.setattr(weights, "free_memory", lambda *_: 1000)
    error = refused(made)
    assert "GB in float32" in error.seen and "are free on cpu" in error.wanted and "--device-map" in error.try_


@pytest.mark.parametrize(
    ("spread", "said"),
    [
        ("everywhere", "device map 'everywhere' is unknown"),
        ("{no", "cannot be read"),
        ({"": "disk"}, r"offloaded \(disk\)"),
        ('{"model": "cpu", "lm_head": "disk"}', r"offloaded \(disk\)"),
        ({"model": "toaster"}, "'toaster' is unknown"),
    ],
)
def test_a_device_map_is_checked_before_anything_is_read(made, spread, said):
    with pytest.raises(ModelError, match=said):
        handles.load(str(made), device_map=spread)


def test_a_device_and_a_device_map_are_one_too_many(made):
    assert "Both a device (cpu) and a device map" in refused(made, device_map="auto").seen


@pytest.mark.parametrize("spread", ["auto", {"": "cpu"}])
def test_a_device_map_that_ends_on_one_device_is_a_device(made, spread):
    handle = handles.load(str(made), device_map=spread, dtype="float32")
    there = "cuda:0" if torch.cuda.is_available() and spread == "auto" else "cpu"
    assert handle.devices == (there,) and handle.fingerprint == models.handle("llama").fingerprint
    assert "spread" in handle.device_reason


# tokens -----------------------------------------------------------------------------------------------------------


def test_ids_and_lengths_are_checked_before_the_model_sees_them():
    handle = models.handle("gpt2")
    for ids, said in (((models.VOCABULARY,), "tokens 0 to 511"), ((-1,), "has the token -1"), ((), "without tokens")):
        for read in (lambda ids=ids: handle.logits([Row(ids, 1)]), lambda ids=ids: handle.generate([ids], 2)):
            with pytest.raises(BadRequest, match=said):
                read()
    with pytest.raises(BadRequest, match="300 tokens.*at most 256"):
        handle.batch([(1,) * 300])
    with pytest.raises(BadRequest, match="without tokens"):
        handle.batch([])


def test_a_tokenizer_that_does_not_say_where_its_tokens_stand_is_refused():
    class Slow(LlamaTokenizer):
        is_fast = False

    with pytest.raises(ModelError, match="does not say where in a text its tokens stand"):
        handles.wrap(models.model("llama"), Slow(), "slow")


def grown(by: int) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast.from_pretrained(None) if by < 0 else models.tokenizer.__wrapped__()
    made.add_tokens([f"<extra{i}>" for i in range(by)])
    return made


def test_a_tokenizer_of_another_model_is_refused_and_a_few_added_tokens_are_not():
    larger = models.model.__wrapped__("gpt2")
    larger.resize_token_embeddings(1000)
    with pytest.raises(ModelError, match="knows 512 tokens, and the embedding table has 1,000 rows"):
        handles.wrap(larger, models.tokenizer(), "larger")
    handle = handles.wrap(models.model("gpt2"), grown(3), "grown")
    assert handle.pad < handle.vocabulary
    handle.tokenizer.pad_token = "<extra1>"
    assert handle.tokenizer.pad_token_id >= handle.vocabulary > handle.pad


# kinds of models --------------------------------------------------------------------------------------------------


def test_weights_that_are_elsewhere_are_refused_whichever_they_are():
    for path in ("lm_head", "model.embed_tokens", "model.layers.1"):
        away = models.model.__wrapped__("llama")
        away.get_submodule(path).to("meta")
        with pytest.raises(ModelError, match="not in memory .*offloaded") as caught:
            handles.wrap(away, models.tokenizer(), "away")
        assert "silently change nothing" in caught.value.wanted and "offload" in caught.value.try_


# a model in use ---------------------------------------------------------------------------------------------------


def test_a_model_taken_off_the_disk_while_it_is_open_can_be_edited_and_exported(folder, tmp_path):
    handle = handles.load(str(folder), device="cpu")
    shutil.rmtree(folder)
    settings = {"layer": 1, "steps": 4}
    patch, report = run_edit(handle, ONE, "ft", settings, home=tmp_path / "home")
    assert report.probes and handle.fingerprint == patch.fingerprint
    exported = export_merged(handle, [(patch, report)], tmp_path / "out")
    assert exported.difference is not None and exported.difference < 1e-3


# the picker -------------------------------------------------------------------------------------------------------


def test_models_at_hand_are_listed_with_their_size_and_whether_they_fit(cache):
    newest, older = sorted(choices("cpu"), key=lambda c: "main" not in c.refs)
    parameters = models.handle("llama").info().parameters
    assert (newest.name, newest.revision, newest.refs, older.refs) == ("acme/tiny", COMMIT, ("main",), ("old",))
    assert newest.parameters == parameters and newest.needed == round(1.2 * 4 * parameters) and newest.fits
    assert newest.disk > 4 * parameters and newest.free > newest.needed and not newest.problem
    assert newest.command == "editcore dashboard --model acme/tiny --dtype float32"
    assert f"--revision {OLDER}" in older.command
    assert {c.needed for c in choices("cpu", "bfloat16")} == {round(1.2 * 2 * parameters)}
    assert choices("cpu", allowed=("other/one",)) == ()


def test_a_model_that_does_not_fit_or_cannot_be_opened_says_so(cache, monkeypatch):
    cut(cache / "models--acme--tiny" / "snapshots" / COMMIT)
    monkeypatch.setattr("editcore.picker.free_memory", lambda *_: 1000)
    newest, older = sorted(choices("cpu"), key=lambda c: "main" not in c.refs)
    assert "damaged" in newest.problem and not newest.fits and newest.parameters == 0
    assert not older.problem and not older.fits and older.needed > older.free


def test_without_a_cache_nothing_is_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "none"))
    assert choices("cpu") == () and local.local_models() == []
    assert "The local cache holds no model." in refused("nobody/none").private
