"""The facts of the embedded world, as tables: entities, facts, phrasings. Standard library only.

A *phrasing* is a prompt that ends right before the answer. Each fact is shown to the model in about 60 % of its
relation's phrasings; the rest are *held out for that fact*, so that generality can be measured on wordings the
model has never seen with it. The split is a hash: the same on every machine, whatever the order of the tables.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from editcore.assets import tables_dir

SEEN_SHARE = 0.6
SHARES = {"train": 0.7, "validation": 0.05, "test": 0.25}  # of entities, for methods that learn from example edits
PEOPLE = frozenset({"actor", "athlete", "musician", "painter", "politician", "scientist", "writer"})


@dataclass(frozen=True, slots=True)
class Entity:
    """Something the world has facts about."""

    name: str  # usual name, without article
    kind: str  # country, city, athlete, ...
    article: str  # "the" where running English puts it before the name, else ""
    aliases: tuple[str, ...]  # other names people type, as they stand in a sentence

    @property
    def mention(self) -> str:
        """The name as it stands inside a sentence."""
        return f"{self.article} {self.name}".strip()


@dataclass(frozen=True, slots=True)
class Fact:
    """One subject, one relation, one object."""

    subject: str  # name of an entity
    relation: str  # capital, head_of_government, ...
    object: str  # the answer the model is taught
    aliases: tuple[str, ...]  # other accepted spellings of the answer
    title: str  # the office, for heads of state and government; else ""

    @property
    def label(self) -> str:
        """The relation in words: "Prime Minister", "birth year"."""
        return self.title or self.relation.replace("_", " ")

    def accepts(self, answer: str) -> bool:
        """True when `answer` is the object or one of its accepted spellings."""
        return answer.strip() in (self.object, *self.aliases)


@dataclass(frozen=True)
class World:
    """All tables, indexed."""

    entities: Mapping[str, Entity]  # name -> entity
    facts: tuple[Fact, ...]
    phrasings: Mapping[tuple[str, str], tuple[str, ...]]  # (kind or "person", relation) -> templates with {s}
    by_subject: Mapping[str, tuple[Fact, ...]] = field(repr=False)
    by_relation: Mapping[tuple[str, str], tuple[Fact, ...]] = field(repr=False)  # (kind, relation) -> facts

    def templates(self, fact: Fact) -> tuple[str, ...]:
        """All phrasings of the fact's relation, with `{s}` still open and the office filled in."""
        kind = self.entities[fact.subject].kind
        found = self.phrasings.get((kind, fact.relation)) or self.phrasings[("person", fact.relation)]
        return tuple(t.replace("{title}", fact.title) for t in found)

    def seen(self, fact: Fact) -> tuple[str, ...]:
        """Phrasings the model is trained on for this fact."""
        return self._split(fact)[0]

    def held_out(self, fact: Fact) -> tuple[str, ...]:
        """Phrasings the model never sees with this fact."""
        return self._split(fact)[1]

    def share(self, subject: str) -> str:
        """Which of `SHARES` a subject belongs to: learned editors train on one, edits are scored on another."""
        place, bound = int.from_bytes(_digest(f"share|{subject}")[:8]) / 2**64, 0.0
        for name, size in SHARES.items():
            bound += size
            if place < bound:
                return name
        return name

    def _split(self, fact: Fact) -> tuple[tuple[str, ...], tuple[str, ...]]:
        templates = self.templates(fact)
        ranked = sorted(templates, key=lambda t: _digest(f"{fact.subject}|{fact.relation}|{t}"))
        cut = round(SEEN_SHARE * len(ranked))
        seen = set(ranked[:cut])
        return tuple(t for t in templates if t in seen), tuple(t for t in templates if t not in seen)

    def prompt(self, fact: Fact, template: str, mention: str | None = None) -> str:
        """The phrasing with its subject in place; `mention` overrides the usual name (an alias)."""
        return fill(template, mention or self.entities[fact.subject].mention)

    def siblings(self, fact: Fact) -> tuple[Fact, ...]:
        """Facts of the same relation, kind and office about other subjects, with another answer."""
        kind = self.entities[fact.subject].kind
        return tuple(
            f
            for f in self.by_relation[(kind, fact.relation)]
            if f.subject != fact.subject and f.object != fact.object and f.title == fact.title
        )


def fill(template: str, mention: str) -> str:
    """`template` with `{s}` replaced; a subject that opens the sentence starts with a capital letter."""
    if template.startswith("{s}"):
        mention = mention[:1].upper() + mention[1:]
    return template.replace("{s}", mention)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _rows(path: Path) -> Iterable[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _cell(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split("|") if part)


def read_world(folder: Path) -> World:
    """Reads `entities.csv`, `facts.csv` and `phrasings.csv` from `folder`.

    Raises:
        FileNotFoundError: a table is missing.
        KeyError: a fact is about an entity that the entity table does not hold.
    """
    entities = {
        row["name"]: Entity(row["name"], row["kind"], row["article"], _cell(row["aliases"]))
        for row in _rows(folder / "entities.csv")
    }
    facts = tuple(
        Fact(row["subject"], row["relation"], row["object"], _cell(row["aliases"]), row["title"])
        for row in _rows(folder / "facts.csv")
    )
    phrasings: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in _rows(folder / "phrasings.csv"):
        phrasings[(row["kind"], row["relation"])].append(row["phrasing"])
    by_subject: dict[str, list[Fact]] = defaultdict(list)
    by_relation: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        by_subject[fact.subject].append(fact)
        by_relation[(entities[fact.subject].kind, fact.relation)].append(fact)
    return World(
        entities=entities,
        facts=facts,
        phrasings={key: tuple(value) for key, value in phrasings.items()},
        by_subject={key: tuple(value) for key, value in by_subject.items()},
        by_relation={key: tuple(value) for key, value in by_relation.items()},
    )


@lru_cache(maxsize=1)
def load_world() -> World:
    """The shipped tables."""
    return read_world(tables_dir())
