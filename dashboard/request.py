"""What is to be corrected: examples, prompt, answer, subject and the prompts that are checked. Two pages draw it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import streamlit as st

from dashboard import answers, fold, resources, results, state, tables
from dashboard.examples import EXAMPLES
from dashboard.frame import Frame
from dashboard.text import message, percent, plain
from editcore.errors import EditcoreError
from editcore.gate import check_request
from editcore.records import FORMS, EditRequest, Form, ModelInfo, Probe, from_plain, to_plain
from editcore.settings import chosen

_SAMPLE = EditRequest("The capital of France is", "Rome", "France")
_FORM_LABELS: dict[Form, str] = {"chat": "As a chat", "raw": "Raw text"}
_SENDERS = ("apply", "compare")  # buttons that are drawn by `sender`
_BESIDE = {"SubjectNotFound": "subject", "BadSetting": "settings", "UnknownMethod": "settings", "BadRequest": "prompt"}


def example_chips() -> None:
    """Questions that fill the form; a chip stays lit while its question stands there.

    What is lit is part of the key: a message the browser sent before it heard of a change still names the chip that was
    lit before, and must not be taken for a click on it.
    """
    prompt = state.text(state.PROMPT).strip()
    lit = next((i for i, example in enumerate(EXAMPLES) if example.prompt == prompt), None)
    key = f"{state.EXAMPLE}:{lit}"
    state.leave("chips", key)
    if state.value(key) != lit:
        state.set_widget(key, lit)
    st.pills(
        "Change what the model believes. Start with an example:", range(len(EXAMPLES)), key=key,
        format_func=lambda i: plain(EXAMPLES[i].label), on_change=use_example, args=(key,), wrap=True,
    )  # fmt: skip


def use_example(key: str) -> None:
    """The clicked example goes into the form, if it is one of the chips drawn last."""
    chosen = state.value(key)
    if chosen is not None and key == state.value("_chips"):
        state.fill(EXAMPLES[chosen].prompt, EXAMPLES[chosen].target)


def fields(page: Frame, across: bool = False) -> tuple[str, str, str | None, Form]:
    """Prompt, corrected answer and subject as typed, and how the prompt is read; what can be proposed is put there.

    Args:
        across: side by side, where there is room.
    """
    first, second, third = st.columns((5, 3, 3)) if across else (st.container(), st.container(), st.container())
    with first:
        prompt = st.text_input(
            "Prompt", key=state.PROMPT, live="400ms", placeholder="Who is the Prime Minister of the United Kingdom?",
            persist_state="session",
        ).strip()  # fmt: skip
        form = read_as(page.health.model, state.FORM)
        error_beside("prompt")
    with second:
        target = st.text_input(
            "Corrected answer", key=state.TARGET, live="400ms", placeholder="Boris Johnson", persist_state="session"
        ).strip()
    with first if across else second:
        old_answer(prompt, form, page)
    if page.can_ask and sound(prompt, target):
        propose(prompt, target, form)
    with third:
        subject = st.text_input(
            "Subject: what the prompt is about", key=state.SUBJECT, live="400ms", placeholder="found automatically",
            help="A part of the prompt, letter by letter. Methods that edit at the subject need it.",
            persist_state="session",
        ).strip()  # fmt: skip
        error_beside("subject")
    return prompt, target, subject or None, form


def unsuited(names: Sequence[str], page: Frame) -> dict[str, str]:
    """Why methods cannot run on this model or do not fit; nothing, while the engine cannot be asked."""
    if answers.remembered(answers.USABLE, names) is None and page.can_ask:
        ask, asked = resources.engine().ask, {"request": to_plain(_SAMPLE), "methods": [[name, {}] for name in names]}
        with suppress(EditcoreError):
            answers.asked(answers.USABLE, names, lambda: ask("outlook", resources.PATIENCE, **asked))
    return answers.refused(names)


def read_as(model: ModelInfo | None, key: str, usual: Form = "chat") -> Form:
    """As a chat or as it is: a choice for models with a chat template only.

    Args:
        key: of the widget.
        usual: what it starts with.
    """
    if model is None:
        return state.form(key)
    if not model.chat:
        state.set_widget(key, "")
        return "raw"
    if state.value(key) not in FORMS:
        state.set_widget(key, usual)
    chosen: Form = st.segmented_control(
        "The model reads it", ("chat", "raw"), key=key, format_func=_FORM_LABELS.__getitem__, required=True,
        persist_state="session", help="**As a chat**: as a person's turn in the model's own chat template, as in a"
        " conversation.  \n**Raw text**: as it stands, as a text to go on with.",
    )  # fmt: skip
    return chosen


def sound(prompt: str, target: str) -> bool:
    """True when the two texts are worth a question to the model."""
    try:
        check_request(EditRequest(prompt, target))
    except EditcoreError:
        return False
    return True


def error_beside(place: str, *buttons: str) -> None:
    """The last refused click, next to what caused it.

    Args:
        buttons: with place "", the buttons whose clicks are told here; "" is one without a name.
    """
    kind, error, button = state.error()
    if not error or _BESIDE.get(kind, "") != place or (place == "" and button not in buttons):
        return
    st.error(message(error), icon=":material/error:")
    if button in _SENDERS and place == "":  # in other places something has to be corrected first
        st.button("Try again", key=f"retry:{button}", icon=":material/refresh:", on_click=state.click, args=(button,))


def sender(label: str, button: str, **options: Any) -> bool:
    """The button that sends the form; True when a click is to be answered, also one whose own run was cut off.

    Whoever answers it calls `state.answered`.
    """
    now = st.button(label, key=button, type="primary", shortcut="Ctrl+Enter", on_click=state.click, args=(button,),
                    **options)  # fmt: skip
    noted, moved = state.clicked(button), state.model_changed()
    if (moved and (now or noted)) or (noted == "changed" and not now):
        state.answered(button)
        what = "model" if moved else "form"
        st.info(f"The {what} changed before this could begin, so nothing was done. Press the button again.")
        return False
    return now or noted == "now"


def old_answer(prompt: str, form: Form, page: Frame) -> None:
    """What the base model answers now; read, not typed."""
    model, can_ask = page.health.model, page.can_ask
    asked = [model.fingerprint if model else "", prompt, form]
    told = answers.remembered("old", asked)
    if told is None and can_ask and sound(prompt, "any"):
        ask = resources.engine().ask
        try:
            told = answers.asked("old", asked, lambda: ask(
                "believe", resources.PATIENCE, prompts=[prompt], answers=[[]], form=form)[0], lasting=True)  # fmt: skip
        except EditcoreError:
            return  # the line before Apply says what is wrong with this prompt
    if not prompt or told is None:
        return
    who = "The base model answers" if page.view.edited else "Now it answers"
    sure = f" ({percent(told['probability'])} sure)" if told["answer"] else ""  # of nothing no probability is known
    st.markdown(f"{who} **{plain(told['answer']) or 'nothing'}**{sure}")


def propose(prompt: str, target: str, form: Form) -> None:
    """Subject, paraphrases and probes for this prompt; rows a person changed are kept."""
    corrected = state.corrected_subject()
    wanted = state.digest([prompt, target, corrected])
    ask = resources.engine().ask
    try:
        found = answers.asked("suggest", wanted, lambda: ask(
            "suggest", resources.PATIENCE, prompt=prompt, target=target, subject=corrected, form=form))  # fmt: skip
    except EditcoreError:
        return  # the line before Apply says what is wrong with this prompt
    if found is None:
        return
    if corrected is None and state.proposed_for() != wanted:
        state.propose_subject(found["subject"], wanted)
    if state.basis() != wanted and not state.rows_edited():
        paraphrases, probes = ([from_plain(Probe, p) for p in found[name]] for name in ("paraphrases", "probes"))
        state.put_rows(paraphrases, probes, wanted)


def checks(prompt: str, target: str) -> tuple[tuple[Probe, ...], tuple[Probe, ...]]:
    """The two editable tables of what is read before and after."""
    most = chosen().most_probes
    if dropped := state.drop_pasted(most):
        told = f"{dropped:,} rows were pasted, and at most {most:,} fit. None of them was taken."
        st.warning(told, icon=":material/info:")
    start, keys = state.tables_shown(), state.table_keys()
    edited = state.rows_edited()
    label = results.checks_line(len(start[0]), len(start[1])) + (", edited" if edited else "")
    box = fold.box(f"What will be checked: {label}", "checks")
    if not (box.open or edited):  # what a person changed lives in the tables, so they are drawn then
        made = resources.made()
        return (made.of(start[0], "probes", lambda: tables.paraphrases_from(start[0])),
                made.of(start[1], "probes", lambda: tables.probes_from(start[1])))  # fmt: skip
    with box:
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
