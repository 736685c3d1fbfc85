"""The page Compare: one request through several methods, and which of them changed the fact and nothing else."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException

from dashboard import (
    answers,
    charts,
    compared,
    fold,
    forms,
    frame,
    history,
    request,
    resources,
    results,
    state,
    takeaway,
)
from dashboard.frame import Frame
from dashboard.made import Picture
from dashboard.text import counted, duration, message, percent, plain, shorten
from editcore.engine.contract import JobState
from editcore.errors import EditcoreError
from editcore.gate import check_plans
from editcore.records import EditReport, EditRequest, MethodInfo, Outcome, to_plain

POLL = 0.3  # seconds between two looks at a running comparison
PREFERRED = ("ft", "ft-l", "ft-replay", "enn", "mend", "rome")  # one example, bounded, replayed, learned, located
MOST_CHOSEN = 6  # methods chosen to start with


def main() -> None:
    """Everything, from top to bottom."""
    page = frame.open_page("comparison")
    if state.take("kept"):
        st.switch_page("views/edit.py")
    request.example_chips()
    form(page)
    outcome(page)
    history.column(page)
    takeaway.corner(page)
    frame.await_answers()


# What is compared.


def form(page: Frame) -> None:
    """Request, methods, what comes first, Compare."""
    prompt, target, subject, form = request.fields(page, across=True)
    plans = choice(resources.methods(), page)
    request.error_beside("settings")
    paraphrases, probes = request.checks(prompt, target)
    wanted = EditRequest(prompt, target, subject, None, paraphrases, probes, form)
    reason = refused(wanted, plans)
    if reason:
        st.caption(f":material/block: {plain(reason)}")
    else:
        outlook(wanted, plans, page)
    label = f"Compare {counted(len(plans), 'method')}" if plans else "Compare"
    if request.sender(
        label, "compare", icon=":material/compare_arrows:", disabled=bool(reason) or not page.can_ask,
        help=plain(reason) or None,
    ):  # fmt: skip
        start(page.session, wanted, plans)
    request.error_beside("", "", "compare")
    state.keep_draft(paraphrases, probes)


def choice(methods: Sequence[MethodInfo], page: Frame) -> list[tuple[str, dict[str, Any]]]:
    """The chosen methods in the order of the menu, with the settings that are not left to the model."""
    names = [m.name for m in methods]
    proposing = not state.known(state.METHODS) or state.value(state.METHODS) == state.value("_proposed_methods")
    out = request.unsuited(names, page) if proposing else answers.refused(names)
    if proposing:
        state.leave("proposed_methods", default_methods([n for n in names if n not in out]))
        state.set_widget(state.METHODS, state.value("_proposed_methods"))
    elif set(state.value(state.METHODS) or ()) - set(names):
        state.set_widget(state.METHODS, [n for n in state.value(state.METHODS) if n in names])
    by_name = {m.name: m for m in methods}
    chosen = st.pills(
        "Methods", names, key=state.METHODS, format_func=lambda n: forms.label(by_name[n], out), selection_mode="multi",
        wrap=True, persist_state="session",
        help="  \n".join(f"**{plain(m.title)}**: {plain(m.sentence)}" for m in methods),
    )  # fmt: skip
    picked = [m for m in methods if m.name in (chosen or ())]
    own = {m.name: changed for m in picked if (changed := forms.changed_settings(m))}
    if not own:
        return [(m.name, {}) for m in picked]
    listed = "; ".join(
        f"{by_name[n].title}: " + ", ".join(f"{k} {v}" for k, v in values.items()) for n, values in own.items()
    )
    used = st.toggle(
        f"With my settings from the page Edit ({plain(shorten(listed, 120))})", key="own_settings",
        persist_state="session", help="Off: the settings that suit this model.",
    )  # fmt: skip
    return [(m.name, own.get(m.name, {}) if used else {}) for m in picked]


def default_methods(names: Sequence[str]) -> list[str]:
    """Up to six to start with: the preferred ones, then whatever else the menu has."""
    wanted = [n for n in PREFERRED if n in names] + [n for n in names if n not in PREFERRED]
    return [n for n in names if n in wanted[:MOST_CHOSEN]]


def refused(wanted: EditRequest, plans: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Why this cannot be compared, or an empty text."""
    if not wanted.prompt or not wanted.target:
        missing = "prompt" if not wanted.prompt else "corrected answer"
        return f"Type the {missing}, or pick an example above."
    try:
        check_plans(wanted, plans)
    except EditcoreError as error:
        return str(error)
    return ""


def outlook(wanted: EditRequest, plans: Sequence[tuple[str, dict[str, Any]]], page: Frame) -> None:
    """How long it takes, what has to be prepared first, and which method cannot run."""
    asked = [to_plain(wanted), plans, page.comparison.job if page.comparison else ""]
    told = answers.remembered("outlook", asked)
    if told is None and not page.can_ask:
        st.caption(frame.busy(page))
        return
    ask, methods = resources.engine().ask, [list(plan) for plan in plans]
    try:
        told = told or answers.asked(
            "outlook", asked, lambda: ask("outlook", resources.PATIENCE, request=asked[0], methods=methods)
        )
    except EditcoreError as error:
        st.caption(f":material/info: {message(str(error))}")
        return
    if told is None:
        st.caption(f":material/hourglass_top: {frame.CHECKING}")
        return
    seconds = [row["seconds"] for row in told if not row["problem"]]
    known = f", about {duration(sum(seconds))}" if seconds and None not in seconds else ""
    start = plain(frame.standing(page.view))
    st.caption(f"Every method starts from {start}, one after another{known}. Nothing is applied.")
    for row in told:
        if row["problem"] or row["prepare"]:
            icon = "block" if row["problem"] else "hourglass_top"
            st.caption(f":material/{icon}: **{plain(title_of(row['method']))}**: "
                       f"{plain(row['problem'] or row['prepare'])}")  # fmt: skip


def start(session: str, wanted: EditRequest, plans: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Hand the comparison to the engine; the same click twice is one job."""
    key = state.digest(["compare", to_plain(wanted), plans, state.attempt("compare")])
    state.forget_error()
    try:
        job = resources.engine().compare(session, wanted, plans, key)
    except EditcoreError as error:
        state.remember_error(type(error).__name__, str(error), "compare")
    else:
        state.watch(job, "comparison")
    state.answered("compare")
    st.rerun()


def titles() -> dict[str, str]:
    """Method name -> what people call it."""
    return {m.name: m.title for m in resources.methods()}


def title_of(name: str) -> str:
    """What people call this method."""
    return titles().get(name, name)


# What came out.


def outcome(page: Frame) -> None:
    """The running comparison, or the last one."""
    job = page.comparison
    if job and not job.finished:
        live(job.job)
        return
    if job is None:
        st.caption("Compare, and this is where the methods appear side by side: what each changed, what it left alone, "
                   "what it cost.")  # fmt: skip
        results.fetch_ahead()
        return
    if job.status in ("failed", "lost"):
        words = "The engine was lost during the comparison." if job.status == "lost" else "The comparison stopped."
        st.error(f"{words} {message(job.error)}", icon=":material/error:")
        if job.status == "lost":
            frame.run_again(page.session, job.job, busy=page.running is not None)
    elif job.status == "cancelled":
        kept = f"{counted(len(job.outcomes), 'result')} of {len(job.methods)} kept." if job.outcomes else ""
        st.info(f"Cancelled. {kept}", icon=":material/cancel:")
    if job.outcomes:
        verdict(job)
        standings(job, picking=True)
        picked(page, job)
        pictures(job)


@st.fragment(run_every=POLL)
def live(job_id: str) -> None:
    """Which method runs and how far it is, over the rows that are there; redrawn whenever one lands."""
    with st.container(height=150, border=True, key="progress"):
        words, bar = st.empty(), st.empty()
        st.button("Cancel", key="cancel", icon=":material/close:", on_click=frame.cancel, args=(job_id,))
    shown = job = frame.poll(job_id)
    if job and not job.finished:
        standings(job)
    until, drawn = time.monotonic() + frame.LOOK, -math.inf
    while job and shown and not job.finished and len(job.outcomes) == len(shown.outcomes):
        now = time.monotonic()
        if now - drawn >= frame.REDRAWN:
            drawn = now
            words.markdown(line(job))
            bar.progress(progress_share(job))
        if now >= until:
            return
        with resources.turns().lent():
            time.sleep(0.05)
        job = frame.poll(job_id)
    if job and not job.finished:
        with contextlib.suppress(StreamlitAPIException):  # the whole page is being drawn, not this part alone
            st.rerun(scope="fragment")
    st.rerun()


def line(job: JobState) -> str:
    """One job in words, the method that runs in front."""
    done = len(job.outcomes)
    said = frame.progress_line(job)
    if job.status != "running" or done >= len(job.methods):
        return plain(said)
    head = f"**{plain(title_of(job.methods[done]))}**, method {done + 1} of {len(job.methods)}"
    reading = not job.progress or job.progress.stage == "read"
    return head if reading else f"{head}. {plain(said)}"


def progress_share(job: JobState) -> float:
    """How far the job is, in [0, 1]."""
    step = job.progress
    within = step.step / step.steps if step and step.steps and step.stage == "edit" else 0.0
    return min(1.0, (len(job.outcomes) + min(1.0, within)) / max(1, len(job.methods)))


def verdict(job: JobState) -> None:
    """Which request this was, and who did best."""
    reports = [o.report for o in job.outcomes if o.report]
    if reports:
        asked = reports[0].request
        st.caption(f"{plain(asked.prompt)} → {plain(asked.target)}; {counted(len(job.outcomes), 'method')} "
                   f"in {duration(job.seconds)}")  # fmt: skip
    winners = compared.best(job.outcomes)
    with st.container(key="verdict"):
        st.subheader(plain(verdict_line(job.outcomes, winners)), anchor=False)
    for failed in (o for o in job.outcomes if o.report is None):
        st.warning(
            f"**{plain(title_of(failed.method))}** did not run. {message(failed.error)}", icon=":material/report:"
        )


def verdict_line(outcomes: Sequence[Outcome], winners: Sequence[Outcome]) -> str:
    """The comparison in one sentence."""
    if not any(o.report for o in outcomes):
        return "No method ran."
    if not winners or winners[0].report is None:
        return "None of these edits took."
    names = [title_of(w.method) for w in winners]
    if len(winners) == len(outcomes) > 1:
        return f"All methods did equally well on this request.{least_disturbing(winners)}"
    who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    report = winners[0].report
    right = {s: round(getattr(report.scores, s) * of) for s in ("generality", "locality")
             if (of := compared.judged(report, s))}  # fmt: skip
    parts = [f"paraphrases {right['generality']} of {compared.judged(report, 'generality')}"] * ("generality" in right)
    parts += [f"unrelated {right['locality']} of {compared.judged(report, 'locality')} unmoved"] * ("locality" in right)
    alike = " (alike)" if len(names) > 1 else ""
    return f"{who} did best{alike}: {'; '.join(['the edit took', *parts])}.{least_disturbing(winners)}"


def least_disturbing(winners: Sequence[Outcome]) -> str:
    """Which of several that did equally well moved the unrelated answers least, as a sentence; empty if none did."""
    found = sorted((compared.disturbance(w.report), title_of(w.method)) for w in winners if w.report)
    shown = [percent(moved) for moved, _ in found]
    if len(found) < 2 or math.isnan(found[0][0]) or shown[0] == shown[1]:
        return ""
    return f" {found[0][1]} moved the unrelated answers least ({shown[0]} on average; {found[-1][1]}: {shown[-1]})."


def standings(job: JobState, picking: bool = False) -> None:
    """One row a method; those that have not run yet stand below."""
    waiting = job.methods[len(job.outcomes) :] if not job.finished else ()
    table = compared.standings(job.outcomes, titles(), waiting)
    of = compared.totals(job.outcomes)
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    helps = {
        "reliability": "The edited prompt gives the new answer", "generality": "Paraphrases that give it too",
        "locality": "Unrelated prompts that did not move",
        "generation": "Edit and paraphrases where free writing starts with the new answer",
    }  # fmt: skip
    names = {"generation": "Free text"}
    config: dict[str, Any] = {
        score: number(names.get(score, score.capitalize()), format=f"%d of {of[score]}" if of[score] else None,
                      help=helps[score], width=88)
        for score in compared.SCORES
    }  # fmt: skip
    config |= {
        "method": text("Method", width=92, pinned=True), "sentence": text("In a sentence", width=640),
        "state": text("Edit", width=92, help="Took: scored and written freely, the new answer comes first"),
        "seconds": number("Seconds", format="%.2f", width=70, help="The edit alone, without reading the probes"),
        "bytes": number("Size", format="bytes", width=80, help="Of the patch"),
        "modules": text("Modules", width=220, help="Matrices it changed"),
        "change": number("Change", format="percent", width=74,
                         help="‖ΔW‖ / ‖W‖: norm of the change over the norm of the edited weights"),
        "memory": number("Peak memory", format="bytes", width=92, help="Over the loaded model, during the edit"),
    }  # fmt: skip
    shown = [c for c in table.columns if c != "memory" or table["memory"].notna().any()]
    options: dict[str, Any] = {
        "key": "standings" if picking else "standings_live", "hide_index": True, "placeholder": "–", "row_height": 36,
        "column_config": config, "column_order": shown, "height": "content", "alt": "One row a method",
    }  # fmt: skip
    if not picking:
        st.dataframe(table, **options)
        return
    st.dataframe(table, on_select="rerun", selection_mode="single-row", **options)
    unmeasured = "" if "memory" in shown else " Peak memory is measured on a GPU only."
    st.caption("Click a column's name to sort; tick a row to see it in full and to keep it. "
               f"Scores count prompts.{unmeasured}")  # fmt: skip
    results.downloads(table, "comparison")


def pictures(job: JobState) -> None:
    """The scatter, and every probe of every method on one axis."""
    if not any(o.report for o in job.outcomes):
        return
    answering()
    scattered, panels = answers.once("pictures", [job.job, len(job.outcomes)], lambda: _drawn(job))
    left, right = st.columns((5, 7), gap="large")
    with left:
        st.markdown("##### General and local?")
        if scattered is not None:
            st.caption("The upper right corner is the place to be. Bars: 95 % intervals (Wilson) over the prompts "
                       "counted; few prompts make wide bars.")  # fmt: skip
            st.plotly_chart(scattered, key="scatter", config=results.CHART,
                            alt="Generality against locality, one mark a method")  # fmt: skip
            shares = [f"{s}{p}" for s in ("generality", "locality") for p in ("", "_low", "_high")]
            fold.drawn("Table behind this chart", "points", lambda: results.table(
                compared.points(job.outcomes, titles()), "generality-locality", results.shares("reliability", *shares),
            ))  # fmt: skip
        else:
            st.caption("Without paraphrases and unrelated prompts there is nothing to draw here.")
    with right:
        st.markdown("##### Every prompt, before and after")
        st.caption("How likely the answer is that should stand there: the corrected one for the edit and its "
                   "paraphrases, the one it had for unrelated prompts. Right is good. ○ before, ● after.")  # fmt: skip
        st.plotly_chart(
            panels, key="multiples", config=results.CHART,
            alt="Probability of the right answer before and after, every prompt under every method",
        )  # fmt: skip
        fold.drawn("Table behind this chart", "lanes", lambda: results.table(
            compared.lanes(job.outcomes, titles()), "probes-by-method", results.shares("before", "after"),
        ))  # fmt: skip


def _drawn(job: JobState) -> tuple[Picture | None, Picture]:
    """Both charts; the first needs a paraphrase or an unrelated prompt."""
    points, lanes = compared.points(job.outcomes, titles()), compared.lanes(job.outcomes, titles())
    return Picture(charts.scatter(points)) if len(points) else None, Picture(charts.multiples(lanes))


def picked(page: Frame, job: JobState) -> None:
    """The ticked row in full, and the way to keep it."""
    rows = (state.value("standings") or {}).get("selection", {}).get("rows", [])
    if not rows or not 0 <= rows[0] < len(job.outcomes):
        return
    one = job.outcomes[rows[0]]
    with st.container(border=True, key="picked"):
        if one.report is None:
            st.markdown(f"##### {plain(title_of(one.method))} did not run")
            st.caption(plain(one.error))
            return
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"##### {plain(title_of(one.method))} in full", width="stretch")
            ours = page.health.model is not None and page.health.model.name == one.report.model
            st.button(
                "Keep this edit", key="keep", type="primary", icon=":material/check:",
                disabled=not (page.can_ask and ours),
                on_click=keep, args=(page.session, one.report), help="Applies it, and opens it on the page Edit.",
            )  # fmt: skip
        request.error_beside("", "keep")
        results.show(one.report, switch=answering)


def answering() -> None:
    """Which models every chart of a comparison leads from and to."""
    st.caption("○ the model as it was when the comparison began, ● the same with one method's edit; none is in place.")


def keep(session: str, report: EditReport) -> None:
    """Apply what this row did: the same method, request and settings, as an ordinary edit."""
    key = state.digest(["keep", to_plain(report.request), report.method, dict(report.settings), state.attempt()])
    state.forget_error()
    try:
        job = resources.engine().submit(session, [report.request], report.method, report.settings, key)
    except EditcoreError as error:
        state.remember_error(type(error).__name__, str(error), "keep")
        return
    method = next((m for m in resources.methods() if m.name == report.method), None)
    if method:
        forms.set_all(method, report.settings)
    state.adopt(report.request, report.method)
    state.watch(job, "edit")
    state.leave("kept")
    st.toast(f"{plain(title_of(report.method))} is being applied.", icon=":material/check:")


main()
