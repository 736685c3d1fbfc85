"""What computing again changed, in figures and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from editcore.records import EditRequest
from editcore.remade import Remade, Stand, stand, told
from tests.fake_engine import PM, make_report, suggestions

PARAPHRASES, PROBES = suggestions(PM, "United Kingdom")
REQUEST = EditRequest(PM, "Boris Johnson", "United Kingdom", None, PARAPHRASES, PROBES)
TOOK, LOST = Stand(1, 1, 0.97, 4, 4, 8, 8), Stand(0, 1, 0.61, 2, 4, 8, 8)


def remade(before: Stand, after: Stand, target: str = "Boris Johnson") -> Remade:
    return Remade("a", 1, "b", target, before, after)


def test_a_report_becomes_the_figures_people_compare():
    found = stand([make_report(REQUEST, "rome", {})])
    assert (found.took, found.requests, found.holds) == (1, 1, True)
    assert (found.paraphrases, found.paraphrases_of, found.unmoved, found.unmoved_of) == (4, 4, 7, 8)
    assert found.probability == pytest.approx(0.93, abs=0.07)


def test_the_requests_of_one_patch_are_counted_together():
    found = stand([make_report(REQUEST, "rome", {}), make_report(REQUEST, "rome", {}, took=False)])
    assert (found.took, found.requests, found.holds) == (1, 2, False)
    assert (found.paraphrases, found.paraphrases_of, found.unmoved_of) == (4, 8, 16)


def test_a_score_nobody_judged_counts_for_nothing_and_no_number_is_no_probability():
    report = make_report(replace(REQUEST, paraphrases=(), probes=()), "rome", {})
    found = stand([replace(report, probes=())])
    assert (found.probability, found.paraphrases_of, found.unmoved_of) == (None, 0, 0)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([remade(TOOK, TOOK)], "This edit was computed again. It holds as before."),
        ([remade(LOST, TOOK)], "This edit was computed again. “Boris Johnson” took now, and did not hold before."),
        ([remade(TOOK, LOST)], "“Boris Johnson” held before, and did not take this time."),
        ([remade(LOST, LOST)], "Whether it took is as before."),
        (
            [remade(TOOK, TOOK), remade(replace(TOOK, probability=0.8), TOOK, "Sydney")],
            "2 edits were computed again. All hold as before; “Sydney” is likelier now.",
        ),
        ([remade(LOST, TOOK, f"n{i}") for i in range(5)], "“n0”, “n1”, “n2” and 2 more took now"),
    ],
)
def test_what_changed_is_said_in_a_sentence(made, words):
    assert words in told(made)
