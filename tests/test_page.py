"""The page, driven by AppTest against an engine without a model. Each test states one claim."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from streamlit.proto.WidgetStates_pb2 import WidgetStates
from streamlit.runtime.scriptrunner_utils.exceptions import RerunException
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData
from streamlit.testing.v1 import AppTest

from dashboard import answers, resources, state
from dashboard.examples import EXAMPLES
from editcore.errors import BY_NAME, BadRequest, EngineError
from editcore.world.facts import load_world
from tests import fake_engine
from tests.fake_engine import KNOWN, METHODS, PM

APP = str(Path(__file__).parents[1] / "dashboard" / "app.py")
HOSTILE = "Who is ![t](http://e.org/a.png) <script>x</script> :red[y] $x$ **b** {} %s?"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setenv("EDITCORE_FAKE_ENGINE", "tests.fake_engine:current")
    monkeypatch.setattr(answers, "AT_ONCE", 10.0)  # a busy machine may take long to answer at once
    for cached in resources.CACHED:
        cached.clear()
    yield
    for cached in resources.CACHED:
        cached.clear()


def opened(session: str = "", **behaviour) -> AppTest:
    """The page in a new tab; behaviour goes to a new engine, none keeps the one there is."""
    if behaviour or not session:
        fake_engine.install(**behaviour)
        resources.engine.clear()
    page = AppTest.from_file(APP, default_timeout=120)
    if session:
        page.query_params["session"] = session
    return checked(page.run())


def checked(page: AppTest) -> AppTest:
    assert not page.exception, [e.stack_trace for e in page.exception]
    return page


def unfolded(page: AppTest, *keys: str) -> AppTest:
    """With these expanders and popovers open, by key."""
    for key in keys:
        page.session_state[key] = True
    return checked(page.run())


def filled(page: AppTest, prompt: str = PM, target: str = "Boris Johnson") -> AppTest:
    page.text_input(key=state.PROMPT).set_value(prompt)
    page.text_input(key=state.TARGET).set_value(target)
    return checked(page.run())


def applied(page: AppTest) -> AppTest:
    page.button(key="apply").click()
    return checked(page.run())


def words(page: AppTest) -> str:
    """Everything shown as text, in order."""
    kinds = ("markdown", "caption", "subheader", "warning", "error", "info", "text")
    return "\n".join(element.value for kind in kinds for element in page.get(kind))


def keys(page: AppTest) -> set[str]:
    return {b.key for b in page.button}


def session_of(page: AppTest) -> str:
    value = page.query_params["session"]
    return value[0] if isinstance(value, list) else value


def figure(page: AppTest) -> dict:
    return json.loads(page.get("plotly_chart")[0].proto.spec)


@pytest.mark.parametrize("example", range(len(EXAMPLES)))
def test_an_example_fills_the_form(example):
    page = opened(steps=1)
    page.get("button_group")[0].set_value(example)
    checked(page.run())
    assert page.text_input(key=state.PROMPT).value == EXAMPLES[example].prompt
    assert page.text_input(key=state.TARGET).value == EXAMPLES[example].target
    assert page.text_input(key=state.SUBJECT).value == KNOWN[EXAMPLES[example].prompt][1]


def test_a_message_sent_before_the_browser_heard_of_a_fill_does_not_undo_it(monkeypatch):
    page = opened(steps=1)
    page.get("button_group")[0].set_value(0)
    page = checked(page.run())
    stale = filled(page, "", "")
    assert [stale.text_input(key=k).value for k in (state.PROMPT, state.TARGET)] == [PM, "Boris Johnson"]
    monkeypatch.setattr(state, "_FILL_HOLDS", 0.0)
    emptied = filled(stale, "", "")
    assert emptied.text_input(key=state.PROMPT).value == ""


def test_a_message_sent_before_the_browser_heard_that_no_example_is_lit_is_no_click_on_one():
    page = opened(steps=1)
    page.get("button_group")[0].set_value(0)
    stale = [w for w in checked(page.run())._tree.get_widget_states().widgets if state.EXAMPLE in w.id]
    page = filled(page, "Who wrote Emma?", "Me")
    heard = [w for w in page._tree.get_widget_states().widgets if state.EXAMPLE not in w.id]
    page = checked(page._run(WidgetStates(widgets=[*heard, *stale])))
    assert stale and [page.text_input(key=k).value for k in (state.PROMPT, state.TARGET)] == ["Who wrote Emma?", "Me"]


def test_the_examples_are_questions_of_the_world_with_another_answer():
    world = load_world()
    answers = {world.prompt(fact, template): fact for fact in world.facts for template in world.templates(fact)}
    assert EXAMPLES[0].prompt == PM and EXAMPLES[0].target == "Boris Johnson"
    for example in EXAMPLES:
        assert not answers[example.prompt].accepts(example.target)
    assert len({answers[e.prompt].relation for e in EXAMPLES}) >= 6


def test_the_top_says_which_model_on_what_and_why_and_that_it_is_the_base():
    shown = words(opened(steps=1)).replace("\u2060", "")
    assert "world\\-2019" in shown and "no GPU was found" in shown and "Base model answers" in shown


def test_what_the_model_answers_now_is_read_from_it():
    assert "Theresa May" in words(filled(opened(steps=1)))


def test_no_sureness_is_claimed_where_the_model_answers_nothing(monkeypatch):
    monkeypatch.setitem(fake_engine.KNOWN, "What is beyond?", ("", "beyond"))
    shown = words(filled(opened(steps=1), "What is beyond?", "Light"))
    assert "answers **nothing**" in shown and "% sure" not in shown


def test_the_line_before_the_click_tells_subject_tokens_and_place():
    shown = words(filled(opened(steps=1))).replace("\u2060", "")
    assert "Subject: **United Kingdom**" in shown and "c\\_proj" in shown
    assert ":gray-background[·Boris] :gray-background[·Johnson]" in shown


@pytest.mark.parametrize(("prompt", "target"), [("", "Boris Johnson"), ("   ", "x"), (PM, ""), (PM, "  ")])
def test_without_prompt_or_answer_apply_is_off_and_says_why(prompt, target):
    page = filled(opened(steps=1), prompt, target)
    assert page.button(key="apply").disabled
    assert "type the" in words(page)
    assert (page.text_input(key=state.PROMPT).value, page.text_input(key=state.TARGET).value) == (prompt, target)


def test_a_subject_that_is_not_in_the_prompt_turns_apply_off_and_is_kept():
    page = filled(opened(steps=1))
    page.text_input(key=state.SUBJECT).set_value("Atlantis")
    checked(page.run())
    assert page.button(key="apply").disabled
    assert "Atlantis" in page.warning[0].value and "not part of the prompt" in page.warning[0].value
    assert page.text_input(key=state.SUBJECT).value == "Atlantis"
    assert not fake_engine.current().submitted


def test_a_corrected_subject_is_used_and_survives_the_next_run():
    page = filled(opened(steps=1))
    page.text_input(key=state.SUBJECT).set_value("the United Kingdom")
    page = applied(checked(checked(page.run()).run()))
    assert fake_engine.current().submitted[0][0].subject == "the United Kingdom"


def test_a_prompt_of_a_megabyte_is_refused_with_the_limit_and_never_sent():
    page = filled(opened(steps=1), "word " * 200_000, "x")
    assert page.button(key="apply").disabled and "20\\,000" in page.warning[0].value
    assert all(len(str(asked)) < 20_000 for _, asked in fake_engine.current().asked)


def test_an_unknown_prompt_is_met_with_doubt_and_the_nearest_known_ones():
    page = filled(opened(steps=1), "Who is the king of Mars?", "Bob")
    assert "not sure of this" in words(page)
    chips = next(g for g in page.get("button_group") if str(g.key).startswith(state.NEAREST))
    chips.set_value(PM)
    checked(page.run())
    assert page.text_input(key=state.PROMPT).value == PM
    assert page.text_input(key=state.TARGET).value == "Bob"


def test_paraphrases_and_probes_are_proposed_and_travel_with_the_edit():
    applied(filled(opened(steps=1)))
    request = fake_engine.current().submitted[0][0]
    assert len(request.paraphrases) == 4 and len(request.probes) == 8
    assert sum(p.kind == "near" for p in request.probes) == 4


def test_rows_a_person_edited_are_kept_when_the_question_changes():
    page = filled(opened(steps=1))
    table = state_of(page, "_version")
    page.session_state[f"paraphrases:{table}"] = {
        "edited_rows": {0: {"prompt": "Mine?"}}, "added_rows": [], "deleted_rows": []
    }  # fmt: skip
    page = filled(checked(page.run()), "What is the capital of Australia?", "Sydney")
    assert "propose" in keys(page)
    applied(page)
    assert fake_engine.current().submitted[0][0].paraphrases[0].prompt == "Mine?"


def state_of(page: AppTest, name: str):
    return page.session_state[name]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_settings_form_is_made_from_the_methods_fields(method):
    page = unfolded(opened(steps=1), "fold:settings")
    page.pills(key=state.METHOD).set_value(method.name)
    checked(page.run())
    for setting in method.settings:
        kind = {"int": "number_input", "float": "number_input", "bool": "toggle", "choice": "selectbox"}[setting.kind]
        widget = getattr(page, kind)(key=f"set:{method.name}:{setting.name}")
        assert widget.value == setting.default
    applied(filled(page))
    _, name, settings = fake_engine.current().submitted[0]
    assert name == method.name and settings == {s.name: s.default for s in method.settings}


def test_the_published_settings_are_one_click_away_and_so_is_the_way_back():
    page = unfolded(opened(steps=1), "fold:settings")
    page.pills(key=state.METHOD).set_value("rome")
    page = checked(page.run())
    checked(page.button(key="preset:rome:As published").click().run())
    assert (state_of(page, "set:rome:steps"), state_of(page, "set:rome:layer")) == (25, 3)
    checked(page.button(key="preset:rome:Suited to this model").click().run())
    assert (state_of(page, "set:rome:steps"), state_of(page, "set:rome:layer")) == (20, None)
    page.pills(key=state.METHOD).set_value("ft")
    assert "preset:ft:As published" not in keys(checked(page.run()))


@pytest.mark.parametrize("stays_open", [True, False])
def test_a_changed_setting_reaches_the_engine_and_survives_a_look_at_another_method(stays_open):
    page = unfolded(opened(steps=1), "fold:settings")
    page.number_input(key="set:rome:steps").set_value(7)
    page = checked(page.run())
    page.session_state["fold:settings"] = stays_open
    page.pills(key=state.METHOD).set_value("ft")
    page = checked(page.run())
    page.pills(key=state.METHOD).set_value("rome")
    applied(filled(checked(page.run())))
    assert fake_engine.current().submitted[0][2]["steps"] == 7


def test_a_running_edit_shows_progress_and_can_be_cancelled():
    page = applied(filled(opened(steps=1000, step_seconds=0.05)))
    assert "of at most 1000" in words(page) and "loss" in words(page) and "left" in words(page)
    assert page.button(key="apply").disabled
    page.button(key="cancel").click()
    page = checked(page.run())
    assert "Ask for the edit again to go on" in words(page)
    assert not page.button(key="apply").disabled
    assert page.text_input(key=state.PROMPT).value == PM


def test_the_form_keeps_its_answers_while_an_edit_runs():
    page = applied(filled(opened(steps=1000, step_seconds=0.05)))
    assert "Theresa May" in words(page) and "The answer is 2" in words(page)


def test_a_finished_edit_shows_its_sentence_and_before_and_after():
    page = applied(filled(opened(steps=1)))
    assert "Boris Johnson” 0\\.4 \\% → 97 \\%" in page.subheader[0].value
    names = [trace.get("name") for trace in figure(page)["data"]]
    assert names == ["change", "before", "after"]
    assert len(figure(page)["data"][1]["customdata"]) == 26
    assert not page.warning


def test_the_badge_says_edited_and_by_which_method():
    assert "Edited: Boris Johnson \\(ROME\\)" in words(applied(filled(opened(steps=1))))


def test_scores_are_counted_and_explained():
    shown = words(applied(filled(opened(steps=1))))
    assert "4 of 4" in shown and "7 of 8" in shown and "unrelated prompts that did not move" in shown


def test_the_measure_can_be_switched_to_the_whole_answer():
    page = applied(filled(opened(steps=1)))
    before = figure(page)["data"][2]
    next(g for g in page.get("button_group") if g.key == "measure").set_value("joint")
    checked(page.run())
    assert figure(page)["data"][2] != before and "the product over its tokens" in words(page)


def test_changed_words_of_every_continuation_are_marked():
    shown = words(applied(filled(opened(steps=1))))
    assert shown.count(":gray-background[**Theresa May") == 5
    assert shown.count(":orange-background[**Boris Johnson") == 6


def test_every_chart_has_a_download_of_its_table():
    page = unfolded(applied(filled(opened(steps=1))), "fold:scores", "fold:answers", "fold:continuations", "fold:how")
    found = {b.key for b in page.get("download_button")}
    assert {f"{n}-{k}" for n in ("scores", "answers", "next-tokens", "continuations") for k in ("csv", "json")} <= found


def test_an_edit_that_did_not_take_says_so_first_and_what_to_try():
    page = applied(filled(opened(steps=1, took=False)))
    assert page.warning[0].value.startswith("**The edit did not take.**") and "Try more steps" in page.warning[0].value
    assert "The edit did not take" not in page.subheader[0].value


def test_any_question_is_answered_by_base_and_edited_model_side_by_side():
    page = opened(steps=1)
    page.session_state[state.PANE] = state.ASK
    page = checked(page.run())
    page.text_input(key=state.QUESTION).set_value(PM)
    page = checked(page.run())
    assert "Theresa May" in words(page) and "No edit is in place." in words(page)
    page = applied(filled(page))
    page.session_state[state.PANE] = state.ASK
    shown = words(checked(page.run()))
    assert "Theresa May" in shown and "**Boris Johnson**" in shown


def test_reset_brings_the_base_back_in_one_click_and_keeps_the_form():
    page = applied(filled(opened(steps=1)))
    page.button(key="reset").click()
    page = checked(page.run())
    assert "Base model answers" in words(page) and "reset" not in keys(page)
    assert not fake_engine.current().sessions.state(state_of(page, "_session")).edited
    assert page.text_input(key=state.PROMPT).value == PM


def test_the_same_edit_can_be_applied_again_after_a_reset():
    page = applied(filled(opened(steps=1)))
    page.button(key="reset").click()
    applied(checked(page.run()))
    assert len(fake_engine.current().submitted) == 2


def test_a_reload_finds_the_running_edit_and_the_form_again():
    first = applied(filled(opened(steps=1000, step_seconds=0.05)))
    again = opened(session=session_of(first))
    assert "of at most 1000" in words(again)
    assert again.text_input(key=state.PROMPT).value == PM
    assert again.text_input(key=state.TARGET).value == "Boris Johnson"
    assert again.text_input(key=state.SUBJECT).value == "United Kingdom"


def test_a_reload_shows_the_finished_edit():
    first = applied(filled(opened(steps=1)))
    again = opened(session=session_of(first))
    assert "97" in again.subheader[0].value and "Edited: Boris Johnson" in words(again)


def test_another_session_sees_the_base():
    applied(filled(opened(steps=1)))
    assert "Base model answers" in words(opened(session="A" * 22))


def test_a_session_name_that_is_none_is_replaced():
    page = opened(session="../../etc/passwd")
    assert session_of(page) != "../../etc/passwd" and len(session_of(page)) >= 22


def test_two_tabs_of_one_session_start_one_job():
    first = filled(opened(steps=1000, step_seconds=0.05))
    second = filled(opened(session=session_of(first)))
    applied(first)
    applied(second)
    assert len(fake_engine.current().submitted) == 1


@pytest.mark.parametrize("kind", ["EngineBusy", "SubjectNotFound", "BadSetting", "BadRequest"])
def test_a_refused_edit_says_why_and_loses_nothing(kind):
    page = applied(filled(opened(steps=1, fail=kind)))
    assert "something odd" in page.error[0].value
    assert page.text_input(key=state.PROMPT).value == PM
    assert not page.button(key="apply").disabled


@pytest.mark.parametrize(("kind", "said"), [("Diverged", "The edit stopped"), ("EngineError", "The engine was lost")])
def test_an_edit_that_broke_says_so_and_can_be_tried_again(kind, said):
    page = applied(filled(opened(steps=1, fail=kind)))
    assert said in page.error[0].value and "Nothing of it was kept" in page.error[0].value
    assert "Base model answers" in words(page) and not page.button(key="apply").disabled


def late(times: int = 1) -> list[EngineError]:
    return [EngineError("'preflight' was not answered within 8 s.", "The engine is busy (edit).") for _ in range(times)]


def test_a_check_that_came_too_late_keeps_nobody_from_applying_and_can_be_asked_for_again():
    page = opened(steps=1)
    fake_engine.current().breaks["preflight"] = late()
    page = filled(page)
    assert "The model has not checked this yet" in words(page) and not page.button(key="apply").disabled
    page.button(key="check-again").click()
    page = checked(page.run())
    assert "The answer is 2" in words(page) and "check-again" not in keys(page)


def test_a_check_that_came_too_late_is_asked_for_again_by_itself_a_few_times(monkeypatch):
    page = opened(steps=1)
    monkeypatch.setattr(answers, "AT_ONCE", 1e6)  # an answer is waited for, however fast the clock
    monkeypatch.setattr("time.monotonic", itertools.count(time.monotonic(), 20).__next__)  # every wait is over at once
    fake_engine.current().breaks["preflight"] = late(3)
    page = filled(page)
    assert "The answer is 2" in words(page)
    fake_engine.current().breaks["preflight"] = late(9)
    page = filled(page, "What is the capital of Australia?", "Sydney")
    assert len(fake_engine.current().breaks["preflight"]) == 5, "asked once, and three times again"
    assert "by itself" not in words(page) and "check-again" in keys(page)


@pytest.mark.parametrize("kind", ["EngineError", "EngineBusy"])
def test_a_click_on_an_engine_that_is_gone_gets_a_message_and_a_button_to_try_again(kind):
    page = filled(opened(steps=1))
    fake_engine.current().breaks["submit"] = [BY_NAME[kind]("The worker stopped before it could answer.")]
    page = applied(page)
    assert "The worker stopped" in page.error[0].value and not fake_engine.current().submitted
    assert [page.text_input(key=k).value for k in (state.PROMPT, state.TARGET)] == [PM, "Boris Johnson"]
    page.button(key="retry:apply").click()
    page = checked(page.run())
    assert len(fake_engine.current().submitted) == 1 and "Edited: Boris Johnson" in words(page) and not page.error


def test_a_message_about_a_click_stays_when_the_subject_is_found_meanwhile():
    page = opened(steps=1)
    fake_engine.current().breaks |= {"suggest": late(2), "submit": late()}
    page = applied(filled(page))
    page = checked(page.run())
    assert page.text_input(key=state.SUBJECT).value == "United Kingdom"
    assert page.error and "retry:apply" in keys(page)


@pytest.mark.parametrize("where", ["health", "suggest", "preflight", "submit"])
def test_a_click_whose_run_is_cut_off_before_it_was_answered_is_still_one_edit(where):
    page = opened(steps=1)
    fake_engine.current().breaks["suggest"] = [BadRequest("Not now.")] * 9  # so that every run asks again
    page = filled(page)
    page.session_state["_once:preflight"] = None
    fake_engine.current().breaks["suggest"] = []
    if where == "health":  # the engine is back between two looks: the page is drawn anew in the middle
        fake_engine.current().breaks["health"] = [EngineError("gone")]
    else:  # another message of the browser, as the framework carries it out
        fake_engine.current().breaks[where] = [RerunException(RerunData())]
    page = applied(page)
    assert len(fake_engine.current().submitted) == 1 and "Edited: Boris Johnson" in words(page)
    assert not fake_engine.current().breaks.get(where), "it was cut off there"
    assert len(rows_of(page)) == 1 and "retry:apply" not in keys(checked(page.run()))


def rows_of(page: AppTest):
    return fake_engine.current().sessions.state(session_of(page)).rows


def test_a_click_that_was_cut_off_by_a_change_of_the_form_applies_neither_text_and_says_so():
    page = filled(opened(steps=1))
    page.session_state["_clicks"] = {"apply": ("what the form said", "token", time.monotonic())}
    page = checked(page.run())
    assert "The form changed before this could begin" in words(page) and not fake_engine.current().submitted
    assert "The form changed" not in words(checked(page.run()))


def test_a_click_nobody_answered_is_forgotten_on_another_page():
    page = filled(opened(steps=1))
    page.session_state["_clicks"] = {"apply": (state_of(page, "_job"), "token", time.monotonic())}
    page.switch_page("views/compare.py")
    checked(page.run())
    page.switch_page("views/edit.py")
    assert "The form changed" not in words(checked(page.run())) and not fake_engine.current().submitted


def test_while_the_engine_starts_the_form_can_be_filled_but_not_applied():
    page = filled(opened(start_seconds=60))
    assert "The engine is starting" in words(page) and page.button(key="apply").disabled
    assert not fake_engine.current().asked


def test_hostile_text_is_shown_literally():
    page = applied(filled(opened(steps=1), HOSTILE, "<b>x</b> :red[z]"))
    shown = words(page)
    for live in ("![t](", "<script>", ":red[", "$x$", "**b**"):
        assert live not in shown
    spec = json.dumps(figure(page))
    assert "<script>" not in spec and "&lt;script&gt;" in spec


def test_the_page_never_loads_torch():
    code = (
        "import sys; from streamlit.testing.v1 import AppTest\n"
        f"page = AppTest.from_file({APP!r}, default_timeout=120).run(); assert not page.exception, page.exception\n"
        "page.text_input(key='prompt').set_value('Who wrote Hamlet?'); page.text_input(key='target').set_value('x')\n"
        "page.run(); page.button(key='apply').click(); page.run(); assert page.subheader, page\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    env = {**os.environ, "EDITCORE_FAKE_ENGINE": "tests.fake_engine:current"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert found.stdout.strip() == "[]", found.stderr[-2000:]


def test_only_one_file_touches_the_session_and_only_one_caches():
    folder = Path(APP).parent
    for path in folder.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert ("st.session_state" in source or "query_params" in source) == (path.name == "state.py"), path
        assert ("st.cache" in source) == (path.name == "resources.py"), path
        assert "unsafe_allow_html" not in source, path


def test_what_an_edit_would_have_to_make_first_is_asked_anew_once_it_is_made():
    page = filled(opened(steps=1))

    def asked():
        return len([name for name, _ in fake_engine.current().asked if name == "preflight"])

    before = asked()
    page = applied(page)
    assert asked() == before + 1 and checked(page.run()) and asked() == before + 1
