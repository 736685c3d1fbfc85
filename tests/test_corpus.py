"""Running text for a model: whose it is, and what is refused."""

from __future__ import annotations

import pytest

from editcore import corpus
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
