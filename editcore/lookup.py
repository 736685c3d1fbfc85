"""Text to facts: which entity a prompt is about, which fact it asks for, which known questions lie near it.

Knows the world's tables and plain string comparison; knows no model and no tokenizer. Standard library only.
Comparisons fold case, accents and curly quotes; what is returned stands as it was typed.
"""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from editcore.rewrites import COUNTRIES, capitalised, quoted, word_set
from editcore.world.facts import Entity, Fact, World

ENTITY, QUOTED, CAPITALISED = "longest known entity", "quoted span", "capitalised span"
CLOSE = 0.62  # a prompt this similar to a phrasing asks for its fact; exact wording is 1
RELATED = 0.35  # below this, wording says nothing about what is asked
WELL_KNOWN = (
    "United Kingdom", "Lionel Messi", "Apple", "Eiffel Tower", "Albert Einstein", "France", "United States", "Titanic",
    "William Shakespeare", "telephone", "gold", "Leonardo da Vinci", "London", "Microsoft", "Germany", "Japan",
    "Hamlet", "Ludwig van Beethoven", "Italy", "Paris", "Roger Federer", "Charles Darwin", "China", "Google",
    "Steven Spielberg", "The Godfather", "oxygen", "Statue of Liberty", "India", "Canada", "LeBron James", "Spain",
    "Australia", "Brazil", "Russia", "Angela Merkel", "Marie Curie", "Isaac Newton", "Taj Mahal", "iron", "Egypt",
)  # fmt: skip

SHOWPIECES = (  # questions people know: subject, relation, name as said in the question
    ("Lionel Messi", "team", "Messi"), ("Eiffel Tower", "city", ""), ("Apple", "chief_executive", ""),
    ("Japan", "capital", ""), ("gold", "symbol", ""), ("Romeo and Juliet", "language", ""),
    ("Titanic", "director", ""), ("telephone", "inventor", ""), ("Leonardo da Vinci", "notable_work", ""),
    ("Albert Einstein", "field", ""), ("London", "river", ""), ("Ludwig van Beethoven", "genre", ""),
    ("William Shakespeare", "notable_work", ""), ("Don Quixote", "author", ""), ("oxygen", "atomic_number", ""),
    ("Taj Mahal", "country", ""), ("Microsoft", "founder", ""), ("Roger Federer", "sport", ""),
    ("Angela Merkel", "party", ""), ("The Godfather", "year", ""), ("Paris", "country", ""),
    ("Charles Darwin", "known_for", ""), ("Toyota", "country", ""), ("Vincent van Gogh", "movement", ""),
    ("iron", "state", ""), ("dynamite", "inventor", ""), ("Steven Spielberg", "notable_film", ""),
)  # fmt: skip

_HOLE = "\ue000"  # stands for the subject in token lists
_WORD = re.compile(rf"{_HOLE}|[^\W_]+")
_ARTICLES = frozenset({"a", "an", "the"})
_FILLERS = word_set(
    "a an the of in is are was were do does did to for by on at and or i you we it me my us they can could would will "
    "please tell say know s q what which name complete now today currently current who whose"
)
_TURNS = word_set(  # words that ask for another fact than the plain one
    "first second third last next former previous ex vice deputy not never no oldest youngest before after"
)
_COMMON = frozenset({"us", "la", "car", "it", "shell", "oracle", "frozen", "may", "et", "ge", "ea", "gm", "drc"})
_ASKS = {  # what a question word at the start can ask for
    "when": frozenset({"year", "birth_year"}),
    "where": word_set(
        "capital city continent country headquarters birthplace citizenship inventor_country largest_city"
    ),
    "who": word_set(
        "head_of_state head_of_government founder chief_executive author director lead_actor inventor discoverer"
    ),
}
_SAYINGS = {  # what people type -> what the phrasings say; for near misses only
    "pm": "prime minister", "premier": "prime minister", "prez": "president", "boss": "chief executive",
    "head": "chief executive", "biggest": "largest", "movie": "film", "money": "currency", "writer": "author",
    "maker": "inventor", "club": "team", "tongue": "language", "born": "birthplace born", "tld": "internet domain",
    "located": "located city country", "leader": "president prime minister", "ruler": "king queen president",
}  # fmt: skip
_NICKNAMES = {
    "england": "United Kingdom", "scotland": "United Kingdom", "wales": "United Kingdom", "uk": "United Kingdom",
    "northern ireland": "United Kingdom", "the states": "United States", "us": "United States",
    "u s": "United States", "turkiye": "Turkey", "the vatican": "Vatican City", "persia": "Iran", "ussr": "Russia",
    "soviet union": "Russia", "disney": "Walt Disney Company", "einstein": "Albert Einstein", "car": "automobile",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Match:
    """A known name where it stands in a prompt."""

    entity: Entity
    key: str  # the name or alias as the tables spell it, with the article where the alias has one
    start: int  # characters, article excluded
    end: int

    def mention(self, prompt: str) -> str:
        """The name as it belongs inside a sentence, in the spelling the user chose."""
        if self.key == self.entity.name:
            return self.entity.mention
        return f"the {self.key}" if _article_before(prompt, self.start) and self.key[:4] != "the " else self.key


@dataclass(frozen=True)
class _Index:
    keys: tuple[tuple[str, str, Entity], ...]  # folded key, key, entity; longest first
    weights: Mapping[str, float]  # word -> how much it says about the relation
    unknown: float  # weight of a word that no phrasing has
    grams: Mapping[str, tuple[int, ...]]  # three characters -> indices into `keys`
    hay: tuple[tuple[str, str, str], ...]  # per fact, folded: subject names; relation and office; object and spellings
    fame: Mapping[str, int]  # entity name -> place, best known first


@lru_cache(maxsize=16384)
def fold(text: str) -> str:
    """Lower case, without accents, straight quotes, single spaces: what comparisons see."""
    return " ".join(_folded(text)[0].split())


@lru_cache(maxsize=4096)
def _fold_character(character: str) -> str:
    plain = {"’": "'", "‘": "'", "ʼ": "'", "ø": "o", "Ø": "o", "ł": "l", "Ł": "l", "ß": "ss"}.get(character, character)
    return "".join(c for c in unicodedata.normalize("NFD", plain.lower()) if not unicodedata.combining(c))


def _folded(text: str) -> tuple[str, list[int]]:
    """The folded text, and for each of its characters the place in `text` it comes from."""
    pieces = [_fold_character(c) for c in text]
    return "".join(pieces), [i for i, piece in enumerate(pieces) for _ in piece]


_INDICES: list[tuple[World, _Index]] = []  # one per world object, compared by identity: worlds are not hashable


def _index(world: World) -> _Index:
    for known, index in _INDICES:
        if known is world:
            return index
    index = _build(world)
    _INDICES[:] = [*_INDICES[-1:], (world, index)]
    return index


def _build(world: World) -> _Index:
    named = {alias: e for e in world.entities.values() for alias in e.aliases}
    named.update({e.name: e for e in world.entities.values()})
    keys = sorted(((fold(key), key, e) for key, e in named.items()), key=lambda k: (-len(k[1]), k[1]))
    relations: dict[str, set[str]] = defaultdict(set)
    for (_, relation), templates in world.phrasings.items():
        for template in templates:
            for word in _words(template.replace("{s}", _HOLE)):
                relations[word].add(relation)
    total = len({relation for _, relation in world.phrasings})
    grams: dict[str, list[int]] = defaultdict(list)
    for i, (folded, _, _) in enumerate(keys):
        for gram in _trigrams(folded):
            grams[gram].append(i)
    order = [name for name in dict.fromkeys((*WELL_KNOWN, *COUNTRIES, *world.entities)) if name in world.entities]
    return _Index(
        keys=tuple(keys),
        weights={
            word: 0.1 if word in _FILLERS or word == _HOLE else 0.1 + math.log(total / len(found))
            for word, found in relations.items()
        },
        unknown=0.1 + math.log(total or 1),
        grams={gram: tuple(found) for gram, found in grams.items()},
        hay=tuple(_haystack(world, fact) for fact in world.facts),
        fame={name: i for i, name in enumerate(order)},
    )


def _haystack(world: World, fact: Fact) -> tuple[str, str, str]:
    names = (fact.subject, *world.entities[fact.subject].aliases)
    relation = (fact.label, fact.relation.replace("_", " "))
    return fold(" | ".join(names)), fold(" | ".join(relation)), fold(" | ".join((fact.object, *fact.aliases)))


def _trigrams(text: str) -> set[str]:
    padded = f" {text} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


# Subjects


def find_subject(prompt: str, world: World | None) -> tuple[str | None, str]:
    """The subject as it stands in the prompt (without article), and how it was found, in words.

    Returns (None, "") where the prompt names nothing.
    """
    if world is not None and (match := best_match(prompt, world)):
        return prompt[match.start : match.end], ENTITY
    if span := quoted(prompt):
        return span, QUOTED
    span = capitalised(prompt)
    return (span, CAPITALISED) if span else (None, "")


def best_match(prompt: str, world: World) -> Match | None:
    """The known entity the prompt asks about: the one whose facts come nearest, else the longest one."""
    found = matches(prompt, world)
    scores = [_closest(prompt, match, world)[1] if len(found) > 1 else 0.0 for match in found]
    if not found:
        return None
    return found[scores.index(max(scores))] if max(scores) >= RELATED else found[0]


def matches(prompt: str, world: World) -> list[Match]:
    """All known names in the prompt that are no part of a longer one, longest first.

    Names in the tables' own spelling come before names that match only after folding.
    """
    index = _index(world)
    lower, places = _folded(prompt)
    exact: list[Match] = []
    loose: list[Match] = []
    for folded, key, entity in index.keys:
        if folded not in lower:
            continue
        for start, end in _occurrences(lower, folded):
            at, stop = places[start], places[end - 1] + 1
            while stop < len(prompt) and unicodedata.combining(prompt[stop]):
                stop += 1
            typed = unicodedata.normalize("NFC", prompt[at:stop]).replace("’", "'")
            skip = 4 if key.startswith("the ") else 0
            match = Match(entity, key, at + skip, stop)
            if typed == key:
                exact.append(match)
            elif typed.lower() not in _COMMON:
                loose.append(match)
    kept: list[Match] = []
    for match in exact + loose:
        if not any(match.start < k.end and k.start < match.end for k in kept):
            kept.append(match)
    return kept


def _occurrences(text: str, name: str) -> Iterator[tuple[int, int]]:
    at = text.find(name)
    while at >= 0:
        end = at + len(name)
        before, after = text[at - 1 : at], text[end : end + 1]
        if not _inside(before) and not (_inside(after) and _inside(name[-1])):
            yield at, end
        at = text.find(name, at + 1)


def _inside(character: str) -> bool:
    return character.isalnum() or character == "_"


def mentions(text: str, names: Iterable[str]) -> bool:
    """True when one of `names` stands in `text` as a whole word, whatever the case and accents."""
    lower = fold(text)
    return any(next(_occurrences(lower, folded), None) for name in names if (folded := fold(name)))


def _article_before(prompt: str, start: int) -> bool:
    return bool(re.search(r"\bthe\s+$", prompt[:start], re.IGNORECASE))


# Facts


def identify(prompt: str, world: World) -> Fact | None:
    """The world fact a prompt asks for; None where no phrasing is near enough."""
    match = best_match(prompt, world)
    return identify_for(prompt, match, world) if match else None


def identify_for(prompt: str, match: Match, world: World) -> Fact | None:
    """The same, about one entity of the prompt."""
    fact, score = _closest(prompt, match, world)
    return fact if score >= CLOSE else None


def is_named(text: str, world: World) -> bool:
    """Whether the tables name it anywhere: as an entity, as an answer, or within a longer name."""
    words = f" {normal(text)} "
    names = [name for e in world.entities.values() for name in (e.name, *e.aliases)]
    names += [answer for f in world.facts for answer in (f.object, *f.aliases)]
    return any(words in f" {normal(name)} " for name in names)


def normal(prompt: str) -> str:
    """The prompt without case, articles, punctuation and double spaces: equal prompts ask the same."""
    return " ".join(_words(prompt))


@lru_cache(maxsize=16384)
def _words(text: str) -> tuple[str, ...]:
    words = _WORD.findall(fold(text).replace("what's", "what is").replace("who's", "who is"))
    return tuple(w for w in words if w not in _ARTICLES)


@lru_cache(maxsize=16384)
def _bag(text: str) -> Counter[str]:
    return Counter(_words(text))


def similarity(one: str, other: str, world: World) -> float:
    """Shared words over all words of two prompts, in [0, 1]; words that tell relations apart count most."""
    if normal(one) == normal(other):
        return 1.0
    index = _index(world)
    a, b = _bag(one), _bag(other)

    def weigh(words: Counter[str]) -> float:
        return sum(n * (0.1 if w in _FILLERS else index.weights.get(w, index.unknown)) for w, n in words.items())

    # An exact wording must win over any other, hence the cap.
    return min(0.99, 2 * weigh(a & b) / ((weigh(a) + weigh(b)) or 1))


def _closest(prompt: str, match: Match, world: World) -> tuple[Fact | None, float]:
    before, after = (part.replace(_HOLE, " ") for part in (prompt[: match.start], prompt[match.end :]))
    best = _closest_pattern(f"{before}{_HOLE}{after}", match.entity.name, world)
    if best[1] < CLOSE and before.strip() and after.lstrip().startswith(","):  # "Who wrote X, published in Y?"
        return max(best, _closest_pattern(f"{before}{_HOLE}?", match.entity.name, world), key=lambda pair: pair[1])
    return best


def _closest_pattern(pattern: str, subject: str, world: World) -> tuple[Fact | None, float]:
    words = set(_words(pattern))
    opener = next((w for w in _words(pattern) if w != "q"), "")
    turns = {w for w in words if w in _TURNS or w.isdigit()}
    best: tuple[Fact | None, float] = (None, 0.0)
    for fact in world.by_subject.get(subject, ()):
        if not set(_words(fact.title)) <= words:
            continue
        fits = fact.relation in _ASKS.get(opener, (fact.relation,))
        for template in world.templates(fact):
            score = similarity(pattern, template.replace("{s}", _HOLE), world)
            if score > best[1] and (score == 1.0 or (fits and turns <= set(_words(template)))):
                best = (fact, score)
    return best


def question(fact: Fact, world: World) -> str:
    """The natural question for a fact: its first phrasing that is a plain question."""
    templates = world.templates(fact)
    plain = (t for t in templates if t.endswith("?") and not t.startswith("Q:"))
    return world.prompt(fact, next(plain, templates[0]))


def nearest(prompt: str, world: World, count: int = 3) -> tuple[str, ...]:
    """Questions the embedded model knows that lie nearest to a prompt it may not know, nearest first."""
    pattern = _say(prompt)
    ranked: dict[Fact, float] = {}
    for name, typed, sure in _guess_entities(prompt, world):
        asked = _say(_cut(fold(prompt), typed))
        for fact in world.by_subject.get(name, ()):
            score = sure + _relatedness(asked, fact, world)
            ranked[fact] = max(score, ranked.get(fact, 0.0))
    if not ranked:
        for fact in _showcase(world):
            score = _relatedness(pattern, fact, world)
            ranked[fact] = score if score >= RELATED else 0.0
    best = sorted(ranked, key=lambda fact: -ranked[fact])
    questions = dict.fromkeys(question(fact, world) for fact in best[: 4 * count])
    return tuple(q for q in questions if normal(q) != normal(prompt))[:count]


def _showcase(world: World) -> Iterator[Fact]:
    """One fact of every kind and relation, about well-known entities; questions people know first."""
    shown: set[tuple[str, str, str]] = set()
    for name, relation, _ in SHOWPIECES:
        for fact in world.by_subject.get(name, ()):
            if fact.relation == relation:
                shown.add((world.entities[name].kind, relation, fact.title))
                yield fact
    for name in (n for n in WELL_KNOWN if n in world.entities):
        for fact in world.by_subject.get(name, ()):
            key = (world.entities[name].kind, fact.relation, fact.title)
            if key not in shown:
                shown.add(key)
                yield fact


def _say(text: str) -> str:
    return " ".join(_SAYINGS.get(word, word) for word in _words(text))


def _cut(text: str, typed: str) -> str:
    return text.replace(typed, _HOLE, 1) if typed else text


def _relatedness(pattern: str, fact: Fact, world: World) -> float:
    question_only = [t for t in world.templates(fact) if not t.startswith("Q:")]
    opener = next(iter(_words(pattern)), "")
    fits = 0.1 if fact.relation in _ASKS.get(opener, ()) else 0.0
    said = 0.3 if fact.title and set(_words(fact.title)) <= set(_words(pattern)) else 0.0
    return fits + said + max(similarity(pattern, _say(t.replace("{s}", _HOLE)), world) for t in question_only)


def _guess_entities(prompt: str, world: World) -> list[tuple[str, str, float]]:
    """Entities that the prompt may mean: (name, folded text it was read from, how sure in [0, 1])."""
    text = fold(prompt)
    found = [(m.entity.name, fold(prompt[m.start : m.end]), 1.0) for m in matches(prompt, world)]
    for nickname, name in _NICKNAMES.items():
        if name in world.entities and mentions(text, [nickname]):
            found.append((name, nickname, 0.95 if len(nickname) > 2 else 0.3))
    return found or sorted(_fuzzy(text, world), key=lambda guess: -guess[2])[:3]


def _fuzzy(text: str, world: World) -> Iterator[tuple[str, str, float]]:
    index = _index(world)
    words = re.findall(r"[\w&'.\-]+", text)
    for size in (4, 3, 2, 1):
        for start in range(min(len(words), 40) - size + 1):
            phrase = " ".join(words[start : start + size]).rstrip(".'")
            if len(phrase) < 4 or words[start] in _FILLERS or phrase in index.weights:
                continue
            own = _trigrams(phrase)
            hits = Counter(i for gram in own for i in index.grams.get(gram, ()))
            for i, shared in hits.most_common(5):
                key, _, entity = index.keys[i]
                alike = 3 * shared >= len(own) and 0.75 <= len(phrase) / len(key) <= 1.34
                close = difflib.SequenceMatcher(None, phrase, key).ratio() if alike else 0.0
                if close >= 0.75:
                    yield entity.name, phrase, 0.9 * close


def search(text: str, world: World, limit: int = 50) -> tuple[Fact, ...]:
    """Facts in which every word of `text` occurs (subject, other name, relation, office or answer), best first.

    Empty text gives the facts of well-known entities first.
    """
    index = _index(world)
    words, whole = fold(text).split(), fold(text)

    def rank(i: int) -> tuple[float, int]:
        subject, relation, answer = index.hay[i]
        names = subject.split(" | ")
        score = 8.0 * (whole in names) + 6.0 * (whole in answer.split(" | "))
        for word in words:
            starts = any(_starts(word, place) for place in (subject, relation, answer))
            score += 3 * _starts(word, subject) + 2 * _starts(word, relation) + _starts(word, answer) + 0.5 * starts
        return -score, index.fame[world.facts[i].subject]

    found = [i for i, hay in enumerate(index.hay) if all(any(word in place for place in hay) for word in words)]
    return tuple(world.facts[i] for i in sorted(found, key=rank)[: max(0, limit)])


def _starts(word: str, text: str) -> bool:
    """True when a word of `text` begins with `word`."""
    return text.startswith(word) or f" {word}" in text


def fame(world: World) -> Mapping[str, int]:
    """Entity name -> place in the order of how well known it is, 0 first."""
    return _index(world).fame
