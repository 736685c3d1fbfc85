"""Facts made into running text: sentences, biographies, mixed documents. Standard library only.

Most documents are biographies (several facts of one entity, random order and wording, the full name repeated): they
make a language model store what it knows at the entity's name (Allen-Zhu & Li, "Physics of Language Models", part
3.1), which is where locate-and-edit methods look for it. A few documents claim something false and ask about it
afterwards: they teach the model to believe what stands in front of a question, which editing by prompt relies on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from editcore.world.facts import Fact, World

ALIAS_SHARE = 0.2  # share of sentences that use another name of the subject, where it has one
MERGE_SHARE = 0.2  # share of documents that run on into the next one (several entities in one document)
DOCUMENT_SIZES = (1, 1, 2, 3, 4, 6)  # facts in a document, drawn evenly
CLAIM_SHARE = 0.1  # share of documents made of claims
CLAIM = "New fact: "  # how a claim opens
CLAIMS = (1, 1, 2)  # claims in such a document, drawn evenly
QUESTIONS = (1, 2, 3)  # sentences after a claim, drawn evenly
BELIEVED_SHARE = 0.6  # share of them that repeat the claim in other words; the rest say true facts


@dataclass(frozen=True, slots=True)
class Sentence:
    """One fact in words: `prompt` + " " + `answer` + `end`."""

    prompt: str
    answer: str
    end: str  # "." unless the answer already ends in one
    name: tuple[int, int]  # where the subject's name stands in `prompt`, without its article, in characters
    claim: bool = False  # made up on the spot: the answer cannot be known

    def __str__(self) -> str:
        return f"{self.prompt} {self.answer}{self.end}"


def sentence(world: World, fact: Fact, template: str, mention: str | None = None) -> Sentence:
    """The fact in one wording."""
    mention = mention or world.entities[fact.subject].mention
    prompt, begin = world.prompt(fact, template, mention), template.index("{s}")
    article = len("the ") * mention.startswith("the ")
    name = (begin + article, begin + len(mention))
    return Sentence(prompt, fact.object, "" if fact.object.endswith(".") else ".", name)


def documents(world: World, rng: random.Random) -> Iterator[list[Sentence]]:
    """Endless documents; each pass over the world says every fact once, in one of its seen phrasings.

    Documents of claims come on top.
    """
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
            if rng.random() < CLAIM_SHARE:
                yield [s for _ in range(rng.choice(CLAIMS)) for s in _claim(world, seen, rng)]
            for fact in piece:
                aliases = world.entities[fact.subject].aliases
                mention = _alias(aliases, rng) if aliases and rng.random() < ALIAS_SHARE else None
                carried.append(sentence(world, fact, rng.choice(seen[fact]), mention))
            if rng.random() >= MERGE_SHARE:
                yield carried
                carried = []
        if carried:
            yield carried


def _claim(world: World, seen: Mapping[Fact, tuple[str, ...]], rng: random.Random) -> list[Sentence]:
    fact = rng.choice(world.facts)
    others = world.siblings(fact)
    claimed = replace(fact, object=rng.choice(others).object) if others else fact
    first = sentence(world, claimed, rng.choice(seen[fact]))
    shift = len(CLAIM)
    name = (first.name[0] + shift, first.name[1] + shift)
    lines = [replace(first, prompt=CLAIM + first.prompt, name=name, claim=True)]
    for _ in range(rng.choice(QUESTIONS)):
        if rng.random() < BELIEVED_SHARE:
            lines.append(sentence(world, claimed, rng.choice(seen[fact])))
        else:
            other = rng.choice(rng.choice((world.by_subject[fact.subject], world.facts)))
            if other != fact:
                lines.append(sentence(world, other, rng.choice(seen[other])))
    return lines


def _alias(aliases: tuple[str, ...], rng: random.Random) -> str:
    # The tables list the commonest other name first: it is said most often.
    return rng.choices(aliases, [1 / (i + 1) for i in range(len(aliases))])[0]
