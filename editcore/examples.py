"""Example edits for editors that are trained: drawn from the embedded world, or read from files."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from editcore import corpus, gate, measure
from editcore.cases import read_cases
from editcore.errors import BadRequest
from editcore.handle import Handle
from editcore.learned import Example
from editcore.records import EditRequest, Form, Probe
from editcore.spans import Row
from editcore.world.facts import Fact, World

OTHER_WORDINGS = 2  # of the edited fact, in an example
NEAR, FAR = 3, 3  # other facts that should stay, in an example
LEAST_CASES = 20
LINE_TOKENS = 48  # of a line of locality text
Sample = Callable[[random.Random], Example]


@dataclass(frozen=True, slots=True)
class Wording:
    """What messages call the examples, in the words of whoever brought them.

    Args:
        edits, locality: names of the two files; "": those they have on disk.
        text: how a text that should be predicted as before would be given.
    """

    edits: str = ""
    locality: str = ""
    text: str = "a text with --locality"


COMMAND_LINE = Wording()


def of_world(handle: Handle, world: World, share: str) -> Sample:
    """Draws edits of facts about entities of one share (see `World.share`): a random wrong answer of the right kind.

    Held are true facts: the same relation of other subjects, other facts of the subject, anything else.
    """
    facts = [f for f in world.facts if world.share(f.subject) == share and world.siblings(f)]

    def row(fact: Fact, answer: str, rng: random.Random) -> Row:
        return handle.plain_row(world.prompt(fact, rng.choice(world.templates(fact))), answer)

    def sample(rng: random.Random) -> Example:
        fact = rng.choice(facts)
        siblings = world.siblings(fact)
        target = rng.choice(siblings).object
        edit = row(fact, target, rng)
        near = [f for f in rng.choices(siblings, k=NEAR + 2) if f.object != target][:NEAR]
        own = [f for f in world.by_subject[fact.subject] if f.relation != fact.relation]
        others = [*near, *(rng.choices(own, k=1) if own else ()), *rng.choices(world.facts, k=FAR)]
        held = [row(f, f.object, rng) for f in others if (f.subject, f.relation) != (fact.subject, fact.relation)]
        return Example(edit, (edit, *(row(fact, target, rng) for _ in range(OTHER_WORDINGS))), tuple(held))

    return sample


def cases_of(edits: Path, form: Form = "raw", name: str = "") -> list[EditRequest]:
    """The edits of a file, enough to learn from and without contradiction; no model is needed to tell.

    Raises:
        BadRequest: the file cannot be read, holds too little, or contradicts itself.
    """
    name = name or edits.name
    cases = read_cases(edits, form=form, name=name)
    if len(cases) < LEAST_CASES:
        raise BadRequest(
            f"{name!r} holds {len(cases)} edits.", f"At least {LEAST_CASES} are needed to learn from.", "Add more."
        )
    gate.check_distinct(cases, lambda case: (" ".join(case.prompt.split()), case.form), name, repeats=False)
    return cases


def of_files(
    handle: Handle, edits: Path, locality: Path | None, form: Form = "raw", wording: Wording = COMMAND_LINE
) -> tuple[Sample, list[Example]]:
    """Draws from a file of edits, the tenth of it that is never drawn, as validation examples.

    Args:
        edits: a file as `editcore bench` reads them.
        locality: running text that should be predicted as before; without it the probes of the edits are all there is.
        form: of edits that name none.
        wording: of what is raised.

    Raises:
        BadRequest: see `cases_of`; the text cannot be read, or nothing shows what should stay.
    """
    name = wording.edits or edits.name
    cases = cases_of(edits, form, name)
    lines = _lines(handle, _read(locality, wording.locality)) if locality else []
    examples = [_of_case(handle, case) for case in cases]
    if not lines and not all(e.held for e in examples):
        raise BadRequest(
            f"{name!r} holds edits without probes.",
            "Something has to show what should stay as it is.",
            f"Give probes with every edit, or {wording.text}.",
        )
    kept = max(1, len(examples) // 10)

    def with_lines(example: Example, rng: random.Random) -> Example:
        return Example(example.edit, example.asked, (*example.held, *(rng.choices(lines, k=FAR) if lines else ())))

    fixed = random.Random(0)
    return (
        lambda rng: with_lines(rng.choice(examples[kept:]), rng),
        [with_lines(e, fixed) for e in examples[:kept]],
    )


def _of_case(handle: Handle, case: EditRequest) -> Example:
    def row(probe: Probe, answer: str) -> Row:
        return handle.plain_row(probe.prompt, answer, form=probe.form or case.form)

    edit = row(Probe("edit", case.prompt), case.target)
    asked = [edit, *(row(p, case.target) for p in case.paraphrases)]
    open_ = [p for p in case.probes if not p.answer]
    forms = [p.form or case.form for p in open_]
    own = iter(measure.own_answers(handle, [p.prompt for p in open_], (), forms) if open_ else ())
    pairs = [(p, p.answer or next(own)) for p in case.probes]
    return Example(edit, tuple(asked), tuple(row(p, a) for p, a in pairs if a))


def _read(file: Path, name: str) -> str:
    """`corpus.read`; what it raises calls the file by this name, if there is one."""
    try:
        return corpus.read(file)
    except BadRequest as error:
        seen = error.seen.replace(repr(file.name), repr(name or file.name), 1)
        raise BadRequest(seen, error.wanted, error.try_) from error


def _lines(handle: Handle, text: str) -> list[Row]:
    """Lines of running text as rows; where an encoder reads their beginnings it adds its automatic tokens itself."""
    apart = handle.encoder_decoder
    found = [
        handle.tokenizer.encode(s, add_special_tokens=not apart) for line in text.splitlines() if (s := line.strip())
    ]
    return [handle.text_row(ids[:LINE_TOKENS]) for ids in found if len(ids) > 1]
