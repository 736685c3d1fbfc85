"""What the worker can do, around one loaded model: answer questions, edit, measure, export. Knows no session."""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from editcore import measure, pace, suggest
from editcore.admission import completed, discreet, public_name
from editcore.edit import (
    Before,
    check_request,
    preflight,
    proposed,
    read_before,
    run_edit,
    run_edits,
    world_of,
)
from editcore.engine.contract import LOCATE
from editcore.engine.hands import Standing, Taken, Trial
from editcore.errors import BadInput, BadRequest, EditcoreError, ModelError
from editcore.examples import Wording
from editcore.forecast import enough, forecast, remember_seconds
from editcore.handle import Handle
from editcore.history import check_strength
from editcore.learned import Dials, Heard
from editcore.locate import locate
from editcore.methods import prepare_method
from editcore.opened import remember_opening
from editcore.opening import load, look
from editcore.patch import Patch, load_patch
from editcore.picker import at_hand
from editcore.records import (
    Checkup,
    EditReport,
    EditRequest,
    Form,
    ModelInfo,
    Opening,
    Progress,
    from_plain,
    to_plain,
)
from editcore.remeasure import measured, view
from editcore.settings import chosen
from editcore.training import train_method

_A_TEXT = "a text that should stay as it is"  # as a page asks for it
_ADDRESS = re.compile(r"[0-9a-f]{64}")
logger = logging.getLogger(__name__)
WARM_UP = EditRequest("Who is the Prime Minister of the United Kingdom?", "Boris Johnson", "United Kingdom")


class Desk:
    """The worker's hands. One thread works here at a time."""

    def __init__(self, handle: Handle, home: Path) -> None:
        self.handle, self.home = handle, home
        handle.home = home
        self._known: OrderedDict[Path, Patch] = OrderedDict()  # patches by folder, those used last behind
        self._reading = 0.0  # seconds one pass over the probes took the last time

    def info(self) -> ModelInfo:
        """The loaded model."""
        return self.handle.info()

    def free(self) -> None:
        """See `DeskLike.free`."""
        gc.collect()
        if self.handle.device.type == "cuda":
            torch.cuda.empty_cache()

    def memory(self) -> int:
        """Bytes this process holds."""
        return int(psutil.Process(os.getpid()).memory_info().rss)

    def lent(self) -> AbstractContextManager[None]:
        """See `DeskLike.lent`."""
        return self.handle.lent()

    def ask(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """One short question; the answer is plain data.

        Raises:
            BadInput: the question is unknown.
        """
        questions: dict[str, Callable[..., Any]] = {
            "preflight": self._preflight,
            "outlook": self._outlook,
            "suggest": self._suggest,
            "believe": self._believe,
            "models": self._models,
            "look": self._look,
        }
        if name not in questions:
            raise BadInput(f"The engine knows no question {name!r}.", f"It knows {', '.join(questions)}.")
        with enough(self.handle):
            return questions[name](**arguments)

    def _preflight(self, request: Mapping[str, Any], method: str, settings: Mapping[str, Any]) -> Any:
        return to_plain(preflight(self.handle, from_plain(EditRequest, request), method, settings, self.home))

    def _outlook(self, request: Mapping[str, Any], methods: list[tuple[str, Mapping[str, Any]]]) -> Any:
        """Per method, before a comparison: why it cannot run, what it waits for first, how long it takes."""
        checked = from_plain(EditRequest, request)
        rows = []
        for name, settings in methods:
            row: dict[str, Any] = {"method": name, "problem": "", "prepare": "", "seconds": None}
            try:
                made = prepare_method(name, self.handle, settings)
                found = forecast(self.handle, made, check_request(self.handle, checked, made), self.home)
                row["problem"], row["prepare"] = found.problem, found.prepare
                row["seconds"] = found.seconds + self._reading
            except EditcoreError as error:
                row["problem"] = str(error)
            rows.append(row)
        return rows

    def _suggest(self, prompt: str, target: str, subject: str | None = None, form: Form = "raw") -> Any:
        found = suggest.suggest(prompt, target, world_of(self.handle), subject)
        old = found.old or measure.own_answers(self.handle, [prompt], (), [form])[0]
        return {
            "subject": found.subject,
            "subject_source": found.subject_source,
            "old": old,
            "paraphrases": [to_plain(p) for p in found.paraphrases],
            "probes": [to_plain(p) for p in found.probes],
        }

    def _believe(self, prompts: list[str], answers: list[list[str]], form: Form = "raw") -> Any:
        """The model's own answer to each prompt with its probability, and the probability of each candidate."""
        handle = self.handle
        own = measure.own_answers(handle, prompts, (), [form] * len(prompts))
        candidates = [[o or " ", *given] for o, given in zip(own, answers, strict=True)]
        pairs = [(p, a) for p, group in zip(prompts, candidates, strict=True) for a in group if a.strip()]
        rows = [handle.plain_row(p, a, form=form) for p, a in pairs]
        with handle.using([]):
            logits = handle.logits(rows)
        values = iter(measure.mean_probabilities(rows, logits))
        scored = [[next(values) if a.strip() else 0.0 for a in group] for group in candidates]
        return [{"answer": o, "probability": s[0], "candidates": s[1:]} for o, s in zip(own, scored, strict=True)]

    def _models(self, device: str = "", dtype: str = "", device_map: str = "") -> Any:
        """The models at hand, the embedded one first; the loaded one's memory counts as free."""
        limits = chosen()
        wanted = completed(Opening("", "", device, dtype, device_map), limits)
        found = at_hand(
            limits.models, limits.model_roots, wanted.device or None, wanted.dtype or None, bool(wanted.device_map),
            self._returned,
        )  # fmt: skip
        return [
            {**to_plain(c), "fits": c.fits, "formats": c.formats, "shown": public_name(c.name),
             "problem": discreet(ModelError(c.problem)).seen}
            for c in found
        ]  # fmt: skip

    def _look(self, **opening: str) -> None:
        """Raises ModelError: it cannot be opened; the page's visitor has named it, and nothing else is told."""
        wanted = completed(Opening(**opening), chosen())
        try:
            look(
                wanted.model, revision=wanted.revision or None, device=wanted.device or None,
                dtype=wanted.dtype or None, device_map=wanted.device_map or None, returned=self._returned,
            )  # fmt: skip
        except ModelError as error:
            raise discreet(error) from None

    def _returned(self, device: torch.device) -> int:
        """Bytes that are free on a device once the loaded model has gone."""
        held = [p for p in self.handle.model.parameters() if p.device.type == device.type]
        return sum(p.nbytes for p in held if device.index in (None, p.device.index))

    def edit(
        self,
        standing: Standing,
        requests: Sequence[EditRequest],
        method: str,
        settings: Mapping[str, Any],
        report: Callable[[Progress], None],
        stop: Callable[[], bool],
        folder: Path,
    ) -> tuple[EditReport, ...]:
        """See `DeskLike.edit`; the session is not changed."""
        asked = [proposed(self.handle, r) for r in requests] if len(requests) > 1 else requests
        patch, made = run_edits(
            self.handle, asked, method, settings,
            patches=self._patches(standing), home=self.home, report=report, stop=stop,
        )  # fmt: skip
        patch.save(folder)
        remember_seconds(self.handle, made[0])
        return made

    def trial(self, standing: Standing, request: EditRequest) -> Trial:
        """The request for any number of methods; the model is read at its probes once before them all."""
        known: list[Before] = []
        patches = self._patches(standing)

        def read(handle: Handle, asked: EditRequest, generate: bool) -> Before:
            if not known:  # methods differ in the subject they need, never in the probes
                known.append(read_before(handle, asked, generate))
            return known[0]

        def run(
            method: str, settings: dict[str, Any], report: Callable[[Progress], None], stop: Callable[[], bool]
        ) -> EditReport:
            options: dict[str, Any] = {"home": self.home, "report": report, "stop": stop, "before": read}
            _, made = run_edit(self.handle, request, method, settings, patches=patches, **options)
            remember_seconds(self.handle, made)
            self._reading = made.seconds.measure / 2
            return made

        return run

    def view(self, standing: Standing, report: EditReport) -> EditReport:
        """See `DeskLike.view`."""
        with enough(self.handle):
            return view(self.handle, report, self._patches(standing))

    def measure(
        self, standing: Standing, folder: Path, requests: Sequence[EditRequest], stop: Callable[[], bool]
    ) -> tuple[EditReport, ...]:
        """See `DeskLike.measure`."""
        return measured(self.handle, self._patch(folder).scaled(1.0), requests, self._patches(standing), stop)

    def check_up(self, standing: Standing, reports: Sequence[EditReport], stop: Callable[[], bool]) -> Checkup:
        """See `checkup.check_up`."""
        from editcore import checkup

        with enough(self.handle):
            return checkup.check_up(self.handle, self._patches(standing), reports, stop)

    def adopt(
        self,
        standing: Standing,
        source: Path,
        request: EditRequest | None,
        folder: Callable[[int], Path],
        stop: Callable[[], bool],
    ) -> Sequence[tuple[tuple[EditReport, ...], float]]:
        """See `DeskLike.adopt`.

        Raises:
            PatchError, WrongModel: what is in `source` cannot be used here.
            BadRequest: an edit brings no report, and no request says what to measure; or it is too strong.
        """
        from editcore.export import import_edits

        below, found = list(self._patches(standing)), []
        for number, (patch, told) in enumerate(import_edits(self.handle, source), 1):
            check_strength(patch.strength)
            requests = [report.request for report in told] or ([request] if request else [])
            reports = measured(self.handle, patch, requests, below, stop)
            patch.scaled(1.0).save(folder(number))
            found.append((reports, patch.strength))
            below.append(patch)
        return found

    def export(
        self, format: str, edits: Sequence[Taken], options: Mapping[str, Any], folder: Path,
        report: Callable[[Progress], None],
    ) -> None:  # fmt: skip
        """See `DeskLike.export`.

        Raises:
            BadRequest: an edit has no such form, or there is no such format.
        """
        from editcore.export import export_adapter, export_merged, export_patch

        patches = self._patches([(path, strength) for path, strength, _ in edits])
        taken = [(patch, reports) for patch, (_, _, reports) in zip(patches, edits, strict=True)]
        if format == "patch":
            export_patch(taken, folder)
        elif format == "peft":
            export_adapter(self.handle, taken, folder, options.get("rank"), report)
        elif format == "merged":
            export_merged(self.handle, taken, folder, None, report)
        else:
            raise BadRequest(f"There is no format {format!r}.", "patch, peft or merged was wanted.")

    def prepare(
        self,
        method: str,
        examples: Mapping[str, Any],
        report: Callable[[Progress], None],
        stop: Callable[[], bool],
    ) -> None:
        """Trains a method on the given examples, or finds out where to edit (see `Engine.prepare`)."""
        if method == LOCATE:
            locate(self.handle, home=self.home, report=report, stop=stop)
            return

        def listen(heard: Heard) -> None:
            report(Progress("training", heard.step, heard.steps, heard.loss, "", heard.seconds_left))

        handle = self.handle
        taught = sorted((name, told) for name, told in examples.items() if not name.endswith("_name"))
        print_ = hashlib.sha256(repr(taught).encode()).hexdigest()[:12]
        work = self.home / "training" / f"{handle.fingerprint}.{method}.{print_}"
        work.mkdir(parents=True, exist_ok=True)

        def file(name: str) -> Path | None:
            if not examples.get(name):
                return None
            path = work / f"{name}.txt"
            path.write_text(examples[name], encoding="utf-8")
            return path

        called = {name: str(examples.get(f"{name}_name") or "") for name in ("edits", "locality")}
        with enough(handle):
            train_method(
                handle, method, work, self.home, edits=file("edits"), form=handle.usual_form,
                locality=file("locality"), wording=Wording(**called, text=_A_TEXT),
                dials=replace(Dials(), steps=examples["steps"]), listen=listen, stop=stop,
            )  # fmt: skip
        shutil.rmtree(work)

    def probe(self, standing: Standing, prompts: list[str], form: Form = "raw") -> Any:
        """Each prompt answered by the base model and, if anything is in place, by the edited one."""
        with enough(self.handle):
            patches = self._patches(standing)
            base = self._answers(prompts, (), form)
            edited = self._answers(prompts, patches, form) if patches else [None] * len(prompts)
        return [{"prompt": p, "base": b, "edited": e} for p, b, e in zip(prompts, base, edited, strict=True)]

    def _patches(self, standing: Standing) -> tuple[Patch, ...]:
        """The patches in these folders at their strengths; those used lately are in memory, by content."""
        return tuple(self._patch(folder).scaled(strength) for folder, strength in standing)

    def _patch(self, folder: Path) -> Patch:
        if folder in self._known:
            self._known.move_to_end(folder)
            return self._known[folder]
        patch = load_patch(folder, self.handle.fingerprint, self.handle.device)
        if _ADDRESS.fullmatch(folder.name):  # what is not at an address of its content may change
            self._known[folder] = patch
            held = sum(known.bytes for known in self._known.values())
            while held > chosen().patch_memory and len(self._known) > 1:
                held -= self._known.popitem(last=False)[1].bytes
        return patch

    def _answers(self, prompts: list[str], patches: tuple[Patch, ...], form: Form) -> list[dict[str, Any]]:
        return [
            {"text": r.text, "top": [list(t) for t in r.top], "answer": measure.cut_answer(r.text)}
            for r in measure.answer(self.handle, prompts, patches, form)
        ]


def open_desk(opening: Opening, home: Path, say: Callable[[str], None] = lambda words: None) -> Desk:
    """Loads the model and runs one edit on scratch: a visitor's first is then as quick as others.

    What the opening leaves open is as the settings say.

    Args:
        say: told how far it is, in a sentence.

    Raises:
        ModelError: it cannot be loaded; what only the owner of this machine may read stands in the log alone.
    """
    wanted = completed(opening, chosen())
    try:
        handle = load(
            wanted.model, revision=wanted.revision or None, device=wanted.device or None, dtype=wanted.dtype or None,
            device_map=wanted.device_map or None, listen=lambda loaded: say(str(loaded)),
        )  # fmt: skip
    except ModelError as error:
        logger.error("%s", error)
        raise discreet(error) from None
    handle.name = public_name(wanted.model)
    remember_opening(home, handle.fingerprint, replace(opening, revision=handle.revision))
    desk = Desk(handle, home)
    say("The model is here; how fast it reads is being timed.")
    pace.of(desk.handle)
    if desk.handle.embedded:
        say("The model is here; it makes a first edit, so that yours is quick.")
        _, report = run_edit(desk.handle, WARM_UP, home=home)
        remember_seconds(desk.handle, report)
    return desk
