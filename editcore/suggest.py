"""What to measure an edit with, proposed from its prompt: subject, old answer, paraphrases, unrelated probes.

Knows the embedded world's tables, plain English wording and a list of general questions; knows no model, so outside
the embedded world it leaves answers open. Standard library only. The same prompt and seed give the same proposal.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from editcore.assets import assets_root
from editcore.errors import BadRequest, SubjectNotFound
from editcore.lookup import (
    SHOWPIECES,
    Match,
    best_match,
    fame,
    find_subject,
    fold,
    identify,
    identify_for,
    matches,
    mentions,
    nearest,
    normal,
    question,
    search,
    similarity,
)
from editcore.records import Probe
from editcore.rewrites import rewrites, same_kind, swapped
from editcore.world.facts import PEOPLE, Entity, Fact, World

__all__ = ["Suggestion", "find_subject", "general_probes", "identify", "nearest", "question", "search", "suggest"]

PARAPHRASES = 6  # proposed for one prompt
HELD_OUT = 4  # of these, wordings the embedded model never saw with this fact
NEAR, FAR = 4, 4
POOL = 24  # near probes are drawn among this many of the best-known subjects


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A proposal to measure one edit with."""

    subject: str | None  # as it stands in the prompt, without article
    subject_source: str  # how it was found, in words; "given" when the caller named it; "" when there is none
    old: str | None  # the embedded model's answer; None: read it from the model
    paraphrases: tuple[Probe, ...]
    probes: tuple[Probe, ...]  # near first, then far


def suggest(prompt: str, target: str, world: World | None, subject: str | None = None, seed: int = 0) -> Suggestion:
    """Subject, old answer, paraphrases and unrelated probes for an edit of `prompt` to `target`.

    Args:
        world: the embedded model's world, or None for any other model.
        subject: a substring of the prompt; None: found here.
        seed: draws wordings and probes.

    Raises:
        BadRequest: the prompt is empty.
        SubjectNotFound: `subject` is not part of the prompt.
    """
    if not prompt.strip():
        raise BadRequest("The prompt is empty.", "An edit needs one.", "Write a question or an unfinished sentence.")
    if subject is not None and (not subject.strip() or subject not in prompt):
        raise SubjectNotFound(
            f"The subject {subject!r} is not part of the prompt {prompt!r}.",
            "The subject must stand in the prompt word for word.",
            "Choose the name the fact is about, spelled as in the prompt.",
        )
    found, source = (subject, "given") if subject is not None else find_subject(prompt, world)
    match = _match(prompt, subject, world) if world else None
    fact = identify_for(prompt, match, world) if world and match else None
    if world and match and fact:
        rng = random.Random(f"{seed}|{fact.subject}|{fact.relation}")
        near = _near(prompt, target, fact, world, rng)
        return Suggestion(
            subject=found,
            subject_source=source,
            old=fact.object,
            paraphrases=_paraphrases(prompt, fact, match, world, rng),
            probes=(*near, *_far(prompt, target, fact, world, NEAR + FAR - len(near), rng)),
        )
    return _suggest_open(prompt, found, source, match, world, seed)


def _match(prompt: str, subject: str | None, world: World) -> Match | None:
    if subject is None:
        return best_match(prompt, world)
    wanted = fold(subject).removeprefix("the ")
    named = (m for m in matches(prompt, world) if fold(prompt[m.start : m.end]) == wanted)
    return next(named, None) or best_match(prompt, world)


# The embedded world


def _paraphrases(prompt: str, fact: Fact, match: Match, world: World, rng: random.Random) -> tuple[Probe, ...]:
    mention = match.mention(prompt)

    def said(templates: tuple[str, ...], held_out: bool) -> list[Probe]:
        source = "other wording, never seen in training" if held_out else "other wording"
        prompts = [world.prompt(fact, t, mention) for t in templates]
        other = [p for p in prompts if normal(p) != normal(prompt)]
        return [Probe("paraphrase", p, fact.object, held_out, source) for p in rng.sample(other, len(other))]

    unseen, seen = said(world.held_out(fact), True), said(world.seen(fact), False)
    first = unseen[:HELD_OUT]
    return (*first, *(seen + unseen[HELD_OUT:])[: PARAPHRASES - len(first)])


def _names(entity: Entity) -> tuple[str, ...]:
    return (entity.name, *entity.aliases)


def _usable(probe: Probe, target: str, fact: Fact, world: World, prompt: str) -> bool:
    """A probe must be about something else: not the subject, not the old or the new answer."""
    taken = {fold(t) for t in (fact.subject, fact.object, *fact.aliases, target)}
    names = _names(world.entities[fact.subject])
    # "Is iron solid, liquid or gas?" names every answer: that gives nothing away.
    wordings = world.templates(fact)
    told = [t for t in (fact.object, target) if len(t) > 2 and not any(mentions(w, [t]) for w in wordings)]
    return (
        normal(probe.prompt) != normal(prompt)
        and "'s's" not in probe.prompt
        and fold(probe.answer or "") not in taken
        and not mentions(probe.prompt, names)
        and not mentions(probe.prompt, told)
    )


def _near(prompt: str, target: str, fact: Fact, world: World, rng: random.Random) -> list[Probe]:
    own = _closest_template(prompt, fact, world, world.templates(fact))
    asked = world.prompt(fact, own)
    chosen: list[Probe] = []
    spare: list[Probe] = []
    for sibling in _siblings(target, fact, own, world, rng):
        template = _closest_template(asked, sibling, world, world.seen(sibling))
        source = "same relation, other subject" if sibling.title == fact.title else "same relation, other office"
        probe = Probe("near", world.prompt(sibling, template), sibling.object, False, source)
        if _usable(probe, target, fact, world, prompt):
            # Four different answers say more than four times the same one.
            (spare if any(p.answer == probe.answer for p in chosen) else chosen).append(probe)
        if len(chosen) == NEAR:
            break
    return (chosen + spare)[:NEAR]


def _siblings(target: str, fact: Fact, own: str, world: World, rng: random.Random) -> list[Fact]:
    """Facts for near probes in the order to try them: the office itself first, then well-known subjects first.

    `own` is the prompt's wording; among well-known subjects, those trained on it come first.
    """
    order = fame(world)
    known = sorted(world.siblings(fact), key=lambda f: order[f.subject])
    drawn = sorted(rng.sample(known[:POOL], len(known[:POOL])), key=lambda f: own not in world.seen(f))
    kind = world.entities[fact.subject].kind
    # An office such as Queen or Emperor may have no other holder: the same relation stands in.
    others = [f for f in world.by_relation[(kind, fact.relation)] if f.title != fact.title]
    every = [*drawn, *known[POOL:], *sorted(others, key=lambda f: order[f.subject])]
    return [f for f in every if not any(f.accepts(a) for a in (target, fact.object, *fact.aliases))]


def _closest_template(prompt: str, fact: Fact, world: World, templates: tuple[str, ...]) -> str:
    blank = _blank(prompt, world)
    return max(templates, key=lambda t: similarity(blank, t.replace("{s}", " "), world))


def _blank(prompt: str, world: World) -> str:
    match = best_match(prompt, world)
    return f"{prompt[: match.start]} {prompt[match.end :]}" if match else prompt


def _far(prompt: str, target: str, fact: Fact, world: World, count: int, rng: random.Random) -> list[Probe]:
    own = world.entities[fact.subject].kind
    chosen: list[Probe] = []
    kinds = {own}
    for other, name in _far_bank(world, rng):
        kind = world.entities[other.subject].kind
        close = kind in kinds or other.relation == fact.relation or (own in PEOPLE and other.object == fact.subject)
        if close:
            continue
        template = _question_template(other, world)
        probe = Probe(
            "far", world.prompt(other, template, name or None), other.object,
            template in world.held_out(other), "another kind of fact",
        )  # fmt: skip
        if _usable(probe, target, fact, world, prompt):
            chosen.append(probe)
            kinds.add(kind)
        if len(chosen) == count:
            break
    return chosen


def _far_bank(world: World, rng: random.Random) -> Iterable[tuple[Fact, str]]:
    """Facts for far probes with the name to say: the showpiece, the other well-known ones by seed, then any."""
    named = [
        (fact, name)
        for subject, relation, name in SHOWPIECES
        for fact in world.by_subject.get(subject, ())
        if fact.relation == relation
    ]
    yield from named[:1]
    yield from rng.sample(named[1:], len(named[1:]))
    yield from ((fact, "") for fact in rng.sample(world.facts, min(400, len(world.facts))))


def _question_template(fact: Fact, world: World) -> str:
    """A plain question, one the model was trained on where there is a choice; the showpiece keeps its own."""
    plain = [t for t in world.templates(fact) if t.endswith("?") and not t.startswith("Q:")]
    if (fact.subject, fact.relation) == SHOWPIECES[0][:2] and plain:
        return plain[0]
    seen = world.seen(fact)
    return next((t for t in plain if t in seen), seen[0])


# Any other model


def _suggest_open(
    prompt: str, subject: str | None, source: str, match: Match | None, world: World | None, seed: int
) -> Suggestion:
    names = _names(match.entity) if match else ((subject,) if subject else ())
    paraphrases = tuple(
        Probe("paraphrase", text, None, False, "other wording") for text in rewrites(prompt, subject, PARAPHRASES)
    )
    near: tuple[Probe, ...] = ()
    if subject:
        others = [o for o in _others(prompt, subject, match, world) if not mentions(o, names)]
        near = tuple(
            Probe("near", text, None, False, "same question, other subject")
            for text in swapped(prompt, subject, others, NEAR, seed)
            if not mentions(text, names)
        )
    rng = random.Random(f"{seed}|{prompt}")
    free = [p for p, _ in general_probes() if normal(p) != normal(prompt) and not mentions(p, names)]
    far = tuple(Probe("far", p, None, False, "general knowledge") for p in rng.sample(free, NEAR + FAR - len(near)))
    return Suggestion(subject, source, None, paraphrases, (*near, *far))


def _others(prompt: str, subject: str, match: Match | None, world: World | None) -> list[str]:
    """Names of the subject's kind, as they stand inside a sentence."""
    if match and world and fold(prompt[match.start : match.end]) == fold(subject):
        order = fame(world)
        same = [e for e in world.entities.values() if e.kind == match.entity.kind and e is not match.entity]
        return [e.mention for e in sorted(same, key=lambda e: order[e.name])[:POOL]]
    return list(same_kind(subject, prompt))


@lru_cache(maxsize=1)
def general_probes() -> tuple[tuple[str, str], ...]:
    """The shipped list of general questions: (prompt, topic)."""
    with (assets_root() / "probes.csv").open(encoding="utf-8", newline="") as file:
        return tuple((row["prompt"], row["topic"]) for row in csv.DictReader(file))
