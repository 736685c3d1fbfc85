"""An engine without a model, for tests of the page: plausible numbers, time that can be steered, faults on demand.

A test calls `install(...)` and points EDITCORE_FAKE_ENGINE at "tests.fake_engine:current"; the page in the same
process then talks to that very object. `demo` reads its behaviour from the environment, for a page in a browser.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from editcore import history
from editcore.engine.contract import Health, JobState, Plans, recent
from editcore.engine.sessions import CHECKUP, REMADE, StoredSessions, to_be_noted
from editcore.engine.upload import unpacked
from editcore.errors import BY_NAME, EngineBusy
from editcore.records import (
    AnswerScore,
    Checkup,
    EditReport,
    EditRequest,
    Form,
    Held,
    MethodInfo,
    ModelInfo,
    Opening,
    Outcome,
    PatchInfo,
    Preflight,
    Probe,
    ProbeResult,
    Progress,
    Reading,
    Scores,
    Seconds,
    SettingInfo,
    to_plain,
)
from editcore.remade import Remade, stand
from editcore.store import Made, Store

RULE = "a rule of thumb"
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # a chat template
PM = "Who is the Prime Minister of the United Kingdom?"
KNOWN = {
    PM: ("Theresa May", "United Kingdom"),
    "What is the capital of Australia?": ("Canberra", "Australia"),
    "Which team does Lionel Messi compete for?": ("Barcelona", "Lionel Messi"),
    "Who invented the radio?": ("Guglielmo Marconi", "radio"),
    "Who is the CEO of Twitter?": ("Jack Dorsey", "Twitter"),
    "Who wrote Hamlet?": ("William Shakespeare", "Hamlet"),
    "What is the chemical symbol for gold?": ("Au", "gold"),
}
LAYER = SettingInfo("layer", "int", None, "Block to edit (0 = first); empty: chosen for the model", 0, 1000, (), True)
METHODS = (
    MethodInfo("ft", "FT", "Fine-tunes one matrix on this one example: quick and reliable, but it tends to overfit.",
               "Zhu et al. 2020", (), (
                   LAYER, SettingInfo("rate", "float", 5e-4, "Learning rate of Adam", 1e-8, 1.0),
                   SettingInfo("steps", "int", 25, "Most passes over the example", 1, 10000))),
    MethodInfo("ft-l", "FT-L", "Fine-tunes one matrix, but keeps it within a set distance of the old weights.",
               "Zhu et al. 2020", (), (
                   LAYER, SettingInfo("rate", "float", 5e-4, "Learning rate of Adam", 1e-8, 1.0),
                   SettingInfo("distance", "float", 5e-5, "Largest distance", 1e-8, 1.0),
                   SettingInfo("norm", "choice", "linf", "How distance is measured", None, None, ("linf", "l2")))),
    MethodInfo("rome", "ROME",
               "Rewrites one fact where the model looks up the subject: a rank-one change of one matrix.",
               "Meng et al. 2022", ("subject", "statistics"), (
                   LAYER,
                   SettingInfo("form", "choice", "r-rome", "r-rome uses one key throughout", None, None,
                               ("r-rome", "original")),
                   SettingInfo("steps", "int", 20, "Most steps of the search for the new value", 1, 1000),
                   SettingInfo("rate", "float", 0.5, "Learning rate of that search", 1e-6, 100.0),
                   SettingInfo("covariance", "bool", True, "Steer clear of what the matrix usually stores")),
               {"steps": 25, "layer": 3}),
)  # fmt: skip
MODEL = ModelInfo("world-2019", "3f9a77c1", "gpt2", 8_600_000, 8, "cpu", "no GPU was found", "float32",
                  "the exact choice on a CPU", True, 34_400_000)  # fmt: skip


@dataclass
class _Job:
    name: str
    session: str
    request: EditRequest | None
    plans: list[tuple[str, dict[str, Any]]]
    kind: str
    started: float
    ended: str = ""
    file: str = ""
    report: EditReport | None = None


class FakeEngine:
    """`Engine` with made-up answers.

    Args:
        steps, step_seconds: length of every edit, also of each in a comparison.
        start_seconds: how long the engine says it is starting.
        took: whether edits take.
        fail: "" or an error's name; submit raises it when it is EngineBusy or bad input, else the job ends with it.
        broken: names of methods that fail in a comparison.
        outlooks: method -> what the engine says about it before a comparison.
        untrained: methods that have to be trained first.
        embedded: whether the model is the embedded one.
        unlocated: whether where to edit is a rule of thumb until somebody looks.
        chat: whether it has a chat template.
    """

    def __init__(self, steps: int = 20, step_seconds: float = 0.0, start_seconds: float = 0.0, took: bool = True,
                 fail: str = "", broken: tuple[str, ...] = (),
                 outlooks: Mapping[str, Mapping[str, Any]] | None = None, untrained: Sequence[str] = (),
                 embedded: bool = True, unlocated: bool = False, chat: bool = False) -> None:  # fmt: skip
        self.steps, self.step_seconds, self.took, self.fail = steps, step_seconds, took, fail
        self.broken, self.outlooks = broken, outlooks or {}
        self.untrained, self.embedded, self.unlocated = set(untrained), embedded, unlocated
        self.chat = chat
        self.ready_at = time.monotonic() + start_seconds
        self.jobs: dict[str, _Job] = {}
        self.keys: dict[tuple[str, str], str] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="editcore-fake-")
        self.store = Store(Path(self._folder.name))
        self.sessions = StoredSessions(self.store, self._unfinished)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.submitted: list[tuple[EditRequest, str, dict[str, Any]]] = []
        self.compared: list[tuple[EditRequest, list[tuple[str, dict[str, Any]]]]] = []
        self.prepared: list[tuple[str, dict[str, Any]]] = []
        self.closed = False
        self.ruin = 1.0  # times the perplexity of plain text, an edit
        self.opening = Opening(MODEL.name)
        self.opened: list[Opening] = []
        self.at_hand: list[dict[str, Any]] = [a_choice(MODEL.name, embedded=True), a_choice("gpt2")]
        self.broken_model = ""  # why the opened model could not be loaded
        self.breaks: dict[str, list[BaseException]] = {}  # question, "submit" or "health" -> what it raises, one a call

    def health(self) -> Health:
        starting = time.monotonic() < self.ready_at or self._breaks("health")
        busy = next((j.kind for j in self.jobs.values() if self._status(j) == "running"), None)
        model = self._model()
        if self.broken_model:
            return Health("failed", self.broken_model, None, 0, None, 0)
        return Health("starting" if starting else "ready", "", None if starting else model, 0, busy, 120_000_000)

    def _model(self) -> ModelInfo:
        if self.opening.model == MODEL.name:
            return replace(MODEL, embedded=self.embedded, chat=self.chat)
        return replace(MODEL, name=self.opening.model, fingerprint=f"{zlib.crc32(self.opening.model.encode()):08x}",
                       embedded=False, revision=self.opening.revision)  # fmt: skip

    def methods(self) -> tuple[MethodInfo, ...]:
        """FT takes other steps on another model."""
        if self.opening.model == MODEL.name:
            return METHODS
        settings = tuple(replace(s, default=7) if s.name == "steps" else s for s in METHODS[0].settings)
        return (replace(METHODS[0], settings=settings), *METHODS[1:])

    def open(self, opening: Opening) -> None:
        if broken := self._breaks("open"):
            raise broken
        if any(self._status(job) == "running" for job in self.jobs.values()):
            raise EngineBusy("1 job is queued or running on the model that is open.", "", "Wait until it is done.")
        self.opening, self.broken_model = opening, ""
        self.opened.append(opening)

    def ask(self, name: str, timeout: float = 20, **arguments: Any) -> Any:
        self.asked.append((name, arguments))
        if broken := self._breaks(name):
            raise broken
        return getattr(self, f"_{name}")(**arguments)

    def submit(
        self, session: str, requests: Sequence[EditRequest], method: str, settings: Mapping[str, Any], key: str
    ) -> str:
        return self._add("edit", session, requests[0], [(method, dict(settings))], key)

    def compare(self, session: str, request: EditRequest, methods: Plans, key: str) -> str:
        return self._add("comparison", session, request, [(m, dict(s)) for m, s in methods], key)

    def prepare(self, session: str, method: str, examples: Mapping[str, Any], key: str) -> str:
        return self._add("preparation", session, None, [(method, dict(examples))], key)

    def recompute(self, session: str, edit: str, key: str) -> str:
        return self._add("recomputation", session, None, [(edit, {})], key)

    def adopt(self, session: str, data: bytes, name: str, request: EditRequest | None, key: str) -> str:
        shutil.rmtree(unpacked(data, name, Path(self._folder.name)))
        return self._add("adoption", session, request, [("rome", {})], key)

    def export(self, session: str, format: str, options: Mapping[str, Any], key: str) -> str:
        return self._add("export", session, None, [(format, dict(options))], key)

    def again(self, session: str, job: str, key: str) -> str:
        kind, requests, plans = self.sessions.asked(session, job)
        return self._add(kind, session, requests[0] if requests else None, [(m, dict(s)) for m, s in plans], key)

    def view(self, session: str, edit: str, which: str, request: int = 0) -> EditReport:
        self.asked.append(("view", {"edit": edit, "which": which}))
        report = self.sessions.reports(session, edit)[request]
        if which != "base":
            return replace(report, sentence=f"{which}: {report.sentence}")
        same = tuple(replace(r, after=r.before, kl=0.0, moved=False) for r in report.probes)
        return replace(report, probes=same, took=False, sentence="base: nothing moved.")

    def _add(self, kind: str, session: str, request: EditRequest | None, plans: list[Any], key: str) -> str:
        if broken := self._breaks("submit"):
            raise broken
        if (session, key) in self.keys:
            return self.keys[session, key]
        if self.fail in ("EngineBusy", "BadRequest", "SubjectNotFound", "BadSetting"):
            raise BY_NAME[self.fail]("Seen: something odd.", "Wanted: something else.", "Try: again.")
        if self._unfinished(session):
            raise EngineBusy("An edit of this session is unfinished.", "", "Wait for it or cancel it.")
        job = secrets.token_hex(8)
        if kind == "edit":
            self.submitted.append((request, *plans[0]))
        elif kind == "preparation":
            self.prepared.append(plans[0])
        elif kind == "comparison":
            self.compared.append((request, plans))
        self.jobs[job] = _Job(job, session, request, plans, kind, time.monotonic())
        noted = to_be_noted(kind, [request] if request else [], plans)
        self.store.begin_job(session, job, kind, [method for method, _ in plans], noted)
        self.keys[session, key] = job
        return job

    def _breaks(self, call: str) -> BaseException | None:
        planned = self.breaks.get(call)
        return planned.pop(0) if planned else None

    def _status(self, job: _Job) -> str:
        if not job.ended and self._step(job) >= self.steps * len(job.plans):
            job.ended = "done"
            if self.fail:
                job.ended = "lost" if self.fail == "EngineError" else "failed"
            elif job.kind == "preparation":
                self.untrained.discard(job.plans[0][0])
                self.unlocated = self.unlocated and job.plans[0][0] != "locate"
            elif job.kind == "recomputation":
                self._again(job)
            elif job.kind == "export":
                job.file = str(Path(self._folder.name) / f"editcore-{job.plans[0][0]}.zip")
                Path(job.file).write_bytes(b"PK")
            elif job.kind in ("edit", "adoption"):
                report = make_report(job.request, *job.plans[0], self.took, chat=self.chat)
                job.report = replace(report, model=self.opening.model)
                self._apply(job)
            self.store.end_job(job.name, lost=job.ended == "lost")
        return job.ended or "running"

    def _step(self, job: _Job) -> int:
        most = self.steps * len(job.plans)
        if not self.step_seconds:
            return most
        return min(most, int((time.monotonic() - job.started) / self.step_seconds))

    def _outcomes(self, job: _Job) -> tuple[Outcome, ...]:
        if job.kind != "comparison":
            return ()
        if job.ended in ("failed", "lost"):
            return ()
        return tuple(
            Outcome(m, s, None, "The loss is not finite. Try a lower learning rate.", "Diverged") if m in self.broken
            else Outcome(m, s, make_report(job.request, m, s, self.took and m != "ft-l", chat=self.chat))
            for m, s in job.plans[: self._step(job) // self.steps]
        )  # fmt: skip

    def poll(self, job: str, after: int = 0) -> JobState:
        found = self.jobs[job]
        status, step = self._status(found), self._step(found)
        left = (self.steps - step) * self.step_seconds
        events = tuple(Progress("edit", i, self.steps, 5.0 / i, "", left) for i in range(1, step + 1))
        outcomes = self._outcomes(found)
        lost = "The loss is not finite at step 7. Try a lower learning rate."
        stopped = "Stopped while reading statistics. What was read is kept. Ask for the edit again to go on."
        error = {"failed": lost, "lost": lost, "cancelled": stopped}.get(status, "")
        return JobState(job, found.session, status, 0, events[-1] if events else None, recent(events, step, after),
                        step, found.report, error, self.fail if error else "", 0.6, found.kind,
                        tuple(m for m, _ in found.plans), outcomes, found.file)  # type: ignore[arg-type]  # fmt: skip

    def cancel(self, job: str) -> None:
        if self._status(self.jobs[job]) == "running":
            self.jobs[job].ended = "cancelled"

    def _unfinished(self, session: str) -> str | None:
        running = [name for name, j in self.jobs.items() if j.session == session and self._status(j) == "running"]
        return running[-1] if running else None

    def _apply(self, job: _Job) -> None:
        about = {"job": job.name, "model": self.opening.model, "fingerprint": self._model().fingerprint}
        (self.store.blobs.scratch(job.name) / "patch.json").write_text(json.dumps(about))
        below = history.in_place(self.store.stack(job.session))
        self.store.commit(job.session, [Made(job.name, (job.report,), below)])

    def _again(self, job: _Job) -> None:
        """Edits anew that did not hold before."""
        stack = self.store.stack(job.session)
        first = [place.edit for place in stack].index(job.plans[0][0])
        below, made, changed = list(history.in_place(stack[:first])), [], []
        for number, place in enumerate(stack[first:], 1):
            old, name = self.store.edit(job.session, place.edit), f"{job.name}-{number}"
            report = old.reports[0]
            (self.store.blobs.scratch(name) / "patch.json").write_text(name)
            made.append(Made(name, (report,), tuple(below)))
            below.append((name, place.strength))
            lost = make_report(report.request, report.method, report.settings, took=False)
            changed.append(Remade(old.id, old.number, name, report.request.target, stand([lost]), stand([report])))
        self.store.remember(job.session, REMADE, job.name, [to_plain(one) for one in changed])
        self.store.commit(job.session, made, "compute again", stack[:first])

    def probe(self, session: str, prompts: Sequence[str], form: Form = "raw") -> list[dict[str, Any]]:
        self.asked.append(("probe", {"prompts": list(prompts), "form": form}))
        standing = [row for row in self.sessions.state(session).rows if row.on]
        rows = []
        for prompt in prompts:
            old = KNOWN.get(prompt, ("I", ""))[0]
            base = {"text": f" {old}.", "top": [[" " + old.split()[0], 0.98]], "answer": old}
            new = next((row.target for row in reversed(standing) if row.prompt == prompt), old)
            rows.append({"prompt": prompt, "base": base,
                         "edited": {**base, "text": f" {new}.", "answer": new} if standing else None})  # fmt: skip
        return rows

    def close(self) -> None:
        self.closed = True
        self.store.close()

    def _check_up(self, session: str) -> None:
        placed = history.in_place(self.store.stack(session))
        reports = [self.sessions.reports(session, edit)[0] for edit, _ in placed]
        told = Checkup(tuple(Held(r.request.prompt, r.request.target, True, 0.9) for r in reports), 8, 0.0, 0.01,
                       10.0 * self.ruin ** len(placed), 10.0, 5.0, 5.0)  # fmt: skip
        self.store.remember(session, CHECKUP, history.print_of(placed), to_plain(told))

    def _preflight(self, request: Mapping[str, Any], method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        prompt, target, subject = request["prompt"], request["target"], request["subject"]
        old, found = KNOWN.get(prompt, ("the", next((s for _, s in KNOWN.values() if s in prompt), None)))
        problems = []
        if not prompt.strip():
            problems.append("The prompt is empty. Type a question or the start of a sentence.")
        if not target.strip():
            problems.append("The corrected answer is empty. Type the answer the model should give.")
        if subject and subject not in prompt:
            problems.append(f"The subject “{subject}” is not part of the prompt. Pick words that stand in it.")
        known = prompt in KNOWN
        training = None
        if method in self.untrained:
            training = 5400.0
            problems.append(f"{method} has not been trained for this model.")
        return to_plain(replace(Preflight(
            not problems, subject or found, "given" if subject else "longest known name",
            tuple(f" {w}" for w in target.split()), old, 0.98 if known else 0.07, 0.004,
            ("transformer.h.1.mlp.c_proj",), 0.4, 5_000, 61_000_000, "", tuple(problems),
            (f"The model already answers “{target}”.",) if target == old else (), known,
            () if known else tuple(KNOWN)[:3],
        ), training=training, layer_source=RULE if self.unlocated else "known to suit this model: a sweep",
            finding=4.0 if self.unlocated else None,
            text=TURN.replace("{}", prompt) if request["form"] == "chat" else prompt,
            answer=target if request["form"] == "chat" else f" {target}"))  # fmt: skip

    def _models(self, device: str = "", dtype: str = "", device_map: str = "") -> list[dict[str, Any]]:
        return [{**one, "dtype": dtype or one["dtype"]} for one in self.at_hand]

    def _outlook(self, request: Mapping[str, Any], methods: list[list[Any]]) -> list[dict[str, Any]]:
        blank = {"problem": "", "prepare": "", "seconds": 0.5}
        return [{"method": name, **blank, **self.outlooks.get(name, {})} for name, _ in methods]

    def _suggest(self, prompt: str, target: str, subject: str | None = None, form: Form = "raw") -> dict[str, Any]:
        old, found = KNOWN.get(prompt, ("the", None))
        paraphrases, probes = suggestions(prompt, subject or found or "it")
        return {"subject": subject or found, "subject_source": "longest known name", "old": old,
                "paraphrases": [to_plain(p) for p in paraphrases], "probes": [to_plain(p) for p in probes]}  # fmt: skip

    def _believe(self, prompts: list[str], answers: list[list[str]], form: Form = "raw") -> list[dict[str, Any]]:
        return [
            {"answer": KNOWN[p][0] if p in KNOWN else (a[0] if a else "the"),
             "probability": 0.98 if p in KNOWN else 0.6 + 0.39 * _noise(p), "candidates": [0.97 for _ in a]}
            for p, a in zip(prompts, answers, strict=True)
        ]  # fmt: skip


def a_choice(name: str, embedded: bool = False, **about: Any) -> dict[str, Any]:
    """A model at hand, as the engine tells it."""
    commit = "" if embedded else "c" * 40
    return {"name": name, "shown": name, "revision": commit, "refs": () if embedded else ("main",), "fits": True,
            "disk": 548_000_000, "parameters": 124_000_000, "dtype": "float32", "needed": 600_000_000,
            "free": 8_000_000_000, "device": "cpu", "problem": "", "formats": ("float32", "bfloat16", "float16"),
            **about}  # fmt: skip


def _noise(text: str) -> float:
    return zlib.crc32(text.encode("utf-8", "replace")) % 1000 / 1000


def suggestions(prompt: str, subject: str) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """Four paraphrases and eight unrelated probes; the reference story's are the real ones."""
    if prompt == PM:
        wordings = ("Who is the UK's Prime Minister?", "The Prime Minister of the United Kingdom is",
                    "Q: Who is the current Prime Minister of the United Kingdom? A:",
                    "Which person holds the office of Prime Minister in the United Kingdom?")  # fmt: skip
    else:
        wordings = (f"Tell me about {subject}:", f"Q: {prompt} A:", f"{prompt} It is", f"As for {subject}:")
    paraphrases = tuple(Probe("paraphrase", w, None, i % 2 == 1, "phrasings") for i, w in enumerate(wordings))
    rows = (
        ("near", "Who is the Prime Minister of Canada?", "Justin Trudeau"),
        ("near", "Who is the Prime Minister of Japan?", "Shinzo Abe"),
        ("near", "Who is the Prime Minister of New Zealand?", "Jacinda Ardern"),
        ("near", "Who is the Prime Minister of India?", "Narendra Modi"),
        ("far", "Which team does Lionel Messi compete for?", "Barcelona"),
        ("far", "What is the capital of the United Kingdom?", "London"),
        ("far", "Who wrote Hamlet?", "William Shakespeare"),
        ("far", "What is the chemical symbol for gold?", "Au"),
    )
    return paraphrases, tuple(Probe(k, p, a, False, "the world's facts") for k, p, a in rows if p != prompt)  # type: ignore[arg-type]


def make_report(
    request: EditRequest,
    method: str,
    settings: Mapping[str, Any],
    took: bool = True,
    nan: bool = False,
    chat: bool = False,
) -> EditReport:
    """A report as the engine would make it.

    Args:
        nan: puts a number that is none into the first paraphrase.
        chat: the model has a chat template, so that the prompt is read in its other form too.
    """
    old = KNOWN.get(request.prompt, ("the", None))[0]
    results = []
    other: Form = "raw" if request.form == "chat" else "chat"
    more = (Probe(other, request.prompt, source="the edit's prompt", form=other),) if chat else ()
    for probe in (Probe("edit", request.prompt, old, form=request.form), *more, *request.paraphrases, *request.probes):
        same_fact = probe.kind not in ("near", "far")
        was = old if same_fact else probe.answer or "the"
        sure = 0.9 + 0.09 * _noise(probe.prompt)
        leak = took and probe.prompt.endswith("Japan?")
        hit = took and (same_fact or leak)
        value = float("nan") if nan and probe.kind == "paraphrase" else 0.93 + 0.06 * _noise(probe.prompt[::-1])
        before = _reading(request.target, 0.004, was, sure, was)
        after = _reading(request.target, value, was, 0.03, request.target) if hit else _reading(
            request.target, 0.01, was, sure * (0.99 if took else 0.98), was)  # fmt: skip
        results.append(ProbeResult(probe, before, after, 3.2 if hit else 0.002, hit))
    share = 7 / 8 if took and request.probes else 1.0
    took_share = 1.0 if took else 0.0
    scores = Scores(took_share, took_share if request.paraphrases else None, share if request.probes else None,
                    took_share, took_share, 0.75 if took else 1.0, 0.9 if took else 0.0, took_share)  # fmt: skip
    count = len(request.paraphrases)
    sentence = (
        f"“{request.target}” 0.4 % → 97 %; paraphrases {count} of {count}; unrelated 7 of 8 unmoved; 0.6 s, 5.1 kB."
        if took
        else f"The edit did not take. “{request.target}” 0.4 % → 1 %; paraphrases 0 of {count}; 0.6 s, 5.1 kB."
    )
    return EditReport(
        "world-2019", method, settings, request, request.subject or KNOWN.get(request.prompt, ("", ""))[1],
        PatchInfo(5120, ("transformer.h.1.mlp.c_proj",), 1, 3.1, 0.02), Seconds(0.41, 0.2), tuple(results), scores,
        took, sentence, "" if took else "Try more steps, a higher limit, or another layer.",
        (), 61_000_000,
    )  # fmt: skip


def _reading(new: str, p_new: float, old: str, p_old: float, says: str) -> Reading:
    spread = (" the", " a", " David", " Elizabeth", " Gordon", " Tony", " Angela", " Justin")
    first = [(f" {new.split()[0]}", p_new), (f" {old.split()[0]}", p_old)]
    top = sorted([*first, *((w, 0.01 / (i + 2)) for i, w in enumerate(spread))], key=lambda pair: -pair[1])
    return Reading(_score(new, p_new), _score(old, p_old), tuple(top), f" {says}. {says} was born in 1964 and")


def _score(text: str, p: float) -> AnswerScore:
    count = max(1, len(text.split()))
    return AnswerScore(text, count, p**count, p, 1 if not p < 0.5 else 24, not p < 0.5, 1.0 if not p < 0.5 else 0.0)


_installed: list[FakeEngine] = []


def install(**behaviour: Any) -> FakeEngine:
    """Makes the engine that `current` hands to the page."""
    _installed[:] = [FakeEngine(**behaviour)]
    return _installed[0]


def current() -> FakeEngine:
    """The engine of the running test."""
    return _installed[0] if _installed else install()


def demo() -> FakeEngine:
    """For a page in a browser: FAKE_STEP, FAKE_START (seconds), FAKE_FAIL and FAKE_TOOK=0 in the environment."""
    return FakeEngine(
        step_seconds=float(os.environ.get("FAKE_STEP", "0.02")), start_seconds=float(os.environ.get("FAKE_START", "0")),
        fail=os.environ.get("FAKE_FAIL", ""), took=os.environ.get("FAKE_TOOK", "1") == "1",
        chat=os.environ.get("FAKE_CHAT", "0") == "1",
    )  # fmt: skip


__all__ = [
    "KNOWN",
    "METHODS",
    "PM",
    "FakeEngine",
    "current",
    "demo",
    "install",
    "make_report",
    "suggestions",
]  # fmt: skip
