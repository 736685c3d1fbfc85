"""The page: a question, the corrected answer, and what changed in the model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard import (
    answers,
    ask,
    beliefs,
    fold,
    forms,
    frame,
    history,
    prepare,
    request,
    resources,
    results,
    state,
    takeaway,
)
from dashboard.frame import Frame
from dashboard.text import duration, message, percent, plain, reading, shorten, size, token
from editcore.assets import WORLD_NAME
from editcore.engine.contract import AGAIN
from editcore.errors import EditcoreError, EngineError
from editcore.gate import check_request
from editcore.records import EditRequest, MethodInfo, Preflight, from_plain, to_plain

_TOKENS_SHOWN = 12  # of an answer, before it is opened
POLL, QUEUED = 0.3, 1.5  # seconds between two looks at a running job, and at one with others before it
_ASK_AGAIN = (2.0, 5.0, 10.0)  # seconds after which an unanswered check is asked for again
_FIRST_LOOK = 0.9  # seconds the first look stays, so that a quick edit needs no second one


def main() -> None:
    """Everything, from top to bottom."""
    page = frame.open_page("edit")
    request.example_chips()
    left, right = st.columns((5, 7), gap="large")
    with left:
        now = form(page)
    with right:
        pane(now)
    history.column(now)
    takeaway.corner(now)
    frame.await_answers()
    if now is not page:  # Apply was clicked, and what stands before it was drawn too early to know
        st.rerun()
    if not page.view.rows:
        results.fetch_ahead()


# The form.


def form(page: Frame) -> Frame:
    """Prompt, answer, subject, method, settings, checks, what will happen, Apply; returns what the click made of it."""
    prompt, target, subject, form = request.fields(page)
    methods, model = resources.methods(), page.health.model
    known = model is None or model.embedded  # which every method can edit
    names = [m.name for m in methods]
    method = forms.method_choice(methods, answers.refused(names) if known else request.unsuited(names, page))
    box = fold.box(f"Settings of {plain(method.title)}", "settings")
    with box:
        settings = forms.settings_form(method) if box.open else forms.settings_of(method)
        corner = st.container()
    request.error_beside("settings")
    paraphrases, probes = request.checks(prompt, target)
    wanted = EditRequest(prompt, target, subject, None, paraphrases, probes, form)
    reason = preflight(wanted, method, settings, page, corner)
    prepare.unsuccessful(method, page)
    if request.sender(
        "Apply edit", "apply", icon=":material/edit:", width="stretch", disabled=bool(reason) or not page.can_ask,
        help=plain(reason) or None,
    ):  # fmt: skip
        page = apply(page, wanted, method, settings)
    request.error_beside("", "", "apply")
    state.keep_draft(paraphrases, probes)
    return page


def preflight(
    wanted: EditRequest, method: MethodInfo, settings: dict[str, Any], page: Frame, corner: DeltaGenerator
) -> str:
    """Says what the click will do; returns why it cannot be done, or an empty text.

    Args:
        corner: place beside the settings, for the offer to find out where to edit.
    """
    with st.container(border=True, gap="xsmall", key="preflight"):
        if not wanted.prompt or not wanted.target:
            missing = "prompt" if not wanted.prompt else "corrected answer"
            st.caption(f"Before the edit: type the {missing}, or pick an example above.")
            return f"The {missing} is empty."
        try:
            check_request(wanted, method.name, settings)
            asked = [to_plain(wanted), method.name, settings]
            told = answers.remembered("preflight", asked)
            if told is None and not page.can_ask:
                st.caption(frame.busy(page))
                return ""
            ask, given = resources.engine().ask, {"request": asked[0], "method": method.name, "settings": settings}
            if told is None and not answers.awaited("suggest"):  # which completes the request
                told = answers.asked("preflight", asked, lambda: ask("preflight", resources.PATIENCE, **given))
            if told is None:
                st.caption(f":material/hourglass_top: {frame.CHECKING}")
                return frame.CHECKING
            plan = from_plain(Preflight, told)
        except EngineError as error:
            unchecked(state.digest(asked), str(error))
            return ""
        except EditcoreError as error:
            st.warning(message(str(error)), icon=":material/block:")
            return str(error)
        if plan.training is not None:
            prepare.offer(method, plan.training, page)
            return plan.problems[0]
        if plan.finding is not None:
            with corner:
                prepare.offer_to_locate(plan.finding, page)
        return _plan(plan)


def unchecked(asked: str, why: str) -> None:
    """The engine did not say what the click will do: it is asked again, a few times by itself, then by a button."""
    before, failures = state.value("_unchecked", ("", 0))
    failures = failures + 1 if before == asked else 1
    state.leave("unchecked", (asked, failures))
    again = " It is asked again by itself." if failures <= len(_ASK_AGAIN) else ""
    st.caption(f":material/hourglass_top: The model has not checked this yet.{again} You can apply it unchecked.",
               help=message(why))  # fmt: skip
    st.button("Check again", key="check-again", icon=":material/refresh:", type="tertiary",
              on_click=check_again)  # fmt: skip
    if again:
        wait_to_check(time.monotonic() + _ASK_AGAIN[failures - 1])


def check_again() -> None:
    """The page asks at once, and counts from the beginning."""
    state.take("unchecked")


@st.fragment(run_every=1.0)
def wait_to_check(due: float) -> None:
    """Draws nothing; the page asks again when it is due."""
    if time.monotonic() >= due:
        st.rerun()


def _plan(plan: Preflight) -> str:
    for problem in plan.problems:
        st.warning(message(problem), icon=":material/block:")
    if plan.problems:
        _nearest(plan.nearest)
        return plan.problems[0]
    if not plan.known:
        st.markdown(f":material/help: The model is not sure of this (p = {percent(plan.old_probability)}). "
                    "Editing works best on what it knows.")  # fmt: skip
        _nearest(plan.nearest)
    source = plan.subject_source if state.corrected_subject() is None and plan.subject_source != "given" else ""
    source = f" ({plain(source)})" if source else ""
    subject = f"Subject: **{plain(plan.subject)}**{source}. " if plan.subject else ""
    tokens, left = _tokens(plan.target_tokens[:_TOKENS_SHOWN]), len(plan.target_tokens) - _TOKENS_SHOWN
    more = f" and {left} more" if left > 0 else ""
    st.markdown(f"{subject}The answer is {len(plan.target_tokens)} "
                f"{'token' if len(plan.target_tokens) == 1 else 'tokens'}: {tokens}{more}")  # fmt: skip
    where = f"Edits {plain(shorten(', '.join(plan.modules), 90))}" if plan.modules else "Edits no matrix"
    where += f" ({plain(plan.layer_source)})" if plan.modules and plan.layer_source else ""
    # The first edit of a method has no time to be guessed from.
    takes = f"about {duration(plan.seconds)}, " if plan.seconds is not None else ""
    st.caption(f"{where}; {takes}{size(plan.memory)} more memory, a patch of {size(plan.bytes)}.")
    for line in (*plan.warnings, *((plan.prepare,) if plan.prepare else ())):
        st.caption(f":material/info: {message(line)}")
    if plan.text:
        fold.drawn("What the model reads", "reads", lambda: _reads(plan))
    return ""


def _reads(plan: Preflight) -> None:
    """The exact text in front of the model, and every token of a long answer."""
    st.code(reading(plan.text, plan.answer), language=None, wrap_lines=True)
    st.caption("▏is where the answer begins, · a space in front of it, ⏎ a line end.")
    if len(plan.target_tokens) > _TOKENS_SHOWN:
        st.markdown(f"The {len(plan.target_tokens)} tokens of the answer: {_tokens(plan.target_tokens)}")


def _tokens(tokens: Sequence[str]) -> str:
    return " ".join(f":gray-background[{plain(token(t))}]" for t in tokens)


def _nearest(prompts: tuple[str, ...]) -> None:
    if prompts:
        key = f"{state.NEAREST}:{state.digest(prompts)}"
        st.pills("It does know:", prompts, key=key, format_func=plain, on_change=use_nearest, args=(key,), wrap=True)


def use_nearest(key: str) -> None:
    """A prompt the model does know replaces the one it does not."""
    if state.value(key):
        state.fill(str(state.value(key)), state.text(state.TARGET))


def apply(page: Frame, wanted: EditRequest, method: MethodInfo, settings: dict[str, Any]) -> Frame:
    """Hand the edit to the engine and look at it from now on; the same click twice is one job."""
    key = state.digest([to_plain(wanted), method.name, settings, state.attempt("apply")])
    state.forget_error()
    try:
        with resources.turns().lent():  # while the engine is restarted this takes long
            job = resources.engine().submit(page.session, [wanted], method.name, settings, key)
    except EditcoreError as error:
        state.remember_error(type(error).__name__, str(error), "apply")
        state.answered("apply")
        st.rerun()
    state.watch(job, "edit")
    state.watch("", "preparation")
    state.answered("apply")
    return replace(page, edit=frame.poll(job))


# The right side: what is going on, what came out, what the model believes.


@st.fragment
def pane(page: Frame) -> None:
    """Progress and result, the facts the model knows, or a question to it; what is clicked there redraws only this."""
    alone = answers.begin_part()
    if alone:
        page = frame.still(page)
    health, view, busy = page.health, page.view, page.running is not None
    embedded = health.model.embedded if health.model else resources.engine().opening.model == WORLD_NAME
    names = [state.RESULT, *([state.BELIEFS] if embedded else []), state.ASK]
    if not state.known(state.PANE) or state.value(state.PANE) not in names:
        state.set_widget(state.PANE, state.RESULT if view.edited or page.edit or not embedded else state.BELIEFS)
    drawn = {
        state.RESULT: lambda: outcome(page),
        state.BELIEFS: lambda: beliefs.browser(health.model, busy),
        state.ASK: lambda: st.caption(frame.busy(page)) if page.stranger else ask.box(view, health, busy),
    }
    for name, tab in zip(names, st.tabs(names, key=state.PANE, on_change="rerun"), strict=True):
        if tab.open:
            with tab:
                drawn[name]()
    if alone:
        frame.await_answers("view")


def outcome(page: Frame) -> None:
    """The running edit, or how the last edit ended, then the edit in force."""
    view, job = page.view, page.edit
    if job and not job.finished:
        far = job.status == "queued" and job.position > 1
        st.fragment(progress, run_every=QUEUED if far else POLL)(job.job, far)
        return
    if job and job.status in ("failed", "lost"):
        words = "The engine was lost during the edit." if job.status == "lost" else "The edit stopped."
        st.error(f"{words} {message(job.error)} Nothing of it was kept.", icon=":material/error:")
        if job.status == "lost" and job.kind in AGAIN:
            frame.run_again(page.session, job.job, busy=page.running is not None)
    elif job and job.status == "cancelled":
        st.info(message(job.error), icon=":material/cancel:")
    if view.rows:
        history.result(page)
    elif not job or job.status == "done":
        st.caption("Apply an edit, and this is where its result appears: whether it took, what else moved, "
                   "and the model's words before and after.")  # fmt: skip


def progress(job_id: str, far: bool) -> None:
    """Stage, step, loss and time left, drawn in place; the page is redrawn once when the job ends.

    Args:
        far: the job had others before it; the page is redrawn when it is next, to look more often.
    """
    with st.container(height=150, border=True, key="progress"):
        words, bar = st.empty(), st.empty()
        st.button("Cancel", key="cancel", icon=":material/close:", on_click=frame.cancel, args=(job_id,))
        until = time.monotonic() + (_FIRST_LOOK if state.first_look(job_id, "progress") else 0)
        drawn = -math.inf
        while not (job := resources.engine().poll(job_id, after=10**9)).finished:
            now = time.monotonic()
            if now - drawn >= frame.REDRAWN:
                drawn, step = now, job.progress
                words.markdown(plain(frame.progress_line(job)))
                bar.progress(min(1.0, step.step / step.steps) if step and step.steps else 0.0)
            if far and (job.status != "queued" or job.position <= 1):
                break
            if now >= until:
                return
            with resources.turns().lent():
                time.sleep(0.05)
    st.rerun()


main()
