"""One edit from request to report: check, edit on scratch, measure twice, say what happened in one sentence."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from editcore import gate, locate, measure, pace, spans, statistics, suggest
from editcore.errors import BadInput, BadRequest, SubjectNotFound, Untrained
from editcore.forecast import enough, forecast
from editcore.handle import Handle
from editcore.learned import Dials
from editcore.lookup import is_named, normal
from editcore.methods import RULE, Method, Work, prepared
from editcore.patch import Patch
from editcore.records import EditReport, EditRequest, Form, Preflight, Probe, ProbeResult, Progress, Scores, Seconds
from editcore.words import FORM_WORDS, human_bytes
from editcore.world.facts import World, load_world

LONGEST_SAID = 120  # characters of an answer in a sentence
LOOK = "Where to edit was a rule of thumb: let “Find out” (among the settings; editcore locate) look for it first."
SURE = 0.5  # probability of its own answer from which a model counts as knowing it


def world_of(handle: Handle) -> World | None:
    """The tables behind the embedded model; None for any other."""
    return load_world() if handle.embedded else None


def suggested(
    handle: Handle, prompt: str, target: str, subject: str | None = None, form: Form | None = None
) -> EditRequest:
    """A request with subject, paraphrases and probes proposed from the prompt and the corrected answer alone.

    Args:
        form: None: as a chat, if the model has a template for it.
    """
    found = suggest.suggest(prompt, target, world_of(handle), subject)
    form = form or handle.usual_form
    return EditRequest(prompt, target, subject or found.subject, None, found.paraphrases, found.probes, form)


def proposed(handle: Handle, request: EditRequest) -> EditRequest:
    """The request with paraphrases and probes proposed where it has none."""
    prompt, target = request.prompt.strip(), request.target.strip()
    if not prompt or not target or (request.paraphrases and request.probes):
        return request
    found = suggested(handle, prompt, target, request.subject)
    return replace(request, paraphrases=request.paraphrases or found.paraphrases, probes=request.probes or found.probes)


def check_request(handle: Handle, request: EditRequest, method: Method) -> EditRequest:
    """The request with trimmed text and its subject found.

    Raises:
        BadRequest: a text is empty, too long, not encodable, or a probe repeats the edit.
        SubjectNotFound: the method needs a subject and none was given or found.
    """
    request = _trimmed(request)
    gate.check_request(request)
    row = handle.plain_row(request.prompt, request.target, form=request.form)
    handle.check_length(len(row.ids))
    unknown = handle.tokenizer.unk_token_id
    if unknown is not None and unknown in row.ids:
        text = spans.join(request.prompt, request.target)[:80]
        raise BadRequest(f"The model has no tokens for part of {text!r}.", "", "Use letters the model knows.")
    answers = [(Probe("edit", request.prompt), request.old or ""), *((p, p.answer or "") for p in request.probes)]
    answers += [(p, answer) for p in request.paraphrases for answer in (request.target, request.old or "")]
    for probe, answer in answers:
        handle.check_length(len(handle.plain_row(probe.prompt, answer, form=probe.form or request.form).ids))
    if request.subject:
        spans.find_subject(request.prompt, request.subject)
        return request
    subject, _ = suggest.find_subject(request.prompt, world_of(handle))
    if "subject" in method.needs and not subject:
        raise SubjectNotFound(
            "No subject was found in the prompt.",
            f"{method.title} edits what is stored at a name, so it has to know which words are the name.",
            "Type the subject as it stands in the prompt.",
        )
    return replace(request, subject=subject)


def _trimmed(request: EditRequest) -> EditRequest:
    def probe(p: Probe) -> Probe:
        return replace(p, prompt=p.prompt.strip(), answer=(p.answer or "").strip() or None)

    return replace(
        request,
        prompt=request.prompt.strip(),
        target=request.target.strip(),
        subject=(request.subject or "").strip() or None,
        old=(request.old or "").strip() or None,
        paraphrases=tuple(map(probe, request.paraphrases)),
        probes=tuple(map(probe, request.probes)),
    )


@dataclass(frozen=True)
class Before:
    """The model as it is, read at every probe of a request; the same whatever method comes next."""

    probes: tuple[Probe, ...]
    olds: list[str]  # per probe, the answer to be compared with
    readings: Sequence[Any]  # of `measure.read`
    seconds: float


def read_before(handle: Handle, request: EditRequest, generate: bool = True) -> Before:
    """Reads the model, with whatever is in place on the handle, at the probes of a checked request."""
    began = time.monotonic()
    probes, olds = measure.settle(handle, request)
    readings = measure.read(handle, probes, request.target, olds, (), generate=generate)
    return Before(probes, olds, readings, time.monotonic() - began)


def run_edit(
    handle: Handle,
    request: EditRequest,
    method: str = "rome",
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Patch, EditReport]:
    """`run_edits` with one request."""
    patch, (report,) = run_edits(handle, [request], method, settings, **options)
    return patch, report


def run_edits(
    handle: Handle,
    requests: Sequence[EditRequest],
    method: str = "rome",
    settings: Mapping[str, Any] | None = None,
    *,
    patches: Sequence[Patch] = (),
    home: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    generate: bool = True,
    before: Callable[[Handle, EditRequest, bool], Before] = read_before,
) -> tuple[Patch, tuple[EditReport, ...]]:
    """Makes all edits together, measures and reports each; the model itself is left as it was.

    Args:
        patches: what is already in place; "before" and the edit itself see the model with it.
        home: where statistics are cached.
        generate: also compare free continuations.
        before: reads the model before the edit; a caller with many edits of one request can share one reading.

    Returns:
        One patch for all, and a report for each request, in order. Size and seconds of the edit are those of all.

    Raises:
        BadInput, Diverged, Cancelled: see the method; nothing is kept. A request of several is named by its row.
    """
    handle.home = home or handle.home
    made, chosen_by = prepared(method, handle, settings)
    checked = check_requests(handle, requests, made)
    work = Work(handle, report, stop, home, patches)
    with enough(handle, made, checked[0]), torch.inference_mode(False):
        waited = _prepare(work, made)
    with enough(handle, made, checked[0]), torch.inference_mode(False), handle.using(patches):
        firsts = []
        for request in checked:
            firsts.append(before(handle, request, generate))
            work.check()
        began = handle.clock()
        peak = _start_peak(handle)
        patch = made.edit(work, checked)
        patch.check_finite()
        edit_seconds, peak_memory = handle.clock() - began, _peak(handle, peak)
        reports = []
        for number, (request, first) in enumerate(zip(checked, firsts, strict=True), 1):
            work.check()
            report(Progress("measure", number, len(checked), text="reading every probe again"))
            began = time.monotonic()
            after = measure.read(
                handle, first.probes, request.target, first.olds, [patch], generate=generate
            )  # fmt: skip
            seconds = Seconds(edit_seconds, first.seconds + time.monotonic() - began, waited)
            results = measure.compare(first.probes, first.readings, after)
            told = _report(handle, made, request, patch, seconds, results, generate, work.notes, peak_memory)
            guessed = told.advice == made.remedy and _guessed(made, chosen_by)
            reports.append(replace(told, advice=f"{LOOK} {told.advice}") if guessed else told)
    return patch, tuple(reports)


def _report(
    handle: Handle, made: Method, request: EditRequest, patch: Patch, seconds: Seconds,
    results: Sequence[ProbeResult], generate: bool, notes: Sequence[str], peak_memory: int | None,
) -> EditReport:  # fmt: skip
    scores = measure.score(results, request.target)
    if not generate:
        scores = replace(scores, generation=None)
    info = patch.info(handle.model)
    took = took_hold(results, request.target, generate)
    new = "" if took else unnamed(handle, request.target)
    return EditReport(
        model=handle.name,
        method=made.name,
        settings=dataclasses.asdict(made),
        request=request,
        subject=request.subject,
        patch=info,
        seconds=seconds,
        probes=tuple(results),
        scores=scores,
        took=took,
        sentence=sentence(request.target, results, took, seconds.edit, info.bytes),
        advice=new or advice(made, results, scores, took, request.target),
        warnings=tuple(dict.fromkeys((*notes, *_remarks(results, request.target)))),
        peak_memory=peak_memory,
    )


def check_requests(handle: Handle, requests: Sequence[EditRequest], method: Method) -> list[EditRequest]:
    """`check_request` for each; what is asked for twice is refused, and one request of several is named by its row.

    Raises:
        BadInput: as in `check_request`, or there is no request, or two of them ask the same question.
    """
    if not requests:
        raise BadRequest("There is no edit to make.", "At least one was wanted.", "Give a prompt and its answer.")
    if len(requests) == 1:
        return [check_request(handle, requests[0], method)]
    world = world_of(handle)

    def question(request: EditRequest) -> Hashable:
        fact = suggest.identify(request.prompt, world) if world else None
        asks = (fact.subject, fact.relation) if fact else normal(request.prompt)
        return asks, request.form

    gate.check_distinct(requests, question, "the list")
    checked = []
    for number, request in enumerate(requests, 1):
        try:
            checked.append(check_request(handle, request, method))
        except BadInput as error:
            raise type(error)(f"Row {number}: {error.seen}", error.wanted, error.try_) from error
    return checked


def _prepare(work: Work, method: Method) -> float:
    """Statistics the method needs, of the model without any edit, before the clock of the edit starts."""
    began = work.handle.clock()
    with work.handle.using(()):
        found = statistics.moments(work.handle, method.measured(work.handle), work.home, work.report, work.stop)
    work.notes.extend(moment.caution for moment in found.values() if moment.caution)
    return work.handle.clock() - began


def _start_peak(handle: Handle) -> int | None:
    if handle.device.type != "cuda":
        return None
    handle.start_peak()
    return int(torch.cuda.memory_allocated(handle.device))


def _peak(handle: Handle, before: int | None) -> int | None:
    return None if before is None else handle.peak_memory() - before


def took_hold(results: Sequence[ProbeResult], target: str, generated: bool = True) -> bool:
    """True when the edit prompt's likeliest answer is the new one, and free generation says it too."""
    first = results[0].after
    return bool(first.new and first.new.exact) and (not generated or measure.says(first.text, target))


def sentence(target: str, results: Sequence[ProbeResult], took: bool, seconds: float | None, size: int) -> str:
    """The result in words a person can repeat.

    Args:
        seconds: the edit took; None: it was made elsewhere.
    """
    first = results[0]
    assert first.before.new is not None and first.after.new is not None
    parts = [f"“{_said(target)}” {percent(first.before.new.mean)} → {percent(first.after.new.mean)}"]
    paraphrases = [r for r in results if r.probe.kind == "paraphrase"]
    probes = [r for r in results if r.probe.kind in ("near", "far")]
    if paraphrases:
        good = sum(bool(r.after.new and r.after.new.exact) for r in paraphrases)
        parts.append(f"paraphrases {good} of {len(paraphrases)}")
    parts += [
        f"as {FORM_WORDS[r.probe.form or 'raw']} {percent(r.after.new.mean)}"
        for r in results
        if r.probe.kind in ("raw", "chat") and r.after.new
    ]
    if probes:
        parts.append(f"unrelated {sum(not r.moved for r in probes)} of {len(probes)} unmoved")
    head = "" if took else "The edit did not take. "
    cost = human_bytes(size) if seconds is None else f"{seconds:.1f} s, {human_bytes(size)}"
    return f"{head}{'; '.join(parts)}; {cost}."


def _said(text: str) -> str:
    return text if len(text) <= LONGEST_SAID else f"{text[: LONGEST_SAID - 1]}…"


def percent(value: float) -> str:
    """A probability as people read it: "0.4 %", "97 %", "< 0.1 %"."""
    if math.isnan(value):
        return "n/a"
    share = 100 * value
    if 0 <= share < 0.1:
        return "< 0.1 %"
    return f"{share:.1f} %" if share < 10 or 99 < share < 99.95 else f"{share:.0f} %"


def _guessed(method: Method, chosen_by: str) -> bool:
    """True when a rule of thumb says where to edit, and a trace of the model could."""
    return chosen_by == RULE and locate.helps(method.name)


def advice(method: Method, results: Sequence[ProbeResult], scores: Scores, took: bool, target: str) -> str:
    """What to try next, when something is amiss; else empty."""
    first = results[0].after
    if not took:
        if first.new and first.new.exact:
            freely = measure.cut_answer(first.text)
            return f"Scored token by token the answer is there, but writing freely it says “{freely}”. Try more steps."
        return method.remedy
    if scores.locality is not None and scores.locality < 0.5:
        return (
            "The new answer holds, but most unrelated answers moved too. Try a method that is more local, such as ROME."
        )
    if scores.generality is not None and scores.generality < 0.5:
        return "The new answer holds for this wording only. Try another layer, or a method that edits at the subject."
    return ""


def _remarks(results: Sequence[ProbeResult], target: str) -> list[str]:
    first, remarks = results[0], []
    if first.before.new and first.before.new.exact:
        remarks.append(f"The model already answered “{target}” before the edit ({percent(first.before.new.mean)}).")
    if first.probe.prompt.casefold().rstrip(" ?.").endswith(target.casefold()):
        remarks.append("The prompt itself ends in the corrected answer.")
    return remarks


def unnamed(handle: Handle, target: str) -> str:
    """A word of warning about an answer the embedded model has never read; else empty."""
    world = world_of(handle)
    if world is None or is_named(target, world):
        return ""
    return (
        f"This model has never read “{target}”. Methods that write at a name can only point at what it knows, "
        "and may not get it to say this; fine-tuning (FT) can."
    )


def preflight(
    handle: Handle,
    request: EditRequest,
    method: str,
    settings: Mapping[str, Any] | None = None,
    home: Path | None = None,
) -> Preflight:
    """What is known before the click; problems are listed, not raised."""
    world = world_of(handle)
    handle.home = home or handle.home
    blank = Preflight(False, None, "", (), "", 0.0, 0.0, (), None, None, None)
    try:
        made, chosen_by = prepared(method, handle, settings)
        found, source = suggest.find_subject(request.prompt, world)
        subject = request.subject or found
        source = "as given" if request.subject and request.subject != found else source
        checked = check_request(handle, request, made)
    except Untrained as error:
        return replace(blank, problems=(str(error),), training=pace.of_training(handle, Dials()))
    except BadInput as error:
        known_instead = suggest.nearest(request.prompt, world) if world and request.prompt.strip() else ()
        return replace(blank, problems=(str(error),), nearest=known_instead)
    row = handle.plain_row(checked.prompt, checked.target, form=checked.form)
    (own,) = measure.own_answers(handle, [checked.prompt], (), [checked.form])
    old = checked.old or own
    probe = Probe("edit", checked.prompt, old, form=checked.form)
    compared = checked.old or measure.fitting(handle, checked.prompt, own, checked.form)
    reading = measure.read(handle, [probe], checked.target, [compared], (), generate=False)[0].reading
    assert reading.new is not None
    belief = reading.old.mean if reading.old else 0.0
    sites = [handle.anatomy.site(layer) for layer in made.layers(handle)]
    # So small a model is sometimes sure of an answer to a question it was never taught.
    known = belief >= SURE and (world is None or suggest.identify(checked.prompt, world) is not None)
    warnings = []
    if measure.says(own, checked.target):
        warnings.append(f"The model already answers “{checked.target}” ({percent(reading.new.mean)}).")
    if "subject" in made.needs and (new := unnamed(handle, checked.target)):
        warnings.append(new)
    if checked.prompt.casefold().rstrip(" ?.").endswith(checked.target.casefold()):
        warnings.append("The prompt already ends in the corrected answer.")
    expected = forecast(handle, made, checked, home)
    return Preflight(
        ok=not expected.problem,
        subject=subject,
        subject_source=source,
        target_tokens=spans.pieces(handle.tokenizer, row.answer),
        old=old,
        old_probability=belief,
        target_probability=reading.new.mean,
        modules=tuple(s.path for s in sites),
        seconds=expected.seconds,
        bytes=expected.patch,
        memory=expected.memory,
        prepare=expected.prepare,
        problems=(expected.problem,) if expected.problem else (),
        warnings=tuple(warnings),
        known=known,
        nearest=() if known or world is None else suggest.nearest(checked.prompt, world),
        layer_source=chosen_by,
        finding=locate.seconds(handle) if _guessed(made, chosen_by) else None,
        text=handle.text(checked.prompt, checked.form),
        answer=handle.envelope(checked.form).gap + checked.target,
    )
