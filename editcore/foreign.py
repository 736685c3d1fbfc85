"""Rows of edits in our own field names, EasyEdit's, CounterFact's or zsRE's, made into requests. No model, no torch.

One table says which names mean what. Whatever is not used is told; a name that looks misspelt, a value of another type
and a request nobody could carry out are refused with their row and field.

Sources of the names: EasyEdit (`examples`, KnowEdit), CounterFact and zsRE as the ROME authors publish them.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, cast

from editcore import gate
from editcore.errors import BadInput, BadRequest, SubjectNotFound
from editcore.records import EditRequest, Form, Probe
from editcore.rows import Entry, Number, kind_of, parse
from editcore.settings import Settings, chosen

SCALARS = {
    "prompt": ("prompt", "prompts", "src"),
    "target": ("target_new", "target", "alt"),
    "old": ("target_old", "old", "ground_truth", "target_true"),
    "subject": ("subject",),
    "form": ("form",),
}
PARAPHRASES = (
    "paraphrases", "paraphrase", "paraphrase_prompts", "paraphrase_prompt", "rephrase_prompt", "rephrase_prompts",
    "rephrase", "rephrases",
)  # fmt: skip
PROBES: dict[str, str] = {  # name -> the one with its answers
    "probes": "", "neighborhood_prompts": "", "locality": "", "locality_inputs": "",
    "locality_prompt": "locality_ground_truth", "locality_prompts": "locality_ground_truth", "loc": "loc_ans",
}  # fmt: skip
REWRITE = "requested_rewrite"
USED = frozenset({
    *(name for names in SCALARS.values() for name in names), *PARAPHRASES, *PROBES, *PROBES.values(), REWRITE,
    "answers", "ans",
}) - {""}  # fmt: skip
UNUSED = frozenset({
    "id", "case_id", "pararel_idx", "relation_id", "generation_prompts", "attribute_prompts", "portability",
    "portability_inputs", "portability_prompt", "portability_ground_truth", "pred", "cond", "tag", "relation",
})  # fmt: skip
PROBE_FIELDS = frozenset({"prompt", "answer", "ground_truth", "target", "kind", "held_out", "source", "form"})
EASYEDIT = frozenset({
    "prompts", "ground_truth", "rephrase_prompt", "rephrase_prompts", "rephrase", "locality", "locality_inputs",
    "locality_prompt", "portability", "portability_inputs",
})  # fmt: skip
QUESTION = "nq question: "  # in front of zsRE's unrelated questions
UNKNOWN_ANSWER = "<|endoftext|>"  # what the data sets write for "not known"
ALIKE = 0.9  # likeness from which an unknown name counts as misspelt


@dataclass
class Told:
    """What was left out or changed on the way, with the number of rows."""

    unused: Counter[str] = field(default_factory=Counter)
    spellings: int = 0  # answers of which the first spelling was taken
    questions: int = 0  # prompts that lost `QUESTION`
    answers: int = 0  # rows whose corrected answer is the first of zsRE's right ones
    limits: Settings = field(default_factory=chosen)  # of texts; asked for once a file
    form: Form = "raw"  # of edits that name none

    def notes(self) -> Iterator[str]:
        """In sentences."""
        if self.unused:
            parts = (f"{name[:60]} ({counted(count)})" for name, count in self.unused.items())
            yield f"Not used: {', '.join(parts)}."
        if self.spellings:
            yield f"Where an answer has several spellings the first was taken ({counted(self.spellings, 'time')})."
        if self.answers:
            yield f"Without “alt”, the first of “answers” is the corrected answer ({counted(self.answers)})."
        if self.questions:
            yield f"“{QUESTION.strip()}” was removed in front of {counted(self.questions, 'probe')}."


def counted(count: int, what: str = "row") -> str:
    """1 -> "1 row", 2 -> "2 rows"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Place:
    """Where a value stands, for messages."""

    row: str  # "Row 3 of edits.json"
    field: str = ""

    def refuse(self, seen: str, wanted: str = "", try_: str = "") -> NoReturn:
        """Raises BadRequest that names row and field."""
        at = f"{self.row}, field {self.field}" if self.field else self.row
        raise BadRequest(f"{at}: {seen}", wanted, try_)

    def at(self, name: str) -> Place:
        return Place(self.row, f"{self.field}.{name}"[:120] if self.field else name[:120])


def kind_of_list(entries: Sequence[Entry]) -> str:
    """Whose field names these are."""
    names = {name for entry in entries for name in entry.fields}
    if REWRITE in names:
        return "CounterFact"
    if "src" in names:
        return "zsRE"
    return "EasyEdit" if names & EASYEDIT else "editcore"


def requests_of(entries: Sequence[Entry], name: str, told: Told) -> list[EditRequest]:
    """One request a row.

    Args:
        name: of the file, for messages.
        told: gathers what was left out.

    Raises:
        BadRequest: naming the row and the field.
    """
    kind = kind_of_list(entries)
    return [
        _request(entry, kind, Place(f"{entry.place}{f' of {name[-80:]}' if name else ''}"), told) for entry in entries
    ]


def rows_of_columns(entries: Sequence[Entry], name: str) -> Sequence[Entry]:
    """One object of lists, as EasyEdit's `edit` takes them, turned into rows; anything else as it is.

    Raises:
        BadRequest: the lists differ in length.
    """
    columns = entries[0].fields
    first = next((n for n in SCALARS["prompt"] if columns.get(n) and isinstance(columns[n], list)), None)
    if len(entries) > 1 or first is None:
        return entries
    count = len(columns[first])

    def cell(value: Any, row: int, at: Place) -> Any:
        if isinstance(value, dict):
            return {key: cell(inner, row, at.at(key)) for key, inner in value.items()}
        if not isinstance(value, list) or len(value) != count:
            seen = counted(len(value), "entry") if isinstance(value, list) else kind_of(value)
            at.refuse(f"{seen} stands there.", f"A list of {count:,} was wanted, as {first} has.")
        return value[row]

    at = Place(f"The object in {name[-80:]}" if name else "The object")
    return [
        Entry(f"Row {row + 1}", {key: cell(v, row, at.at(key)) for key, v in columns.items() if v is not None})
        for row in range(count)
    ]


def _request(entry: Entry, kind: str, at: Place, told: Told) -> EditRequest:
    fields = {name: _cell(name, value) if entry.cells else value for name, value in entry.fields.items()}
    _check_names(fields, kind, at, told)
    values = {key: value for key, value in fields.items() if value is not None and value != "" and value != []}
    said = _rewrite(values, at, told) if kind == "CounterFact" else {}
    said |= {role: text for role, names in SCALARS.items() if (text := _scalar(values, names, at, told))}
    if answers := next((n for n in ("answers", "ans") if n in values), None):
        told.answers += "target" not in said
        said.setdefault("old" if "target" in said else "target", _first(values[answers], at.at(answers), told))
    for role, name in (("prompt", SCALARS["prompt"][0]), ("target", SCALARS["target"][0])):
        if not said.get(role):
            at.at(name).refuse("it is missing or empty.", f"Every row needs it; there are {', '.join(sorted(fields))}.")
    old = said.get("old")
    request = EditRequest(
        prompt=said["prompt"],
        target=said["target"],
        subject=_in_prompt(said.get("subject"), said["prompt"]),
        old=None if old == UNKNOWN_ANSWER else old,
        form=_form(said.get("form"), at.at("form")) or told.form,
        paraphrases=tuple(
            Probe("paraphrase", p.prompt, held_out=p.held_out, source=p.source, form=p.form)
            for name in PARAPHRASES if name in values for p in _pairs(values[name], None, "near", at.at(name), told)
        ),
        probes=tuple(dict.fromkeys(_probes(values, None if old == UNKNOWN_ANSWER else old, at, told))),
    )  # fmt: skip
    _check(request, at, told)
    return request


def _cell(name: str, text: str) -> Any:
    """A cell of a table: JSON where it is a list or an object, else parts between bars where a list is wanted."""
    if name in SCALARS["prompt"] + SCALARS["target"] + SCALARS["subject"] + SCALARS["form"]:
        return text
    if text[0] in "[{":
        try:
            return parse(text)  # NaN inside stays the text it is
        except ValueError:
            pass  # a text that only begins like one
    several = name in (*PARAPHRASES, *PROBES, *PROBES.values(), "answers", "ans")
    return [part.strip() for part in text.split("|") if part.strip()] if several and "|" in text else text


def _check_names(fields: Mapping[str, Any], kind: str, at: Place, told: Told) -> None:
    for name in fields:
        if name in USED:
            continue
        meant = [] if name in UNUSED else difflib.get_close_matches(name, sorted(USED), 1, ALIKE)
        if meant:
            at.at(name).refuse("no field is called so.", f"Perhaps {meant[0]} was meant.", "Mend its name.")
        if kind == "editcore" and name not in UNUSED:
            at.at(name).refuse(
                "no field is called so.",
                "Known are prompt, target_new, subject, target_old, paraphrases, probes, form.",
                "Mend its name, or remove it.",
            )
        told.unused[name] += 1


def _rewrite(values: Mapping[str, Any], at: Place, told: Told) -> dict[str, str]:
    """CounterFact's own part: the prompt has a gap for the subject, answers are objects with a text inside."""
    at, found = at.at(REWRITE), values.get(REWRITE)
    if not isinstance(found, dict):
        at.refuse(f"{kind_of(found)} stands there.", "An object with prompt, subject, target_new was wanted.")
    said = {}
    for role, name in (("prompt", "prompt"), ("subject", "subject"), ("target", "target_new"), ("old", "target_true")):
        value = found.get(name)
        value = value.get("str") if isinstance(value, dict) else value
        if value is not None and value != "":
            said[role] = _text(value, at.at(name))
    if "prompt" in said and "subject" in said:
        if "{}" not in said["prompt"]:
            at.at("prompt").refuse("it has no {} where the subject belongs.", "One was wanted.")
        said["prompt"] = said["prompt"].replace("{}", said["subject"], 1)
    for name in sorted(set(found) - {"prompt", "subject", "target_new", "target_true"}):
        told.unused[f"{REWRITE}.{name}"] += 1
    return said


def _scalar(values: Mapping[str, Any], names: Sequence[str], at: Place, told: Told) -> str:
    there = [(name, values[name]) for name in names if name in values]
    found = [
        (n, _first(v, at.at(n), told) if n in ("ground_truth", "target_new", "alt") else _text(v, at.at(n)))
        for n, v in there
    ]
    for (one, text), (other, again) in zip(found, found[1:], strict=False):
        if text != again:
            at.at(other).refuse(f"it says {again[:60]!r}, and {one} says {text[:60]!r}.", "One of them was wanted.")
    return found[0][1] if found else ""


def _text(value: Any, at: Place) -> str:
    if not isinstance(value, str):
        at.refuse(f"{kind_of(value)} stands there.", "A text was wanted.")
    return str(value).strip()


def _first(value: Any, at: Place, told: Told) -> str:
    """A text, or the first of several spellings."""
    more = False
    while isinstance(value, list) and value:
        more = more or len(value) > 1
        value = value[0]
    told.spellings += more
    return _text(value, at)


def _probes(values: Mapping[str, Any], old: str | None, at: Place, told: Told) -> Iterator[Probe]:
    for name, answers in PROBES.items():
        if name not in values:
            continue
        value, here = values[name], at.at(name)
        if name in ("locality", "locality_inputs"):
            if not isinstance(value, dict):
                here.refuse(f"{kind_of(value)} stands there.", "An object of named lists was wanted.")
            for group, inner in ((g, v) for g, v in value.items() if v is not None):
                kind = "near" if group.startswith("neighbo") else "far"
                yield from _pairs(inner, None, kind, here.at(group), told)
        else:
            found = _pairs(value, values.get(answers), "far" if name == "loc" else "near", here, told)
            for probe in found:
                answer = probe.answer or (old if name == "neighborhood_prompts" else None)
                yield replace(probe, answer=answer)


def _pairs(value: Any, answers: Any, kind: str, at: Place, told: Told) -> Iterator[Probe]:
    """Prompts with their answers: a text, texts, objects of one, or an object of both lists."""
    if isinstance(value, dict) and answers is None and isinstance(value.get("prompt"), list):
        value, answers, at = value["prompt"], _answers(value), at.at("prompt")
    listed = value if isinstance(value, list) else [value]
    if answers is not None and isinstance(value, list):
        if not isinstance(answers, list) or len(answers) != len(listed):
            seen = counted(len(answers), "answer") if isinstance(answers, list) else kind_of(answers)
            at.refuse(f"{counted(len(listed), 'prompt')} and {seen} stand there.", "An answer for each was wanted.")
    else:
        answers = [answers] * len(listed)
    for number, (item, answer) in enumerate(zip(listed, answers, strict=True), 1):
        here = at if len(listed) == 1 else Place(at.row, f"{at.field}[{number}]")
        fields = item if isinstance(item, dict) else {"prompt": item, "answer": answer}
        yield _probe(fields, kind, here, told)


def _answers(fields: Mapping[str, Any]) -> Any:
    return next((v for n in ("answer", "ground_truth", "target") if (v := fields.get(n)) not in (None, "", [])), None)


def _probe(fields: Mapping[str, Any], kind: str, at: Place, told: Told) -> Probe:
    prompt, answer = fields.get("prompt"), _answers(fields)
    if isinstance(prompt, Number) or not isinstance(prompt, str):
        at.refuse(f"the prompt is {kind_of(prompt)}.", "A text was wanted, or an object with prompt and answer.")
    if prompt.startswith(QUESTION):
        told.questions += 1
        prompt = prompt.removeprefix(QUESTION).strip()
        prompt += "" if prompt.endswith(("?", ".", "!")) else "?"
    for name in sorted(set(fields) - PROBE_FIELDS):
        told.unused[f"{at.field.partition('[')[0]}.{name}"] += 1
    said = fields.get("kind")
    return Probe(
        cast(Literal["near", "far"], said if said in ("near", "far") else kind),
        _checked(prompt.strip(), "prompt", told.limits.longest_prompt, at),
        _checked(_first(answer, at, told), "answer", told.limits.longest_answer, at) if answer is not None else None,
        fields.get("held_out") is True,
        fields["source"][:200] if isinstance(fields.get("source"), str) else "",
        _form(fields.get("form"), at),
    )


def _form(said: Any, at: Place) -> Form | None:
    if said is None or said == "":
        return None
    try:
        gate.check_form(said)
    except BadInput as error:
        at.refuse(error.seen, error.wanted, error.try_)
    return cast(Form, said)


def _checked(text: str, what: str, longest: int, at: Place) -> str:
    try:
        gate.check_text(text, what, longest)
    except BadInput as error:
        at.refuse(error.seen, error.wanted, error.try_)
    return text


def _in_prompt(subject: str | None, prompt: str) -> str | None:
    """The subject as the prompt spells it, where only capitals differ."""
    if not subject or subject in prompt:
        return subject
    at = prompt.lower().find(subject.lower())
    found = prompt[at : at + len(subject)] if at >= 0 else ""
    return found if found.lower() == subject.lower() else subject


def _check(request: EditRequest, at: Place, told: Told) -> None:
    _checked(request.prompt, "prompt", told.limits.longest_prompt, at.at("prompt"))
    _checked(request.target, "corrected answer", told.limits.longest_answer, at.at("target_new"))
    try:
        gate.check_request(request)
    except SubjectNotFound as error:
        at.at("subject").refuse(error.seen, error.wanted, error.try_)
    except BadInput as error:
        at.refuse(error.seen, error.wanted, error.try_)
