"""How an edited model is: do its edits hold, do unrelated answers stay, does it still read and write plain text.

Everything is read with the whole stack in place and set beside the base model, whose own readings are kept with the
handle. Made to run after every edit: three batched passes, nothing is scored twice. What a course of such readings
means is `course`'s business.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, zip_longest

import torch
from torch import Tensor

from editcore import suggest
from editcore.assets import assets_root
from editcore.errors import BadRequest, Cancelled
from editcore.handle import Handle
from editcore.lookup import mentions, normal
from editcore.patch import Patch
from editcore.records import Checkup, EditReport, Form, Held, Probe
from editcore.spans import Row
from editcore.world.facts import load_world
from editcore.world.text import documents

MOST_PROBES = 40  # read in one check-up: a share of them is known to about 8 points
PASSAGES = 10  # of neutral text
POOL = 48  # passages of the embedded world to choose from, should some mention an edited subject
PASSAGE_TOKENS = 24  # of a passage of the embedded world, about
OPENING = 3  # words of a passage that count as its prompt; the model continues them too
CONTINUATION = 16  # tokens written behind each opening
MOST_KEPT = 256  # readings of the base model kept with the handle
WORST_PERPLEXITY = 1e6  # reported for anything worse, or not a number
WORST_KL = 100.0  # nats; the same
SHORT_BATCH = 4096  # tokens: rows of one length together, since only a few positions of each are wanted
SEED = 2
_Asked = tuple[str, str, Form]  # prompt, answer, and the form the prompt is read in
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class _Read:
    """One prompt with one answer, read once."""

    next: Tensor  # log-probabilities of the token after the prompt [vocabulary], fp32, CPU
    likeliest: tuple[int, ...]  # most likely tokens along the answer
    exact: bool  # they are the answer
    mean: float  # its probability, geometric mean over tokens


@dataclass(frozen=True)
class _Passage:
    """One neutral passage, read and continued once."""

    nll: float  # nats, summed over its tokens
    tokens: int
    text: str  # what the model wrote behind its opening


@torch.no_grad()
def check_up(
    handle: Handle,
    patches: Sequence[Patch],
    reports: Sequence[EditReport],
    stop: Callable[[], bool] = lambda: False,
) -> Checkup:
    """The model with all of `patches` in place, beside the base model.

    Args:
        patches: the stack, oldest first, each with its strength.
        reports: one for each edit in it, in the same order.

    Returns:
        Held edits in the order of the reports; drift and KL over at most `MOST_PROBES` of their unrelated probes;
        perplexity and n-gram entropy on neutral passages that mention no edited subject.

    Raises:
        Cancelled: `stop()` became true between two passes.
    """
    names = _subjects(handle, reports)
    probes = _unrelated(reports, names)
    passages = _passages(handle, names)
    _go_on(stop)
    base_probes, base_passages = _base_probes(handle, probes), _base_passages(handle, passages)
    _go_on(stop)
    asked = [(r.request.prompt, r.request.target, r.request.form) for r in reports]
    with handle.using(patches):
        read = _read(handle, [*asked, *probes])
        _go_on(stop)
        told = _read_passages(handle, passages)
    held, now = read[: len(asked)], read[len(asked) :]
    pairs = [(a, b) for a, b in zip(base_probes, now, strict=True) if a is not None]
    return Checkup(
        held=tuple(
            Held(prompt, target, bool(r and r.exact), r.mean if r else 0.0)
            for (prompt, target, _), r in zip(asked, held, strict=True)
        ),
        probes=len(pairs),
        drift=sum(b is None or a.likeliest != b.likeliest for a, b in pairs) / len(pairs) if pairs else None,
        kl=sum(WORST_KL if b is None else _kl(a.next, b.next) for a, b in pairs) / len(pairs) if pairs else None,
        perplexity=_perplexity(told),
        base_perplexity=_perplexity(base_passages),
        entropy=n_gram_entropy(p.text for p in told),
        base_entropy=n_gram_entropy(p.text for p in base_passages),
    )


def n_gram_entropy(texts: Iterable[str]) -> float:
    """Entropy of the word pairs and triples in some texts, bits: H2 / 3 + 2 H3 / 3.

    Weighted as "fluency" in Meng et al. 2022 (after Zhang et al. 2018), but over all texts together, so that saying
    the same behind every opening counts as repetition too. No pair or triple reaches from one text into the next.
    0 where there is nothing to count.
    """
    words = [_WORD.findall(text) for text in texts]
    return (_entropy(words, 2) + 2 * _entropy(words, 3)) / 3


def _entropy(texts: Sequence[Sequence[str]], size: int) -> float:
    counts = Counter(tuple(words[i : i + size]) for words in texts for i in range(len(words) - size + 1))
    total = counts.total()
    return sum(-n / total * math.log2(n / total) for n in counts.values()) + 0.0


def _go_on(stop: Callable[[], bool]) -> None:
    if stop():
        raise Cancelled("The check-up was stopped on request.", "Nothing was changed.")


# What is read


def _subjects(handle: Handle, reports: Sequence[EditReport]) -> tuple[str, ...]:
    """Every name of everything that was edited."""
    found: dict[str, None] = {}
    for report in reports:
        found |= dict.fromkeys((report.subject,) if report.subject else ())
        found |= dict.fromkeys(_names_in_world(report.request.prompt) if handle.embedded else ())
    return tuple(found)


@lru_cache(maxsize=1024)
def _names_in_world(prompt: str) -> tuple[str, ...]:
    fact = suggest.identify(prompt, load_world())
    return (entity.name, *entity.aliases) if fact and (entity := load_world().entities[fact.subject]) else ()


def _unrelated(reports: Sequence[EditReport], names: Sequence[str]) -> list[_Asked]:
    """Unrelated prompts of all edits with the answer each is compared along, once each, some of every edit.

    One that another edit is about may rightly have changed: it is left out.
    """
    edited = {normal(p.prompt) for r in reports for p in (Probe("edit", r.request.prompt), *r.request.paraphrases)}

    def usable(report: EditReport) -> Iterator[_Asked]:
        for result in report.probes:
            probe = result.probe
            answer = probe.answer or (result.before.old.text if result.before.old else "")
            other = normal(probe.prompt) not in edited and not mentions(probe.prompt, names)
            if probe.kind in ("near", "far") and answer and other:
                yield probe.prompt, answer, probe.form or "raw"

    first: dict[str, _Asked] = {}
    for pair in chain.from_iterable(zip_longest(*map(usable, reports))):  # one of each edit, then the next of each
        if pair is not None:
            first.setdefault(normal(pair[0]), pair)
    return list(islice(first.values(), MOST_PROBES))


def _passages(handle: Handle, names: Sequence[str]) -> list[str]:
    """Neutral passages, the same each time but for those that mention an edited subject."""
    if "passages" not in handle.memory:
        handle.memory["passages"] = _of_world(handle) if handle.embedded else _shipped()
    pool: list[str] = handle.memory["passages"]
    free = [p for p in pool if not mentions(p, names)]
    return (free if len(free) >= PASSAGES // 2 else pool)[:PASSAGES]


def _shipped() -> list[str]:
    return (assets_root() / "neutral.txt").read_text(encoding="utf-8").split("\n")[:-1]


def _of_world(handle: Handle) -> list[str]:
    """Documents of the embedded world, cut at the sentence that makes them long enough; claims are no neutral text."""
    found: list[str] = []
    for document in documents(load_world(), random.Random(SEED)):
        if any(sentence.claim for sentence in document):
            continue
        text = ""
        for sentence in document:
            text = f"{text} {sentence}".strip()
            if len(handle.tokenizer(text)["input_ids"]) >= PASSAGE_TOKENS:
                found.append(text)
                break
        if len(found) == POOL:
            break
    return found


def _split(passage: str) -> tuple[str, str]:
    words = passage.split(" ")
    return " ".join(words[:OPENING]), " ".join(words[OPENING:])


# Reading


def _row(handle: Handle, prompt: str, answer: str = "", form: Form = "raw") -> Row | None:
    """None where texts in front of the prompt leave no room: the model cannot answer it any more."""
    try:
        row = handle.row(prompt, answer, form=form)
    except BadRequest:
        return None
    return row if len(row.ids) <= handle.context else None


def _read(handle: Handle, asked: Sequence[_Asked]) -> list[_Read | None]:
    rows = [_row(handle, *one) for one in asked]
    logits = iter(handle.logits([row for row in rows if row], whole_batch=SHORT_BATCH))
    return [_scored(row, next(logits)) if row else None for row in rows]


def _scored(row: Row, logits: Tensor) -> _Read:
    log_p = torch.log_softmax(logits, -1)
    ids = torch.tensor(row.answer, device=logits.device)
    mean, likeliest = float(log_p.gather(1, ids[:, None]).mean().exp()), tuple(logits.argmax(-1).tolist())
    return _Read(log_p[0].cpu(), likeliest, likeliest == row.answer, mean if math.isfinite(mean) else 0.0)


def _base_probes(handle: Handle, asked: Sequence[_Asked]) -> list[_Read | None]:
    """The base model at the same prompts; what it says is kept, those used last behind."""
    kept: dict[_Asked, _Read | None] = handle.memory.setdefault("checkup probes", {})
    new = [one for one in asked if one not in kept]
    with handle.using(()):
        kept.update(zip(new, _read(handle, new), strict=True))
    found = [kept.pop(one) for one in asked]
    kept.update(zip(asked, found, strict=True))
    for old in list(kept)[: max(0, len(kept) - MOST_KEPT)]:
        del kept[old]
    return found


def _base_passages(handle: Handle, passages: Sequence[str]) -> list[_Passage]:
    kept: dict[str, _Passage] = handle.memory.setdefault("checkup passages", {})
    new = [p for p in passages if p not in kept]
    if new:
        with handle.using(()):
            kept.update(zip(new, _read_passages(handle, new), strict=True))
    return [kept[p] for p in passages]


def _read_passages(handle: Handle, passages: Sequence[str]) -> list[_Passage]:
    rows = [_row(handle, *_split(passage)) for passage in passages]
    openings = [_row(handle, _split(passage)[0]) for passage in passages]
    logits = iter(handle.logits([row for row in rows if row]))
    prompts = [row.ids for row in openings if row]
    texts = iter(handle.generate(prompts, CONTINUATION, least=CONTINUATION) if prompts else ())
    found = []
    for row, opening in zip(rows, openings, strict=True):
        nll, tokens = (_nll(row, next(logits)), len(row.answer)) if row else (math.inf, 1)
        found.append(_Passage(nll, tokens, next(texts) if opening else ""))
    return found


def _nll(row: Row, logits: Tensor) -> float:
    ids = torch.tensor(row.answer, device=logits.device)
    return float(torch.nn.functional.cross_entropy(logits.float(), ids, reduction="sum"))


def _perplexity(passages: Sequence[_Passage]) -> float:
    mean = sum(p.nll for p in passages) / max(1, sum(p.tokens for p in passages))
    return math.exp(mean) if mean < math.log(WORST_PERPLEXITY) else WORST_PERPLEXITY  # also when it is not a number


def _kl(base: Tensor, now: Tensor) -> float:
    value = float((base.double().exp() * (base.double() - now.double())).sum())
    return min(max(0.0, value), WORST_KL) if math.isfinite(value) else WORST_KL
