"""What every page stands in: the session, the engine's health, the running job, and the line on top."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from dashboard import answers, forms, models, resources, state
from dashboard.text import duration, message, plain, shorten
from editcore.engine.contract import LOCATE, Health, JobKind, JobState, SessionState
from editcore.errors import EditcoreError
from editcore.history import Move
from editcore.records import ModelInfo
from editcore.words import left

LOOK = 2.0  # seconds one look at a running comparison lasts, unless a row lands
CHECKING = "Checking what this will do."
REDRAWN = 0.25  # seconds between two drawings in one look: each one costs the browser time that the model could use
KINDS: tuple[JobKind, ...] = ("edit", "comparison", "preparation", "export")
_AS: dict[JobKind, JobKind] = {"recomputation": "edit", "adoption": "edit"}  # end as edits, and are shown like one
_SHOWN_ON: dict[JobKind, str] = {
    "edit": "Its result appears on the page Edit.",
    "comparison": "Its result appears on the page Compare.",
    "preparation": "",
    "export": "Its file appears in the column beside the work.",
    "recomputation": "Its result appears on the page Edit.",
    "adoption": "Its result appears on the page Edit.",
}
_RUNNING: dict[JobKind, str] = {
    "edit": "An edit is running.",
    "comparison": "A comparison is running.",
    "preparation": "A method is being trained for this model.",
    "export": "An export is being written.",
    "recomputation": "Edits are being computed again.",
    "adoption": "A file is being brought in.",
}
_LOOKING = "A few facts of this model are traced, to see where to edit it."


@dataclass(frozen=True, slots=True)
class Frame:
    """One run of a page, as the engine sees its session."""

    session: str
    health: Health
    view: SessionState
    edit: JobState | None  # the edit this page looks at: unfinished, or the last one it knew
    comparison: JobState | None  # likewise
    preparation: JobState | None  # likewise
    export: JobState | None  # likewise

    @property
    def running(self) -> JobState | None:
        """The unfinished job, if there is one."""
        jobs = (self.edit, self.comparison, self.preparation, self.export)
        return next((job for job in jobs if job and not job.finished), None)

    @property
    def can_ask(self) -> bool:
        """True when the engine would answer a question at once."""
        return self.health.state == "ready" and self.running is None and not (self.training or self.stranger)

    @property
    def stranger(self) -> bool:
        """True when the session holds edits of another model than the one that is open."""
        base, model = self.view.base, self.health.model
        return base is not None and model is not None and not base.is_of(model)

    @property
    def training(self) -> bool:
        """True while a method is trained, for this session or another: no question is answered meanwhile."""
        return self.health.busy == "preparation"


def open_page(kind: JobKind) -> Frame:
    """The session of this visitor, with everything above the page's own content drawn.

    Args:
        kind: of the jobs this page shows by itself; others are announced on top.
    """
    session = state.open_session(kind)
    health = resources.health()
    if state.see_model(health.model.fingerprint if health.model else ""):
        answers.forget_all()
        forms.forget_settings(resources.methods())
    answers.begin_run()
    view, trouble = look(session, health)
    frame = Frame(session, health, view, *watched(view))
    if view.rows:
        resources.claim(session)
    header(session, health, view, frame.running is not None)
    with st.container(key="notices"):  # always there: what stands below must keep its place when a notice goes
        if health.state != "ready":
            wait_for_engine()
        if frame.stranger and view.base and health.model:
            models.strangers(view.base, health.model)
        if trouble:
            st.error(message(trouble))
        if view.interrupted:
            interruption(view, frame.running is not None or frame.stranger)
        for told in state.notices(resources.store_note(), state.ignored()):
            st.warning(message(told), icon=":material/info:")
        if frame.running and shown_as(frame.running.kind) != kind:
            wait_for_job(frame.running.job)
        elif frame.training:
            wait_for_training()
        if frame.preparation and frame.preparation.finished:
            prepared(frame.preparation, kind)
        if said := stopped(view, kind):
            st.caption(f":material/cancel: {said}")
    return frame


def still(page: Frame) -> Frame:
    """The frame as it is now, for a part of the page that is drawn alone; draws all of it when more has changed."""
    health = resources.health()
    view, _ = look(page.session, health)
    now = Frame(page.session, health, view, *watched(view))
    jobs = [frame.running and frame.running.job for frame in (page, now)]
    if (now.view, now.can_ask, now.health.model) != (page.view, page.can_ask, page.health.model) or jobs[0] != jobs[1]:
        st.rerun()
    return now


def look(session: str, health: Health) -> tuple[SessionState, str]:
    """The session as the engine sees it, and what went wrong while looking."""
    try:
        return resources.engine().sessions.state(session), ""
    except EditcoreError as error:
        return SessionState(session), str(error)


def interruption(view: SessionState, busy: bool) -> None:
    """What became of a job that was cut off, with one click to run it again and one to hear no more of it."""
    with st.container(key="interrupted", gap="xsmall"):
        st.warning(message(view.interrupted), icon=":material/info:")
        with st.container(horizontal=True, gap="small"):
            if view.cut:
                run_again(view.session, view.cut, busy)
            st.button("Dismiss", key="dismiss", type="tertiary", on_click=dismiss, args=(view.session,))


def run_again(session: str, job: str, busy: bool) -> None:
    """The button that asks once more for what a lost or interrupted job was asked."""
    st.button(
        "Run it again", key=f"run:{job}", icon=":material/replay:", disabled=busy, on_click=again, args=(session, job),
        help="The same request with the same method and settings, on what is in place now",
    )  # fmt: skip


def shown_as(kind: JobKind) -> JobKind:
    """The kind of job it is shown like."""
    return _AS.get(kind, kind)


def watched(view: SessionState) -> tuple[JobState | None, ...]:
    """The job of each of `KINDS` this page looks at: the session's unfinished one, else the last it knew."""
    if view.job and view.job not in {state.job(kind) for kind in KINDS}:
        found = poll(view.job)
        if found:
            state.watch(found.job, shown_as(found.kind))
    return tuple(known(kind) for kind in KINDS)


def known(kind: JobKind) -> JobState | None:
    """The last job of this kind the page knew; one the engine has forgotten is forgotten here too."""
    name = state.job(kind)
    job = poll(name) if name else None
    if name and job is None:
        state.watch("", kind)
    if job and job.finished and state.first_look(job.job, kind):
        state.next_attempt()
        if kind == "edit":
            state.forget_shown()
        if kind == "preparation":
            answers.forget()
            if job.status == "cancelled":  # no error, and no news for whoever comes back later
                state.leave("stopped", (_cut_short(job), ""))
                state.watch("", kind)
                return None
        elif kind != "export":
            answers.forget("preflight", "outlook")  # what was to be made first is there
    return job


def poll(job: str) -> JobState | None:
    """Where a job stands; None when the engine does not know it."""
    try:
        return resources.engine().poll(job, after=10**9)
    except EditcoreError:
        return None


def header(session: str, health: Health, view: SessionState, running: bool) -> None:
    """Product, model, device and why, and whether this view is base or edited."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="header"):
        st.markdown("**editcore**", width="content")
        if view.edited:
            st.badge(f"Edited: {plain(in_place(view))}", icon=":material/edit:", color="orange")
            st.button(
                "Reset to base", key="reset", icon=":material/undo:", on_click=reset, args=(session,),
                disabled=running, help="Takes every edit out. The weights were never written; undo brings them back.",
            )  # fmt: skip
        else:
            st.badge("Base model answers", icon=":material/lock:", color="gray")
        if health.model:
            st.caption(plain(model_line(health)), width="content")
        models.corner(view, health)


def standing(view: SessionState) -> str:
    """What an edit made now would start from."""
    return f"what is in place ({in_place(view)})" if view.edited else "the base model"


def in_place(view: SessionState) -> str:
    """The edits that count, in a few words."""
    counting = [row for row in view.rows if row.on and row.strength > 0]
    if len(counting) != 1:
        return f"{len(counting)} edits"
    titles = {m.name: m.title for m in resources.methods()}
    (row,) = counting
    return f"{shorten(row.target, 40)} ({titles.get(row.method, row.method)})"


def model_line(health: Health) -> str:
    """Which model, on what, and why there."""
    return "" if health.model is None else model_words(health.model)


def model_words(model: ModelInfo) -> str:
    """A model, its size, its device and number format with the reason for each."""
    count = model.parameters
    amount = f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
    name = f"{model.name} at {model.revision[:12]}" if model.revision else model.name
    return (
        f"{name}, {amount} parameters, on {model.device} ({model.device_reason}), {model.dtype} ({model.dtype_reason})"
    )


@st.fragment(run_every=1.0)  # everybody asks at once while it is restarted
def wait_for_engine() -> None:
    """A calm line until the engine answers; the rest of the page can be used."""
    health = resources.health()
    if health.state == "ready":
        st.rerun()
    if health.state == "failed":
        st.error(message(health.message or "The engine could not start."), icon=":material/error:")
        models.embedded_again()
        return
    words, said = "You can already fill in the form.", message(health.message)
    words = f"The engine is starting. {words} {said}" if health.state == "starting" else f"{said} {words}"
    with st.container(horizontal=True, key="starting"):
        st.caption(f":material/hourglass_top: {words}")


@st.fragment(run_every=0.5)
def wait_for_job(job_id: str) -> None:
    """A calm line while a job runs that another page shows."""
    job = poll(job_id)
    if job is None or job.finished:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center", key="elsewhere"):
        st.caption(
            f":material/hourglass_top: {at_work(job)} {_SHOWN_ON[job.kind]} "
            f"{plain(progress_line(job))}", width="content",
        )  # fmt: skip
        st.button("Cancel", key="cancel", icon=":material/close:", on_click=cancel, args=(job_id,))


@st.fragment(run_every=2.0)
def wait_for_training() -> None:
    """A calm line while somebody else's training keeps the model."""
    if resources.health().busy != "preparation":
        st.rerun()
    st.caption(":material/hourglass_top: This model is busy: a method is being trained, or its facts are traced. "
               "Edits can be made when it is done.")  # fmt: skip


def await_answers(*names: str) -> None:
    """Draws the page again once an answer is there that this run went without. To be called after all was asked.

    Args:
        names: of the answers a part of the page has asked for, which may be drawn alone; none: any.
    """
    if answers.awaited(*names):
        _wait_for_answers()


@st.fragment(run_every=0.3)
def _wait_for_answers() -> None:
    if answers.have_come():
        st.rerun()


def stopped(view: SessionState, kind: JobKind) -> str:
    """What the visitor stopped, in a sentence, until the next thing is done; "" for nothing."""
    said, since = state.value("_stopped", ("", ""))
    if not said:
        return ""
    now = state.digest([kind, view.session, view.job, repr(view.rows), state.form_print(), state.error()])
    said = said if since in ("", now) else ""
    state.leave("stopped", (said, now if said else ""))
    return str(said)


def prepared(job: JobState, kind: JobKind) -> None:
    """How a training ended, or the look where to edit; what that found stands in the pre-flight.

    Args:
        kind: of the jobs the page shows; the one for edits tells beside the button why the chosen method failed.
    """
    if job.methods[0] == LOCATE:
        if job.status != "done":
            st.error(f"Where to edit was not found out. {message(job.error)}", icon=":material/error:")
        return
    if job.status == "done":
        st.success(f"{title_of(job)} has been trained for this model and can edit it now.", icon=":material/check:")
    elif kind != "edit" or state.text(state.METHOD) != job.methods[0]:
        not_trained(job)


def _cut_short(job: JobState) -> str:
    if job.methods[0] == LOCATE:
        return "The look where to edit was stopped."
    return f"Training {title_of(job)} was stopped. Started again with the same examples, it goes on where it was."


def not_trained(job: JobState) -> None:
    """Why a training failed."""
    st.error(f"{title_of(job)} was not trained. {message(job.error)}", icon=":material/error:")


def title_of(job: JobState) -> str:
    """The method a job trains, as the page names it."""
    titles = {m.name: m.title for m in resources.methods()}
    return plain(titles.get(job.methods[0], job.methods[0]))


def busy(page: Frame) -> str:
    """Why the engine cannot be asked now."""
    if page.stranger:
        return "The edits of this session belong to another model."
    return at_work(page.running) if page.running else "The engine is not ready yet."


def at_work(job: JobState) -> str:
    """What is going on for this visitor."""
    return _LOOKING if job.methods[:1] == (LOCATE,) else _RUNNING[job.kind]


def again(session: str, job: str) -> None:
    """Ask once more; the same click twice is one job."""
    try:
        made = poll(resources.engine().again(session, job, state.digest(["again", job])))
    except EditcoreError as error:
        st.toast(message(str(error)), icon=":material/error:")
        return
    if made:
        state.watch(made.job, shown_as(made.kind))


def dismiss(session: str) -> None:
    """Hear no more of the job that was cut off."""
    try:
        resources.engine().sessions.dismiss(session)
    except EditcoreError as error:
        st.toast(message(str(error)), icon=":material/error:")


def reset(session: str) -> None:
    """Back to the base model."""
    try:
        resources.engine().sessions.move(session, Move("reset"))
        state.watch("", "edit")
        state.next_attempt()
        st.toast("Back to the base model. Undo brings the edits back.", icon=":material/undo:")
    except EditcoreError as error:
        state.remember_error(type(error).__name__, str(error))


def cancel(job_id: str) -> None:
    """Stop before the next step."""
    try:
        resources.engine().cancel(job_id)
    except EditcoreError as error:
        st.toast(message(str(error)))


def progress_line(job: JobState) -> str:
    """One job in words."""
    step = job.progress
    if job.status == "queued":
        wait = f", about {duration(step.seconds_left)}" if step and step.seconds_left else ""
        return f"Waiting for its turn, place {job.position} in the queue{wait}"
    if step is None:
        return "Starting"
    text = step.text
    if job.kind in ("comparison", "recomputation"):
        title, _, text = text.partition(": ")
        if step.stage == "read":
            return title if job.kind == "comparison" else f"{title}: reading how it stands now"
    parts = [f"{step.stage.capitalize()}: step {step.step} of at most {step.steps}"]
    if job.kind == "recomputation":
        parts.insert(0, title)
    if step.loss is not None:
        parts.append(f"loss {step.loss:.3g}")
    if step.seconds_left is not None:
        parts.append(left(step.seconds_left))
    return ", ".join([*parts, text] if text else parts)
