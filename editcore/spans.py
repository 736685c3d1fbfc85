"""Where prompt, subject and answer sit among the tokens. Knows tokenizers; knows no model and no chat template.

Everything is read off the character offsets of the *final joined text*, tokenized once: pieces tokenized apart and
glued together differ at merges, at multi-byte characters and behind automatic first tokens. Only where an encoder reads
the prompt and a decoder says the answer are the two texts of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from editcore.chat import RAW, Envelope, control_tokens, enclosed
from editcore.errors import BadRequest, ModelError, SubjectNotFound


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt followed by an answer, as token ids."""

    ids: tuple[int, ...]
    start: int  # index of the first answer token; == len(ids) when there is no answer
    subject: int | None = None  # index of the subject's last token
    subject_start: int | None = None  # index of its first token
    lead: int = 0  # tokens in front of the prompt's own: automatic first ones, or a template's

    @property
    def answer(self) -> tuple[int, ...]:
        """Ids of the answer tokens."""
        return self.ids[self.start :]


def join(prompt: str, answer: str) -> str:
    """The text a model is asked to believe: one space between prompt and answer."""
    return f"{prompt.rstrip(' ')} {answer.strip()}"


def find_subject(prompt: str, subject: str) -> tuple[int, int]:
    """Character span of the subject's last occurrence in the prompt.

    Raises:
        SubjectNotFound: the subject is empty or not a substring of the prompt.
    """
    at = prompt.rfind(subject) if subject.strip() else -1
    if at < 0:
        raise SubjectNotFound(
            f"The subject {subject!r} is not part of the prompt {_short(prompt)!r}.",
            "This method edits what is stored at the subject, so it must stand in the prompt word for word.",
            "Choose the name the fact is about, spelled as in the prompt.",
        )
    return at, at + len(subject)


def encode(
    tokenizer: Any, prompt: str, answer: str = "", subject: str | None = None, envelope: Envelope = RAW,
    spaced: bool = False,
) -> Row:  # fmt: skip
    """Tokenizes prompt and answer, with what stands around them, once, and finds the borders by offsets.

    The subject is looked for in the prompt alone. A chat template writes its own first tokens, so none are added.

    Args:
        envelope, spaced: see `chat.enclosed`.

    Raises:
        SubjectNotFound: the subject is not in the prompt.
        BadRequest: the answer has no token of its own, the text holds a control token, or a template changes it.
        ModelError: the tokenizer gives no offsets.
    """
    refuse_special(tokenizer, prompt, answer)
    require_offsets(tokenizer)
    raw = envelope.form == "raw"
    lead = enclosed(tokenizer, envelope, prompt, spaced)
    said = lead[len(envelope.before) : len(lead) - len(envelope.after)]
    text = f"{lead}{envelope.gap}{answer.strip()}" if answer else lead
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=raw)
    ids, offsets = list(coded["input_ids"]), coded["offset_mapping"]
    while raw and ids and ids[-1] in tokenizer.all_special_ids:  # an automatic end marker would stand after the answer
        ids.pop()
    start = _first_behind(tokenizer, ids, offsets, len(lead)) if answer else len(ids)
    if answer and (start == len(ids) or not answer.strip()):
        raise _unseen(answer)
    if start == 0 or not said.strip():
        raise _promptless()
    first, last = _subject_at(said, subject, offsets[:start], len(envelope.before))
    automatic = tokenizer.all_special_ids if raw else ids  # in a chat, whatever ends where the prompt begins
    own = next((i for i in range(start) if offsets[i][1] > len(envelope.before) or ids[i] not in automatic), 0)
    return Row(tuple(ids), start, last, first, own)


def encode_apart(
    tokenizer: Any, prompt: str, answer: str = "", subject: str | None = None, closing: tuple[int, ...] = ()
) -> Row:
    """Tokenizes prompt and answer as an encoder and a decoder read them: each a text of its own.

    The prompt keeps its automatic tokens at both ends; the answer has none but `closing` behind it, as one more token.

    Raises:
        SubjectNotFound, BadRequest, ModelError: as in `encode`.
    """
    refuse_special(tokenizer, prompt, answer)
    require_offsets(tokenizer)
    lead, said = prompt.rstrip(" "), answer.strip()
    coded = tokenizer(lead, return_offsets_mapping=True)
    ids, offsets = tuple(coded["input_ids"]), coded["offset_mapping"]
    if not lead.strip() or not any(end > begin for begin, end in offsets):
        raise _promptless()
    own = tuple(tokenizer(said, add_special_tokens=False)["input_ids"]) if answer else ()
    if answer and not (said and own):
        raise _unseen(answer)
    first, last = _subject_at(lead, subject, offsets)
    return Row((*ids, *own, *(closing if own else ())), len(ids), last, first)


def require_offsets(tokenizer: Any) -> None:
    """Raises ModelError for a tokenizer that does not say where in a text its tokens stand."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"The tokenizer {type(tokenizer).__name__} does not say where in a text its tokens stand.",
            "A fast one (tokenizer.json) was wanted: subject and answer are found by it.",
            "Convert it to tokenizer.json, or use another model.",
        )


def _unseen(answer: str) -> BadRequest:
    return BadRequest(f"The answer {answer!r} has no token of its own.", "", "Type a visible answer.")


def _promptless() -> BadRequest:
    return BadRequest(
        "The prompt has no token of its own in front of the answer.", "", "Type a prompt of at least one word."
    )


def _subject_at(
    prompt: str, subject: str | None, offsets: Sequence[tuple[int, int]], before: int = 0
) -> tuple[int | None, int | None]:
    """Indices of the subject's first and last token, by the offsets of a text; None where nobody asked.

    Args:
        before: characters of the text in front of the prompt.
    """
    if subject is None:
        return None, None
    begin, end = (before + at for at in find_subject(prompt, subject))
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > begin and last > first]
    if not inside:
        raise SubjectNotFound(f"The subject {subject!r} has no token of its own before the answer.")
    return inside[0], inside[-1]


def refuse_special(tokenizer: Any, *texts: str) -> None:
    """Raises BadRequest when a text spells one of the tokenizer's control tokens."""
    for text in texts:
        for token in control_tokens(tokenizer):
            if token in text:
                raise BadRequest(
                    f"The text holds {token!r}, a control token of this model.",
                    "Only plain text can be edited.",
                    "Leave it out.",
                )


def pieces(tokenizer: Any, ids: tuple[int, ...]) -> tuple[str, ...]:
    """Each token as text a person can read."""
    return tuple(tokenizer.decode([i]) for i in ids)


def _first_behind(tokenizer: Any, ids: Sequence[int], offsets: Sequence[tuple[int, int]], border: int) -> int:
    """Index of the first token of what stands behind a border in the text; len(ids) when there is none.

    A token that crosses the border belongs to what is behind it, and so does a lone space there (whose span some
    tokenizers trim to nothing): the model must produce both. One of control may swallow that space, no more.
    """
    control = control_tokens(tokenizer)
    for i, (begin, end) in enumerate(offsets[: len(ids)]):
        if end > border and (begin >= border or tokenizer.convert_ids_to_tokens(ids[i]) not in control):
            return i
    return len(ids)


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
