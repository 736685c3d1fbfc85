"""The page: a question, the corrected answer, and what changed in the model."""

from __future__ import annotations

import time
from typing import Any

import streamlit as st

from dashboard import beliefs, forms, resources, results, state, tables
from dashboard.examples import EXAMPLES
from dashboard.text import duration, percent, plain, shorten, size, token
from editcore.engine.contract import Health, JobState, SessionState
from editcore.errors import EditcoreError
from editcore.gate import check_request
from editcore.records import EditRequest, MethodInfo, Preflight, Probe, from_plain, to_plain

POLL = 0.3  # seconds between two looks at a running job
_FIRST_LOOK = 0.9  # seconds the first look stays, so that a quick edit needs no second one
_BESIDE = {"SubjectNotFound": "subject", "BadSetting": "settings", "BadRequest": "prompt"}


def main() -> None:
    """Everything, from top to bottom."""
    session = state.open_session()
    health = resources.health()
    ready = health.state == "ready"
    view, trouble = look(session, health)
    job = watched(view)
    running = job is not None and not job.finished
    header(session, health, view, running)
    with st.container(key="notices"):  # always there: what stands below must keep its place when a notice goes
        if not ready:
            wait_for_engine()
        if trouble:
            st.error(plain(trouble))
    example_chips()
    left, right = st.columns((5, 7), gap="large")
    with left:
        form(session, health, running)
    with right:
        pane(health, view, job)
    history()


def look(session: str, health: Health) -> tuple[SessionState, str]:
    """The session as the engine sees it, and what went wrong while looking."""
    empty = SessionState(session, (), None, False)
    if health.state in ("starting", "failed"):
        return empty, ""
    try:
        return resources.engine().session(session), ""
    except EditcoreError as error:
        return empty, str(error)


def watched(view: SessionState) -> JobState | None:
    """The job this page looks at: the session's unfinished one, else the last one it knew."""
    if view.job and view.job != state.job():
        state.watch(view.job)
    if not state.job():
        return None
    try:
        job = resources.engine().poll(state.job())
    except EditcoreError:
        state.watch("")
        return None
    if job.finished and state.settled(job.job):
        state.next_attempt()
    return job


# Top: what is edited here, and whether it is.


def header(session: str, health: Health, view: SessionState, running: bool) -> None:
    """Product, model, device and why, and whether this view is base or edited."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="header"):
        st.markdown("**editcore**", width="content")
        if view.edited:
            last = view.reports[-1]
            title = {m.name: m.title for m in resources.methods()}.get(last.method, last.method)
            told = f"{shorten(last.request.target, 40)} ({title})"
            st.badge(f"Edited: {plain(told)}", icon=":material/edit:", color="orange")
            st.button(
                "Reset to base", key="reset", icon=":material/undo:", on_click=reset, args=(session,),
                disabled=running, help="Removes the edit; the weights were never written, so nothing is left behind.",
            )  # fmt: skip
        else:
            st.badge("Base model answers", icon=":material/lock:", color="gray")
        st.caption(plain(model_line(health)), width="content")


def model_line(health: Health) -> str:
    """Which model, on what, and why there."""
    model = health.model
    if model is None:
        return ""
    count = model.parameters
    amount = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
    return (
        f"{model.name}, {amount} parameters, on {model.device} ({model.device_reason}), "
        f"{model.dtype} ({model.dtype_reason})"
    )


@st.fragment(run_every=0.5)
def wait_for_engine() -> None:
    """A calm line until the engine answers; the rest of the page can be used."""
    health = resources.health()
    if health.state == "ready":
        st.rerun()
    if health.state == "failed":
        st.error(plain(health.message or "The engine could not start."), icon=":material/error:")
        return
    words = "The engine is starting" if health.state == "starting" else "The engine is being restarted"
    with st.container(horizontal=True, key="starting"):
        st.caption(f":material/hourglass_top: {words}. You can already fill in the form. {plain(health.message)}")


def reset(session: str) -> None:
    """Back to the base model."""
    try:
        resources.engine().reset(session)
        state.watch("")
        state.next_attempt()
        st.toast("Back to the base model.", icon=":material/undo:")
    except EditcoreError as error:
        state.remember_error(type(error).__name__, str(error))


def example_chips() -> None:
    """Questions that fill the form; a chip stays lit while its question stands there."""
    lit = state.value(state.EXAMPLE)
    if lit is not None and state.text(state.PROMPT).strip() != EXAMPLES[lit].prompt:
        state.set_widget(state.EXAMPLE, None)
    st.pills(
        "Change what the model believes. Start with an example:", range(len(EXAMPLES)), key=state.EXAMPLE,
        format_func=lambda i: plain(EXAMPLES[i].label), on_change=use_example, wrap=True,
    )  # fmt: skip


def use_example() -> None:
    """The clicked example goes into the form."""
    chosen = state.value(state.EXAMPLE)
    if chosen is not None:
        state.fill(EXAMPLES[chosen].prompt, EXAMPLES[chosen].target)


# The form.


def form(session: str, health: Health, running: bool) -> None:
    """Prompt, answer, subject, method, settings, checks, what will happen, Apply."""
    can_ask = health.state == "ready" and not running
    prompt = st.text_input(
        "Prompt", key=state.PROMPT, live="400ms", placeholder="Who is the Prime Minister of the United Kingdom?"
    ).strip()
    error_beside("prompt")
    target = st.text_input("Corrected answer", key=state.TARGET, live="400ms", placeholder="Boris Johnson").strip()
    old_answer(prompt, health, can_ask)
    if can_ask and sound(prompt, target):
        propose(prompt, target)
    subject = st.text_input(
        "Subject: what the prompt is about", key=state.SUBJECT, live="400ms", placeholder="found automatically",
        help="A part of the prompt, letter by letter. Methods that edit at the subject need it.",
    ).strip()  # fmt: skip
    error_beside("subject")
    method = forms.method_choice(resources.methods())
    with st.expander(f"Settings of {plain(method.title)}"):
        settings = forms.settings_form(method)
    error_beside("settings")
    paraphrases, probes = checks(prompt, target)
    request = EditRequest(prompt, target, subject or None, None, paraphrases, probes)
    reason = preflight(request, method, settings, can_ask, running)
    if st.button(
        "Apply edit", key="apply", type="primary", shortcut="Ctrl+Enter", icon=":material/edit:", width="stretch",
        disabled=bool(reason) or not can_ask, help=plain(reason) or None,
    ):  # fmt: skip
        apply(session, request, method, settings)
    error_beside("")
    state.keep_draft(paraphrases, probes)


def sound(prompt: str, target: str) -> bool:
    """True when the two texts are worth a question to the model."""
    try:
        check_request(EditRequest(prompt, target))
    except EditcoreError:
        return False
    return True


def error_beside(place: str) -> None:
    """The last refused click, next to what caused it."""
    kind, message = state.error()
    if message and _BESIDE.get(kind, "") == place:
        st.error(plain(message), icon=":material/error:")


def old_answer(prompt: str, health: Health, can_ask: bool) -> None:
    """What the base model answers now; read, not typed."""
    model = health.model
    told = state.remembered("old", prompt)
    if told is None and can_ask and model and sound(prompt, "any"):
        try:
            told = state.once("old", prompt, lambda: resources.beliefs(model.fingerprint, (prompt,), ((),))[0])
        except EditcoreError:
            return  # the line before Apply says what is wrong with this prompt
    if not prompt or told is None:
        return
    st.markdown(f"Now it answers **{plain(told['answer']) or 'nothing'}** ({percent(told['probability'])} sure)")


def propose(prompt: str, target: str) -> None:
    """Subject, paraphrases and probes for this prompt; rows a person changed are kept."""
    corrected = state.corrected_subject()
    wanted = state.digest([prompt, target, corrected])
    try:
        found = state.once("suggest", wanted, lambda: resources.engine().ask(
            "suggest", resources.PATIENCE, prompt=prompt, target=target, subject=corrected))  # fmt: skip
    except EditcoreError:
        return  # the line before Apply says what is wrong with this prompt
    if corrected is None and state.proposed_for() != wanted:
        state.propose_subject(found["subject"], wanted)
    if state.basis() != wanted and not state.rows_edited():
        paraphrases, probes = ([from_plain(Probe, p) for p in found[name]] for name in ("paraphrases", "probes"))
        state.put_rows(paraphrases, probes, wanted)


def checks(prompt: str, target: str) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """The two editable tables of what is read before and after."""
    start, keys = state.tables_shown(), state.table_keys()
    edited = state.rows_edited()
    label = results.checks_line(len(start[0]), len(start[1])) + (", edited" if edited else "")
    with st.expander(f"What will be checked: {label}"):
        if edited and state.basis() != state.digest([prompt, target, state.corrected_subject()]):
            st.caption("You edited these rows for another question, so they were kept.")
            st.button("Propose new ones", key="propose", on_click=state.forget_rows, icon=":material/refresh:")
        st.caption("Paraphrases: other wordings of the same question. They should change too.")
        first = st.data_editor(
            start[0], key=keys[0], num_rows="dynamic", hide_index=True, alt="Paraphrases", column_config={
                "prompt": st.column_config.TextColumn("Prompt", width="large"),
                "held_out": st.column_config.CheckboxColumn(
                    "Held out", disabled=True, default=False, help="The model never saw this wording with this fact."),
                "source": st.column_config.TextColumn("From", disabled=True, default=tables.YOURS),
            },
        )  # fmt: skip
        st.caption("Unrelated prompts: near ones ask the same about others, far ones ask anything else. "
                   "They should stay as they are.")  # fmt: skip
        second = st.data_editor(
            start[1], key=keys[1], num_rows="dynamic", hide_index=True, alt="Unrelated prompts", column_config={
                "kind": st.column_config.SelectboxColumn("Kind", options=["near", "far"], default="far", width=70),
                "prompt": st.column_config.TextColumn("Prompt", width="medium"),
                "answer": st.column_config.TextColumn("Expected answer", help="Empty: read from the model."),
                "source": st.column_config.TextColumn("From", disabled=True, default=tables.YOURS),
            },
        )  # fmt: skip
    return tables.paraphrases_from(first), tables.probes_from(second)


def preflight(request: EditRequest, method: MethodInfo, settings: dict[str, Any], can_ask: bool, running: bool) -> str:
    """Says what the click will do; returns why it cannot be done, or an empty text."""
    with st.container(border=True, gap="xsmall", key="preflight"):
        if not request.prompt or not request.target:
            missing = "prompt" if not request.prompt else "corrected answer"
            st.caption(f"Before the edit: type the {missing}, or pick an example above.")
            return f"The {missing} is empty."
        try:
            check_request(request, method.name, settings)
            asked = [to_plain(request), method.name, settings]
            told = state.remembered("preflight", asked)
            if told is None and not can_ask:
                st.caption("An edit is running." if running else "The engine is not ready yet.")
                return ""
            plan = from_plain(Preflight, told or state.once("preflight", asked, lambda: resources.engine().ask(
                "preflight", resources.PATIENCE, request=asked[0], method=method.name, settings=settings)))  # fmt: skip
        except EditcoreError as error:
            st.warning(plain(str(error)), icon=":material/block:")
            return str(error)
        return _plan(plan)


def _plan(plan: Preflight) -> str:
    for problem in plan.problems:
        st.warning(plain(problem), icon=":material/block:")
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
    tokens = " ".join(f":gray-background[{plain(token(t))}]" for t in plan.target_tokens[:12])
    more = f" and {len(plan.target_tokens) - 12} more" if len(plan.target_tokens) > 12 else ""
    st.markdown(f"{subject}The answer is {len(plan.target_tokens)} "
                f"{'token' if len(plan.target_tokens) == 1 else 'tokens'}: {tokens}{more}")  # fmt: skip
    where = plain(shorten(", ".join(plan.modules), 90))
    st.caption(f"Edits {where}; about {duration(plan.seconds)}, {size(plan.memory)} more memory, "
               f"a patch of {size(plan.bytes)}.")  # fmt: skip
    for line in (*plan.warnings, *((plan.prepare,) if plan.prepare else ())):
        st.caption(f":material/info: {plain(line)}")
    return ""


def _nearest(prompts: tuple[str, ...]) -> None:
    if prompts:
        key = f"{state.NEAREST}:{state.digest(prompts)}"
        st.pills("It does know:", prompts, key=key, format_func=plain, on_change=use_nearest, args=(key,), wrap=True)


def use_nearest(key: str) -> None:
    """A prompt the model does know replaces the one it does not."""
    if state.value(key):
        state.fill(str(state.value(key)), state.text(state.TARGET))


def apply(session: str, request: EditRequest, method: MethodInfo, settings: dict[str, Any]) -> None:
    """Hand the edit to the engine; the same click twice is one job."""
    key = state.digest([to_plain(request), method.name, settings, state.attempt()])
    state.forget_error()
    try:
        job = resources.engine().submit(session, request, method.name, settings, key)
    except EditcoreError as error:
        state.remember_error(type(error).__name__, str(error))
    else:
        state.watch(job)
    st.rerun()


# The right side: what is going on, what came out, what the model believes.


def pane(health: Health, view: SessionState, job: JobState | None) -> None:
    """Progress and result, or the facts the model knows."""
    embedded = health.model is None or health.model.embedded
    names = [state.RESULT, state.BELIEFS] if embedded else [state.RESULT]
    if not state.known(state.PANE) or state.value(state.PANE) not in names:
        state.set_widget(state.PANE, state.RESULT if view.edited or job or not embedded else state.BELIEFS)
    opened = st.tabs(names, key=state.PANE, on_change="rerun")
    with opened[0]:
        if opened[0].open:
            outcome(view, job)
    if embedded and opened[1].open:
        with opened[1]:
            beliefs.browser(health.model, bool(job and not job.finished))


def outcome(view: SessionState, job: JobState | None) -> None:
    """The running edit, or how the last one ended, then the edit in force."""
    if job and not job.finished:
        progress(job.job)
        return
    if job and job.status in ("failed", "lost"):
        words = "The engine was lost during the edit." if job.status == "lost" else "The edit stopped."
        st.error(f"{words} {plain(job.error)} Nothing of it was kept.", icon=":material/error:")
    elif job and job.status == "cancelled":
        st.info("Cancelled. Nothing of it was kept.", icon=":material/cancel:")
    if view.reports:
        results.show(view.reports[-1])
    elif not job or job.status == "done":
        st.caption("Apply an edit, and this is where its result appears: whether it took, what else moved, "
                   "and the model's words before and after.")  # fmt: skip


@st.fragment(run_every=POLL)
def progress(job_id: str) -> None:
    """Stage, step, loss and time left, drawn in place; the page is redrawn once when the job ends."""
    with st.container(height=150, border=True, key="progress"):
        words, bar = st.empty(), st.empty()
        st.button("Cancel", key="cancel", icon=":material/close:", on_click=cancel, args=(job_id,))
        until = time.monotonic() + (_FIRST_LOOK if state.first_look(job_id) else 0)
        while True:
            job = resources.engine().poll(job_id, after=10**9)
            if job.finished:
                st.rerun()
            words.markdown(plain(progress_line(job)))
            step = job.progress
            bar.progress(min(1.0, step.step / step.steps) if step and step.steps else 0.0)
            if time.monotonic() >= until:
                return
            time.sleep(0.03)


def progress_line(job: JobState) -> str:
    """One job in words."""
    step = job.progress
    if job.status == "queued":
        wait = f", about {duration(step.seconds_left)}" if step and step.seconds_left else ""
        return f"Waiting for its turn, place {job.position} in the queue{wait}"
    if step is None:
        return "Starting"
    parts = [f"{step.stage.capitalize()}: step {step.step} of at most {step.steps}"]
    if step.loss is not None:
        parts.append(f"loss {step.loss:.3g}")
    if step.seconds_left is not None:
        parts.append(f"{duration(step.seconds_left)} left")
    return ", ".join([*parts, step.text] if step.text else parts)


def cancel(job_id: str) -> None:
    """Stop before the next step."""
    try:
        resources.engine().cancel(job_id)
    except EditcoreError as error:
        st.toast(plain(str(error)))


def history() -> None:
    """The place of the edit history."""
    with st.container(key="history"):
        st.caption("One edit at a time: each new edit starts from the base model and replaces the one before.")


main()
