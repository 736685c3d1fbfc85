"""What is done once for a model before its first edit: a method that learns is trained, where to edit is found out."""

from __future__ import annotations

import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from dashboard import request, resources, state
from dashboard.frame import Frame, not_trained
from dashboard.text import duration, plain, visible
from editcore.engine.contract import LOCATE
from editcore.errors import BadRequest, EditcoreError
from editcore.records import EXAMPLE_CHARACTERS, MethodInfo

STEPS = 1500
_NAME = 80  # characters of a file's name that are told, from its end
LINE = '{"prompt": "…", "target_new": "…", "paraphrases": ["…"], "probes": ["…"]}'


def offer(method: MethodInfo, seconds: float, page: Frame) -> None:
    """What training needs, how long it takes, and the button.

    Args:
        seconds: expected for `STEPS` steps on examples of `EXAMPLE_CHARACTERS`.
    """
    embedded = page.health.model is not None and page.health.model.embedded
    title = plain(method.title)
    st.markdown(f"**{title} has to be trained for this model first.** Once; everybody who edits this model can use it "
                "then.")  # fmt: skip
    edits = locality = None
    if embedded:
        st.caption("It learns from the embedded model's own facts.")
    else:
        edits = st.file_uploader("Example edits, one a line, at least 20", type=["jsonl", "json", "txt"],
                                 key=f"edits:{method.name}", help=f"Each line: `{LINE}`")  # fmt: skip
        locality = st.file_uploader(
            "Text that should stay as it is: needed unless every edit has probes", type=["txt"],
            key=f"locality:{method.name}",
            help="Plain text, a line at a time: the model should go on predicting it as before.",
        )  # fmt: skip
    steps = int(st.number_input("Most steps", 1, 1_000_000, STEPS, step=100, key=f"steps:{method.name}"))
    usual = read_length(edits) / EXAMPLE_CHARACTERS if edits else 1.0
    st.caption(f"About {duration(seconds * usual * steps / STEPS)} on this device, less when it stops improving. "
               "Nobody can edit this model meanwhile. Stopped, it goes on later where it was.")  # fmt: skip
    missing = "" if embedded or edits else "Choose a file of example edits first."
    if st.button(f"Train {title}", key="train", icon=":material/model_training:", width="stretch",
                 disabled=bool(missing) or not page.can_ask, help=missing or None):  # fmt: skip
        start(page.session, method, edits, locality, steps)


def unsuccessful(method: MethodInfo, page: Frame) -> None:
    """Why this method has not been trained, for a place beside the button."""
    request.error_beside("", "train")
    job = page.preparation
    if job and job.finished and job.status != "done" and job.methods[0] == method.name:
        not_trained(job)


def offer_to_locate(seconds: float, page: Frame) -> None:
    """A line that says nobody has looked where this model is best edited, and the button that looks.

    Args:
        seconds: expected.
    """
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="locate-offer"):
        st.caption("Where to edit was set by a rule of thumb.", width="content")
        st.button(
            f"Find out (about {duration(seconds)})", key="locate", type="tertiary", icon=":material/my_location:",
            on_click=start_locating, args=(page.session,), disabled=not page.can_ask,
            help="Traces a few facts this model is sure of. The answer is kept and serves everybody who edits it.",
        )  # fmt: skip


def start_locating(session: str) -> None:
    """Asks the engine to look; for callbacks only."""
    state.forget_error()
    try:
        job = resources.engine().prepare(session, LOCATE, {}, state.digest([LOCATE, state.attempt()]))
    except EditcoreError as error:
        state.remember_error("", str(error))
    else:
        state.watch(job, "preparation")


def start(
    session: str, method: MethodInfo, edits: UploadedFile | None, locality: UploadedFile | None, steps: int
) -> None:
    """Hands the examples to the engine; the same click twice is one job."""
    state.forget_error()
    state.watch("", "preparation")
    try:
        examples = {"edits": read(edits), "locality": read(locality), "steps": steps,
                    "edits_name": named(edits), "locality_name": named(locality)}  # fmt: skip
        key = state.digest([method.name, examples, state.attempt()])
        job = resources.engine().prepare(session, method.name, examples, key)
    except EditcoreError as error:
        state.remember_error("", str(error), "train")
    else:
        state.watch(job, "preparation")
    st.rerun()


def read_length(file: UploadedFile) -> float:
    """Mean length of a file's lines, characters."""
    lines = [line for line in file.getvalue().splitlines() if line.strip()]
    return sum(map(len, lines)) / max(1, len(lines))


def named(file: UploadedFile | None) -> str:
    """What its owner calls the file, for messages; "" for none."""
    return visible(file.name[-_NAME:]) if file else ""


def read(file: UploadedFile | None) -> str:
    """The text of an uploaded file; "" for none.

    Raises:
        BadRequest: it is no text.
    """
    if file is None:
        return ""
    try:
        return file.getvalue().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"{named(file)!r} is no text ({error.reason}).", "A text file in UTF-8 was wanted.") from error
