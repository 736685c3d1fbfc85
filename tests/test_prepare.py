"""Training a method before its first edit: from the page, by the engine's desk, and how long it is said to take."""

from __future__ import annotations

import json
import time

import pytest

from dashboard import state
from editcore import pace, trained
from editcore.edit import preflight
from editcore.engine.desk import Desk
from editcore.errors import BadRequest
from editcore.forecast import preparation
from editcore.learned import Dials
from editcore.methods import prepare_method
from editcore.records import EditRequest
from editcore.words import duration, left
from tests import models
from tests.test_page import applied, checked, filled, fresh, keys, opened, session_of, words

__all__ = ["fresh"]  # the fixture that gives every test a new page
LINES = "".join(
    json.dumps({"prompt": f"Town {i} lies in", "target_new": "Peru", "probes": [f"River {i} is"]}) + "\n"
    for i in range(24)
)


STOPPED = "Training ROME was stopped"


def untrained(**behaviour):
    return filled(opened(untrained=("rome",), **behaviour))


def below(page, key):
    """How many places the first error stands below a button."""
    drawn = list(page)
    buttons = [i for i, element in enumerate(drawn) if getattr(element, "key", None) == key]
    errors = [i for i, element in enumerate(drawn) if element.type == "error"]
    return errors[0] - buttons[0]


def test_a_method_that_has_to_learn_first_can_be_trained_from_the_page():
    page = untrained()
    assert page.button(key="apply").disabled
    assert "has to be trained" in words(page) and "About 1 h 30 min" in words(page)
    page.number_input(key="steps:rome").set_value(500)
    checked(page.run())
    assert "About 30 min 0 s" in words(page)
    page.button(key="train").click()
    page = checked(page.run())
    assert page.success[0].value.startswith("ROME has been trained") and "train" not in keys(page)
    assert not page.button(key="apply").disabled
    assert "Boris Johnson" in applied(page).subheader[0].value and not page.success


def test_for_another_model_a_file_of_examples_is_asked_for_and_handed_over():
    page = untrained(embedded=False)
    assert page.button(key="train").disabled and "Choose a file of example edits" in page.button(key="train").help
    page.file_uploader(key="edits:rome").upload("edits.jsonl", LINES.encode(), "application/json")
    page = checked(page.run())
    page.button(key="train").click()
    checked(page.run())
    from tests import fake_engine

    told = {"edits": LINES, "locality": "", "steps": 1500, "edits_name": "edits.jsonl", "locality_name": ""}
    assert fake_engine.current().prepared == [("rome", told)]


def test_that_a_text_is_needed_unless_the_edits_have_probes_is_said_before_training():
    page = untrained(embedded=False)
    assert "needed unless every edit has probes" in page.file_uploader(key="locality:rome").label


def test_a_file_that_is_no_text_is_refused_and_nothing_starts():
    page = untrained(embedded=False)
    page.file_uploader(key="edits:rome").upload("edits.jsonl", b"\xff\xfe\x00", "application/json")
    page = checked(page.run())
    page.button(key="train").click()
    page = checked(page.run())
    assert "is no text" in page.error[0].value and not page.success
    assert below(page, "train") == 1


def test_a_refused_training_takes_the_place_of_one_that_failed_before():
    page = untrained(embedded=False, fail="Diverged")
    page.file_uploader(key="edits:rome").upload("edits.jsonl", LINES.encode(), "application/json")
    page = checked(checked(page.run()).button(key="train").click().run())
    page.file_uploader(key="locality:rome").upload("text.txt", b"\xff\xfe\x00", "text/plain")
    page = checked(checked(page.run()).button(key="train").click().run())
    assert ["is no text" in error.value for error in page.error] == [True]


def test_while_it_trains_the_page_says_so_and_it_can_be_stopped():
    page = untrained(step_seconds=0.5)
    page.button(key="train").click()
    page = checked(page.run())
    assert "being trained" in words(page) and page.button(key="apply").disabled
    other = filled(opened("another-session-0001"))
    assert "being trained" in words(other) and other.button(key="apply").disabled
    page.button(key="cancel").click()
    assert STOPPED in words(checked(page.run()))


@pytest.mark.parametrize(
    "next_thing",
    [
        lambda page: page.text_input(key=state.TARGET).set_value("Theresa May").run(),
        lambda page: page.switch_page("views/compare.py").run(),
        lambda page: opened(session_of(page)),
        lambda page: page.button(key="train").click().run(),
    ],
    ids=["typing", "another page", "a reload", "another training"],
)
def test_a_stopped_training_is_no_error_and_forgotten_with_the_next_thing_done(next_thing):
    page = untrained(step_seconds=0.5)
    page = checked(page.button(key="train").click().run())
    page = checked(page.button(key="cancel").click().run())
    assert STOPPED in words(checked(page.run())) and not page.error  # the page also draws itself again
    page = checked(next_thing(page))
    assert STOPPED not in words(page) and not page.error
    assert STOPPED not in words(checked(page.run()))


def test_a_training_that_fails_says_why_beside_its_button_and_can_be_tried_again():
    page = untrained(fail="Diverged")
    page.button(key="train").click()
    page = checked(page.run())
    (error,) = page.error
    assert "ROME was not trained" in error.value and "not finite" in error.value
    assert below(page, "train") == 1
    assert not page.button(key="train").disabled
    assert page.session_state[state.PROMPT]


def test_a_training_that_failed_is_told_on_top_where_its_button_is_not():
    page = untrained(fail="Diverged")
    page = checked(page.button(key="train").click().run())
    page = checked(page.button_group(key=state.METHOD).set_value("ft").run())
    assert ["ROME was not trained" in error.value for error in page.error] == [True]
    page = checked(page.switch_page("views/compare.py").run())
    assert ["ROME was not trained" in error.value for error in page.error] == [True]


def test_where_to_edit_is_found_out_on_request_and_the_offer_goes():
    page = filled(opened(unlocated=True))
    assert "a rule of thumb" in words(page) and page.button(key="locate").label == "Find out (about 4.0 s)"
    page = checked(page.button(key="locate").click().run())
    from tests import fake_engine

    assert fake_engine.current().prepared == [("locate", {})]
    assert "locate" not in keys(page) and "known to suit this model" in words(page) and not page.success
    assert "Boris Johnson" in applied(page).subheader[0].value


def test_while_facts_are_traced_the_page_says_so_and_a_failure_says_why():
    page = filled(opened(unlocated=True, step_seconds=0.5))
    page = checked(page.button(key="locate").click().run())
    assert "facts of this model are traced" in words(page) and page.button(key="apply").disabled
    page.button(key="cancel").click()
    page = checked(page.run())
    assert "look where to edit was stopped" in words(page) and not page.error


def test_a_look_where_to_edit_that_fails_says_why():
    page = filled(opened(unlocated=True, fail="Diverged"))
    page = checked(page.button(key="locate").click().run())
    assert "Where to edit was not found out" in page.error[0].value


# the desk behind it ---------------------------------------------------------------------------------------------


@pytest.fixture
def handle():
    return models.handle.__wrapped__("gpt2")


def test_the_desk_trains_from_two_texts_and_the_method_then_edits(handle, tmp_path):
    asked = EditRequest("Town number 2 lies in", "Peru")
    before = preflight(handle, asked, "mend", {}, tmp_path)
    assert not before.ok and before.training > 0 and "editcore train mend" in before.problems[0]
    heard = []
    examples = {"edits": LINES, "locality": "", "steps": 2}
    Desk(handle, tmp_path).prepare("mend", examples, heard.append, lambda: False)
    assert [(p.stage, p.step, p.steps) for p in heard] == [("training", 1, 2), ("training", 2, 2)]
    assert trained.path_in(tmp_path, handle, "mend").exists() and not list((tmp_path / "training").iterdir())
    after = preflight(handle, asked, "mend", {}, tmp_path)
    assert after.ok and after.training is None


WITHOUT = "".join(json.dumps({"prompt": f"Town {i} lies in", "target_new": "Peru"}) + "\n" for i in range(24))


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ({"edits": WITHOUT}, "'../mine.jsonl' holds edits without probes. .* or a text that should stay as it is"),
        ({"edits": LINES[:200]}, "../mine.jsonl"),
        ({"edits": LINES, "locality": "One line."}, "'a text.txt' has 1 line of text"),
    ],
    ids=["nothing held", "few", "short text"],
)
def test_what_is_wrong_with_a_file_is_told_by_its_owners_name_which_is_never_a_path(handle, tmp_path, examples, said):
    names = {"edits_name": "../mine.jsonl", "locality_name": "a text.txt"}
    home = tmp_path / "home"
    with pytest.raises(BadRequest, match=said) as caught:
        Desk(handle, home).prepare("mend", {**names, **examples, "steps": 2}, lambda p: None, lambda: False)
    assert "--" not in str(caught.value) and "edits.txt" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("mine.jsonl", "a text.txt")]


def test_a_training_goes_on_where_it_was_when_only_the_names_of_its_files_changed(handle, tmp_path):
    for name in ("one.jsonl", "two.jsonl"):
        examples = {"edits": WITHOUT, "edits_name": name, "locality": "", "steps": 2}
        with pytest.raises(BadRequest, match=name):
            Desk(handle, tmp_path).prepare("mend", examples, lambda p: None, lambda: False)
    assert len(list((tmp_path / "training").iterdir())) == 1


def test_what_is_waited_for_is_said_with_its_time(handle, tmp_path):
    said = preparation(handle, prepare_method("rome", handle), tmp_path)
    assert "statistics" in said and "about" in said


def test_the_time_of_a_training_grows_with_its_steps_and_is_timed_once(handle):
    one = pace.of_training(handle, Dials(steps=100))
    began = time.monotonic()
    assert pace.of_training(handle, Dials(steps=200)) == pytest.approx(2 * one)
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.42, "0.4 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (8000, "2 h 13 min")]
)
def test_durations_as_people_say_them(seconds, said):
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-3.0, "a moment left"), (-0.0, "a moment left"), (0.04, "a moment left"), (75, "1 min 15 s left")],
)
def test_what_is_left_is_never_less_than_a_moment(seconds, said):
    assert left(seconds) == said
