"""The page Compare, driven by AppTest against an engine without a model; and the frames and pictures behind it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import charts, compared, frame, state, tables
from editcore.errors import EngineError
from editcore.intervals import wilson
from editcore.records import EditRequest, Outcome
from tests import fake_engine
from tests.fake_engine import METHODS, PM, make_report, suggestions
from tests.test_page import HOSTILE, applied, checked, filled, fresh, keys, opened, session_of, unfolded, words

__all__ = ["fresh"]  # a fixture every test here uses
NAMES = [m.name for m in METHODS]
TITLES = {m.name: m.title for m in METHODS}


def turned(page: AppTest, view: str = "compare") -> AppTest:
    """The other page, in the same tab."""
    return checked(page.switch_page(f"views/{view}.py").run())


def compare_page(**behaviour) -> AppTest:
    """Compare in a new tab, the reference story in its form."""
    return filled(turned(opened(**{"steps": 1, **behaviour})))


def compared_page(**behaviour) -> AppTest:
    page = compare_page(**behaviour)
    page.button(key="compare").click()
    return checked(page.run())


def chosen(page: AppTest, *names: str) -> AppTest:
    page.pills(key=state.METHODS).set_value(list(names))
    return checked(page.run())


def ticked(page: AppTest, row: int) -> AppTest:
    page.session_state["standings"] = {"selection": {"rows": [row], "columns": [], "cells": []}}
    return checked(page.run())


def rows(page: AppTest):
    """The standings."""
    return next(frame.value for frame in page.dataframe if "sentence" in frame.value.columns)


# the form ---------------------------------------------------------------------------------------------------------


def test_a_sensible_set_of_methods_is_chosen_from_what_there_is():
    assert compare_page().pills(key=state.METHODS).value == NAMES
    from dashboard.views.compare import default_methods

    menu = ["memit", "x", "y", "ft", "rome", "ft-replay", "mend", "lora"]
    assert default_methods(menu) == ["memit", "x", "ft", "rome", "ft-replay", "mend"]
    assert default_methods(["x", "rome"]) == ["x", "rome"] and default_methods([]) == []


def test_a_method_that_cannot_run_is_not_chosen_to_start_with_but_can_be():
    page = compare_page(outlooks={"ft": {"problem": "Train it first."}})
    assert page.pills(key=state.METHODS).value == ["ft-l", "rome"] and "Train it first" not in words(page)
    assert "Train it first" in words(chosen(page, *NAMES))


def test_the_request_goes_along_to_the_other_page_and_back():
    page = filled(opened(steps=1))
    page.text_input(key=state.SUBJECT).set_value("Kingdom")
    page.pills(key=state.METHOD).set_value("ft-l")
    version = checked(page.run()).session_state["_version"]
    page.session_state[f"paraphrases:{version}"] = {
        "edited_rows": {0: {"prompt": "Mine?"}}, "added_rows": [], "deleted_rows": []
    }  # fmt: skip
    page = turned(checked(page.run()))
    fields = [page.text_input(key=k).value for k in (state.PROMPT, state.TARGET, state.SUBJECT)]
    assert fields == [PM, "Boris Johnson", "Kingdom"]
    page.text_input(key=state.TARGET).set_value("David Cameron")
    page = chosen(checked(page.run()), "rome", "ft")
    page.button(key="compare").click()
    request, plans = (checked(page.run()), fake_engine.current().compared[0])[1]
    assert (request.target, request.subject, request.paraphrases[0].prompt) == ("David Cameron", "Kingdom", "Mine?")
    assert sorted(plans) == [("ft", {}), ("rome", {})]
    page = turned(page, "edit")
    assert page.text_input(key=state.TARGET).value == "David Cameron" and page.pills(key=state.METHOD).value == "ft-l"
    applied(page)
    request, method, _ = fake_engine.current().submitted[0]
    assert (request.paraphrases[0].prompt, method) == ("Mine?", "ft-l")
    assert sorted(turned(page).pills(key=state.METHODS).value) == ["ft", "rome"]


def test_an_example_fills_the_form_here_too():
    page = turned(opened(steps=1))
    page.get("button_group")[0].set_value(2)
    assert checked(page.run()).text_input(key=state.TARGET).value == "Sydney"


@pytest.mark.parametrize(("prompt", "target", "said"), [("", "x", "the prompt"), (PM, " ", "the corrected answer")])
def test_without_prompt_or_answer_compare_is_off_and_says_why(prompt, target, said):
    page = filled(compare_page(), prompt, target)
    assert page.button(key="compare").disabled and f"Type {said}" in words(page)


def test_without_a_method_compare_is_off_and_says_why():
    page = chosen(compare_page())
    assert page.button(key="compare").disabled and "No method is chosen" in words(page)
    assert page.text_input(key=state.PROMPT).value == PM


def test_a_subject_outside_the_prompt_turns_compare_off():
    page = compare_page()
    page.text_input(key=state.SUBJECT).set_value("Atlantis")
    page = checked(page.run())
    assert page.button(key="compare").disabled and "Atlantis" in words(page)


def test_what_has_to_be_prepared_first_and_what_cannot_run_is_said_before_the_click():
    page = compare_page(outlooks={
        "rome": {"prepare": "Statistics are read first, about 2 min."}, "ft-l": {"problem": "Run editcore train ft-l."},
    })  # fmt: skip
    page = chosen(page, *NAMES)
    shown = words(page)
    assert "**ROME**: Statistics are read first" in shown and "about 2 min" in shown
    assert "**FT\\-L**: Run editcore train" in shown.replace("\u2060", "")
    assert not page.button(key="compare").disabled


def test_the_time_it_takes_is_told_when_every_method_has_run_before():
    assert "about 1.5 s" in words(compare_page())
    assert "about" not in words(compare_page(outlooks={"ft": {"seconds": None}})).split("one after another")[1][:8]


def test_settings_changed_on_the_other_page_are_used_when_asked_for():
    page = unfolded(filled(opened(steps=1)), "fold:settings")
    page.number_input(key="set:rome:steps").set_value(7)
    page = chosen(turned(checked(page.run())), "rome", "ft")
    page.button(key="compare").click()
    page = checked(page.run())
    page.toggle(key="own_settings").set_value(True)
    page = checked(page.run())
    page.button(key="compare").click()
    checked(page.run())
    first, second = (sorted(plans) for _, plans in fake_engine.current().compared)
    assert first == [("ft", {}), ("rome", {})] and second == [("ft", {}), ("rome", {"steps": 7})]


def test_with_settings_left_alone_nothing_is_asked_about_them():
    assert not compare_page().get("toggle")


@pytest.mark.parametrize("kind", ["EngineBusy", "BadSetting"])
def test_a_refused_comparison_says_why_and_loses_nothing(kind):
    page = compared_page(fail=kind)
    assert "something odd" in page.error[0].value and page.text_input(key=state.PROMPT).value == PM
    assert not page.button(key="compare").disabled


# the run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def glimpses(monkeypatch):
    """The page looks at a running comparison, and does not wait for its next row."""
    monkeypatch.setattr(frame, "LOOK", 0.0)


def halfway() -> AppTest:
    """A comparison whose first row is there and whose second is on its way."""
    page = compared_page(steps=1, step_seconds=60.0)
    fake_engine.current().jobs[page.session_state["_comparison"]].started -= 90.0
    return checked(page.run())


def test_a_running_comparison_shows_the_rows_that_are_there(glimpses):
    page = halfway()
    assert list(rows(page)["method"]) == ["FT", "FT-L", "ROME"]
    assert list(rows(page)["state"]) == ["took", "running", "waiting"]
    assert "**FT\\-L**, method 2 of 3" in words(page) and page.button(key="compare").disabled


def test_cancelling_keeps_the_rows_that_are_there(glimpses):
    page = halfway()
    page.button(key="cancel").click()
    page = checked(page.run())
    assert "Cancelled. 1 result of 3 kept." in words(page) and list(rows(page)["method"]) == ["FT"]
    assert not page.button(key="compare").disabled


def test_a_reload_finds_the_running_comparison_and_later_its_rows(glimpses):
    first = halfway()
    again = turned(opened(session=session_of(first)))
    assert "cancel" in keys(again) and again.button(key="compare").disabled
    again.button(key="cancel").click()
    checked(again.run())
    done = turned(opened(session=session_of(again)))
    assert (
        "1 result of 3 kept" in words(done) and len(rows(done)) == 1 and done.text_input(key=state.PROMPT).value == PM
    )


def test_the_edit_page_says_that_a_comparison_is_running_and_can_cancel_it(glimpses):
    page = turned(compared_page(steps=100, step_seconds=1), "edit")
    assert "A comparison is running" in words(page) and page.button(key="apply").disabled
    page.button(key="cancel").click()
    assert not checked(page.run()).button(key="apply").disabled


def test_compare_says_that_an_edit_is_running():
    page = turned(applied(filled(opened(steps=1000, step_seconds=0.05))))
    assert "An edit is running" in words(page) and page.button(key="compare").disabled


@pytest.mark.parametrize(("kind", "said"), [("Diverged", "comparison stopped"), ("EngineError", "engine was lost")])
def test_a_comparison_that_broke_says_so_and_can_be_tried_again(kind, said):
    page = compared_page(fail=kind)
    assert said in page.error[0].value and not page.button(key="compare").disabled


# what came out ----------------------------------------------------------------------------------------------------


def test_one_row_a_method_with_counts_costs_and_a_sentence():
    table = rows(compared_page())
    assert list(table.columns) == list(compared.COLUMNS)
    assert list(table["generality"]) == [4, 0, 4] and list(table["locality"]) == [7, 8, 7]
    assert list(table["state"]) == ["took", "did not take", "took"]
    assert set(table["bytes"]) == {5120} and set(table["modules"]) == {"transformer.h.1.mlp.c_proj"}


def test_the_comparison_in_one_sentence_names_the_best():
    page = compared_page()
    assert (
        page.subheader[0].value.startswith("FT and ROME did best") and "paraphrases 4 of 4" in page.subheader[0].value
    )
    assert compared_page(took=False).subheader[0].value == "None of these edits took\\."


def test_a_method_that_fails_says_why_and_stops_nobody():
    page = compared_page(broken=("ft",))
    assert "**FT** did not run" in page.warning[0].value and "not finite" in page.warning[0].value
    assert list(rows(page)["state"]) == ["failed", "did not take", "took"]
    assert compared_page(broken=tuple(NAMES)).subheader[0].value == "No method ran\\."


def test_every_picture_has_its_table_and_its_files():
    page = unfolded(compared_page(), "fold:points", "fold:lanes")
    assert len(page.get("plotly_chart")) == 2
    found = {b.key for b in page.get("download_button")}
    names = ("comparison", "generality-locality", "probes-by-method")
    assert {f"{n}-{k}" for n in names for k in ("csv", "json")} <= found


def test_above_the_charts_the_page_says_which_models_they_lead_from_and_to():
    assert words(compared_page()).count("the model as it was when the comparison began") == 1


@pytest.mark.parametrize(("key", "again"), [("compare", True), ("keep", False)])
def test_a_click_on_an_engine_that_is_gone_is_answered_once_and_where_it_was_made(key, again):
    page = ticked(compared_page(), 2)
    fake_engine.current().breaks["submit"] = [EngineError("The worker stopped before it could answer.")]
    page.button(key=key).click()
    page = checked(page.run())
    assert [e.value.count("The worker stopped") for e in page.error] == [1]
    assert ("retry:compare" in keys(page)) == again


def test_a_ticked_row_is_opened_in_full_and_a_failed_one_says_why():
    page = ticked(compared_page(), 2)
    assert "ROME in full" in words(page) and "keep" in keys(page)
    assert "What it writes on its own" in words(page)
    page = ticked(compared_page(broken=("ft",)), 0)
    assert "FT did not run" in words(page) and "keep" not in keys(page)


def test_keeping_a_row_applies_the_same_edit_and_shows_it_on_the_edit_page():
    page = ticked(compared_page(), 2)
    page.button(key="keep").click()
    page = checked(page.run())
    (request, method, settings), (asked, plans) = fake_engine.current().submitted[0], fake_engine.current().compared[0]
    assert request == asked and (method, settings) == plans[2]
    page = turned(page, "edit")
    assert "Edited: Boris Johnson \\(ROME\\)" in words(page) and page.pills(key=state.METHOD).value == "rome"


def test_what_is_kept_is_what_was_compared_even_when_the_form_has_moved_on():
    page = ticked(filled(compared_page(), "Who wrote Hamlet?", "Agatha Christie"), 0)
    page.button(key="keep").click()
    page = turned(checked(page.run()), "edit")
    assert fake_engine.current().submitted[0][0].prompt == PM
    assert page.text_input(key=state.PROMPT).value == PM and page.pills(key=state.METHOD).value == "ft"
    assert "4 paraphrases, 8 unrelated" in "".join(e.label for e in page.expander)


def test_hostile_text_is_shown_literally():
    page = ticked(filled(compare_page(), HOSTILE, "<b>x</b> :red[z]"), 0)
    page.button(key="compare").click()
    page = ticked(checked(page.run()), 0)
    for live in ("![t](", "<script>", ":red[", "$x$", "**b**"):
        assert live not in words(page)
    spec = "".join(chart.proto.spec for chart in page.get("plotly_chart"))
    assert "<script>" not in spec and "<b>x" not in spec


# frames and pictures ----------------------------------------------------------------------------------------------


@pytest.fixture
def outcomes():
    paraphrases, probes = suggestions(PM, "United Kingdom")
    request = EditRequest(PM, "Boris Johnson", "United Kingdom", None, paraphrases, probes)
    return (
        Outcome("rome", {}, make_report(request, "rome", {})),
        Outcome("ft", {}, None, "It broke.", "Diverged"),
        Outcome("ft-l", {}, make_report(request, "ft-l", {}, took=False, nan=True)),
    )


def test_a_comparison_that_runs_shows_what_waits(outcomes):
    frame = compared.standings(outcomes[:1], TITLES, ("ft", "ft-l"))
    assert list(frame["state"]) == ["took", "running", "waiting"] and frame["generality"].isna().sum() == 2
    assert compared.standings((), TITLES, ("ft",))["method"].tolist() == ["FT"]
    assert len(compared.standings((), TITLES)) == 0


def test_every_column_of_the_standings_sorts_as_a_number(outcomes):
    frame = compared.standings(outcomes, TITLES)
    for column in ("reliability", "generality", "locality", "generation", "seconds", "bytes", "change", "memory"):
        assert frame[column].dtype.kind in "if", column
    assert tables.to_csv(frame) and json.loads(tables.to_json(frame))[1]["sentence"] == "It broke."


def test_modules_that_differ_in_a_number_are_said_once():
    assert compared.modules(["t.h.0.mlp.c", "t.h.11.mlp.c", "head"]) == "t.h.{0,11}.mlp.c; head"
    assert compared.modules(["t.h.0.mlp.c"]) == "t.h.0.mlp.c" and compared.modules([]) == ""


def test_points_carry_wilsons_intervals_over_the_probes(outcomes):
    frame = compared.points(outcomes, TITLES)
    assert list(frame["method"]) == ["ROME", "FT-L"]
    row = frame.iloc[0]
    assert (row["locality"], row["locality_of"]) == (7 / 8, 8)
    assert (row["locality_low"], row["locality_high"]) == pytest.approx(wilson(7, 8))
    bare = make_report(EditRequest(PM, "x"), "rome", {})
    assert not len(compared.points([Outcome("rome", {}, bare)], TITLES))


def test_the_scatter_tells_reliable_from_not_by_shape_and_joins_equal_places(outcomes):
    both = (outcomes[0], Outcome("ft", {}, outcomes[0].report), outcomes[2])
    figure = charts.scatter(compared.points(both, TITLES))
    assert [(t.name, t.marker.symbol, len(t.x)) for t in figure.data] == [
        ("the edit took", "circle", 2), ("it did not", "x", 1)
    ]  # fmt: skip
    assert figure.data[0].error_x.arrayminus is not None
    assert any(a.text == "<b>ROME</b><br><b>FT</b>" for a in figure.layout.annotations)
    assert charts.scatter(compared.points((), TITLES)).data == ()


def test_all_panels_share_one_axis_and_the_two_colours(outcomes):
    lanes = compared.lanes(outcomes, TITLES)
    assert len(lanes) == 2 * 13 and set(lanes["lane"]) == {"Edit", "Paraphrases", "Unrelated"}
    assert set(lanes[lanes["lane"] == "Edit"]["answer"]) == {"Boris Johnson"}
    figure = charts.multiples(lanes)
    line, before, after = figure.data
    assert (before.marker.color, after.marker.color) == (charts.BEFORE, charts.AFTER)
    assert (before.marker.symbol, after.marker.symbol) == ("circle-open", "circle")
    assert list(figure.layout.xaxis.range) == [-0.02, 1.02] and len({*before.y}) == 26
    assert len(line.x) == 3 * 26 and not any(isinstance(v, float) and math.isnan(v) for v in after.x)
    assert charts.multiples(compared.lanes((), TITLES)).data[1].x == ()


def test_many_probes_make_thin_rows_and_no_endless_picture():
    _, probes = suggestions(PM, "it")
    report = make_report(EditRequest(PM, "x", None, None, (), probes * 40), "rome", {})
    assert charts.multiples(compared.lanes([Outcome("rome", {}, report)], TITLES)).layout.height < 700


def test_the_best_took_and_is_beaten_by_none(outcomes):
    assert [o.method for o in compared.best(outcomes)] == ["rome"]
    assert compared.best(outcomes[1:]) == () and compared.best(()) == ()


def test_of_several_that_did_equally_well_the_least_disturbing_is_named(outcomes):
    from dashboard.views.compare import verdict_line

    def moved_by(method: str, change: float) -> Outcome:
        def shifted(result):
            if result.probe.kind in ("edit", "paraphrase") or result.after.old is None:
                return result
            before = result.before.old
            old = replace(result.after.old, mean=max(0.0, before.mean - change))
            return replace(result, after=replace(result.after, old=old))

        report = outcomes[0].report
        return Outcome(method, {}, replace(report, probes=tuple(map(shifted, report.probes))))

    quiet, loud = moved_by("rome", 0.0), moved_by("ft", 0.2)
    assert compared.disturbance(quiet.report) == 0.0 < compared.disturbance(loud.report)
    assert "ROME moved the unrelated answers least (0 % on average; FT: " in verdict_line((loud, quiet), (loud, quiet))
    assert "least" not in verdict_line((quiet, quiet), (quiet, quiet))
