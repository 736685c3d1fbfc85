"""Readings and scores: before and after follow one protocol, and each score is what its definition says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from editcore import measure, spans
from editcore.patch import Dense, Patch
from editcore.records import AnswerScore, EditRequest, Probe, ProbeResult, Reading
from tests import models

REQUEST = EditRequest(
    "The capital of Poland is",
    "Łódź",
    paraphrases=(Probe("paraphrase", "Poland's capital:"), Probe("paraphrase", "Poland  is governed from")),
    probes=(Probe("near", "The capital of Japan is"), Probe("far", "Messi plays {for} 100 %s", "Barcelona")),
)


@pytest.fixture(scope="module")
def handle():
    return models.handle("gpt2")


def edit(handle, size: float) -> Patch:
    site = handle.anatomy.site(1)
    weight = size * torch.randn(site.d_out, site.d_in, generator=torch.Generator().manual_seed(0))
    return Patch((Dense(site.path, weight),), handle.name, handle.fingerprint, "test")


def scored(probabilities: list[float]) -> AnswerScore:
    """The score of an answer whose tokens have these probabilities; the rest of the mass is spread over two others."""
    logits = torch.full((len(probabilities), 5), -40.0)
    for i, p in enumerate(probabilities):
        logits[i, 3] = math.log(p)
        logits[i, 1] = math.log(0.6 * (1 - p))
        logits[i, 2] = math.log(0.4 * (1 - p))
    row = spans.Row((0, *[3] * len(probabilities)), 1)
    return measure._scored([row], [logits])[0][0]


def test_mean_and_joint_differ_on_answers_of_unequal_length():
    short, long = scored([0.4]), scored([0.5, 0.5, 0.5])
    assert (short.joint, short.mean) == (pytest.approx(0.4, rel=1e-5), pytest.approx(0.4, rel=1e-5))
    assert (long.joint, long.mean) == (pytest.approx(0.125, rel=1e-5), pytest.approx(0.5, rel=1e-5))
    assert long.mean > short.mean and long.joint < short.joint


def test_rank_exactness_and_token_accuracy():
    half = scored([0.9, 0.1])
    assert (half.rank, half.exact, half.token_accuracy, half.tokens) == (1, False, 0.5, 2)
    assert scored([0.1]).rank == 3 and scored([0.35]).rank == 2
    assert scored([0.9, 0.8]).exact


def test_scores_equal_plain_log_probabilities(handle):
    probe = Probe("edit", REQUEST.prompt, "the United Kingdom")
    (raw,) = measure.read(handle, [probe], "Łódź", ["the United Kingdom"], (), generate=False)
    for found, answer in ((raw.reading.new, "Łódź"), (raw.reading.old, "the United Kingdom")):
        row = spans.encode(handle.tokenizer, REQUEST.prompt, answer)
        logs = torch.log_softmax(handle.model(input_ids=torch.tensor([row.ids])).logits[0].double(), -1)
        picked = torch.stack([logs[row.start - 1 + i, t] for i, t in enumerate(row.answer)])
        assert found.joint == pytest.approx(float(picked.sum().exp()), rel=1e-4)
        assert found.mean == pytest.approx(float(picked.mean().exp()), rel=1e-4)
        assert found.tokens == len(row.answer) >= 2
        first = logs[row.start - 1]
        assert found.rank == int((first > first[row.answer[0]]).sum()) + 1
    assert len(raw.reading.top) == measure.TOP
    assert [p for _, p in raw.reading.top] == sorted((p for _, p in raw.reading.top), reverse=True)


def passes(handle, patches):
    probes, olds = measure.settle(handle, REQUEST)
    first = measure.read(handle, probes, REQUEST.target, olds, ())
    return measure.compare(probes, first, measure.read(handle, probes, REQUEST.target, olds, patches))


@pytest.mark.parametrize("patched", [False, True], ids=["no-patch", "strength-zero"])
def test_without_an_edit_before_and_after_are_identical(handle, patched):
    results = passes(handle, [edit(handle, 1.0).scaled(0.0)] if patched else [])
    assert len(results) == 5
    for result in results:
        assert result.before == result.after
        assert result.kl == 0.0 and not result.moved
    assert measure.score(results, REQUEST.target).locality == 1.0


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0])
def test_kl_is_never_negative_and_grows_with_the_edit(handle, size):
    results = passes(handle, [edit(handle, size)])
    larger = passes(handle, [edit(handle, 30 * size)])
    assert all(r.kl >= 0 for r in results)
    assert 0 < sum(r.kl for r in results) < sum(r.kl for r in larger)


def test_kl_is_that_of_the_next_token(handle):
    patch = edit(handle, 0.3)
    result = passes(handle, [patch])[0]
    row = spans.encode(handle.tokenizer, REQUEST.prompt)
    before = torch.log_softmax(handle.logits([row])[0][0].double(), -1)
    with handle.using([patch]):
        after = torch.log_softmax(handle.logits([row])[0][0].double(), -1)
    assert result.kl == pytest.approx(float((before.exp() * (before - after)).sum()), rel=1e-4)


def test_old_answers_are_read_from_the_unedited_model(handle):
    probes, olds = measure.settle(handle, REQUEST)
    own = measure.own_answers(handle, [REQUEST.prompt, "The capital of Japan is"])
    assert olds == [own[0], own[0], own[0], own[1], "Barcelona"]
    assert probes[0].answer == own[0] and probes[4].answer == "Barcelona"
    given = measure.settle(handle, replace(REQUEST, old="Warsaw"))[1]
    assert given[:3] == ["Warsaw"] * 3


def test_repeated_prompts_are_read_once():
    twice = replace(REQUEST, probes=(*REQUEST.probes, *REQUEST.probes, Probe("near", "Poland is governed from")))
    assert [p.prompt for p in measure.all_probes(twice)] == [p.prompt for p in measure.all_probes(REQUEST)]


@pytest.mark.parametrize(
    "text, answer",
    [
        (" Paris. It is large.", "Paris"),
        ("Paris", "Paris"),
        (" Washington, D.C.", "Washington, D.C."),
        (" Washington, D.C.; and", "Washington, D.C."),
        (" Samuel L. Jackson. He", "Samuel L. Jackson"),
        (" Samuel L. Jackson.", "Samuel L. Jackson"),
        (" 3.14 is pi. So", "3.14 is pi"),
        ("\n\nParis\nRome", "Paris"),
        (" Łódź; and", "Łódź"),
        (".", "."),
        ("", ""),
        ("   ", ""),
    ],
)  # fmt: skip
def test_an_answer_ends_with_its_sentence(text, answer):
    assert measure.cut_answer(text) == answer


@pytest.mark.parametrize(
    "text, answer, verdict",
    [
        (" Boris Johnson. He", "Boris Johnson", True),
        ("Boris Johnson", "Boris Johnson", True),
        (" Boris Johnsons", "Boris Johnson", False),
        (" Mr Boris Johnson", "Boris Johnson", False),
        (" Rome, Italy", "Rome", True),
        (" Romeo", "Rome", False),
        (" 20191", "2019", False),
        (" Lo\u0301dz\u0301.", "Lódź", True),
        (" D.C.", "D.C.", True),
        ("", "Rome", False),
    ],
)  # fmt: skip
def test_a_continuation_says_an_answer_as_a_whole(text, answer, verdict):
    assert measure.says(text, answer) is verdict


@pytest.mark.parametrize(
    "values, mean",
    [
        ((1.0, 1.0, 1.0), 1.0),
        ((0.5, 1.0, 1.0), 0.75),
        ((1.0, 0.0, 1.0), 0.0),
        ((0.9, None, 0.9), None),
        ((0.25,), 0.25),
    ],
)
def test_harmonic_mean(values, mean):
    assert measure.harmonic(*values) == (None if mean is None else pytest.approx(mean))


def answer(mean: float, exact: bool = False, accuracy: float = 0.0) -> AnswerScore:
    return AnswerScore("x", 2, mean**2, mean, 1, exact, accuracy)


def result(kind: str, new: AnswerScore | None, old: AnswerScore | None, text: str = "", moved: bool = False):
    before = Reading(answer(0.1), answer(0.9), (), "")
    return ProbeResult(Probe(kind, kind), before, Reading(new, old, (), text), 0.1, moved)


def test_scores_of_hand_made_results():
    scores = measure.score(
        [
            result("edit", answer(0.9, True, 1.0), answer(0.1), " Rome."),
            result("paraphrase", answer(0.9, True, 1.0), answer(0.1), " Rome."),
            result("paraphrase", answer(0.3, False, 0.5), answer(0.4), " Paris."),
            result("near", answer(0.2), answer(0.8)),
            result("near", answer(0.6), answer(0.3), moved=True),
            result("far", answer(0.9), answer(0.1)),
            result("far", answer(0.1), answer(0.9), moved=True),
            result("far", answer(0.1), None),
        ],
        "Rome",
    )
    assert (scores.reliability, scores.generality, scores.reliability_tokens) == (1.0, 0.5, 1.0)
    assert (scores.es, scores.ps, scores.ns, scores.generality_tokens) == (1.0, 0.5, 0.5, 0.75)
    assert scores.locality == pytest.approx(3 / 5)
    assert scores.s == pytest.approx(3 / (1 + 2 + 2))
    assert scores.generation == pytest.approx(2 / 3)


def test_scores_without_probes_are_none_not_zero():
    scores = measure.score([result("edit", answer(0.9, True, 1.0), answer(0.1))], "Rome")
    assert (scores.es, scores.reliability, scores.generation) == (1.0, 1.0, 0.0)
    assert scores.generality is scores.ps is scores.ns is scores.s is scores.locality is None
