"""What flows through the product, as frozen values: request, probe, reading, report, progress. Standard library only.

Probabilities are in [0, 1]; log-probabilities are natural logs; durations are seconds from a monotonic clock.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Form = Literal["raw", "chat"]  # a prompt read as it is, or as a person's turn in the model's chat template
FORMS: tuple[Form, ...] = ("raw", "chat")
ProbeKind = Literal["edit", "raw", "chat", "paraphrase", "near", "far"]
KINDS: tuple[ProbeKind, ...] = ("edit", "raw", "chat", "paraphrase", "near", "far")


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt that is read before and after the edit."""

    # edit: the request; raw, chat: the same prompt in the form it is not edited in; paraphrase: same fact;
    # near: same relation, other subject; far: anything
    kind: ProbeKind
    prompt: str
    answer: str | None = None  # what the unedited model should say; None: read from the model itself
    held_out: bool = False  # the model was never trained on this wording of this fact
    source: str = ""  # where it comes from, in words a person can read
    form: Form | None = None  # None: as the request


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One corrected belief."""

    prompt: str
    target: str  # the corrected answer, without leading space
    subject: str | None = None  # a substring of the prompt; None: found automatically
    old: str | None = None  # the answer to be replaced; None: read from the model
    paraphrases: tuple[Probe, ...] = ()
    probes: tuple[Probe, ...] = ()  # near and far
    form: Form = "raw"  # of the prompt, and of every other that names none


@dataclass(frozen=True, slots=True)
class AnswerScore:
    """How much a model believes one answer to one prompt (teacher forced)."""

    text: str
    tokens: int  # answer length, tokens
    joint: float  # product of the token probabilities
    mean: float  # geometric mean of the token probabilities: exp(mean log p), comparable between lengths
    rank: int  # rank of the first answer token among all next tokens, 1 = most likely
    exact: bool  # every answer token is the most likely one
    token_accuracy: float  # share of answer tokens that are the most likely one


@dataclass(frozen=True, slots=True)
class Reading:
    """One prompt, read once."""

    new: AnswerScore | None  # the corrected answer
    old: AnswerScore | None  # the answer the unedited model gives (or should give)
    top: tuple[tuple[str, float], ...]  # ten most likely next tokens with probabilities
    text: str  # greedy continuation


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One prompt before and after."""

    probe: Probe
    before: Reading
    after: Reading
    kl: float  # KL(before || after) of the next-token distribution after the prompt, nats
    moved: bool  # the most likely tokens along the old answer changed


@dataclass(frozen=True, slots=True)
class Scores:
    """What an edit is judged by; None where there is nothing to judge. All in [0, 1].

    reliability, generality: share of edit prompts / paraphrases whose whole new answer is most likely, token by token.
    locality: share of near and far probes whose most likely tokens along the old answer did not change.
    es, ps, ns: CounterFact's efficacy, paraphrase and neighbourhood success (per-token geometric means compared;
    ns over near probes); s: their harmonic mean (Meng et al. 2022). generation: share of edit prompt and paraphrases
    whose free greedy continuation starts with the new answer.
    """

    reliability: float | None = None
    generality: float | None = None
    locality: float | None = None
    es: float | None = None
    ps: float | None = None
    ns: float | None = None
    s: float | None = None
    generation: float | None = None
    reliability_tokens: float | None = None  # token accuracy on the edit prompt
    generality_tokens: float | None = None  # token accuracy on paraphrases


@dataclass(frozen=True, slots=True)
class PatchInfo:
    """A patch, weighed."""

    bytes: int
    modules: tuple[str, ...]  # full module paths
    rank: int | None  # rank of the largest part; None: dense
    norm: float  # Frobenius norm of the change
    relative_norm: float  # the same over the norm of the edited weights
    path: str | None = None  # where it is stored, if it is


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time went."""

    edit: float
    measure: float
    prepare: float = 0.0  # one-off: statistics


@dataclass(frozen=True, slots=True, weakref_slot=True)
class EditReport:
    """Everything one edit produced."""

    model: str
    method: str
    settings: Mapping[str, Any]
    request: EditRequest
    subject: str | None
    patch: PatchInfo
    seconds: Seconds
    probes: tuple[ProbeResult, ...]
    scores: Scores
    took: bool  # the edit prompt now gives the new answer, and generates it
    sentence: str  # the result in one sentence a person can repeat
    advice: str = ""  # what to try, when it did not take or something else broke
    warnings: tuple[str, ...] = ()
    peak_memory: int | None = None  # bytes above the loaded model during the edit; None: not measured


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one method in a comparison."""

    method: str
    settings: Mapping[str, Any]  # as asked for; the report has those in force
    report: EditReport | None  # None: it failed
    error: str = ""  # why it failed, in full sentences
    error_kind: str = ""  # a name in `errors.BY_NAME`


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of work, as a listener hears it."""

    stage: str  # "statistics", "edit", "measure", ...
    step: int
    steps: int  # upper bound; methods may stop early
    loss: float | None = None  # nats
    text: str = ""
    seconds_left: float | None = None


EXAMPLE_CHARACTERS = 600  # of a usual example to learn from, all its texts together


@dataclass(frozen=True, slots=True)
class Preflight:
    """What is known before the click."""

    ok: bool
    subject: str | None  # found or given
    subject_source: str  # how it was found
    target_tokens: tuple[str, ...]
    old: str  # the model's own answer
    old_probability: float  # per-token geometric mean
    target_probability: float  # of the corrected answer, before the edit
    modules: tuple[str, ...]  # what will be edited
    seconds: float | None  # expected
    bytes: int | None  # expected patch size
    memory: int | None  # expected peak bytes over the loaded model
    prepare: str = ""  # a one-off step that comes first, in words; "" when none
    problems: tuple[str, ...] = ()  # reasons it cannot start
    warnings: tuple[str, ...] = ()
    known: bool = True  # the model is sure of its own answer
    nearest: tuple[str, ...] = ()  # prompts it does know, when it is not sure of this one
    training: float | None = None  # seconds, where the method has to be trained for this model before any edit
    layer_source: str = ""  # who chose the blocks, in a few words; "" when none are
    finding: float | None = None  # seconds it takes to find out where to edit, where only a rule of thumb says so
    text: str = ""  # all that the model reads in front of the answer, control tokens spelled out
    answer: str = ""  # the corrected answer as it follows there, with the space in front where there is one


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One loaded model, described."""

    name: str
    fingerprint: str
    architecture: str
    parameters: int
    layers: int
    device: str
    device_reason: str
    dtype: str
    dtype_reason: str
    embedded: bool  # the world model, whose facts can be browsed
    bytes: int  # weights
    chat: bool = False  # it has a chat template that can be used
    revision: str = ""  # commit of the hub


@dataclass(frozen=True, slots=True)
class Opening:
    """How a model is to be opened; what is left open is as the settings say, else chosen for it."""

    model: str  # the embedded one, a hub id or a folder
    revision: str = ""  # branch, tag or commit of a hub id
    device: str = ""  # "cpu", "cuda", "cuda:0" ...
    dtype: str = ""  # "float32", "bfloat16" or "float16"
    device_map: str = ""  # instead of a device: how it is spread over several GPUs


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One dial of a method, for forms and command lines."""

    name: str
    kind: Literal["int", "float", "bool", "choice"]
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False  # None is allowed and means "chosen for the model"


@dataclass(frozen=True, slots=True)
class MethodInfo:
    """One method, for menus."""

    name: str
    title: str
    sentence: str  # what it does, plainly
    paper: str
    needs: tuple[str, ...]  # "subject", "statistics"
    settings: tuple[SettingInfo, ...] = field(default=())
    published: Mapping[str, Any] = field(default_factory=dict)  # values of the paper, where the defaults differ


@dataclass(frozen=True, slots=True)
class Held:
    """Whether one earlier edit still holds."""

    prompt: str
    target: str
    held: bool  # the prompt still gives the new answer
    probability: float  # of the new answer, per-token geometric mean


@dataclass(frozen=True, slots=True)
class Checkup:
    """How an edited model is, with everything in place."""

    held: tuple[Held, ...]  # one an edit, in the order of the stack
    probes: int  # unrelated prompts that were read
    drift: float | None  # share of them whose answer moved away from the base model's; None: there were none
    kl: float | None  # their mean KL of the next-token distribution from the base model's, nats
    perplexity: float  # of a neutral text
    base_perplexity: float  # of the same, by the base model
    entropy: float  # n-gram entropy of a continuation, bits
    base_entropy: float  # of the base model's


T = TypeVar("T")


@cache  # reading a record's annotations takes longer than making it
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def to_plain(value: Any) -> Any:
    """A record as dicts, lists and scalars (JSON-ready but for NaN)."""
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def from_plain(kind: type[T], data: Mapping[str, Any]) -> T:
    """The inverse of `to_plain`; unknown and missing fields are refused by name.

    Raises:
        ValueError: a field is unknown or missing.
    """
    hints = _hints(kind)  # type: ignore[arg-type]
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = set(data) - set(known)
    missing = {n for n, f in known.items() if n not in data and f.default is MISSING and f.default_factory is MISSING}
    if unknown or missing:
        raise ValueError(f"{kind.__name__}: unknown fields {sorted(unknown)}, missing fields {sorted(missing)}")
    return kind(**{name: _revive(hints[name], value) for name, value in data.items()})


def _revive(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = [h for h in get_args(hint) if h is not type(None)] or (Any,)
        return _revive(inner, value)
    if origin is tuple:
        args = get_args(hint)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_revive(args[0], v) for v in value)
        return tuple(_revive(h, v) for h, v in zip(args, value, strict=True))
    if is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value)
    return value
