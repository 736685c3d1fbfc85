"""The history beside the work: every edit of the session, switched, weakened, taken back, made again.

Widgets of a row carry the stored value in their key, so that undo, another tab and a reload are seen by them too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import streamlit as st

from dashboard import answers, charts, fold, models, remade, resources, results, state
from dashboard.frame import Frame
from dashboard.text import counted, duration, message, percent, plain, shorten
from editcore.course import course_rows, diagnose
from editcore.engine.contract import SessionState
from editcore.errors import EditcoreError
from editcore.history import STRONGEST, Move, Row
from editcore.records import Checkup, EditReport

UNDO = "Alt+Z"  # Ctrl+Z would be taken from the text fields too
BASE, EDITED, ONLY = "base", "edited", "only"
VIEWS = {BASE: "Base", EDITED: "Edited", ONLY: "Only this edit"}


def column(page: Frame) -> None:
    """The history in the sidebar: undo and redo, then the edits, the latest on top."""
    view, busy = page.view, page.running is not None
    with st.sidebar, st.container(key="history", gap="small"):
        st.markdown("##### History")
        _steps(view, busy)
        if not view.rows:
            st.caption("No edit is in place. Each one you apply appears here, on top of the one before: switch it off, "
                       "weaken it, take it back.")  # fmt: skip
            models.left_behind(view)
        for row in reversed(view.rows):
            _row(page, row, busy)
        if view.edited:
            _health(page)


def _health(page: Frame) -> None:
    """How the model fares with its edits: a warning when it gets worse, and the course behind it."""
    standing = [[r.edit, r.on, r.strength] for r in page.view.rows]
    try:
        course = _checkups(page, standing)
    except EditcoreError:
        return  # a chart that is not there must not stand in anybody's way
    numbers, checkups = [number for number, _ in course], [checkup for _, checkup in course]
    told = diagnose(checkups, numbers)
    if told:
        st.warning(plain(told.sentence), icon=":material/monitor_heart:")
    if course:
        since = numbers[told.start] if told else None
        fold.drawn("How the model is doing", "health", lambda: _course(checkups, numbers, since),
                   icon=":material/monitor_heart:")  # fmt: skip


def _checkups(page: Frame, standing: list[list[Any]]) -> tuple[tuple[int, Checkup], ...]:
    """The course of this session; what is not known of it yet is asked for."""
    known: tuple[tuple[int, Checkup], ...] | None = answers.remembered("course", standing)
    if known is not None:
        return known
    engine, session = resources.engine(), page.session
    latest = next(r.number for r in reversed(page.view.rows) if r.on and r.strength > 0)
    course = engine.sessions.course(session)
    if page.can_ask and (not course or course[-1][0] != latest):
        answers.asked("check_up", standing, lambda: engine.ask("check_up", resources.PATIENCE, session=session))
        course = engine.sessions.course(session)
    if course and course[-1][0] == latest:
        answers.once("course", standing, lambda: course)
    return course


def _course(checkups: list[Checkup], numbers: list[int], since: int | None) -> None:
    frame = pd.DataFrame(course_rows(checkups, numbers))
    held = sum(h.held for h in checkups[-1].held)
    st.caption(f"{held} of {counted(len(checkups[-1].held), 'edit')} hold now.")
    for gone in (h for h in checkups[-1].held if not h.held):
        st.caption(f":material/close: {plain(shorten(gone.prompt, 50))} no longer gives “{plain(gone.target)}”.")
    st.plotly_chart(charts.health_lines(frame, since), key="health", config=results.CHART,
                    alt="Edits that hold, unrelated answers that stayed, and perplexity, after each edit")  # fmt: skip
    results.downloads(frame, "health")


def _steps(view: SessionState, busy: bool) -> None:
    with st.container(horizontal=True, gap="medium"):
        st.button(
            "Undo", key="undo", icon=":material/undo:", shortcut=UNDO, type="tertiary", disabled=busy or not view.undo,
            help=f"Takes back: {plain(view.undo)}" if view.undo else "Nothing to take back",
            on_click=_change, args=(f"Taken back: {view.undo}. Redo brings it back.", "undo", view.session),
        )  # fmt: skip
        st.button(
            "Redo", key="redo", icon=":material/redo:", type="tertiary", disabled=busy or not view.redo,
            help=f"Does again: {plain(view.redo)}" if view.redo else "Nothing to do again",
            on_click=_change, args=(f"Done again: {view.redo}.", "redo", view.session),
        )  # fmt: skip


def _row(page: Frame, row: Row, busy: bool) -> None:
    session, rows = page.session, page.view.rows
    key, more = f"{row.edit}:{row.on}:{row.strength}", counted(row.requests - 1, "more", "more")
    name = f"{plain(shorten(row.target, 14))} and {more}" if row.requests > 1 else plain(shorten(row.target, 24))
    with st.container(border=True, gap=None, key=f"edit:{row.edit}"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.toggle(
                f"**#{row.number}** {name}", value=row.on, key=f"on:{key}", disabled=busy, width="stretch",
                on_change=_move, args=(session, Move("toggle", row.edit, float(not row.on))),
            )  # fmt: skip
            menu = st.popover("", icon=":material/more_horiz:", type="tertiary", width="content",
                              key=f"menu:{row.edit}", on_change="rerun",
                              help=f"What can be done with edit {row.number}")  # fmt: skip
            if menu.open:
                with menu:
                    _menu(page, row, busy)
        st.caption(_about(row))
        if row.note:
            st.caption(f"*{plain(row.note)}*")
        if row.shifted:
            st.caption(":material/info: What is beneath it has changed since it was computed.")
        if row.edit == next((r.edit for r in rows if r.shifted), ""):  # those above are made again with it
            _again(page, row)


def _about(row: Row) -> str:
    """Method, question and how it went."""
    strength = "" if row.strength == 1 else f"at {percent(row.strength)}"
    how = [title_of(row.method), "" if row.took else "did not take", strength]
    what = row.prompt if row.requests == 1 else row.sentence
    return f"{plain(', '.join(part for part in how if part))} · {plain(shorten(what, 60))}"


def _again(page: Frame, row: Row) -> None:
    """The button that computes an edit and all above it again, with their numbers on it."""
    made = remade.again(page.view.rows, row.edit)
    st.button(
        f"Compute {remade.names(made)} again", key=f"again:{row.edit}", icon=":material/refresh:", type="tertiary",
        disabled=page.running is not None or page.stranger, on_click=recompute, args=(page.session, row.edit),
        help=f"Makes {remade.names(made)} anew on what is in place beneath, about "
             f"{duration(sum(r.seconds for r in made))}. Then you see what changed; undo brings the old ones back.",
    )  # fmt: skip


def _menu(page: Frame, row: Row, busy: bool) -> None:
    session, rows = page.session, page.view.rows
    st.button("Show its result", key=f"show:{row.edit}", icon=":material/visibility:", on_click=_show,
              args=(row.edit,), width="stretch")  # fmt: skip
    percent = round(100 * row.strength)
    key = _slider_key(row.edit, percent)
    st.slider(
        "Strength, %", 0, round(100 * STRONGEST), percent, step=5, key=key, disabled=busy, on_change=_scale,
        args=(session, row.edit, key), help="100 % is the edit as it was computed, 0 % is off.",
    )  # fmt: skip
    st.text_input("Note", row.note, key=f"note:{row.edit}:{row.note}", max_chars=200, placeholder="for yourself",
                  on_change=_annotate, args=(session, row.edit, f"note:{row.edit}:{row.note}"))  # fmt: skip
    if row.shifted and row.edit != next(r.edit for r in rows if r.shifted):
        _again(page, row)
    place = [r.edit for r in rows].index(row.edit)
    with st.container(horizontal=True, gap="small"):
        for words, icon, kind, possible in (
            ("Later", "arrow_upward", "down", place < len(rows) - 1), ("Earlier", "arrow_downward", "up", place > 0),
        ):  # fmt: skip
            st.button(
                words, key=f"{kind}:{row.edit}", icon=f":material/{icon}:", disabled=busy or not possible,
                on_click=_move, args=(session, Move(kind, row.edit)), help=f"Moves it {words.lower()} in the order",
            )  # fmt: skip
        st.button("Remove", key=f"remove:{row.edit}", icon=":material/delete:", disabled=busy,
                  on_click=_move, args=(session, Move("remove", row.edit)))  # fmt: skip


def _slider_key(edit: str, percent: int) -> str:
    """The slider that was moved here stays the same one, so that an arrow key can be pressed again; any other change
    of the stored value brings a new one."""
    moved_to, key, moves = state.value(f"_strength:{edit}", (None, "", 0))
    return str(key) if moved_to == percent else f"strength:{edit}:{percent}:{moves}"


def title_of(method: str) -> str:
    """A method as people call it."""
    return {m.name: m.title for m in resources.methods()}.get(method, method)


# What a click does.


def _try(act: Callable[[], object], done: str = "") -> None:
    try:
        act()
    except EditcoreError as error:
        st.toast(message(str(error)), icon=":material/error:")
        return
    if done:
        st.toast(message(done), icon=":material/history:")


def _change(done: str, what: str, session: str) -> None:
    sessions = resources.engine().sessions
    _try(lambda: sessions.undo(session) if what == "undo" else sessions.redo(session), done)


def _move(session: str, move: Move) -> None:
    done = "Removed. Undo brings it back." if move.kind == "remove" else ""
    _try(lambda: resources.engine().sessions.move(session, move), done)


def _scale(session: str, edit: str, key: str) -> None:
    percent = int(state.value(key))
    _, _, moves = state.value(f"_strength:{edit}", (None, "", 0))
    state.leave(f"strength:{edit}", (percent, key, moves + 1))
    _move(session, Move("scale", edit, percent / 100))


def _annotate(session: str, edit: str, key: str) -> None:
    _try(lambda: resources.engine().sessions.annotate(session, edit, state.text(key)))


def _show(edit: str) -> None:
    state.show_edit(edit)


def recompute(session: str, edit: str) -> None:
    """Make an edit and all above it again."""
    key = state.digest(["recompute", edit, state.attempt()])
    _try(lambda: state.watch(resources.engine().recompute(session, edit, key), "edit"))


# Which model answers.


def shown_row(view: SessionState) -> Row:
    """The edit whose result is on the page: the one a person chose, else the latest."""
    return next((row for row in view.rows if row.edit == state.shown_edit()), view.rows[-1])


def result(page: Frame) -> None:
    """An edit's result as the chosen model answers, with the switch that chooses it."""
    row = shown_row(page.view)
    remade.changes(resources.remade(page.session, row.edit), page.view.rows)
    reports = resources.reports(page.session, row.edit)
    number = int(state.value(f"request:{row.edit}") or 0)
    which = str(state.value("view") or EDITED)
    as_made = which != BASE and _as_made(row, page.view)
    told, trouble = (None, "") if as_made else _read(page, row, which, number)

    def switch() -> None:
        if row.requests > 1:
            st.selectbox(
                f"Which of the {row.requests} edits of this patch", range(row.requests), key=f"request:{row.edit}",
                format_func=lambda i: f"{i + 1}. {shorten(reports[i].request.prompt, 60)} {reports[i].request.target}",
            )  # fmt: skip
        st.segmented_control(
            "Which model answers", list(VIEWS), key="view", format_func=VIEWS.__getitem__, default=EDITED,
            required=True, persist_state="session", help="What follows leads from the base model to this one.",
        )  # fmt: skip
        st.caption(trouble or _which_line(which, row, page.view))

    results.show(told or reports[number], told is None, switch)


def _read(page: Frame, row: Row, which: str, number: int) -> tuple[EditReport | None, str]:
    """What the engine reads for this view, or why it cannot now."""
    standing = [[r.edit, r.on, r.strength] for r in page.view.rows]
    asked = [row.edit, number, which, standing]
    told: EditReport | None = answers.remembered("view", asked)
    if told is not None:
        return told, ""
    if not page.can_ask:
        why = "The engine is at work" if page.health.state == "ready" else "The engine is not ready yet"
        why = "Another model is open" if page.stranger else why
        return None, f":material/hourglass_top: {why}; this is how it was when it was made."
    view = resources.engine().view
    try:
        told = answers.asked("view", asked, lambda: view(page.session, row.edit, which, number))
        return told, "" if told else ":material/hourglass_top: Being read again; this is how it was when it was made."
    except EditcoreError as error:
        return None, f":material/block: {message(str(error))}"


def _as_made(row: Row, view: SessionState) -> bool:
    """True when this edit alone is in place, as it was computed: then nothing has to be read again."""
    return len(view.rows) == 1 and row.on and row.strength == 1 and not row.shifted


def _which_line(which: str, row: Row, view: SessionState) -> str:
    counting = [r for r in view.rows if r.on and r.strength > 0]
    if which == BASE:
        return "The base model answers, before and after: nothing is in place."
    if which == ONLY:
        return f"○ the base model, ● the model with edit #{row.number} alone, at {percent(row.strength)}."
    if not counting:
        return "Every edit is switched off: the base model answers, before and after."
    names = ", ".join(f"#{r.number}" + (f" at {percent(r.strength)}" if r.strength != 1 else "") for r in counting)
    return f"○ the base model, ● the model with everything in place: {names}."
