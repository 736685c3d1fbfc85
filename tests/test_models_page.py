"""Another model from the page: what is offered, to whom, what is refused, and what becomes of edits on the old one."""

from __future__ import annotations

import pytest
import streamlit as st

from dashboard import models, resources, state
from editcore.engine import Opening
from editcore.errors import EngineBusy, EngineError, ModelError
from tests import fake_engine
from tests.fake_engine import PM, a_choice
from tests.test_page import applied, checked, filled, fresh, keys, opened, session_of, unfolded, words

__all__ = ["fresh"]
GPT2 = Opening("gpt2", "c" * 40)


def choosing(page):
    """The page with the popover open."""
    return unfolded(page, models.POPOVER)


def click(page, key):
    page.button(key=key).click()
    return checked(page.run())


def picked(page, name: str):
    """With this model picked of the list; "": another one."""
    page.radio(key=models.PICK).set_value(f"{name}@{GPT2.revision}" if name else "another")
    return checked(page.run())


def named(page, name: str, revision: str = ""):
    page = picked(page, "")
    page.text_input(key=models.NAME).set_value(name)
    page.text_input(key=models.REVISION).set_value(revision)
    return checked(page.run())


def engine():
    return fake_engine.current()


def test_the_models_at_hand_are_offered_with_size_and_whether_they_fit():
    page = opened(steps=1)
    engine().at_hand += [
        a_choice("big", fits=False, needed=9_600_000_000, formats=("bfloat16",)),
        a_choice("odd", problem="'odd' has no tokenizer.", fits=False), a_choice("gpt2", revision="d" * 40, refs=()),
    ]  # fmt: skip
    radio = choosing(page).radio(key=models.PICK)
    assert [*radio.options] == [
        "world\\-2019 :gray-badge[open now]",
        "gpt2",
        "big",
        "odd",
        "gpt2 at ddddddd",
        "Another",
    ]
    told = [caption.replace("\\", "").replace("\u2060", "") for caption in radio.proto.captions]
    assert told[1] == "548 MB on disk, needs 600 MB of 8.0 GB free in float32"
    assert "does not fit: needs 9.6 GB of 8.0 GB free" in told[2] and told[3] == "'odd' has no tokenizer."


def test_nothing_is_asked_before_the_popover_is_opened():
    page = opened(steps=1)
    assert not [name for name, _ in engine().asked if name == "models"] and models.OPEN not in keys(page)
    choosing(page)
    assert [name for name, _ in engine().asked if name == "models"]


def test_a_model_that_does_not_fit_says_what_is_missing_and_which_format_would_help():
    page = opened(steps=1)
    engine().at_hand.append(a_choice("big", fits=False, needed=9_600_000_000, formats=("bfloat16", "float16")))
    page = picked(choosing(page), "big")
    shown = words(page)
    assert "1.6 GB of memory are missing on cpu. It fits in bfloat16 or float16." in shown
    assert not page.button(key=models.OPEN).disabled


def test_the_model_that_is_open_can_be_opened_again_only_in_another_way():
    page = choosing(opened(steps=1))
    assert page.button(key=models.OPEN).disabled and page.button(key=models.OPEN).label == "It is open"
    page.selectbox(key=models.DTYPE).set_value("bfloat16")
    assert not checked(page.run()).button(key=models.OPEN).disabled
    click(page, models.OPEN)
    assert engine().opened == [Opening("world-2019", "", "", "bfloat16")]


def test_a_picked_model_is_opened_as_it_stands_in_the_list():
    page = click(picked(choosing(opened(steps=1)), "gpt2"), models.OPEN)
    assert engine().opened == [GPT2]
    assert "gpt2 at cccccccccccc" in words(page).replace("\\", "") and models.OPEN not in keys(page)


def test_a_named_model_is_opened_with_revision_format_and_device():
    page = named(choosing(opened(steps=1)), " acme/tiny ", "v2")
    page.selectbox(key=models.DTYPE).set_value("bfloat16")
    page.text_input(key=models.DEVICE).set_value("cuda:1")
    click(checked(page.run()), models.OPEN)
    assert engine().opened == [Opening("acme/tiny", "v2", "cuda:1", "bfloat16")]


def test_spread_over_several_gpus_takes_the_place_of_a_device():
    page = named(choosing(opened(steps=1)), "acme/tiny")
    page.text_input(key=models.DEVICE).set_value("cuda:1")
    page.toggle(key=models.SPREAD).set_value(True)
    page = checked(page.run())
    assert page.text_input(key=models.DEVICE).disabled
    click(page, models.OPEN)
    assert engine().opened == [Opening("acme/tiny", device_map="auto")]


@pytest.mark.parametrize(
    "error",
    [
        ModelError("'x' has no tokenizer.", "One was wanted.", "Put it there."),
        EngineBusy("2 jobs are queued or running.", "It is opened afterwards.", "Wait."),
        EngineError("The engine was closed."),
    ],
)
def test_a_refusal_stands_beside_the_button_with_what_was_seen_wanted_and_what_to_try(error):
    page = named(choosing(opened(steps=1)), "acme/tiny")
    engine().breaks["open"] = [error]
    page = click(page, models.OPEN)
    assert [e.value.replace("\\", "") for e in page.error] == [str(error)] and models.OPEN in keys(page)
    assert not engine().opened
    assert not named(page, "acme/other").error  # it is about what was asked for


def test_a_device_that_is_not_there_is_said_where_the_models_are_listed():
    page = choosing(opened(steps=1))
    engine().breaks["models"] = [ModelError("No CUDA device is usable.", "", "Use cpu.")]
    page.text_input(key=models.DEVICE).set_value("cuda:7")
    page = checked(page.run())
    assert "No CUDA device is usable" in page.error[0].value and "gpt2" in page.radio(key=models.PICK).options


@pytest.mark.parametrize(("why", "told"), [("has no tokenizer.", False), ("may not be opened here.", True)])
def test_which_folders_are_allowed_is_told_where_that_was_why(why, told):
    page = named(choosing(opened(steps=1)), "/some/where")
    engine().breaks["open"] = [ModelError(f"'/some/where' {why}")]
    said = click(page, models.OPEN).error[0].value.replace("\\", "").replace("\u2060", "")
    assert ("Allowed now: no folder." in said) is told


def test_others_who_can_open_the_page_are_not_offered_models_and_cannot_open_one(monkeypatch):
    monkeypatch.setattr(resources, "is_local", lambda: False)
    page = opened(steps=1)
    assert models.OPEN not in keys(choosing(page)) and models.PICK not in {r.key for r in page.radio}
    with pytest.raises(EngineError, match="nobody else can open"):
        resources.open_model(GPT2)
    assert not engine().opened


def test_a_password_makes_it_a_page_for_several(monkeypatch):
    monkeypatch.setenv("EDITCORE_PASSWORD", "at least eight")
    assert not resources.is_local()
    monkeypatch.delenv("EDITCORE_PASSWORD")
    assert resources.is_local() and st.get_option("server.address") == "127.0.0.1"


def test_the_page_that_changes_the_model_goes_on_in_a_new_session_with_what_is_typed():
    page = applied(filled(opened(steps=1)))
    old = session_of(page)
    page = click(picked(choosing(page), "gpt2"), models.OPEN)
    assert session_of(page) != old and engine().sessions.state(session_of(page)).rows == ()
    assert engine().sessions.state(old).rows and "Base model answers" in words(page)
    assert page.text_input(key=state.PROMPT).value == PM and "These edits were made" not in words(page)
    assert not page.button(key="apply").disabled
    assert page.button(key="left-behind").label == "Your edits on world\\-2019"
    assert [row.method for row in engine().sessions.state(session_of(applied(page))).rows]
    assert "left-behind" not in keys(page)


def test_one_click_leads_back_to_the_edits_that_stayed_with_the_old_model():
    page = applied(filled(opened(steps=1)))
    old = session_of(page)
    page = click(click(picked(choosing(page), "gpt2"), models.OPEN), "left-behind")
    assert session_of(page) == old and "These edits were made" in words(page)


def test_a_session_without_edits_is_kept():
    page = filled(opened(steps=1))
    old = session_of(page)
    assert session_of(click(picked(choosing(page), "gpt2"), models.OPEN)) == old


def stranger():
    """A tab whose session was edited on the model that was open before, after a change of the model elsewhere."""
    page = applied(filled(opened(steps=1)))
    resources.open_model(GPT2)
    return checked(page.run())


def test_an_old_session_says_which_model_it_belongs_to_and_takes_no_edit():
    page = stranger()
    shown = words(page).replace("\\", "").replace("\u2060", "")
    assert "These edits were made on world-2019; this page has gpt2 open" in shown
    assert page.button(key="apply").disabled and "belong to another model" in shown
    assert "Boris Johnson" in shown  # its result is still there, as it was
    assert not page.button(key="undo").disabled


def test_a_click_on_apply_in_a_tab_that_has_not_heard_of_the_change_does_nothing():
    page = applied(filled(opened(steps=1)))
    resources.open_model(GPT2)
    page = click(page, "apply")
    assert len(engine().submitted) == 1 and "The model changed before this could begin" in words(page)


def test_what_is_stored_of_an_old_session_can_still_be_taken_back_and_switched():
    page = click(stranger(), "undo")
    assert "These edits were made" not in words(page)
    assert "These edits were made" in words(click(page, "redo"))


def test_one_click_leads_from_an_old_session_to_a_new_one():
    page = stranger()
    old = session_of(page)
    page = click(page, "new-session")
    assert session_of(page) != old and "These edits were made" not in words(page)
    assert not page.button(key="apply").disabled


def test_one_click_brings_an_old_session_its_model_back():
    page = stranger()
    old = session_of(page)
    page = click(page, "open-again")
    assert engine().opened[-1] == Opening("world-2019") and session_of(page) == old
    assert "These edits were made" not in words(page) and not page.button(key="apply").disabled


def test_on_a_page_for_several_an_old_session_only_leads_to_a_new_one(monkeypatch):
    page = stranger()
    monkeypatch.setattr(resources, "is_local", lambda: False)
    page = checked(page.run())
    assert "new-session" in keys(page) and "open-again" not in keys(page)


def test_settings_chosen_for_the_old_model_are_forgotten_in_every_tab():
    page = filled(opened(steps=1))
    page.get("button_group")[1].set_value("ft")
    page = unfolded(checked(page.run()), "fold:settings")
    page.number_input(key="set:ft:steps").set_value(99)
    page = checked(page.run())
    assert page.number_input(key="set:ft:steps").value == 99
    other = opened(session_of(page))
    resources.open_model(GPT2)
    page = checked(page.run())
    assert page.number_input(key="set:ft:steps").value == 7  # what suits the new one
    other = unfolded(checked(other.run()), "fold:settings")
    assert other.number_input(key="set:ft:steps").value == 7
    late = unfolded(opened(session_of(page)), "fold:settings")
    assert late.number_input(key="set:ft:steps").value == 7


def test_a_click_that_was_meant_for_the_old_model_does_nothing_on_the_new_one():
    page = filled(opened(steps=1))
    resources.open_model(GPT2)
    page = click(page, "apply")
    assert not engine().submitted and "The model changed before this could begin" in words(page)
    assert len(engine().sessions.state(session_of(applied(page))).rows) == 1


def test_what_was_heard_of_the_old_model_is_asked_again():
    page = filled(opened(steps=1))
    asked = len([name for name, _ in engine().asked if name == "preflight"])
    resources.open_model(GPT2)
    checked(page.run())
    assert len([name for name, _ in engine().asked if name == "preflight"]) > asked


def test_a_model_that_could_not_be_loaded_is_left_by_one_click_or_through_the_list():
    page = opened(steps=1)
    resources.open_model(GPT2)
    engine().broken_model = "gpt2 breaks. Pick another."
    page = checked(page.run())
    assert "gpt2 breaks" in page.error[0].value
    radio = choosing(page).radio(key=models.PICK)
    assert [*radio.options] == ["world\\-2019", "Another"]
    page = click(page, "open-embedded")
    assert engine().opened[-1] == Opening("world-2019") and not page.error


def test_while_a_model_is_opened_the_page_says_so(monkeypatch):
    page = opened(steps=1)
    said = "gpt2 is being opened. Loading 1 of 2 GB."
    monkeypatch.setattr(engine(), "health", lambda: fake_engine.Health("restarting", said, None, 0, "loading", 0))
    assert "gpt2 is being opened. Loading 1 of 2 GB. You can already" in words(checked(page.run())).replace("\\", "")
