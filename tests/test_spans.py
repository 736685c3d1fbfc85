"""Where subject and answer sit: read off the final text, whatever the letters, wherever they stand."""

from __future__ import annotations

import pytest

from editcore import spans
from editcore.errors import BadRequest, ModelError, SubjectNotFound
from tests import models

ANSWERS = ("Paris", "Łódź", "北京", "😀", "São Tomé", "a", "D.C.", "{s} %s {0}", "-", "the United Kingdom of")
PROMPTS = (
    "The capital of Poland is",
    "Braces {} and %s, {title} are",
    "波兰的首都是",
    "Ends in a space ",
    "Tab\there:",
    "Q: Who?\nA:",
)
SUBJECTS = (
    ("Poland is a country in", "Poland"),  # at token 0
    ("The twin of Rome is Rome, said Rome before", "Rome"),
    ("The mayor of Łódź is", "Łódź"),
    ("Who is 北京 like?", "北京"),
    ("I like 😀 and", "😀"),
    ("(“Zürich”) lies in", "Zürich"),
    ("Who wrote {s}? It was", "{s}"),
    ("The subject stands at the end: Messi", "Messi"),
    ("The price of 100 %s is", "%s"),
)  # fmt: skip


@pytest.fixture(params=[False, True], ids=["plain", "bos"])
def tokenizer(request):
    return models.tokenizer(request.param)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_prompt_and_answer_tokens_are_those_of_the_joined_text(tokenizer, prompt, answer):
    row = spans.encode(tokenizer, prompt, answer)
    text = prompt.rstrip(" ") + " " + answer
    assert list(row.ids) == tokenizer(text)["input_ids"]
    assert tokenizer.decode(row.answer) == " " + answer
    assert tokenizer.decode(row.ids[: row.start], skip_special_tokens=True) == prompt.rstrip(" ")


@pytest.mark.parametrize(("prompt", "subject"), SUBJECTS)
def test_the_subject_ends_at_its_last_token(tokenizer, prompt, subject):
    row = spans.encode(tokenizer, prompt, "Paris", subject)
    begin = prompt.rfind(subject)
    upto = tokenizer.decode(row.ids[: row.subject + 1], skip_special_tokens=True)
    short = tokenizer.decode(row.ids[: row.subject], skip_special_tokens=True)
    assert upto.startswith(prompt[: begin + len(subject)])
    assert not short.startswith(prompt[: begin + len(subject)])
    assert row.subject < row.start


def test_the_subject_may_be_the_first_token():
    tokenizer = models.tokenizer()
    word = next(w for w in ("The", "What", "Who", "Which") if len(tokenizer.encode(w)) == 1)
    assert spans.encode(tokenizer, f"{word} is", "it", word).subject == 0
    assert spans.encode(models.tokenizer(True), f"{word} is", "it", word).subject == 1


@pytest.mark.parametrize("length", [1, 8])
def test_answers_of_one_and_of_eight_tokens(tokenizer, length):
    word = next(w for w in ("is", "the", "in") if len(tokenizer.encode(f" {w}", add_special_tokens=False)) == 1)
    row = spans.encode(tokenizer, "The answer:", " ".join([word] * length))
    assert len(row.answer) == length
    assert len(row.ids) == row.start + length


def test_spaces_around_the_answer_change_nothing(tokenizer):
    assert spans.encode(tokenizer, "It is", "  Paris ") == spans.encode(tokenizer, "It is ", "Paris")


def test_a_prompt_alone_has_no_answer(tokenizer):
    row = spans.encode(tokenizer, "The capital of France is ")
    assert row.start == len(row.ids) and row.answer == ()
    assert list(row.ids) == tokenizer("The capital of France is")["input_ids"]


@pytest.mark.parametrize("prompt, answer", [(f"It is {models.END}", "so"), ("It is", f"so{models.END}")])
def test_control_tokens_are_refused(tokenizer, prompt, answer):
    with pytest.raises(BadRequest, match="control token"):
        spans.encode(tokenizer, prompt, answer)


@pytest.mark.parametrize("subject", ["Spain", "france", "", " "])
def test_a_subject_outside_the_prompt_is_refused(tokenizer, subject):
    with pytest.raises(SubjectNotFound, match="not part of the prompt"):
        spans.encode(tokenizer, "The capital of France is", "Paris", subject)


@pytest.mark.parametrize("answer", [" ", "\n"])
def test_an_answer_without_letters_is_refused(tokenizer, answer):
    with pytest.raises(BadRequest, match="no token of its own"):
        spans.encode(tokenizer, "It is", answer)


@pytest.mark.parametrize("answer", ["", "Paris"])
def test_an_empty_prompt_is_refused(tokenizer, answer):
    with pytest.raises(BadRequest, match="prompt has no token"):
        spans.encode(tokenizer, " ", answer)


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False
        all_special_tokens = ()

    with pytest.raises(ModelError, match="does not say where in a text its tokens stand"):
        spans.encode(Slow(), "It is", "so")
