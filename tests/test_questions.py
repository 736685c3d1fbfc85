"""No page waits for a model at work: questions on threads of their own, and few pages drawn at once."""

from __future__ import annotations

import threading
import time

import pytest

from dashboard import answers, resources, state
from dashboard.questions import Questions
from dashboard.turns import Turns
from tests import fake_engine
from tests.fake_engine import PM
from tests.test_page import fresh, opened  # noqa: F401  (a fixture)


@pytest.fixture
def questions():
    made = Questions()
    yield made
    made.close()


def test_an_answer_that_takes_long_is_not_waited_for_and_is_there_later(questions):
    may, calls = threading.Event(), []

    def slow():
        calls.append(1)
        may.wait(30)
        return "late"

    assert not questions.put("me", "what", slow, 0.0).done()
    assert not questions.answered("me")
    assert not questions.put("me", "what", slow, 0.0).done()
    may.set()
    assert questions.put("me", "what", slow, 30).result() == "late"
    assert calls == [1]
    assert questions.answered("me")


def test_an_answer_is_handed_out_once_unless_it_holds_for_everybody(questions):
    for lasting, asked in ((False, 3), (True, 1)):
        calls: list[int] = []
        for place in ("me", "me", "you"):
            made = questions.put(place, f"what {lasting}", lambda calls=calls: calls.append(1) or 7, 30, lasting)
            assert made.result() == 7
        assert len(calls) == asked


def test_a_newer_question_takes_the_place_of_an_older_one(questions):
    may = threading.Event()
    old = questions.put("me", "old", lambda: may.wait(30), 0.0)
    assert questions.put("me", "new", lambda: "new", 30).result() == "new"
    may.set()
    assert old.result(30)


def test_what_went_wrong_is_raised_and_asked_again(questions):
    def wrong():
        raise ValueError("no")

    with pytest.raises(ValueError):
        questions.put("me", "what", wrong, 30, lasting=True).result()
    assert questions.put("me", "what", lambda: 1, 30, lasting=True).result() == 1


def test_no_more_threads_than_allowed_have_a_turn_and_a_lent_one_is_used_by_another():
    turns, now, most, lock = Turns(at_once=2, patience=30), 0, 0, threading.Lock()

    def draw():
        nonlocal now, most
        with turns.taken():
            with lock:
                now, most = now + 1, max(most, now + 1)
            time.sleep(0.01)
            with lock:
                now -= 1
            with turns.lent():
                time.sleep(0.001)

    threads = [threading.Thread(target=draw) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 2
    with turns.taken(), turns.lent(), Turns.taken(turns):
        pass  # whoever waits lends his turn even to himself


def test_nobody_waits_for_ever_for_a_turn():
    turns = Turns(at_once=1, patience=0.01)
    with turns.taken():
        other = threading.Thread(target=lambda: turns.taken().__enter__())
        other.start()
        other.join(30)
        assert not other.is_alive()


def test_the_page_is_drawn_while_the_model_is_still_thinking(monkeypatch):
    may = threading.Event()
    page = opened(steps=0)
    monkeypatch.setattr(answers, "AT_ONCE", 0.3)
    engine = fake_engine.current()
    answer = engine.ask

    def slow(name, *args, **arguments):
        if name in ("preflight", "suggest"):
            may.wait(30)
        return answer(name, *args, **arguments)

    monkeypatch.setattr(engine, "ask", slow)
    page.text_input(key=state.PROMPT).set_value(PM)
    page.text_input(key=state.TARGET).set_value("Boris Johnson").run()
    assert page.button(key="apply").disabled
    assert any("Checking" in caption.value for caption in page.caption)
    may.set()
    end = time.monotonic() + 30
    while page.button(key="apply").disabled and time.monotonic() < end:
        page.run()
    assert not page.button(key="apply").disabled
    assert resources.questions().answered("nobody's")
