"""Example edits that are shown in front of an edit in context: where they come from, and which are like a request.

The embedded model's are drawn from its world's tables, without anything about entities that are scored; another model's
are read from a file stored for it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from editcore import measure
from editcore.cases import read_cases
from editcore.errors import BadRequest
from editcore.handle import Handle
from editcore.records import EditRequest
from editcore.spans import join
from editcore.world.facts import World, load_world

LEAST = 8  # of a stored file: one round of `methods.ike.KINDS`
SHARE = "train"  # of entities; see `World.share`


@dataclass(frozen=True)
class Demonstration:
    """One example edit with what it changes and what it does not."""

    prompt: str
    target: str
    paraphrase: str  # asks the same in other words
    other: tuple[str, str]  # something else, with its true answer
    subject: str | None = None

    @property
    def fact(self) -> str:
        """The edit as a text."""
        return join(self.prompt, self.target)


def of_world(world: World) -> tuple[Demonstration, ...]:
    """A false answer to each fact about an entity of `SHARE`, its other wording, another subject's true answer."""
    found = []
    for fact in world.facts:
        siblings = [f for f in world.siblings(fact) if world.share(f.subject) == SHARE]
        if world.share(fact.subject) != SHARE or not siblings:
            continue
        rng = random.Random(f"{fact.subject}|{fact.relation}")
        target, other = rng.choice(siblings).object, rng.choice(siblings)
        asked, again, elsewhere = rng.sample(world.templates(fact), 3)
        found.append(
            Demonstration(
                world.prompt(fact, asked), target, world.prompt(fact, again),
                (world.prompt(other, elsewhere), other.object), fact.subject,
            )
        )  # fmt: skip
    return tuple(found)


def path_in(home: Path, handle: Handle) -> Path:
    """Where the data folder keeps the example edits stored for a model."""
    return home / "demonstrations" / f"{handle.fingerprint}.jsonl"


def store(handle: Handle, home: Path, file: Path) -> Path:
    """Keeps a copy of a file of example edits for this model; see `of_file` for what it raises."""
    of_file(handle, file)
    kept = path_in(home, handle)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    part.write_bytes(file.read_bytes())
    part.replace(kept)
    handle.memory.pop("demonstrations", None)
    return kept


def cases_of(file: Path) -> list[EditRequest]:
    """The edits of a file, as `editcore bench` reads them, that have a paraphrase and a probe.

    Raises:
        BadRequest: the file cannot be read, or holds fewer than `LEAST` such edits.
    """
    cases = [case for case in read_cases(file) if case.paraphrases and case.probes]
    if len(cases) < LEAST:
        raise BadRequest(
            f"{file.name} holds {len(cases)} edits with a paraphrase and a probe.",
            f"At least {LEAST} are needed to show how edits work.",
            "Add more.",
        )
    return cases


def of_file(handle: Handle, file: Path) -> tuple[Demonstration, ...]:
    """The edits of a file as demonstrations; a probe without answer gets the model's own. Raises as `cases_of`."""
    cases = cases_of(file)
    open_ = [(case.probes[0].prompt, case.probes[0].form or case.form) for case in cases if not case.probes[0].answer]
    own = iter(measure.own_answers(handle, [p for p, _ in open_], (), [f for _, f in open_]) if open_ else ())
    return tuple(
        Demonstration(
            case.prompt, case.target, case.paraphrases[0].prompt,
            (case.probes[0].prompt, case.probes[0].answer or next(own)), case.subject,
        )
        for case in cases
    )  # fmt: skip


def ready(handle: Handle, home: Path | None = None) -> Index:
    """The model's example edits, found once for a handle.

    Raises:
        BadRequest: none are stored for it.
    """
    if "demonstrations" not in handle.memory:
        home = home or handle.home
        stored = path_in(home, handle) if home is not None else None
        if handle.embedded:
            found = of_world(load_world())
        elif stored is not None and stored.exists():
            found = of_file(handle, stored)
        else:
            raise BadRequest(
                f"No example edits are stored for {handle.name}.",
                "A file of edits with paraphrases and probes was wanted, one JSON object a line.",
                f"Run `editcore examples edits.jsonl --model {handle.name}`.",
            )
        handle.memory["demonstrations"] = Index(handle, found)
    index: Index = handle.memory["demonstrations"]
    return index


class Index:
    """Example edits, to be found by how like a prompt theirs is: cosine of the prompts' TF-IDF over tokens.

    Zheng et al. 2023 compare sentence embeddings; this needs no encoder beside the model.
    """

    def __init__(self, handle: Handle, demonstrations: Sequence[Demonstration]) -> None:
        self.handle, self.demonstrations = handle, tuple(demonstrations)
        texts = [self._tokens(d.prompt) for d in demonstrations]
        seen = Counter(token for text in texts for token in set(text))
        self.weights = {token: math.log((1 + len(texts)) / count) for token, count in seen.items()}
        self.vectors = [self._vector(text) for text in texts]

    def nearest(self, prompts: Sequence[str], count: int) -> list[Demonstration]:
        """The `count` demonstrations most like any of the prompts, the nearest first; of equals, the first one."""
        asked = [self._vector(self._tokens(prompt)) for prompt in prompts]
        likeness = [max(sum(a.get(t, 0.0) * w for t, w in v.items()) for a in asked) for v in self.vectors]
        free = [
            i for i, d in enumerate(self.demonstrations)
            if not any(d.prompt == prompt or (d.subject and d.subject in prompt) for prompt in prompts)
        ]  # fmt: skip
        return [self.demonstrations[i] for i in sorted(free, key=lambda i: (-likeness[i], i))[:count]]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.handle.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        return ids

    def _vector(self, text: Sequence[int]) -> dict[int, float]:
        """Unit length; tokens no demonstration has do not count."""
        found = {token: n * self.weights[token] for token, n in Counter(text).items() if token in self.weights}
        length = math.sqrt(sum(w * w for w in found.values())) or 1.0
        return {token: w / length for token, w in found.items()}
