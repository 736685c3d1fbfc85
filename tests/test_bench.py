"""Cases are read line by line, and a wrong line is named; scores are averaged as the papers do."""

from __future__ import annotations

import json

import pytest

from editcore import bench, cases, intervals
from editcore.errors import BadRequest, Cancelled
from editcore.records import EditRequest, Scores
from editcore.world.facts import load_world
from tests import models

CASE = {
    "prompt": "The capital of Poland is", "subject": "Poland", "target_new": "Łódź", "target_old": "Warsaw",
    "paraphrases": ["Poland's capital:"],
    "probes": [{"prompt": "The capital of Japan is", "answer": "Tokyo"}, "2 + 2 ="],
}  # fmt: skip


@pytest.fixture
def file(tmp_path):
    def write(*lines: object, bom: bool = False):
        path = tmp_path / "cases.jsonl"
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text(text, encoding="utf-8-sig" if bom else "utf-8")
        return path

    return write


@pytest.mark.parametrize("bom", [False, True])
def test_cases_are_read_as_documented(file, bom):
    (one, two) = cases.read_cases(file(CASE, "", {"prompt": "A", "target_new": "B"}, bom=bom))
    assert (one.prompt, one.target, one.subject, one.old) == ("The capital of Poland is", "Łódź", "Poland", "Warsaw")
    assert [(p.kind, p.prompt) for p in one.paraphrases] == [("paraphrase", "Poland's capital:")]
    assert [(p.kind, p.prompt, p.answer) for p in one.probes] == [
        ("near", "The capital of Japan is", "Tokyo"), ("near", "2 + 2 =", None),
    ]  # fmt: skip
    assert two == EditRequest("A", "B")
    assert len(cases.read_cases(file(*[CASE] * 5), limit=3)) == 3


@pytest.mark.parametrize(
    "line, words",
    [
        ("{not json", "Expecting"),
        ("[]", ""),
        ('"text"', ""),
        ("null", ""),
        ("7", ""),
        ({"prompt": "A"}, "target_new"),
        ({"target_new": "A"}, "prompt"),
        ({**CASE, "colour": "red"}, "colour"),
        ({**CASE, "probes": [{"answer": "x"}]}, "prompt"),
        ({**CASE, "probes": 3}, ""),
        ({**CASE, "paraphrases": 3}, ""),
    ],
)
def test_a_wrong_line_is_named(file, line, words):
    with pytest.raises(BadRequest, match=r"(Line 3|Row 2 \(line 3\)) of cases.jsonl") as caught:
        cases.read_cases(file(CASE, "", line))
    assert words in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_a_file_without_cases_is_refused(tmp_path, content):
    path = tmp_path / "none.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadRequest, match="no case"):
        cases.read_cases(path)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "binary.jsonl"
    path.write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(BadRequest, match="binary.jsonl"):
        cases.read_cases(path)
    with pytest.raises(BadRequest, match="no file"):
        cases.read_cases(tmp_path / "missing.jsonl")


def test_s_is_the_harmonic_mean_of_the_averages():
    every = [Scores(es=1.0, ps=1.0, ns=0.0, s=0.0), Scores(es=1.0, ps=0.0, ns=1.0, s=0.0), Scores(es=1.0)]
    average = bench.average(every)
    assert (average.es, average.ps, average.ns, average.generality) == (1.0, 0.5, 0.5, None)
    assert average.s == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),  # textbook values of the 95 % interval
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (4, 6, 0.3000, 0.9032), (1, 1, 0.2065, 1)],
)
def test_wilsons_interval_is_the_textbooks(right, of, low, high):
    assert intervals.wilson(right, of) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_holds_the_share_and_narrows_with_more_cases():
    for right in range(7):
        low, high = intervals.wilson(right, 6)
        more = intervals.wilson(right * 100, 600)
        assert 0 <= low <= more[0] <= right / 6 <= more[1] <= high <= 1
    for bad in ((0, 0), (2, 1), (-1, 3)):
        with pytest.raises(ValueError):
            intervals.wilson(*bad)


def test_intervals_count_each_edit_once():
    found = bench.intervals([Scores(es=1.0, generality=0.5, s=1.0), Scores(es=0.0, generality=1.0, s=0.5)])
    assert found == {"es": intervals.wilson(1, 2), "generality": intervals.wilson(1.5, 2)}
    assert bench.intervals([Scores(es=1.0)]) == {}


def test_an_edit_that_fails_is_counted_and_stops_nobody(file):
    handle = models.handle("llama")
    cases = [EditRequest("The sky is", "red"), EditRequest("", "x"), EditRequest("A", "B", subject="C")]
    heard = []
    (row,) = bench.run_bench(
        handle, cases, ["ft"], {"ft": {"steps": 2}}, generate=False, listen=lambda *step: heard.append(step)
    )
    assert (row.method, row.edits) == ("ft", 1) and row.scores.reliability is not None
    assert [number for number, _ in row.failures] == [1, 2] and all(why for _, why in row.failures)
    assert heard == [("ft", i, 3) for i in (1, 2, 3)]


def test_cancelling_stops_the_bench():
    def stop(*_step):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        bench.run_bench(models.handle("llama"), [EditRequest("", "x")], ["ft"], listen=stop)


def test_random_counterfactuals_are_false_and_repeatable():
    world = load_world()
    cases = bench.counterfactuals(world, 40, seed=3)
    assert cases == bench.counterfactuals(world, 40, seed=3) != bench.counterfactuals(world, 40, seed=4)
    for case in cases:
        assert case.target != case.old and case.subject in case.prompt
        assert case.paraphrases and all(p.held_out and p.prompt != case.prompt for p in case.paraphrases)
        assert [p.kind for p in case.probes].count("far") == 4 and all(p.answer for p in case.probes)
        assert all(p.answer != case.target for p in case.probes if p.kind == "near")
