"""Parts of the page that are drawn alone or only when they are open."""

from __future__ import annotations

import pytest

from dashboard import frame, resources, state
from editcore.home import new_session
from editcore.records import EditRequest
from tests import fake_engine
from tests.fake_engine import PM
from tests.test_page import applied, checked, filled, fresh, opened, unfolded

__all__ = ["fresh"]


class Redrawn(Exception):
    """The whole page is drawn."""


@pytest.fixture
def alone(monkeypatch):
    """What stands on the page of a new session, drawn a moment ago."""

    def redraw():
        raise Redrawn

    fake_engine.install(steps=1000, step_seconds=0.05)
    resources.engine.clear()
    monkeypatch.setattr(frame.st, "rerun", redraw)
    session, health = new_session(), resources.health()
    return frame.Frame(session, health, frame.look(session, health)[0], None, None, None, None)


def test_a_part_drawn_alone_stays_alone_while_nothing_else_has_changed(alone):
    assert frame.still(alone) == alone


def test_a_part_drawn_alone_draws_the_whole_page_when_work_has_begun(alone):
    resources.engine().submit(alone.session, [EditRequest(PM, "Boris Johnson")], "rome", {}, "key")
    with pytest.raises(Redrawn):
        frame.still(alone)


def saved(page) -> set[str]:
    return {button.key for button in page.get("download_button")}


def test_what_is_folded_is_not_drawn_and_what_is_open_stays_open():
    page = applied(filled(opened(steps=1)))
    assert not saved(page) & {"scores-csv", "answers-csv", "report-json"}
    page = unfolded(page, "fold:scores")
    assert "scores-csv" in saved(page) and "answers-csv" not in saved(page)
    assert "scores-csv" in saved(checked(page.run()))


def test_the_rows_of_closed_tables_are_those_that_are_checked():
    asked = []
    for open_ones in ((), ("fold:checks",)):
        applied(unfolded(filled(opened(steps=1)), *open_ones))
        asked.append(fake_engine.current().submitted[0][0])
    closed, shown = asked
    assert closed.paraphrases and closed.probes and closed == shown


def test_a_person_starts_with_a_method_the_model_can_be_edited_with_and_keeps_what_was_clicked():
    cannot = {"rome": {"problem": "ROME cannot edit it: it is an encoder-decoder."}}
    page = checked(opened(steps=1, embedded=False, outlooks=cannot).run())
    assert page.pills(key=state.METHOD).value == "ft-l"
    page.pills(key=state.METHOD).set_value("rome")
    assert checked(checked(page.run()).run()).pills(key=state.METHOD).value == "rome"


def test_another_session_begins_without_the_rows_of_the_one_before():
    page = filled(opened(steps=1))
    assert any("6 paraphrases" in e.label or "4 paraphrases" in e.label for e in page.expander)
    page.query_params["session"] = new_session()
    assert any("0 paraphrases, 0 unrelated" in e.label for e in checked(page.run()).expander)
