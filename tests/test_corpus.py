"""Running text for a model: whose it is, and what is refused."""

from __future__ import annotations

import pytest
import torch

from editcore import corpus, halves
from editcore.errors import BadRequest
from tests import models

LINES = "".join(f"Line {i} of a text about rivers and towns.\n" for i in range(40))


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(LINES)
    return file


def test_a_stored_text_is_used_and_named(tmp_path, text):
    handle = models.handle("gpt2")
    corpus.store(handle, tmp_path / "home", text)
    rows, source = corpus.rows(handle, 100, tmp_path / "home")
    assert source == "the text stored for this model"
    assert sum(map(len, rows)) >= 100
    assert handle.tokenizer.decode(rows[0]).startswith("Line 0 of a text")
    assert corpus.rows(models.handle("llama"), 100, tmp_path / "home")[1] == corpus.OWN_TEXT, "another model's text"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"One line only.\n", "has 1 line of text"),
        (b"\n" * 100, "has 0 lines"),
        (bytes(range(256)) * 20, "is no text"),
        (b"a\0b\n" * 40, "null characters"),
    ],
    ids=["one line", "blank", "binary", "null"],
)
def test_what_is_no_text_is_refused_and_nothing_is_stored(tmp_path, content, said):
    file = tmp_path / "junk.txt"
    file.write_bytes(content)
    with pytest.raises(BadRequest, match=said) as caught:
        corpus.store(models.handle("gpt2"), tmp_path / "home", file)
    assert "at least 20 lines" in str(caught.value)
    assert not (tmp_path / "home").exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadRequest, match="absent.txt"):
        corpus.read(tmp_path / "absent.txt")


def test_a_token_is_written_as_often_as_it_is_likely_and_an_impossible_one_never():
    torch.manual_seed(0)
    chances = torch.tensor([0.0, 0.5, 0.3, 0.2])
    pen = corpus._Pen(1, lambda progress: None, lambda: False)
    drawn = pen(torch.zeros(20_000, 1), chances.log().expand(20_000, -1)).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    assert share[0] == 0 and torch.allclose(share, chances, atol=0.015) and not pen.spoilt


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_number_that_is_no_probability_is_noted_wherever_it_stands(wrong):
    pen, scores = corpus._Pen(1, lambda progress: None, lambda: False), torch.zeros(3, 4)
    scores[1, 2] = wrong
    assert torch.isfinite(pen(torch.zeros(3, 1), scores)).all() and bool(pen.spoilt)


def test_where_it_pays_a_text_is_written_by_a_copy_in_half_the_bytes_and_the_model_stays_as_it_is(
    monkeypatch, one_text
):
    model, ids = models.handle("gpt2").model, torch.arange(9)[None]
    before = model(input_ids=ids).logits
    monkeypatch.setattr(halves, "pay", lambda device: True)
    copied = one_text(model, torch.device("cpu"))
    assert {p.dtype for p in copied.parameters()} == {torch.bfloat16} and copied is not model
    assert len(list(copied.parameters())) == len(list(model.parameters())), "what was tied is tied"
    assert (copied(input_ids=ids).logits.float() - before).abs().max() < 0.05
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model(input_ids=ids).logits, before)
    monkeypatch.setattr(halves, "free_memory", lambda device: 0)
    assert one_text(model, torch.device("cpu")) is model, "there is no room for a copy"
