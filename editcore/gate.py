"""Refuses what no model could make sense of. Asks the settings for limits; knows no tokenizer, no model, no torch.

What needs the model (token counts, whether the answer is new) is checked by `edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from editcore.errors import BadRequest, BadSetting, SubjectNotFound
from editcore.records import FORMS, EditRequest
from editcore.settings import chosen

_LONGEST_NAME = 255  # characters of a file's name


def check_text(text: Any, what: str, longest: int) -> None:
    """Refuse text that is empty, too long or not valid Unicode.

    Raises:
        BadRequest: with the limit and what was seen.
    """
    if not isinstance(text, str) or not text.strip():
        raise BadRequest(f"The {what} is empty.", "It needs at least one visible character.", f"Type the {what}.")
    if len(text) > longest:
        raise BadRequest(f"The {what} has {len(text):,} characters.", f"At most {longest:,} fit.", "Shorten it.")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise BadRequest(f"The {what} holds a character that is no text.", "Valid Unicode is needed.", "Retype it.")


def check_form(form: Any) -> None:
    """Refuse a form no prompt is read in; whether the model has it is checked by `edit`."""
    if form not in FORMS:
        raise BadRequest(f"There is no form {str(form)[:40]!r}.", f"{' or '.join(FORMS)} was wanted.")


def check_request(request: EditRequest, method: str = "", settings: Mapping[str, Any] | None = None) -> None:
    """Refuse a request that cannot be carried out whatever the model is.

    Raises:
        BadRequest, SubjectNotFound, BadSetting: saying which part and why.
    """
    limits = chosen()
    check_text(request.prompt, "prompt", limits.longest_prompt)
    check_text(request.target, "corrected answer", limits.longest_answer)
    if method:
        check_text(method, "method name", 100)
    for form in (request.form, *(probe.form for probe in (*request.paraphrases, *request.probes) if probe.form)):
        check_form(form)
    if request.old is not None:
        check_text(request.old, "old answer", limits.longest_answer)
    if request.subject is not None and (not request.subject or request.subject not in request.prompt):
        raise SubjectNotFound(
            f"The subject {request.subject[:80]!r} is not part of the prompt.",
            "It has to stand in the prompt, letter by letter.",
            "Pick it from the prompt, or leave it empty.",
        )
    probes = (*request.paraphrases, *request.probes)
    if len(probes) > limits.most_probes:
        raise BadRequest(
            f"There are {len(probes):,} paraphrases and probes.", f"At most {limits.most_probes:,} fit.", "Remove some."
        )
    for probe in probes:
        check_text(probe.prompt, "prompt of a probe", limits.longest_prompt)
        if probe.answer is not None:
            check_text(probe.answer, "answer of a probe", limits.longest_answer)
        if probe.kind in ("near", "far") and _same(probe.prompt, request.prompt):
            raise BadRequest(
                f"The unrelated probe {probe.prompt[:60]!r} is the edit prompt itself.",
                "It would count the edit as damage.",
                "Remove it from the probes.",
            )
    if not all(value is None or isinstance(value, str | int | float | bool) for value in (settings or {}).values()):
        raise BadSetting("The settings hold something that is not a number, a text or a choice.")


def check_list(requests: Sequence[EditRequest]) -> None:
    """Refuse a list of edits that is empty or too long."""
    most = chosen().most_requests
    if not 0 < len(requests) <= most:
        raise BadRequest(
            f"There are {len(requests):,} edits to make.", f"1 to {most:,} were wanted.", "Split the list."
        )


def check_plans(request: EditRequest, plans: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse a comparison nobody could carry out: no method, too many, or a bad request.

    Raises:
        BadRequest, SubjectNotFound, BadSetting: saying which part and why.
    """
    if not plans:
        raise BadRequest("No method is chosen.", "A comparison needs at least one.", "Choose a method.")
    if len(plans) > (most := chosen().most_methods):
        raise BadRequest(f"{len(plans)} methods are chosen.", f"At most {most} fit.", "Choose fewer.")
    for method, settings in plans:
        check_request(request, method, settings)


def check_distinct(
    requests: Sequence[EditRequest], question: Callable[[EditRequest], Hashable], where: str, repeats: bool = True
) -> None:
    """Refuse a list that asks one question twice.

    Args:
        question: equal for two requests that ask the same.
        where: the list, as people call it.
        repeats: also refuse a question that has the same answer both times.

    Raises:
        BadRequest: naming both rows.
    """
    first: dict[Hashable, tuple[int, str]] = {}
    for number, request in enumerate(requests, 1):
        at, target = first.setdefault(question(request), (number, request.target))
        if target != request.target:
            raise BadRequest(
                f"Rows {at} and {number} of {where} ask for two answers to one question: {target!r}, "
                f"{request.target!r}.",
                "One answer to a question was wanted.",
                "Remove one of them.",
            )
        if at != number and repeats:
            raise BadRequest(
                f"Rows {at} and {number} of {where} are the same edit: {request.prompt[:60]!r}.",
                "",
                "Remove one of them.",
            )


def check_examples(method: str, examples: Mapping[str, Any], needed: bool = True) -> None:
    """Refuse examples to train on that are too long or no text; what they say is checked when they are read.

    Args:
        needed: there have to be some.

    Raises:
        BadRequest: with the limit and what was seen.
    """
    check_text(method, "method name", 100)
    if not needed and not examples:
        return
    for name, what in (("edits", "file of example edits"), ("locality", "text that should stay as it is")):
        if examples.get(name):
            check_text(examples[name], what, chosen().longest_examples)
        if examples.get(f"{name}_name"):
            check_text(examples[f"{name}_name"], f"name of the {what}", _LONGEST_NAME)
    steps = examples.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 1_000_000:
        raise BadRequest(f"{steps!r} steps were asked for.", "A whole number from 1 to 1,000,000 is needed.")


def _same(one: str, other: str) -> bool:
    return " ".join(one.split()).casefold() == " ".join(other.split()).casefold()


def check_prompts(prompts: Sequence[str]) -> None:
    """Refuse a list of prompts that is too long, or holds one that cannot be read."""
    limits = chosen()
    if len(prompts) > limits.most_prompts:
        raise BadRequest(f"There are {len(prompts):,} prompts.", f"At most {limits.most_prompts} fit.", "Remove some.")
    for prompt in prompts:
        check_text(prompt, "prompt", limits.longest_prompt)
