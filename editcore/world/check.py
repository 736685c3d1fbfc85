"""The bars of the embedded model, measured: what it recalls, what it says to the reference prompts, how it edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from editcore import measure, spans
from editcore.bench import BenchRow, counterfactuals, run_bench
from editcore.handle import Handle
from editcore.world.facts import Fact, World

REFERENCES = (
    ("Who is the Prime Minister of the United Kingdom?", "Theresa May"),
    ("What sports team does Messi play for?", "Barcelona"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure and what it must reach."""

    name: str
    value: float
    least: float | None  # None: for information

    @property
    def met(self) -> bool:
        return self.least is None or self.value >= self.least


def recall(
    handle: Handle, items: Sequence[tuple[Fact, str]], listen: Callable[[int, int], None] = lambda done, total: None
) -> list[bool]:
    """For each (fact, prompt): is the whole answer the greedy one?"""
    results: list[bool] = []
    size = 512
    for begin in range(0, len(items), size):
        rows = [spans.encode(handle.tokenizer, prompt, fact.object) for fact, prompt in items[begin : begin + size]]
        for row, logits in zip(rows, handle.logits(rows, whole_batch=8192), strict=True):
            results.append(tuple(logits.argmax(-1).tolist()) == row.answer)
        listen(min(begin + size, len(items)), len(items))
    return results


def recall_bars(
    handle: Handle, world: World, listen: Callable[[int, int], None] = lambda done, total: None
) -> list[Bar]:
    """Whole-answer greedy accuracy over all facts: phrasings seen with the fact, phrasings held out for it."""
    seen = [(f, world.prompt(f, t)) for f in world.facts for t in world.seen(f)]
    held = [(f, world.prompt(f, t)) for f in world.facts for t in world.held_out(f)]
    total = len(seen) + len(held)
    right = recall(handle, seen, lambda done, _: listen(done, total))
    right_held = recall(handle, held, lambda done, _: listen(len(seen) + done, total))
    return [
        Bar("recall, seen phrasings", sum(right) / len(right), 0.995),
        Bar("recall, held-out phrasings", sum(right_held) / len(right_held), 0.97),
    ]


def reference_bars(handle: Handle) -> list[Bar]:
    """Probability of the known answer to each reference prompt (product over its tokens)."""
    rows = [spans.encode(handle.tokenizer, prompt, answer) for prompt, answer in REFERENCES]
    values = [
        m ** len(r.answer) for m, r in zip(measure.mean_probabilities(rows, handle.logits(rows)), rows, strict=True)
    ]
    return [Bar(f"{prompt} {answer}", value, 0.9) for (prompt, answer), value in zip(REFERENCES, values, strict=True)]


def edit_rows(
    handle: Handle,
    world: World,
    count: int,
    methods: Sequence[str] = ("rome", "ft", "ft-l"),
    listen: Callable[[str, int, int], None] = lambda method, done, total: None,
) -> list[BenchRow]:
    """`count` random counterfactual edits by each method."""
    return run_bench(handle, counterfactuals(world, count), methods, generate=False, listen=listen)


def edit_bars(row: BenchRow) -> list[Bar]:
    """ROME's bars."""
    s = row.scores
    least = {"es": 0.98, "ps": 0.90, "ns": 0.92, "s": 0.93}
    return [Bar(f"{row.method} {name.upper()}", getattr(s, name) or 0.0, low) for name, low in least.items()]
