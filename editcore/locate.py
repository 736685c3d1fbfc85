"""Where to edit a model nobody published settings for: found by tracing a handful of facts it is sure of.

The facts are somebody's own prompts, else a list of common ones; what counts is the answer the model itself is sure
of, whatever it says, as long as it hangs on the subject. The effect of putting MLP outputs back at the subject's last
token (`causal`), averaged over these facts, has a peak where the subject is looked up: the methods that write at the
subject get the blocks there. What fine-tuning and the codebooks edit is not where the subject is read, so a trace says
nothing about it, and they keep their own rule. Nor is a trace a proof: it says where a fact is read, and which block
edits best has to be tried (Hase et al. 2023, arXiv 2301.04213).
"""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from editcore import causal, pace, tuning
from editcore.assets import assets_root
from editcore.causal import Belief
from editcore.errors import BadRequest, Unsuited
from editcore.handle import Handle
from editcore.lookup import find_subject
from editcore.records import EditRequest, Progress, to_plain

SURE = 0.25  # probability of its next token from which a prompt counts as a fact of the model's
HANGS = 0.5  # ... which the noise on the subject has to take at least this share of
MOST, LEAST = 24, 6  # facts that are traced; fewer than the least say nothing
ERRORS = 4.0  # standard errors the peak has to stand above the other layers: the highest of many is high by chance
MATTERS = 0.1  # share of what the noise takes that the highest layer has to give back
SPAN = 5  # blocks the methods that write into several get
AT_PEAK, UP_TO_PEAK = ("rome", "emmet"), ("memit", "pmet", "alphaedit")  # methods that write at the subject
DRAWS, FIRST_DRAWS = 5, 3  # of the noise for each fact; of those, for the question whether the answer hangs on it
USUAL_TOKENS, USUAL_TAIL = 9, 5  # of a common prompt, and from its subject's last token on


@dataclass(frozen=True, slots=True)
class Finding:
    """What a trace of a model's own facts says about where to edit it."""

    model: str
    fingerprint: str
    date: str
    asked: int  # prompts tried
    sure: int  # of them, those the model was sure of
    facts: int  # of these, those traced: the answer hangs on the subject
    clean: float  # mean probability of their answers
    blurred: float  # ... with noise on the subjects
    window: int  # MLPs put back at once
    effects: tuple[float, ...]  # mean effect by layer, at the subject's last token
    errors: tuple[float, ...]  # standard error of each
    peak: int | None  # the layer in the middle of the peak; None: there is none
    why: str  # what was found or why nothing was, in a sentence
    methods: dict[str, dict[str, int]]  # settings by method; empty without a peak

    @property
    def source(self) -> str:
        """Whose the settings are, in a few words."""
        traced = f"a causal trace of {self.facts} fact{'' if self.facts == 1 else 's'}"
        return f"{traced}, {self.date}" if self.methods else f"{traced} showed no clear layer, {self.date}"


@lru_cache(maxsize=1)
def common_prompts() -> tuple[tuple[str, str], ...]:
    """Prompts about well-known things, each with its subject."""
    with (assets_root() / "common.csv").open(encoding="utf-8", newline="") as file:
        return tuple((row["prompt"], row["subject"]) for row in csv.DictReader(file))


def prompts_of(requests: Sequence[EditRequest]) -> list[tuple[str, str]]:
    """Prompt and subject of each request that has one, or where one is found; their answers are not looked at.

    Raises:
        BadRequest: no prompt has a subject.
    """
    pairs = [(r.prompt.strip(), (r.subject or find_subject(r.prompt, None)[0] or "").strip()) for r in requests]
    found = [(prompt, subject) for prompt, subject in pairs if subject and subject in prompt]
    if not found:
        raise BadRequest(
            "No prompt of the list has a subject.", "A trace blurs the subject of each prompt.", "Name the subjects."
        )
    return found


def locate(
    handle: Handle,
    prompts: Sequence[tuple[str, str]] = (),
    *,
    facts: int = MOST,
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
) -> Finding:
    """Traces up to `facts` facts of the model and says where to edit it.

    Args:
        prompts: (prompt, subject) pairs; none: common ones.
        home: data folder the finding is stored in, for `prepare_method` to read; None: it is not stored.

    Raises:
        SubjectNotFound, BadRequest: a prompt does not hold its subject, or is no text for this model.
        Unsuited: the model is an encoder-decoder.
        Cancelled: `stop()` became true; nothing is stored.
    """
    if handle.encoder_decoder:
        raise Unsuited(
            f"{handle.name} is an encoder-decoder.",
            "Where a fact is kept is traced through the layers of one stack.",
            "Leave the layers of its methods to their defaults.",
        )
    with handle.lock:
        asked, dials, window = prompts or common_prompts(), causal.Dials(DRAWS), causal.window_of(handle)
        sure = [belief for belief in causal.believe(handle, asked) if _traceable(belief)]
        kept = _hanging(handle, sure, facts, dials, stop)
        blurred, effects = torch.zeros(0), torch.zeros(0, len(handle.anatomy.blocks))
        if kept:
            places = [(belief, belief.subject_tokens[-1]) for belief in kept]
            blurred, effects = causal.indirect_effects(
                handle, places, "mlp", window, dials, causal.deviation(handle, sure, dials),
                lambda done, total: report(Progress("trace", done, total, text="putting one layer back at a time")),
                stop,
            )  # fmt: skip
    finding = judge(handle, (len(asked), len(sure)), [b.clean for b in kept], blurred.tolist(), effects, window)
    if home is not None:
        keep(finding, home)
    return finding


def _traceable(belief: Belief) -> bool:
    """True when the model is sure, and its answer is not read at the subject itself."""
    return belief.clean >= SURE and belief.subject_tokens[-1] + 1 < len(belief.row.ids)


def _hanging(
    handle: Handle, sure: list[Belief], most: int, dials: causal.Dials, stop: Callable[[], bool]
) -> list[Belief]:
    """Up to `most` of the facts whose answer goes when the subject is blurred, the surest first."""
    sure, few = sorted(sure, key=lambda belief: -belief.clean), replace(dials, samples=FIRST_DRAWS)
    blur = causal.deviation(handle, sure, dials) if sure else 0.0
    found: list[Belief] = []
    for begin in range(0, len(sure), most):
        group = sure[begin : begin + most]
        low = causal.blurred_chances(handle, group, few, blur, stop).tolist()
        found += [b for b, chance in zip(group, low, strict=True) if chance <= (1 - HANGS) * b.clean]
        if len(found) >= most:
            break
    return found[:most]


def judge(
    handle: Handle, counts: tuple[int, int], clean: Sequence[float], blurred: Sequence[float], effects: Tensor,
    window: int,
) -> Finding:  # fmt: skip
    """What the effects [facts, layers] say.

    Args:
        counts: prompts that were tried, and those the model was sure of.
    """
    facts, layers = effects.shape
    mean = effects.mean(0) if facts else torch.zeros(layers)
    error = effects.std(0) / math.sqrt(facts) if facts > 1 else torch.zeros(layers)
    if facts < LEAST:
        peak, why = None, f"The model is sure of {facts} facts that hang on their subject; {LEAST} are needed."
    else:
        peak, why = _peak(effects, _mean(clean) - _mean(blurred))
    return Finding(
        handle.name, handle.fingerprint, datetime.date.today().isoformat(), *counts, facts,
        _mean(clean), _mean(blurred), window, _figures(mean), _figures(error), peak, why, _settings(peak),
    )  # fmt: skip


def _peak(effects: Tensor, taken: float) -> tuple[int | None, str]:
    """The middle of the layers around the highest one with at least half its effect, where these stand out.

    They stand out when the highest gives back a fair share of what the noise has `taken`, and the mean over them is
    above the mean over the others by `ERRORS` standard errors, fact by fact.
    """
    mean = effects.mean(0)
    top = int(mean.argmax())
    first = last = top
    while first > 0 and mean[first - 1] >= mean[top] / 2:
        first -= 1
    while last + 1 < len(mean) and mean[last + 1] >= mean[top] / 2:
        last += 1
    inside = torch.zeros(len(mean), dtype=torch.bool)
    inside[first : last + 1] = True
    if mean[top] < MATTERS * taken:
        return None, "No layer alone gives much of the answers back."
    if inside.all():
        return None, "The effect is much the same at all layers."
    lift = effects[:, inside].mean(1) - effects[:, ~inside].mean(1)
    if lift.mean() < ERRORS * lift.std() / math.sqrt(len(lift)):
        return None, "No layer stands out from the others by more than chance."
    weights, places = mean[inside], torch.arange(len(mean))[inside]
    peak = int((weights * places).sum() / weights.sum() + 0.5)
    where = f"layer {first}" if first == last else f"layers {first} to {last}"
    return peak, f"Subjects are looked up at {where}."


def _settings(peak: int | None) -> dict[str, dict[str, int]]:
    """For the methods that write at the subject: one block at the peak, or several that end there."""
    if peak is None:
        return {}
    several = {"first": max(0, peak - SPAN + 1), "last": peak}
    return {**{name: {"layer": peak} for name in AT_PEAK}, **{name: dict(several) for name in UP_TO_PEAK}}


def keep(finding: Finding, home: Path) -> Path:
    """Stores a finding where `prepare_method` reads it, a flat one too: then nobody need look again."""
    told: dict[str, Any] = to_plain(finding)
    found = tuning.Suited(finding.source, told.pop("methods"))
    return tuning.keep_settings(home, finding.fingerprint, finding.model, found, {"trace": told})


def helps(method: str) -> bool:
    """True when a trace can say where this method should edit."""
    return method in (*AT_PEAK, *UP_TO_PEAK)


def seconds(handle: Handle, facts: int = MOST) -> float:
    """How long `locate` is expected to take on common prompts."""
    token, single = pace.seconds_of_tokens(handle)
    layers, rows = len(handle.anatomy.blocks), facts * DRAWS
    read = len(common_prompts()) * USUAL_TOKENS + rows * (2 * USUAL_TOKENS + USUAL_TAIL * (1 + layers / 2))
    passes = math.ceil(rows / causal.AT_ONCE) * (2 + layers / 2)
    return max(read * token, passes * single)


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def _figures(values: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 5) for value in values.tolist())
