"""What leaves the page and comes in again: exports, reports, share links, files. Knows the engine and the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import streamlit as st
from streamlit.runtime.uploaded_file_manager import UploadedFile

from dashboard import answers, forms, resources, state
from dashboard.frame import Frame, cancel, poll, progress_line
from dashboard.report import report_csv, report_html, report_json
from dashboard.text import counted, message, plain, size
from editcore.cases import Requests, read_requests
from editcore.engine.contract import JobState, SessionState
from editcore.errors import EditcoreError
from editcore.gate import check_request
from editcore.records import EditReport, EditRequest, to_plain
from editcore.settings import chosen

FORMATS = {
    "patch": ("Patch", "Loads back here, on the same model."),
    "peft": ("LoRA adapter", "For the peft library; checked against it before it is offered."),
    "merged": (
        "Whole model",
        "A Hugging Face checkpoint with the edits added to its weights. Unzip it and open its "
        "folder with *Change model* or `--model`.",
    ),
}
LISTS = ("json", "jsonl", "csv", "tsv", "txt")


def corner(page: Frame) -> None:
    """At the foot of the history: take away, share, bring in."""
    with st.sidebar, st.container(key="corner", gap="small"):
        if page.export:
            _exported(page.export)
        if page.view.rows:
            box = st.popover("Take away", key="take-away", icon=":material/download:", width="stretch",
                             on_change="rerun")  # fmt: skip
            if box.open:
                with box:
                    _exports(page)
            with st.popover("Share", key="sharing", icon=":material/share:", width="stretch"):
                _share(page)
        with st.popover("Bring in", key="bringing", icon=":material/upload:", width="stretch"):
            _bring(page)


# Taking away.


def _exports(page: Frame) -> None:
    view, busy = page.view, page.running is not None or page.health.state != "ready" or page.stranger
    placed = [row for row in view.rows if row.on and row.strength > 0]
    st.caption(f"What is in place ({counted(len(placed), 'edit')}), as a file:" if placed else
               "Every edit is switched off: there is nothing to write.")  # fmt: skip
    large = page.health.model is not None and page.health.model.bytes > chosen().largest_download
    rank = state.value("rank")
    for form, (title, words) in FORMATS.items():
        too_large = form == "merged" and large
        st.button(
            title, key=f"export:{form}", icon=":material/file_save:", width="stretch",
            disabled=busy or not view.edited or too_large, on_click=_start, args=(page.session, form, rank),
        )  # fmt: skip
        words += f" {size(sum(row.bytes for row in placed))}." if form == "patch" and placed else ""
        st.caption("Too large for a browser: use `editcore export`." if too_large else words)
        if form == "peft":
            st.number_input(
                "Its rank, for FT and the like", 1, 512, None, key="rank", placeholder="only if asked for",
                persist_state="session",
                help="FT, FT-L and the like change all of a matrix. An adapter keeps its strongest directions: this "
                     "many.",
            )  # fmt: skip
    st.caption("A report to read, with the charts:")
    with st.container(horizontal=True, gap="small"):
        for suffix, mime in (("html", "text/html"), ("json", "application/json"), ("csv", "text/csv")):
            st.download_button(
                suffix.upper(), lambda suffix=suffix: _report(page.session, page.view)[suffix],
                f"editcore-report.{suffix}", mime, key=f"report:{suffix}", on_click="ignore",
            )  # fmt: skip


def _start(session: str, form: str, rank: int | None) -> None:
    options: dict[str, Any] = {"rank": int(rank)} if rank else {}
    key = state.digest(["export", form, options, state.attempt()])
    try:
        state.watch(resources.engine().export(session, form, options, key), "export")
    except EditcoreError as error:
        st.toast(message(str(error)), icon=":material/error:")
        return
    st.toast("It is being written. The button that saves it appears above “Take away”.", icon=":material/file_save:")


def _exported(job: JobState) -> None:
    """The export on its way, its file, or why there is none."""
    title = FORMATS.get(job.methods[0] if job.methods else "", ("Export", ""))[0]
    if not job.finished:
        return _writing(job.job, title)
    if job.status == "done" and Path(job.file).exists():
        st.download_button(
            f"{title}: save the file", lambda: Path(job.file).read_bytes(), Path(job.file).name, "application/zip",
            key=f"file:{job.job}", on_click="ignore", icon=":material/download:", type="primary", width="stretch",
        )  # fmt: skip
    elif job.status == "done":
        st.caption("The exported file was tidied away; export it again.")
    else:
        st.error(message(job.error), icon=":material/error:")


@st.fragment(run_every=0.5)
def _writing(job_id: str, title: str) -> None:
    job = poll(job_id)
    if job is None or job.finished:
        st.rerun()
    st.caption(f":material/hourglass_top: {title}: {plain(progress_line(job))}")
    st.button("Cancel", key="cancel-export", icon=":material/close:", on_click=cancel, args=(job_id,))


def _report(session: str, view: SessionState) -> Mapping[str, bytes]:
    reports = _reports(session, view)
    open_now = resources.health().model
    model = open_now if open_now and (view.base is None or view.base.is_of(open_now)) else reports[0].model
    title = view.name or "Edits of " + reports[0].model
    return {
        "html": report_html(title, model, reports).encode("utf-8", errors="replace"),
        "json": report_json(title, model, reports), "csv": report_csv(reports),
    }  # fmt: skip


def _reports(session: str, view: SessionState) -> list[EditReport]:
    return [report for row in view.rows for report in resources.reports(session, row.edit)]


# Sharing.


def _share(page: Frame) -> None:
    st.caption("A link anybody may open: it shows these results as they are now, read-only, and leads nowhere else.")
    st.button("Make a link", key="share", icon=":material/add_link:", width="stretch", on_click=_link, args=(page,))
    link = state.value("_link")
    if link and link[0] == page.session:
        st.code(f"{_address()}/shared?link={link[1]}", language=None, wrap_lines=True)
        st.button("Withdraw every link of this session", key="withdraw", icon=":material/link_off:", width="stretch",
                  on_click=_withdraw, args=(page.session,))  # fmt: skip


def _link(page: Frame) -> None:
    rows = [{"edit": to_plain(row), "reports": [to_plain(r) for r in resources.reports(page.session, row.edit)]}
            for row in page.view.rows]  # fmt: skip
    model = None if page.stranger else page.health.model
    content = {"rows": rows, "model": to_plain(model) if model else None}
    try:
        link = resources.library().share(page.session, page.view.name or "Edited beliefs", content)
    except EditcoreError as error:
        st.toast(message(str(error)), icon=":material/error:")
        return
    state.set_widget("_link", (page.session, link))


def _withdraw(session: str) -> None:
    count = resources.library().withdraw(session)
    state.set_widget("_link", None)
    st.toast(f"Withdrawn: {count}. Whoever opens such a link now finds nothing.", icon=":material/link_off:")


def _address() -> str:
    parts = urlsplit(st.context.url or "http://localhost:8501")
    return f"{parts.scheme}://{parts.netloc}"


# Bringing in.


def _bring(page: Frame) -> None:
    st.caption("A **zip file** with a patch, a stack of patches or a LoRA adapter for this model: it goes on top of "
               "what is in place. One without a question is measured with the one in the form.")  # fmt: skip
    st.caption("A **list of edits** in JSON, JSON lines or CSV (EasyEdit, CounterFact and zsRE are understood): all "
               "are made in one patch by the method chosen in the form. Either can be undone.")  # fmt: skip
    file = st.file_uploader("File", type=["zip", *LISTS], key="bring", max_upload_size=chosen().largest_upload)
    busy = page.running is not None or page.health.state != "ready" or page.stranger
    if file is None:
        return
    found, trouble, form = None, "", state.form()
    if not _is_zip(file):
        try:
            found = answers.once(
                "list", [file.file_id, form],
                lambda: read_requests(file.getvalue(), file.name, most=chosen().most_listed, form=form),
            )  # fmt: skip
        except EditcoreError as error:
            trouble = str(error)
    if found:
        for note in found.notes:
            st.caption(plain(note))
        frame = pd.DataFrame([(r.prompt, r.target) for r in found.requests], columns=["Prompt", "Corrected answer"])
        st.dataframe(frame, hide_index=True, height=180, alt="The edits in the file")
    brought = state.value("_bringing") == file.file_id and page.edit is not None and page.edit.status == "done"
    st.button(
        _words(found) + " again" * brought, key="bring-in", icon=":material/upload:", width="stretch",
        disabled=busy or bool(trouble),
        on_click=_adopt if found is None else _apply_all, args=(page.session, *([found.requests] if found else [])),
    )  # fmt: skip
    if brought:
        st.caption(":material/check: Brought in. Undo takes it out.")
    refused = state.value("_refused")
    if trouble or (refused and refused[0] == file.file_id):
        st.error(message(trouble or refused[1]), icon=":material/error:")


def _is_zip(file: UploadedFile) -> bool:
    return file.name.lower().endswith(".zip")


def _words(found: Requests | None) -> str:
    """What the button says it does."""
    if found is None:
        return "Bring it in"
    title = {m.name: m.title for m in resources.methods()}.get(state.text(state.METHOD), state.text(state.METHOD))
    return f"Apply {counted(len(found.requests), 'edit')} with {title}"


def _apply_all(session: str, requests: Sequence[EditRequest]) -> None:
    file = state.value("bring")
    method = next(m for m in resources.methods() if m.name == state.text(state.METHOD))
    settings = forms.changed_settings(method)
    key = state.digest([file.file_id, requests[0].form, method.name, settings, state.attempt()])
    _submit(file, lambda: resources.engine().submit(session, requests, method.name, settings, key))


def _adopt(session: str) -> None:
    file = state.value("bring")
    request = EditRequest(state.text(state.PROMPT).strip(), state.text(state.TARGET).strip(), form=state.form())
    try:
        check_request(request)
        asked: EditRequest | None = request
    except EditcoreError:
        asked = None
    key = state.digest([file.file_id, state.attempt()])
    _submit(file, lambda: resources.engine().adopt(session, file.getvalue(), file.name, asked, key))


def _submit(file: UploadedFile, act: Callable[[], str]) -> None:
    try:
        state.watch(act(), "edit")
        state.leave("bringing", file.file_id)
    except EditcoreError as error:
        state.set_widget("_refused", (file.file_id, str(error)))
