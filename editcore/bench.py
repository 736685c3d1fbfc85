"""Cases in, tables out: many edits of one model by several methods, each made on the unedited model."""

from __future__ import annotations

import random
import statistics as figures
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from editcore import measure
from editcore.edit import run_edit
from editcore.errors import Cancelled, EditcoreError
from editcore.handle import Handle
from editcore.intervals import wilson
from editcore.records import EditRequest, Probe, Scores
from editcore.world.facts import Fact, World


@dataclass(frozen=True)
class BenchRow:
    """One method over all cases."""

    method: str
    edits: int  # that ran to the end
    scores: Scores  # each score averaged over edits; s is the harmonic mean of the averaged es, ps, ns
    seconds: float  # median of one edit, without measuring
    failures: tuple[tuple[int, str], ...]  # (case number, why) of edits that did not run
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # score -> 95 %, one case an edit


def counterfactuals(
    world: World,
    count: int,
    seed: int = 0,
    paraphrases: int = 4,
    near: int = 6,
    far: int = 4,
    share: str = "test",
) -> list[EditRequest]:
    """Random false answers to random facts of the embedded world, with held-out paraphrases and near and far probes.

    The wrong answer is another subject's right one (same relation). Near probes ask the same relation of other
    subjects in wordings seen in training; far probes ask other relations of other kinds.

    Args:
        share: the share of entities edited (see `World.share`); no learned editor was trained on "test".
    """
    rng = random.Random(seed)
    facts = [
        f
        for f in world.facts
        if world.share(f.subject) == share and len(world.siblings(f)) >= near and len(world.held_out(f)) >= 2
    ]
    return [_counterfactual(world, fact, rng, paraphrases, near, far) for fact in rng.sample(facts, count)]


def _counterfactual(world: World, fact: Fact, rng: random.Random, paraphrases: int, near: int, far: int) -> EditRequest:
    siblings = world.siblings(fact)
    target = rng.choice(siblings).object
    others = [f for f in siblings if f.object != target]
    kind = world.entities[fact.subject].kind
    strangers: list[Fact] = []
    while len(strangers) < far:
        other = rng.choice(world.facts)
        if world.entities[other.subject].kind != kind and other.relation != fact.relation:
            strangers.append(other)
    held = world.held_out(fact)

    def probe(kind_: str, f: Fact) -> Probe:
        return Probe("near" if kind_ == "near" else "far", world.prompt(f, rng.choice(world.seen(f))), f.object)

    prompt = world.prompt(fact, rng.choice(world.seen(fact)))
    name = fact.subject if fact.subject in prompt else fact.subject[:1].upper() + fact.subject[1:]
    return EditRequest(
        prompt=prompt,
        target=target,
        subject=name,
        old=fact.object,
        paraphrases=tuple(
            Probe("paraphrase", world.prompt(fact, t), held_out=True)
            for t in rng.sample(held, min(paraphrases, len(held)))
        ),
        probes=tuple(
            [probe("near", f) for f in rng.sample(others, min(near, len(others)))]
            + [probe("far", f) for f in strangers]
        ),
    )


def run_bench(
    handle: Handle,
    cases: Sequence[EditRequest],
    methods: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    home: Path | None = None,
    generate: bool = True,
    listen: Callable[[str, int, int], None] = lambda method, done, total: None,
) -> list[BenchRow]:
    """Every case by every method; an edit that fails is counted and stops nobody else."""
    rows = []
    for method in methods:
        scores, seconds, failures = [], [], []
        for number, case in enumerate(cases):
            try:
                _, report = run_edit(handle, case, method, (settings or {}).get(method), home=home, generate=generate)
                scores.append(report.scores)
                seconds.append(report.seconds.edit)
            except Cancelled:
                raise
            except EditcoreError as error:
                failures.append((number, str(error)))
            listen(method, number + 1, len(cases))
        middle = figures.median(seconds or [float("nan")])
        rows.append(BenchRow(method, len(scores), average(scores), middle, tuple(failures), intervals(scores)))
    return rows


def intervals(scores: Sequence[Scores]) -> dict[str, tuple[float, float]]:
    """Wilson's interval of every score but S, over more than one edit.

    Each edit counts as one case with its mean: probes of one edit are no independent cases.
    """
    found = {}
    for name in (f.name for f in fields(Scores) if f.name != "s"):
        known = [v for v in (getattr(s, name) for s in scores) if v is not None]
        if len(known) > 1:
            found[name] = wilson(sum(known), len(known))
    return found


def average(scores: Iterable[Scores]) -> Scores:
    """Field by field over the scores that have it; S from the averages, as in Meng et al. 2022."""
    every = list(scores)
    means = {}
    for name in (f.name for f in fields(Scores)):
        known = [v for v in (getattr(s, name) for s in every) if v is not None]
        means[name] = sum(known) / len(known) if known else None
    return Scores(**{**means, "s": measure.harmonic(means["es"], means["ps"], means["ns"])})
