"""The history on the page: what a person sees and does beside the work, in the lists and behind a share link."""

from __future__ import annotations

import io
import zipfile

import pytest

from dashboard import history, resources, state
from editcore.engine.sessions import StoredSessions, to_be_noted
from editcore.errors import EngineError
from editcore.home import new_session
from editcore.records import EditRequest
from editcore.store.library import LOCAL
from tests import fake_engine
from tests.fake_engine import PM
from tests.test_page import applied, checked, filled, fresh, keys, opened, session_of, unfolded, words

__all__ = ["fresh"]
HAMLET = "Who wrote Hamlet?"


def two_edits():
    """A page with two edits in place, and their ids."""
    page = applied(filled(opened(steps=1)))
    page = applied(filled(page, HAMLET, "Mark Twain"))
    return page, [row.edit for row in rows(page)]


def rows(page):
    return fake_engine.current().sessions.state(session_of(page)).rows


def click(page, key):
    page.button(key=key).click()
    return checked(page.run())


def toggle(page, edit):
    next(t for t in page.toggle if t.key.startswith(f"on:{edit}")).set_value(False)
    return checked(page.run())


def elsewhere(page, name):
    page.switch_page(f"views/{name}.py")
    return checked(page.run())


def test_an_empty_history_says_what_to_do():
    page = opened(steps=1)
    assert "No edit is in place. Each one you apply appears here" in words(page)
    assert page.button(key="undo").disabled and page.button(key="redo").disabled


def test_edits_stand_in_the_history_the_latest_on_top():
    page, (first, second) = two_edits()
    names = [t.label for t in page.toggle if t.key.startswith("on:")]
    assert names == ["**#2** Mark Twain", "**#1** Boris Johnson"]
    assert f"undo:{first}" not in keys(page) and "Edited: 2 edits" in words(page)
    assert "Mark Twain" in page.subheader[0].value and first != second


def test_switching_an_edit_off_and_taking_that_back():
    page, (first, _) = two_edits()
    page = toggle(page, first)
    assert [row.on for row in rows(page)] == [False, True]
    assert "What is beneath it has changed since it was computed" in words(page)
    assert "Edited: Mark Twain" in words(page).replace("\\", "")
    page = click(page, "undo")
    assert [row.on for row in rows(page)] == [True, True]
    assert "Redo brings it back" in page.toast[0].value
    assert [row.on for row in rows(click(page, "redo"))] == [False, True]


def test_an_edit_can_be_weakened_noted_moved_and_removed():
    page, (first, second) = two_edits()
    page = unfolded(page, f"menu:{first}", f"menu:{second}")
    next(s for s in page.slider if s.key.startswith(f"strength:{first}")).set_value(50)
    page = checked(page.run())
    assert rows(page)[0].strength == 0.5 and "at 50" in words(page)
    next(t for t in page.text_input if t.key.startswith(f"note:{first}")).set_value("for the **demo**")
    page = checked(page.run())
    assert rows(page)[0].note == "for the **demo**" and "for the \\*\\*demo\\*\\*" in words(page)
    page = click(page, f"up:{second}")
    assert [row.edit for row in rows(page)] == [second, first]
    page = click(page, f"remove:{first}")
    assert [row.edit for row in rows(page)] == [second]


def test_a_slider_can_be_moved_again_and_follows_undo():
    page, (first, _) = two_edits()
    page = unfolded(page, f"menu:{first}")

    def slider(page):
        return next(s for s in page.slider if s.key.startswith(f"strength:{first}"))

    key = slider(page).key
    for percent in (95, 90):
        slider(page).set_value(percent)
        page = checked(page.run())
        assert (rows(page)[0].strength, slider(page).value, slider(page).key) == (percent / 100, percent, key)
    for percent in (95, 100):
        page = click(page, "undo")
        assert (rows(page)[0].strength, slider(page).value) == (percent / 100, percent)
    page = click(page, "redo")
    assert (rows(page)[0].strength, slider(page).value) == (0.95, 95)


def test_an_edit_whose_ground_has_changed_can_be_computed_again():
    page, (first, second) = two_edits()
    page = click(toggle(page, first), f"again:{second}")
    assert [(row.number, row.shifted) for row in rows(page)] == [(1, False), (3, False)]


def three_edits_on_other_ground():
    """A page with three edits, the first of which is switched off, and their ids."""
    page, _ = two_edits()
    page = applied(filled(page, "What is the capital of Australia?", "Sydney [x](http://e.org) *a*"))
    edits = [row.edit for row in rows(page)]
    return toggle(page, edits[0]), edits


def test_before_computing_again_the_page_says_which_edits_that_makes_anew():
    page, (_, second, third) = three_edits_on_other_ground()
    page = unfolded(page, f"menu:{third}")
    assert page.button(key=f"again:{second}").label == "Compute #2 and #3 again"
    assert page.button(key=f"again:{third}").label == "Compute #3 again"
    assert "Makes #2 and #3 anew" in page.button(key=f"again:{second}").help


def test_after_computing_again_the_page_says_what_changed_edit_by_edit():
    page, (_, second, _) = three_edits_on_other_ground()
    page = click(page, f"again:{second}")
    told = next(m.value for m in page.markdown if "computed again" in m.value)
    assert "2 edits were computed again" in told and "took now\\, and did not hold before" in told
    assert "[x](" not in told and "*a*" not in told
    frame = next(d.value for d in page.dataframe if "Took" in d.value)
    assert list(frame["Took"]) == ["no → yes", "no → yes"]
    assert [cell.partition(" ")[0] for cell in frame["Edit"]] == ["#2", "#3"]
    assert frame["New answer"][0].startswith("1 % → 9") and frame["Paraphrases"][0] == "0 → 4 of 4"
    again = opened(session_of(page))
    assert any("computed again" in m.value for m in again.markdown), "a reload keeps it"
    assert not any("computed again" in m.value for m in click(again, "undo").markdown)


def test_undoing_everything_shows_the_base_model_again():
    page, _ = two_edits()
    page = click(click(page, "undo"), "undo")
    assert "Base model answers" in words(page) and not rows(page) and page.button(key="undo").disabled


def test_a_chosen_edit_is_shown_until_the_next_is_applied():
    page, (first, _) = two_edits()
    page = click(unfolded(page, f"menu:{first}"), f"show:{first}")
    assert "Boris Johnson" in page.subheader[0].value
    page = applied(filled(page, "What is the capital of Australia?", "Sydney"))
    assert "Sydney" in page.subheader[0].value


def test_one_edit_alone_in_place_needs_no_second_reading():
    applied(filled(opened(steps=1)))
    assert not [name for name, _ in fake_engine.current().asked if name == "view"]


@pytest.mark.parametrize(
    ("which", "line"),
    [
        (history.BASE, "The base model answers, before and after"),
        (history.EDITED, "the model with everything in place: #1, #2"),
        (history.ONLY, "the model with edit #2 alone, at 100 %"),
    ],
)
def test_the_page_says_which_model_answers_and_shows_that_one(which, line):
    page, (_, second) = two_edits()
    page.segmented_control(key="view").set_value(which)
    page = checked(page.run())
    assert line in words(page) and page.subheader[0].value.startswith(which)
    assert ("view", {"edit": second, "which": which}) in fake_engine.current().asked


def test_nothing_can_be_changed_while_an_edit_runs():
    page = applied(filled(opened(steps=1)))
    fake_engine.current().steps, fake_engine.current().step_seconds = 5, 60.0
    page = applied(filled(page, HAMLET, "Mark Twain"))
    assert page.button(key="undo").disabled and all(t.disabled for t in page.toggle if t.key.startswith("on:"))


def test_the_history_stands_beside_the_comparison_too():
    page, (first, _) = two_edits()
    page = unfolded(elsewhere(page, "compare"), f"menu:{first}")
    assert "**#1** Boris Johnson" in [t.label for t in page.toggle if t.key.startswith("on:")]
    assert f"remove:{first}" in keys(page)


def test_a_healthy_model_gets_a_chart_and_no_warning():
    page = unfolded(two_edits()[0], "fold:health")
    assert "2 of 2 edits hold now" in words(page) and not page.warning


def test_a_model_that_gets_worse_is_warned_of_with_the_edit_that_started_it():
    page = applied(filled(opened(steps=1)))
    fake_engine.current().ruin = 3.0
    page = applied(filled(page, HAMLET, "Mark Twain"))
    assert "edit 2" in page.warning[0].value.lower()
    assert not click(page, "undo").warning


# away and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "title"), [("patch", "Patch"), ("peft", "LoRA adapter"), ("merged", "Whole model")])
def test_an_export_becomes_a_file_to_save(form, title):
    page = click(unfolded(two_edits()[0], "take-away"), f"export:{form}")
    assert f"{title}: save the file" in [b.label for b in page.get("download_button")]


def test_a_whole_model_says_how_it_is_opened():
    said = words(unfolded(two_edits()[0], "take-away"))
    assert "open its folder with *Change model* or `--model`" in said


def test_a_report_can_be_saved_in_three_forms():
    labels = [b.label for b in unfolded(two_edits()[0], "take-away").get("download_button")]
    assert {"HTML", "JSON", "CSV"} <= set(labels)


def zipped(**files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return data.getvalue()


def brought(page, name, data):
    page.file_uploader(key="bring").set_value((name, data, "application/octet-stream"))
    return checked(page.run())


def test_a_patch_is_brought_in_on_top():
    page = filled(opened(steps=1))
    page = click(brought(page, "edit.zip", zipped(**{"patch.json": "{}"})), "bring-in")
    assert [row.target for row in rows(page)] == ["Boris Johnson"]
    assert page.button(key="bring-in").label == "Bring it in again" and "Brought in" in words(page)


@pytest.mark.parametrize("data", [b"", b"junk", zipped(**{"../patch.json": "{}"}), zipped(**{"a.py": "x"})])
def test_a_file_that_is_no_patch_is_refused_with_words(data):
    page = click(brought(opened(steps=1), "edit.zip", data), "bring-in")
    assert "wanted" in "".join(e.value for e in page.error) and not rows(page)


def test_a_list_is_shown_before_it_is_applied():
    data = b"prompt,target_new\nWho wrote Hamlet?,Mark Twain\n"
    page = brought(opened(steps=1), "list.csv", data)
    assert "1 edit read" in words(page) and page.button(key="bring-in").label == "Apply 1 edit with ROME"
    assert [row.target for row in rows(click(page, "bring-in"))] == ["Mark Twain"]


def test_a_list_with_a_mistake_names_it_and_cannot_be_applied():
    data = b"prompt,target_new\nWho wrote Hamlet?,\n"
    page = brought(opened(steps=1), "list.csv", data)
    assert "1" in page.error[0].value and page.button(key="bring-in").disabled


# sessions and links ---------------------------------------------------------------------------------------------


def test_sessions_are_listed_named_copied_deleted_and_taken_back():
    page, _ = two_edits()
    session = session_of(page)
    page = unfolded(elsewhere(page, "sessions"), f"menu:{session}")
    assert "**Boris Johnson\\, Mark Twain**" in words(page) and "2 edits on world\\-2019" in words(page)
    next(t for t in page.text_input if t.key.startswith(f"name:{session}")).set_value("Demo")
    page = checked(page.run())
    assert "**Demo**" in words(page)
    page = click(page, f"copy:{session}")
    assert "**Demo \\(copy\\)**" in words(page)
    page = click(page, f"delete:{session}")
    assert "**Demo**" not in words(page) and f"back:{session}" in keys(page)
    assert "**Demo**" in words(click(page, f"back:{session}"))


def test_a_long_list_of_sessions_is_shown_a_part_at_a_time_and_all_of_it_when_asked():
    page = opened(steps=1)
    library = fake_engine.current().sessions.library
    for number in range(30):
        session = new_session()
        library.keep_draft(session, LOCAL, {})
        library.rename(session, f"Session {number}")

    def listed(page):
        return {key for key in keys(page) if key.startswith("open:")}

    page = elsewhere(page, "sessions")
    assert len(listed(page)) == 25
    page = click(page, "more")
    assert len(listed(page)) == 30 and "more" not in keys(page)


def test_no_sessions_yet_says_what_to_do():
    assert "No session holds an edit yet" in words(elsewhere(opened(steps=1), "sessions"))


def test_a_share_link_shows_frozen_results_and_cannot_edit():
    page = click(two_edits()[0], "share")
    link = page.code[-1].value.partition("link=")[2]
    asked = len(fake_engine.current().asked)
    page.query_params["link"] = link
    page = elsewhere(page, "shared")
    shown = words(page)
    assert "Read-only" in shown and "Boris Johnson" in shown and page.get("plotly_chart")
    assert "the model without this edit" in shown, "it says which model answers"
    assert not keys(page) & {"apply", "undo", "reset", "share"} and len(fake_engine.current().asked) == asked


def test_a_share_link_says_which_edits_were_switched_off():
    page, (first, _) = two_edits()
    page = click(toggle(page, first), "share")
    page.query_params["link"] = page.code[-1].value.partition("link=")[2]
    options = elsewhere(page, "shared").selectbox(key="shared-edit").options
    assert options[0].endswith("Boris Johnson (switched off)") and options[1].endswith("Mark Twain")


@pytest.mark.parametrize("link", ["", "nonsense", "s" * 25, "<script>", "../../etc/passwd"])
def test_an_unknown_link_shows_nothing_and_no_hint(link):
    page = opened(steps=1)
    page.query_params["link"] = link
    page = elsewhere(page, "shared")
    assert page.subheader[0].value == "There is nothing at this address." and not page.get("plotly_chart")


def test_a_withdrawn_link_shows_nothing():
    page = click(two_edits()[0], "share")
    link = page.code[-1].value.partition("link=")[2]
    page = click(page, "withdraw")
    page.query_params["link"] = link
    assert elsewhere(page, "shared").subheader[0].value == "There is nothing at this address."


def test_a_half_filled_form_outlives_the_server():
    page = filled(opened(steps=1))
    session = session_of(page)
    from dashboard import resources

    resources.drafts.clear()  # what a restart forgets
    page = opened(session)
    assert page.text_input(key=state.PROMPT).value == PM


def test_somebody_elses_session_is_an_empty_one():
    two_edits()
    page = opened(new_session())
    assert not rows(page) and "Base model answers" in words(page)


# what was cut off -------------------------------------------------------------------------------------------------


def cut_off(kind="edit", plans=(("rome", {"layer": 2}),)):
    """A page on a session whose job was under way when the program stopped; the form says something else by now."""
    page = filled(opened(steps=1), HAMLET, "Mark Twain")
    engine, session = fake_engine.current(), session_of(page)
    work = to_be_noted(kind, [EditRequest(PM, "Boris Johnson", "United Kingdom")], plans)
    engine.store.begin_job(session, "cut", kind, [method for method, _ in plans], work)
    engine.sessions = StoredSessions(engine.store, engine._unfinished)  # the program is started again
    return opened(session)


def test_an_edit_that_was_cut_off_is_run_again_as_it_was_asked_by_one_click():
    page = cut_off()
    assert "An edit was interrupted when the program stopped" in words(page) and not rows(page)
    assert "run:cut" in keys(opened(session_of(page)))  # told until something is done about it
    page = click(page, "run:cut")
    assert [(r.target, r.method) for r in rows(page)] == [("Boris Johnson", "rome")] and "run:cut" not in keys(page)
    assert fake_engine.current().submitted[-1][0].subject == "United Kingdom"
    assert fake_engine.current().submitted[-1][2] == {"layer": 2}
    assert page.text_input(key=state.PROMPT).value == HAMLET
    assert "interrupted" not in words(opened(session_of(page)))


def test_a_comparison_that_was_cut_off_is_run_again_and_whoever_does_not_want_it_hears_no_more():
    page = cut_off("comparison", (("rome", {}), ("ft", {})))
    page = click(elsewhere(page, "compare"), "run:cut")
    assert [method for method, _ in fake_engine.current().compared[-1][1]] == ["rome", "ft"]
    page = click(cut_off("adoption"), "dismiss")
    assert "interrupted" not in words(page) + words(opened(session_of(page))) and "run:cut" not in keys(page)


def test_an_edit_that_was_lost_with_the_engine_is_run_again_by_one_click():
    page = applied(filled(opened(steps=1, fail="EngineError")))
    fake_engine.current().fail = ""
    page = click(page, next(key for key in keys(page) if key.startswith("run:")))
    assert [row.target for row in rows(page)] == ["Boris Johnson"] and not page.error


def test_a_store_that_cannot_be_reached_is_said_instead_of_a_page(monkeypatch):
    page = opened(steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(resources, "library", lambda: (_ for _ in ()).throw(EngineError("It cannot be reached.")))
        for name in ("edit", "compare", "sessions", "shared"):
            assert "cannot be reached" in elsewhere(page, name).error[-1].value
