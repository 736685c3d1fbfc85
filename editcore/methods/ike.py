"""IKE: the new fact in front of every prompt, behind demonstrations of what an edit changes (Zheng et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editcore import demonstrations, measure
from editcore.anatomy import Site
from editcore.demonstrations import Demonstration
from editcore.handle import Handle
from editcore.memory import Header
from editcore.method import Cost, Work, made_by, setting
from editcore.methods.ice import FORMS, FORMS_HELP
from editcore.patch import Patch
from editcore.records import EditRequest, Probe, Progress
from editcore.spans import join

# What a demonstration shows, from the nearest on and round again: copy : update : retain = 1 : 3 : 4.
KINDS = ("update", "retain", "update", "retain", "copy", "retain", "update", "retain")
ROOM = 48  # tokens at least kept free for a prompt with its answer
SPARE = 16  # and for what is written behind the longest that is known


@dataclass(frozen=True)
class IKE:
    """In-context editing with demonstrations: the model is shown how facts are changed, reads the new one, answers.

        p'(y | x) = p(y | d_k ... d_1 + copy of (x*, y*) + "New Fact: x* y*" + x)             (Zheng et al. 2023, 3)

    d_i: an example edit f with a question and its answer after it, the nearest last -> `demonstrations.Index.nearest`
        copy: f itself; update: f in other words, the new answer; retain: something else, its true answer -> `KINDS`

    Demonstrations are cut to what the model's context holds beside the longest prompt known. Likeness is the cosine of
    token TF-IDF where the paper has sentence embeddings, and kinds go round in turn where the paper shuffles them. The
    text stands in front of every prompt, related or not: `Handle.row`.
    """

    name: ClassVar[str] = "ike"
    title: ClassVar[str] = "IKE"
    sentence: ClassVar[str] = (
        "Writes example edits and the new fact in front of every prompt: nothing is computed, each answer reads it all."
    )
    remedy: ClassVar[str] = (
        "Try the other form of the text or fewer demonstrations; small models learn little from them."
    )
    paper: ClassVar[str] = "Zheng et al. 2023, arXiv 2305.12740"
    needs: ClassVar[tuple[str, ...]] = ("demonstrations",)
    one_stack: ClassVar[str] = ""

    count: int = setting(
        32, "Most demonstrations in front of the new fact; fewer where the context is short", low=0, high=256
    )
    form: str = setting("prompt", FORMS_HELP, choices=FORMS)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """None: no block is edited."""
        demonstrations.ready(handle)
        return ()

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: no statistics are read."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """A text; every pass reads it again."""
        return Cost(len(self._header(handle, [request])[0].encode()))

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One header for all requests.

        Raises:
            BadRequest: there are no demonstrations for this model, or a request does not fit behind the header.
            Cancelled: stopped before the text was chosen.
        """
        handle = work.handle
        demonstrations.ready(handle, work.home)
        work.report(Progress("edit", 1, 1, text="choosing demonstrations"))
        work.check()
        text, shown = self._header(handle, requests)
        patch = made_by(self, handle, [Header.of(text)], requests)
        with handle.using([patch]):
            for request in requests:
                handle.check_length(len(handle.row_of(request).ids))
        work.notes.append(
            f"The new fact and {shown} demonstrations take {_length(handle, text)} of the {handle.context} tokens"
            " this model can read at once."
        )
        return patch

    def _header(self, handle: Handle, requests: Sequence[EditRequest]) -> tuple[str, int]:
        """The text in front, cut to what fits, and how many demonstrations it has."""
        facts = [join(request.prompt, request.target) for request in requests]
        near = demonstrations.ready(handle).nearest([request.prompt for request in requests], self.count)
        room = handle.context - _length(handle, handle.header) - max(ROOM, SPARE + _longest(handle, requests))
        copies = list(facts)
        while (near or copies) and _length(handle, self.text(near, copies, facts)) > room:
            (near or copies).pop()
        return self.text(near, copies, facts), len(near)

    def text(self, near: Sequence[Demonstration], copies: Sequence[str], facts: Sequence[str]) -> str:
        """The header: demonstrations, the facts said after themselves, the facts; a prompt follows it directly."""
        shown = [(d.fact, _shown(d, KINDS[i % len(KINDS)])) for i, d in enumerate(near)][::-1]
        shown += [(fact, fact) for fact in copies]
        if self.form == "prompt":
            examples = "".join(f"New Fact: {fact}\nPrompt: {said}\n\n" for fact, said in shown)
            return examples + "".join(f"New Fact: {fact}\n" for fact in facts) + "Prompt: "
        told = [line.rstrip(".") for pair in shown for line in (f"New fact: {pair[0]}", pair[1])]
        return "".join(f"{line}. " for line in (*told, *(f"New fact: {fact.rstrip('.')}" for fact in facts)))


def _shown(demonstration: Demonstration, kind: str) -> str:
    if kind == "retain":
        return join(*demonstration.other)
    return join(demonstration.paraphrase, demonstration.target) if kind == "update" else demonstration.fact


def _length(handle: Handle, text: str) -> int:
    return len(handle.tokenizer(text, verbose=False)["input_ids"]) if text else 0  # said by name when it is too long


def _longest(handle: Handle, requests: Sequence[EditRequest]) -> int:
    """Tokens of the longest prompt with its answer that is going to be read."""
    rows = [handle.plain_row(p.prompt, p.answer or "", form=p.form or r.form) for r in requests for p in r.probes]
    rows += [
        handle.plain_row(p.prompt, r.target, form=p.form or r.form)
        for r in requests
        for p in (Probe("edit", r.prompt), *measure.other_form(handle, r), *r.paraphrases)
    ]
    return max(len(row.ids) for row in rows)
