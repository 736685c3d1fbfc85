"""A model reads a batch as it reads single rows, in every family; what cannot be loaded is refused with the reason."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from editcore import devices, spans
from editcore import opening as handles
from editcore.errors import BadRequest, ModelError
from editcore.spans import Row
from tests import models

IDS = torch.randint(1, models.VOCABULARY, (4, 20), generator=torch.Generator().manual_seed(5)).tolist()
ROWS = (
    Row(tuple(IDS[0][:5]), 5),
    Row(tuple(IDS[1][:9]), 6),
    Row(tuple(IDS[2][:20]), 12),
    Row(tuple(IDS[3][:2]), 1),
)


@pytest.mark.parametrize("name", models.DENSE)
def test_a_batch_reads_like_single_rows(name):
    handle = models.handle(name)
    for row, together in zip(ROWS, handle.logits(ROWS), strict=True):
        whole = handle.model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
        wanted = whole[row.start - 1 : len(row.ids) - 1] if row.answer else whole[-1:]
        assert together.shape == wanted.shape
        assert (together - wanted).abs().max() < 1e-4


def test_any_batch_size_gives_the_same_in_the_order_asked():
    handle = models.handle("llama")
    rows = [ROWS[i % 4] for i in (2, 0, 3, 1, 2, 3)]
    for small, large in zip(handle.logits(rows, whole_batch=1), handle.logits(rows), strict=True):
        assert (small - large).abs().max() < 1e-5


@pytest.mark.parametrize("name", models.DENSE)
def test_left_padding_does_not_change_what_is_generated(name):
    handle = models.handle(name)
    prompts = [row.ids for row in ROWS]
    together = handle.generate(prompts, 5)
    assert together == [handle.generate([p], 5)[0] for p in prompts]


def test_generation_is_the_likeliest_token_each_time():
    handle = models.handle("gpt2")
    ids = list(ROWS[1].ids)
    for _ in range(4):
        ids.append(int(handle.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    made = ids[len(ROWS[1].ids) :]
    assert 0 not in made, "the end marker would stop generation: choose another prompt"
    assert handle.generate([ROWS[1].ids], 4) == [handle.tokenizer.decode(made)]


def test_the_context_limit_is_exact():
    handle = models.handle("gpt2")
    at = Row((5,) * handle.context, handle.context - 1)
    assert handle.logits([at])[0].shape == (1, models.VOCABULARY)
    assert handle.generate([at.ids], 3) == [""]
    with pytest.raises(BadRequest, match="257 tokens.*at most 256 tokens"):
        handle.logits([Row((5,) * 257, 256)])


def test_info_describes_the_model():
    info = models.handle("gpt2").info()
    assert (info.architecture, info.layers, info.dtype) == ("GPT2LMHeadModel", models.LAYERS, "float32")
    assert info.bytes == 4 * info.parameters and not info.embedded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model on disk, as people have them."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    models.model("llama").save_pretrained(place)
    models.tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def damaged(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "damaged")


def test_loading_gives_the_same_model_with_reasons(folder):
    loaded = handles.load(str(folder), device="cpu")
    kept = models.handle("llama")
    assert loaded.fingerprint == kept.fingerprint
    assert (loaded.device_reason, loaded.dtype) == ("asked for", torch.float32) and loaded.dtype_reason
    for a, b in zip(loaded.logits(ROWS), kept.logits(ROWS), strict=True):
        assert (a - b).abs().max() < 1e-5


def test_the_fingerprint_does_not_depend_on_the_number_format(folder):
    low = handles.load(str(folder), device="cpu", dtype="bfloat16")
    assert low.dtype == torch.bfloat16 and low.fingerprint == models.handle("llama").fingerprint


def test_other_weights_have_another_fingerprint():
    other = models.model.__wrapped__("llama", seed=1)
    assert handles.fingerprint(other) != models.handle("llama").fingerprint
    twin = models.model.__wrapped__("llama")
    assert handles.fingerprint(twin) == models.handle("llama").fingerprint


def truncate(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def pickle_only(path):
    (path / "model.safetensors").unlink()
    torch.save(models.model("llama").state_dict(), path / "pytorch_model.bin")


def no_tokenizer(path):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (path / name).unlink(missing_ok=True)


def custom_code(path):
    config = json.loads((path / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "code.Strange"}}
    (path / "config.json").write_text(json.dumps(config))


def broken_config(path):
    (path / "config.json").write_text("{not json")


@pytest.mark.parametrize("damage", [truncate, pickle_only, no_tokenizer, custom_code, broken_config])
def test_a_damaged_folder_is_refused(damaged, damage):
    damage(damaged)
    with pytest.raises(ModelError) as caught:
        handles.load(str(damaged), device="cpu")
    assert "damaged" in str(caught.value) and caught.value.try_


@pytest.mark.parametrize(
    "name", ["../../x", "/nowhere/at/all", "./not-here", "http://example.org/model", "no-such-model"]
)
def test_a_name_that_leads_nowhere_is_refused(name):
    with pytest.raises(ModelError) as caught:
        handles.load(name, device="cpu")
    assert name in caught.value.seen and "Traceback" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not a model folder"):
        handles.load(str(tmp_path), device="cpu")


def test_unknown_devices_and_formats_are_refused(folder):
    with pytest.raises(ModelError, match="unknown"):
        devices.choose_device("toaster")
    with pytest.raises(ModelError, match="'int3' is unknown.*float32"):
        devices.choose_dtype(torch.device("cpu"), "int3")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="No CUDA device"):
            devices.choose_device("cuda")


def test_a_tokenizer_that_does_not_fit_is_refused():
    small = models.model.__wrapped__("gpt2")
    small.resize_token_embeddings(100)
    with pytest.raises(ModelError, match="does not fit"):
        handles.wrap(small, models.tokenizer(), "small")


def test_a_patch_of_nothing_changes_nothing():
    handle = models.handle("gpt2")
    row = spans.encode(handle.tokenizer, "The capital of France is", "Paris")
    (before,) = handle.logits([row])
    with handle.using([]):
        assert torch.equal(handle.logits([row])[0], before)


def test_a_text_is_coded_once_for_a_model_and_read_as_before():
    handle, other = models.handle("gpt2"), models.handle("gpt2", bos=True)
    first = handle.row("The capital of France is", "Paris")
    assert handle.row("The capital of France is", "Paris") is first
    assert handle.row("The capital of France is", "Rome").answer != first.answer
    assert other.row("The capital of France is", "Paris") == Row((0, *first.ids), first.start + 1, lead=1)
    for _ in range(2):  # what is refused is refused again
        with pytest.raises(BadRequest, match="no token of its own"):
            handle.row("The capital of France is", " ")
