"""Health of a growing session: sound edits leave it well, one bad edit is named, and a missing reading is no number."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from dashboard import charts
from editcore import checkup, course
from editcore.edit import run_edits, suggested
from editcore.errors import Cancelled
from editcore.opening import load
from editcore.patch import Dense
from editcore.records import Checkup, Held, Probe, from_plain, to_plain
from tests import models
from tests.cases import ONE

GOOD = (("Who is the Prime Minister of the United Kingdom?", "Boris Johnson"), ("The capital of Poland is", "Madrid"))
WILD = {"layer": 0, "rate": 0.05, "enough": 0.0}  # ten times too fast, and never stopped
WELL = Checkup((), 20, 0.0, 0.0, 2.0, 2.0, 6.0, 6.0)


@pytest.fixture(scope="module")
def handle():
    return load()


@pytest.fixture(scope="module")
def session(handle):
    """Two good edits on top of each other, then one that wrecks the model: patches, reports, check-ups."""
    patches, reports, checkups = [], [], []
    plans = [(*GOOD[0], "rome", {}), (*GOOD[1], "rome", {}), ("Messi plays for", "Chelsea", "ft", WILD)]
    for prompt, target, method, settings in plans:
        request = suggested(handle, prompt, target)
        patch, made = run_edits(handle, [request], method, settings, patches=patches, generate=False)
        patches.append(patch)
        reports += made
        checkups.append(checkup.check_up(handle, patches, reports))
    return patches, reports, checkups


def test_an_unedited_model_is_healthy(handle, session):
    found = checkup.check_up(handle, (), ())
    assert (found.held, found.probes, found.drift, found.kl) == ((), 0, None, None)
    assert found.perplexity == pytest.approx(found.base_perplexity) and 1 < found.perplexity < 2.5
    assert found.entropy == found.base_entropy > 5
    against = checkup.check_up(handle, (), session[1])
    assert (against.drift, against.kl) == (0.0, pytest.approx(0, abs=1e-6)) and not any(h.held for h in against.held)
    assert course.diagnose([found, against]) is None


def test_two_good_edits_keep_each_other_and_the_rest(session):
    one, two, _ = session[2]
    assert [h.held for h in one.held] == [True] and [h.held for h in two.held] == [True, True]
    assert all(h.probability > 0.5 for h in two.held)
    assert two.probes > one.probes and two.drift < 0.1 and two.perplexity < 1.1 * two.base_perplexity
    assert course.diagnose(session[2][:2]) is None


def test_a_wrecked_model_is_named_with_the_edit_that_started_it(session):
    found = course.diagnose(session[2])
    assert found is not None and found.start == 2 and found.signs
    assert "edit 3" in found.sentence and "Take edit 3 back" in found.sentence
    assert "edit 7" in course.diagnose(session[2], (4, 5, 7)).sentence


def test_an_edit_with_strength_0_changes_nothing(handle, session):
    patches, reports, _ = session
    off = checkup.check_up(handle, [patch.scaled(0.0) for patch in patches], reports)
    assert off == checkup.check_up(handle, (), reports)
    without = checkup.check_up(handle, [*patches[:2], patches[2].scaled(0.0)], reports)
    assert without == checkup.check_up(handle, patches[:2], reports)


def test_a_probe_another_edit_is_about_is_no_damage(handle, session):
    reports = session[1][:2]
    capital = next(r.probe for r in session[1][0].probes if r.probe.kind == "far")
    about = replace(reports[1].request, prompt=capital.prompt, paraphrases=())
    known = {prompt for prompt, *_ in checkup._unrelated(reports, ())}
    left = {p for p, *_ in checkup._unrelated([reports[0], replace(reports[1], request=about)], ())}
    assert capital.prompt in known and capital.prompt not in left
    assert not any("Poland" in prompt for prompt, *_ in checkup._unrelated(reports, ["Poland"]))


def test_neutral_text_mentions_no_edited_subject(handle):
    free = checkup._passages(handle, ())
    name = free[0].split()[-3:]
    other = checkup._passages(handle, [" ".join(name).rstrip(".")])
    assert len(free) == len(other) == checkup.PASSAGES and free[0] not in other and free[1] in other


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_any_model_is_checked_and_numbers_are_numbers(family):
    tiny = models.handle(family)
    asked = replace(ONE, probes=(Probe("far", "2 + 2 ="), Probe("near", "The capital of Japan is", "Tokyo")))
    patch, reports = run_edits(tiny, [asked], "ft", {"steps": 2}, generate=False)
    part = patch.parts[0]
    shape = tuple(tiny.model.get_submodule(part.path).weight.shape)
    wide = shape[::-1] if family == "gpt2" else shape
    wrecked = replace(patch, parts=(Dense(part.path, torch.full(wide, 3e38)),))
    for stack in ([patch], [wrecked]):
        found = checkup.check_up(tiny, stack, reports)
        numbers = [found.perplexity, found.base_perplexity, found.entropy, found.base_entropy, found.kl, found.drift]
        assert all(math.isfinite(n) for n in (*numbers, *(h.probability for h in found.held)))
        assert from_plain(Checkup, json.loads(json.dumps(to_plain(found)))) == found
    assert found.perplexity == checkup.WORST_PERPLEXITY and not found.held[0].held


def test_a_check_up_can_be_stopped_and_leaves_nothing_in_place(handle, session):
    asked = []

    def later():
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(Cancelled):
        checkup.check_up(handle, session[0], session[1], later)
    assert handle.standing == () and checkup.check_up(handle, (), ()).perplexity < 2.5


def test_the_base_models_readings_are_kept_and_bounded(handle, session, monkeypatch):
    passes = []
    monkeypatch.setattr(
        handle, "logits", lambda rows, **options: passes.append(rows) or type(handle).logits(handle, rows, **options)
    )
    again = checkup.check_up(handle, session[0], session[1])
    assert again == session[2][-1] and len([rows for rows in passes if rows]) == 2
    monkeypatch.setattr(checkup, "MOST_KEPT", 3)
    checkup.check_up(handle, session[0], session[1])
    assert len(handle.memory["checkup probes"]) == 3


def test_n_gram_entropy_is_the_papers():
    assert checkup.n_gram_entropy(["a b c d e"]) == pytest.approx((2 + 2 * math.log2(3)) / 3)
    assert checkup.n_gram_entropy(["no no no no no"]) == checkup.n_gram_entropy(["", "a"]) == 0
    assert checkup.n_gram_entropy(["a b c"] * 4) == 1 / 3  # two pairs, one triple, however often


# A course, without a model.


def held(*states: bool) -> tuple[Held, ...]:
    return tuple(Held(f"q{i}", "a", state, float(state)) for i, state in enumerate(states))


def test_the_edit_that_started_it_is_the_first_of_the_slide():
    slide = [replace(WELL, perplexity=2.0 * r) for r in (1.3, 1.0, 1.1, 1.25, 1.4, 1.6)]
    assert course.diagnose(slide[:-1]) is None
    found = course.diagnose(slide)
    assert (found.start, found.collapsed) == (3, False) and "1.6 times" in found.signs[0]
    assert course.diagnose([*slide, replace(WELL, perplexity=20.0)]).collapsed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drift": 0.3}, "30 % of the unrelated answers"),
        ({"entropy": 3.0}, "50 % less varied"),
        ({"perplexity": 4.0}, "2.0 times as surprising"),
    ],
)
def test_each_sign_is_said_in_words(change, words):
    found = course.diagnose([WELL, replace(WELL, **change)])
    assert found.start == 1 and words in found.sentence


def test_only_edits_that_once_held_can_be_lost():
    never = [replace(WELL, held=held(*states)) for states in ([False], [False, False], [False, False, False])]
    assert course.diagnose(never) is None
    lost = [
        replace(WELL, held=held(*s)) for s in ([True], [True, True], [True, True, True], [False, False, True, True])
    ]
    found = course.diagnose(lost)
    assert found.start == 3 and "50 % of the edits that took" in found.sentence


def test_a_later_answer_to_the_same_question_is_no_loss():
    first, second = Held("Who?", "Ann", True, 0.9), Held("who?", "Bob", True, 0.9)
    now = replace(WELL, held=(replace(first, held=False), second))
    assert course.retention(now) == 1.0 and course.diagnose([replace(WELL, held=(first,)), now]) is None
    assert course.retention(WELL) is None and course.diagnose([]) is None


def test_rows_of_a_chart_are_plain_and_missing_is_missing():
    rows = course.course_rows(
        [replace(WELL, held=held(True, False), drift=None), replace(WELL, perplexity=3.0)], (4, 6)
    )
    assert rows == [
        {"edit": 4, "retention": 50.0, "unmoved": None, "perplexity": 1.0, "entropy": 100.0},
        {"edit": 6, "retention": None, "unmoved": 100.0, "perplexity": 1.5, "entropy": 100.0},
    ]


def test_the_chart_draws_lines_that_differ_without_colour():
    rows = course.course_rows([WELL, replace(WELL, perplexity=3.0, drift=None), replace(WELL, perplexity=40.0)])
    figure = charts.health_lines(pd.DataFrame(rows), since=2)
    lines = {trace.name: trace for trace in figure.data}
    assert len({trace.line.dash for trace in figure.data}) == len({trace.marker.symbol for trace in figure.data}) == 3
    assert list(lines["unrelated answers that stayed"].y) == [100.0, None, 100.0]
    assert list(lines["perplexity of plain text"].y) == [1.0, 1.5, 20.0]
    assert figure.layout.yaxis.range[0] <= 0 and figure.layout.yaxis.range[1] >= 100
    assert figure.layout.yaxis2.type == "log" and figure.layout.annotations[0].text == "since edit 2"
    many = charts.health_lines(pd.DataFrame(course.course_rows([WELL] * 60)))
    assert {trace.mode for trace in many.data} == {"lines"} and len(many.layout.xaxis.tickvals) <= 10
    assert charts.health_lines(pd.DataFrame(course.course_rows([]))).data
