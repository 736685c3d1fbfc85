"""Facts made into running text: sentences, biographies, mixed documents. Standard library only.

Most documents are biographies (several facts of one entity, random order and wording, the full name repeated): they
make a language model store what it knows at the entity's name (Allen-Zhu & Li, "Physics of Language Models", part
3.1), which is where locate-and-edit methods look for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from editcore.world.facts import Fact, World

ALIAS_SHARE = 0.2  # share of sentences that use another name of the subject, where it has one
MERGE_SHARE = 0.2  # share of documents that run on into the next one (several entities in one document)
DOCUMENT_SIZES = (1, 1, 2, 3, 4, 6)  # facts in a document, drawn evenly


@dataclass(frozen=True, slots=True)
class Sentence:
    """One fact in words: `prompt` + " " + `answer` + `end`."""

    prompt: str
    answer: str
    end: str  # "." unless the answer already ends in one

    def __str__(self) -> str:
        return f"{self.prompt} {self.answer}{self.end}"


def sentence(world: World, fact: Fact, template: str, mention: str | None = None) -> Sentence:
    """The fact in one wording."""
    return Sentence(world.prompt(fact, template, mention), fact.object, "" if fact.object.endswith(".") else ".")


def documents(world: World, rng: random.Random) -> Iterator[list[Sentence]]:
    """Endless documents; each pass over the world says every fact once, in one of its seen phrasings."""
    seen = {fact: world.seen(fact) for fact in world.facts}
    while True:
        pieces: list[list[Fact]] = []
        for facts in world.by_subject.values():
            order = rng.sample(facts, len(facts))
            while order:
                size = rng.choice(DOCUMENT_SIZES)
                pieces.append(order[:size])
                order = order[size:]
        rng.shuffle(pieces)
        carried: list[Sentence] = []
        for piece in pieces:
            for fact in piece:
                aliases = world.entities[fact.subject].aliases
                mention = _alias(aliases, rng) if aliases and rng.random() < ALIAS_SHARE else None
                carried.append(sentence(world, fact, rng.choice(seen[fact]), mention))
            if rng.random() >= MERGE_SHARE:
                yield carried
                carried = []
        if carried:
            yield carried


def _alias(aliases: tuple[str, ...], rng: random.Random) -> str:
    # The tables list the commonest other name first: it is said most often.
    return rng.choices(aliases, [1 / (i + 1) for i in range(len(aliases))])[0]
