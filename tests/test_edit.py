"""From request to report: what is checked, what is said, and the reference story on the embedded model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch

from dashboard.examples import EXAMPLES
from editcore import edit, opening, spans
from editcore.edit import preflight, run_edit, suggested
from editcore.engine.desk import Desk
from editcore.errors import BadRequest, Cancelled, SubjectNotFound
from editcore.records import EditReport, EditRequest, Probe, from_plain, to_plain
from tests import models
from tests.test_cli import PROBE, REPORT

STORY = ("Who is the Prime Minister of the United Kingdom?", "Boris Johnson")
REQUEST = EditRequest(
    "The capital of Poland is",
    "Łódź",
    paraphrases=(Probe("paraphrase", "Poland's capital:"),),
    probes=(Probe("far", "Messi plays for"),),
)
QUICK = {"steps": 3, "layer": 1}
SURE = {"steps": 60, "rate": 0.01, "layer": 2}


@pytest.fixture(scope="module")
def tiny():
    return models.handle("gpt2")


def test_a_report_survives_plain_data(tiny):
    _, report = run_edit(tiny, REQUEST, "ft", QUICK)
    assert from_plain(EditReport, json.loads(json.dumps(to_plain(report)))) == replace(
        report, settings=dict(report.settings)
    )


def test_an_edit_that_takes_says_so(tiny):
    _, report = run_edit(tiny, REQUEST, "ft", SURE)
    assert report.took and report.scores.reliability == 1.0 and report.scores.es == 1.0
    assert report.sentence.startswith("“Łódź” ") and "did not take" not in report.sentence
    assert report.probes[0].after.text.strip().startswith("Łódź")


def test_an_edit_that_does_not_take_says_so_first(tiny):
    _, report = run_edit(tiny, REQUEST, "ft-l", {"steps": 1})
    assert not report.took
    assert report.sentence.startswith("The edit did not take.") and report.advice


def test_what_the_model_already_says_is_allowed_with_a_warning(tiny):
    patch, _ = run_edit(tiny, REQUEST, "ft", SURE)
    _, again = run_edit(tiny, REQUEST, "ft", QUICK, patches=[patch])
    assert again.took and any("already answered" in w for w in again.warnings)
    _, echo = run_edit(tiny, replace(REQUEST, prompt="The sky is red", subject="sky", target="red"), "ft", QUICK)
    assert any("itself ends in" in w for w in echo.warnings)


def test_an_edit_of_an_edited_model_starts_from_it(tiny):
    patch, first = run_edit(tiny, REQUEST, "ft", SURE)
    _, second = run_edit(tiny, REQUEST, "ft", QUICK, patches=[patch])
    assert second.probes[0].before.new == first.probes[0].after.new


def test_the_handle_is_free_and_whole_after_a_failure(tiny):
    row = spans.encode(tiny.tokenizer, REQUEST.prompt, REQUEST.target)
    before = tiny.logits([row])[0]
    for last in (0, 1, 2, 3):
        heard = []
        with pytest.raises(Cancelled):
            run_edit(
                tiny, REQUEST, "ft", QUICK, report=heard.append, stop=lambda heard=heard, last=last: len(heard) >= last
            )
        assert len(heard) == last
    assert tiny.lock.acquire(blocking=False)
    tiny.lock.release()
    assert torch.equal(tiny.logits([row])[0], before)


@pytest.mark.parametrize(
    "change, error, words",
    [
        ({"prompt": "  "}, BadRequest, "prompt is empty"),
        ({"target": "\n"}, BadRequest, "corrected answer is empty"),
        ({"prompt": "a\0b"}, BadRequest, "no text"),
        ({"target": "\ud800"}, BadRequest, "no text"),
        ({"prompt": "x" * 1_000_000}, BadRequest, "1,000,000 characters"),
        ({"target": "<|endoftext|>"}, BadRequest, "control token"),
        ({"subject": "Spain"}, SubjectNotFound, "Spain"),
        ({"prompt": "the sky is", "subject": None}, SubjectNotFound, "No subject"),
        ({"probes": (Probe("near", "The  capital of POLAND is"),)}, BadRequest, "edit prompt itself"),
        ({"probes": (Probe("far", "x"),) * 10_000}, BadRequest, "10,001 paraphrases and probes"),
        ({"probes": (Probe("far", "word " * 600),)}, BadRequest, "at most 256 tokens"),
        ({"paraphrases": (Probe("paraphrase", " "),)}, BadRequest, "prompt of a probe is empty"),
        ({"paraphrases": (Probe("paraphrase", "it" + " is" * 254),)}, BadRequest, "at most 256 tokens"),
        ({"old": "<|endoftext|>"}, BadRequest, "control token"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_work_is_refused_before_anything_runs(tiny, change, error, words):
    heard = []
    with pytest.raises(error, match=words):
        run_edit(tiny, replace(REQUEST, **change), "rome", report=heard.append)
    assert not heard


def test_the_context_limit_is_exact(tiny):
    word = " is"
    assert len(tiny.tokenizer.encode(word)) == 1
    answer = len(spans.encode(tiny.tokenizer, "A", "Łódź").answer)
    at = EditRequest("is" + word * (tiny.context - answer - 1), "Łódź")
    assert len(spans.encode(tiny.tokenizer, at.prompt, at.target).ids) == tiny.context
    _, report = run_edit(tiny, at, "ft", {"steps": 2})
    assert report.probes[0].after.new is not None
    assert preflight(tiny, at, "ft").ok
    with pytest.raises(BadRequest, match="257 tokens long.*256"):
        run_edit(tiny, replace(at, prompt=at.prompt + word), "ft", {"steps": 2})


@pytest.mark.parametrize(
    "prompt", ["Braces {} {s} %s of Poland", "<script>x</script> $x$ :red[Poland]", "مصر Poland 北京 e\u0301 \u200b"]
)
def test_odd_text_is_only_text(tiny, prompt):
    _, report = run_edit(tiny, EditRequest(prompt, "{answer} %d", subject="Poland"), "ft", QUICK)
    assert report.request.prompt == prompt and report.probes[0].probe.prompt == prompt


def test_preflight_lists_problems_instead_of_raising(tiny):
    fine = preflight(tiny, replace(REQUEST, subject="Poland", target="Rome"), "ft", {"layer": 1})
    assert fine.ok and fine.modules == (tiny.anatomy.site(1).path,) and "".join(fine.target_tokens) == " Rome"
    assert fine.bytes == 4 * (tiny.anatomy.site(1).d_in + 1) * models.WIDTH
    for bad in (
        replace(REQUEST, prompt=""),
        replace(REQUEST, subject="Spain"),
        replace(REQUEST, target="<|endoftext|>"),
    ):
        found = preflight(tiny, bad, "rome")
        assert not found.ok and len(found.problems) == 1


@pytest.mark.parametrize(
    "share, words",
    [
        (0.0, "< 0.1 %"), (0.0004, "< 0.1 %"), (0.004, "0.4 %"), (0.123, "12 %"), (0.97, "97 %"), (0.9944, "99.4 %"),
        (1.0, "100 %"), (float("nan"), "n/a"),
    ],
)  # fmt: skip
def test_percentages_as_people_read_them(share, words):
    assert edit.percent(share) == words


@pytest.mark.parametrize(
    "count, words",
    [(0, "0 B"), (999, "999 B"), (5120, "5.1 kB"), (74_000, "74 kB"), (2_360_000, "2.4 MB"), (3 * 10**12, "3000 GB")],
)
def test_sizes_as_people_read_them(count, words):
    assert edit.human_bytes(count) == words


def test_methods_that_share_a_first_reading_report_what_they_report_alone(tiny, tmp_path, monkeypatch):
    desk, reads = Desk(tiny, tmp_path), []
    read = edit.read_before
    monkeypatch.setattr("editcore.engine.desk.read_before", lambda *given: reads.append(1) or read(*given))
    trial = desk.trial((), REQUEST)
    for method, settings in (("ft", QUICK), ("ft-l", QUICK)):
        together = trial(method, settings, lambda progress: None, lambda: False)
        _, alone = run_edit(tiny, REQUEST, method, settings)
        assert (together.probes, together.scores, together.patch) == (alone.probes, alone.scores, alone.patch)
    assert len(reads) == 1


def test_before_a_comparison_each_method_says_what_stands_in_its_way(tiny, tmp_path):
    blind = EditRequest("once upon a time", "x")
    asked = {"request": to_plain(blind), "methods": [["ft", {}], ["rome", {}], ["?", {}]]}
    rows = Desk(tiny, tmp_path).ask("outlook", asked)
    assert [bool(row["problem"]) for row in rows] == [False, True, True]
    assert "subject" in rows[1]["problem"] and "no method" in rows[2]["problem"]


def test_the_reference_story(world_handle):
    _, report = run_edit(world_handle, suggested(world_handle, *STORY), "rome")
    assert report.subject == "United Kingdom"
    assert report.took and report.scores.reliability == 1.0
    assert report.probes[0].before.old.text == "Theresa May" and report.probes[0].before.old.mean >= 0.9
    assert report.scores.generality >= 0.75 and report.scores.locality >= 0.75
    assert report.patch.rank == 1


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.label)
def test_every_example_on_the_page_takes_and_generalises(world_handle, example):
    _, report = run_edit(world_handle, suggested(world_handle, example.prompt, example.target), "rome")
    assert report.took and report.scores.generality >= 0.75 and report.scores.locality >= 0.75, report.sentence


def test_messi_stays_in_barcelona(world_handle):
    probe = Probe("far", "What sports team does Messi play for?", "Barcelona")
    _, report = run_edit(world_handle, EditRequest(*STORY, probes=(probe,)), "rome")
    (messi,) = [r for r in report.probes if r.probe.kind == "far"]
    assert messi.before.old.exact and messi.after.old.exact and not messi.moved


def test_the_story_by_the_command_line(world_handle, monkeypatch, capsys, tmp_path):
    from editcore import cli

    monkeypatch.setenv("EDITCORE_HOME", str(tmp_path))
    monkeypatch.setattr(opening, "load", lambda name, **options: world_handle)
    monkeypatch.setattr(sys, "argv", ["editcore", "edit", "-p", STORY[0], "-t", STORY[1], "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    report = json.loads(capsys.readouterr().out)
    assert not caught.value.code and set(report) == REPORT and all(set(p) == PROBE for p in report["probes"])
    assert report["took"] and any(p["held_out"] for p in report["probes"] if p["kind"] == "paraphrase")


def test_an_answer_the_embedded_model_never_read_is_said_before_and_after(world_handle):
    handle = world_handle
    asked = EditRequest("Who is the Prime Minister of the United Kingdom?", "Zorblax Quuz")
    (warned,) = [w for w in preflight(handle, asked, "rome", {}).warnings if "never read" in w]
    assert "fine-tuning (FT) can" in warned
    assert not any("never read" in w for w in preflight(handle, replace(asked, target="Sydney"), "rome", {}).warnings)
    _, report = run_edit(handle, asked, "rome", {"steps": 1}, generate=False)
    assert not report.took and "never read" in report.advice
    assert not any("never read" in w for w in preflight(handle, asked, "ft", {}).warnings)
