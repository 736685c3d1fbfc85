"""The text a model sees: a prompt as it is, or as a person's turn in the model's own chat template.

Knows tokenizers and their templates; knows no model and no token position. A prompt is never put into a template's
code or its output by replacing text: the template is asked what it makes of it, and has to show it word for word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from editcore.errors import BadRequest
from editcore.records import Form

ASKED, ANSWERED = "Xq7askedq7X", "Xq7answeredq7X"  # stand for a prompt and an answer, to find where they go


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around a prompt. The control tokens in it are spelled out."""

    form: Form = "raw"
    before: str = ""  # in front of the prompt; a raw text gets the tokenizer's automatic first tokens besides
    after: str = ""  # behind the prompt, up to where the answer begins
    gap: str = " "  # between that and the answer: part of the answer


RAW = Envelope()
_controls: WeakKeyDictionary[Any, frozenset[str]] = WeakKeyDictionary()


def chat(tokenizer: Any) -> Envelope:
    """A person's first turn in the model's own template, which then lets the model answer at once.

    A template that can leave the model's thinking out is asked to. Where the answer goes is read off what the template
    makes of a finished exchange: it begins where the model takes over, or behind the header the template puts there.

    Raises:
        BadRequest: there is no template, or it cannot be used.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadRequest(
            "This model has no chat template.", "Only a model with one can be edited as a chat.", "Use raw text."
        )
    told = _render(tokenizer, ASKED)
    if told.count(ASKED) != 1:
        raise BadRequest(
            f"The chat template shows what a person says {told.count(ASKED)} times.",
            "Once was wanted.",
            "Use raw text.",
        )
    before, _, after = told.partition(ASKED)
    between = _between(tokenizer, told)
    header, gap = (after + between, "") if between.strip() else (after, between)
    bare = header.rstrip(" ")  # most tokenizers read a space and the word behind it as one token
    return Envelope("chat", before, bare, header[len(bare) :] + gap)


def enclosed(tokenizer: Any, envelope: Envelope, prompt: str, spaced: bool = False) -> str:
    """Everything in front of the answer and its gap, with the prompt at len(envelope.before).

    A raw prompt loses the spaces behind it. In a chat the prompt loses white space at both ends, which templates remove
    or keep as they like.

    Args:
        spaced: a space in front of the prompt, unless there is one: it is to follow other text.

    Raises:
        BadRequest: the template does not show the prompt word for word.
    """
    space = " " if spaced and not envelope.before.endswith(" ") else ""
    if envelope.form == "raw":
        return space + prompt.rstrip(" ")
    said = prompt.strip()
    if said and not _shown(tokenizer, envelope, said):
        raise BadRequest(
            f"The chat template changes the text {said[:80]!r}.",
            "It has to reach the model word for word, or what is edited is not what was typed.",
            "Word it differently, or use raw text.",
        )
    return f"{envelope.before}{space}{said}{envelope.after}"


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """Texts that the tokenizer reads as tokens of control, so that no person may type them.

    Those are its special tokens, and added ones that its chat template writes.
    """
    if tokenizer not in _controls:
        template = str(getattr(tokenizer, "chat_template", None) or "")
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        found = {
            token.content for token in added if token.special or token.content.strip() and token.content in template
        }
        _controls[tokenizer] = frozenset(token for token in {*found, *tokenizer.all_special_tokens} if token)
    return _controls[tokenizer]


def _shown(tokenizer: Any, envelope: Envelope, said: str) -> bool:
    """True when the template makes of `said` what it made of the mark."""
    told, head = _render(tokenizer, said), envelope.before + said
    if told.startswith(head) and f"{envelope.after}{envelope.gap}".startswith(told[len(head) :]):
        return True
    now = _render(tokenizer, ASKED)  # a template may tell the date: what it says now counts
    return ASKED in now and told == said.join(now.split(ASKED))


def _between(tokenizer: Any, told: str) -> str:
    """What the template puts between `told`, where the model takes over, and an answer."""
    try:
        whole = _render(tokenizer, ASKED, ANSWERED)
    except BadRequest:  # it has no word for answers, only for where they begin
        return ""
    head, found, _ = whole.partition(ANSWERED)
    return head[len(told) :] if found and head.startswith(told) else ""


def _render(tokenizer: Any, asked: str, answered: str = "") -> str:
    said = [{"role": "user", "content": asked}]
    if answered:
        said.append({"role": "assistant", "content": answered})
    try:
        told: str = tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=not answered, enable_thinking=False
        )
    except Exception as error:  # a template is a program of its own: it may raise anything
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise BadRequest(f"The model's chat template cannot be used ({why}).", "", "Use raw text.") from error
    return told
