"""ICE: the new fact as a text in front of every prompt (Cohen et al. 2024; IKE: Zheng et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from editcore.anatomy import Site
from editcore.handle import Handle
from editcore.memory import Header
from editcore.method import Cost, Work, made_by, setting
from editcore.patch import Patch
from editcore.records import EditRequest, Progress
from editcore.spans import join

FORMS = ("prompt", "sentence")
FORMS_HELP = "How it is written: New Fact: ... on a line of its own, then Prompt: ...; or as a sentence of running text"


@dataclass(frozen=True)
class ICE:
    """In-context editing: the model reads the new fact, then the prompt. No weight and no activation is changed.

        p'(y | x) = p(y | header + x),   header = "New Fact: {prompt} {answer}" for each request

    The header stands in front of every prompt, related or not, and is read with it each time: `Handle.row`. Headers of
    several patches stand one behind the other. The form `prompt` is that of IKE without demonstrations (Zheng et al.
    2023, arXiv 2305.12740): "New Fact: ...", then "Prompt: {x}"; `sentence` says the fact in running text.
    """

    name: ClassVar[str] = "ice"
    title: ClassVar[str] = "ICE"
    sentence: ClassVar[str] = (
        "Writes the new fact in front of every prompt: nothing is computed, but each answer reads it again."
    )
    remedy: ClassVar[str] = "Try the other form of the text; a model has to be one that believes what it is told."
    paper: ClassVar[str] = "Cohen et al. 2024, arXiv 2307.12976"
    needs: ClassVar[tuple[str, ...]] = ()
    one_stack: ClassVar[str] = ""

    form: str = setting("prompt", FORMS_HELP, choices=FORMS)

    def layers(self, handle: Handle) -> tuple[int, ...]:
        """None: no block is edited."""
        return ()

    def measured(self, handle: Handle) -> tuple[Site, ...]:
        """None: no statistics are read."""
        return ()

    def cost(self, handle: Handle, request: EditRequest) -> Cost:
        """A text; every pass reads it again."""
        return Cost(len(self.text([join(request.prompt, request.target)]).encode()))

    def edit(self, work: Work, requests: Sequence[EditRequest]) -> Patch:
        """One header for all requests.

        Raises:
            BadRequest: a request does not fit behind the header.
            Cancelled: stopped between two requests.
        """
        handle, facts = work.handle, []
        for number, request in enumerate(requests):
            facts.append(join(request.prompt, request.target))
            work.report(Progress("edit", number + 1, len(requests), text="writing the new fact down"))
            work.check()
        text = self.text(facts)
        patch = made_by(self, handle, [Header.of(text)], requests)
        with handle.using([patch]):
            for request in requests:
                handle.check_length(len(handle.row_of(request).ids))
        tokens = len(handle.tokenizer(text)["input_ids"])
        work.notes.append(f"The new fact takes {tokens} of the {handle.context} tokens this model can read at once.")
        return patch

    def text(self, facts: Sequence[str]) -> str:
        """The header; a prompt follows it without anything in between."""
        if self.form == "prompt":
            return "".join(f"New Fact: {fact}\n" for fact in facts) + "Prompt: "
        return "".join(f"New fact: {fact.rstrip('.')}. " for fact in facts)
