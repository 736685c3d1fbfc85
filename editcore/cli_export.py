"""`editcore export`: saved edits as a patch, an adapter, a merged model or a report. Thin, and free of any picture.

Who draws reports is told from outside: this package does not know the page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from editcore.assets import WORLD_NAME
from editcore.cli_model import Device, DeviceMap, Revision, check_saved, open_model
from editcore.errors import BadRequest
from editcore.records import to_plain
from editcore.terminal import bar, out, show_json

Draw = Callable[[str, Any, Sequence[Any]], Mapping[str, bytes]]  # title, model, reports -> files
Format = Literal["patch", "peft", "merged", "report"]


def exporting(draw: Draw) -> Callable[..., None]:
    """The command, with somebody who draws reports."""

    def export(
        to: Annotated[Path, typer.Option(help="New folder for what is written.")],
        format: Annotated[Format, typer.Option(help="patch, peft (a LoRA adapter), merged (a checkpoint) or report.")],
        patch: Annotated[
            list[Path] | None, typer.Option(help="Folder of a saved edit, stack or adapter; repeatable, in order.")
        ] = None,
        session: Annotated[
            str | None,
            typer.Option(help="Instead: what is in place in a session; its id stands in the page's address."),
        ] = None,
        rank: Annotated[
            int | None, typer.Option(min=1, help="peft: directions kept of an edit that changes all of a matrix.")
        ] = None,
        model: Annotated[str, typer.Option("--model", "-m", help="The model they were made for.")] = WORLD_NAME,
        revision: Revision = None,
        device: Device = None,
        device_map: DeviceMap = None,
        load_dtype: Annotated[str | None, typer.Option(help="Number format the model is opened in; chosen.")] = None,
        dtype: Annotated[str | None, typer.Option(help="Number format of merged files; the model's own.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Takes saved edits away: for use here, with peft, as a model of their own, or as a report to read."""
        if rank is not None and format != "peft":
            raise BadRequest(f"--rank is no option of {format}.", "Only adapters have a rank.", "Leave it out.")
        if dtype is not None and format != "merged":
            raise BadRequest(f"--dtype is no option of {format}.", "Only merged models take one.", "Leave it out.")
        from editcore.export.whole import check_free

        check_choice(patch or [], session)
        check_free(to)
        handle = open_model(model, revision, device, load_dtype, device_map)
        edits = in_session(handle, session) if session else chosen(handle, patch or [])
        if format == "report":
            return _report(draw, handle, edits, to, as_json)
        with bar(format, quiet=as_json) as advance:
            made = _write(format, handle, edits, to, rank, dtype, lambda p: advance(p.step, p.steps, p.text))
        show_json(to_plain(made)) if as_json else _tell(made)

    return export


def in_session(handle: Any, session: str) -> tuple[Any, ...]:
    """What is in place in a stored session, as edits at their strengths, the last on top.

    Raises:
        BadRequest: nothing is in place there.
        PatchError, WrongModel: a patch is damaged, or for another model.
    """
    from editcore import history
    from editcore.home import home_dir
    from editcore.patch import load_patch
    from editcore.store import Store

    store = Store(home_dir())
    placed = history.in_place(store.stack(session))
    if not placed:
        raise BadRequest(
            "No edit is in place in this session.", "", "Look up its id in the page's address, behind session=."
        )
    edits = [(store.edit(session, edit), strength) for edit, strength in placed]
    return tuple(
        (load_patch(one.folder, handle.fingerprint, handle.device).scaled(strength), one.reports)
        for one, strength in edits
    )


def check_choice(patches: Sequence[Path], session: str | None) -> None:
    """Raises BadRequest when nothing is named, both patches and a session are, or a patch is not there."""
    if patches and session:
        raise BadRequest("Both --patch and --session are given.", "One of them was wanted.", "Leave one out.")
    if not patches and not session:
        raise BadRequest("No edit is named.", "", "Give the folder of a saved edit with --patch, or --session.")
    for folder in patches:
        check_saved(folder)


def chosen(handle: Any, patches: Sequence[Path]) -> tuple[Any, ...]:
    """What lies in these folders, as edits: pairs of a patch and its reports, the last on top.

    Raises:
        PatchError, WrongModel: something is damaged, or for another model.
    """
    from editcore.export import import_edits

    return tuple(edit for folder in patches for edit in import_edits(handle, folder))


def _write(
    format: Format, handle: Any, edits: Sequence[Any], to: Path, rank: int | None, dtype: str | None, report: Any
) -> Any:
    from editcore.export import export_adapter, export_merged, export_patch

    if format == "peft":
        return export_adapter(handle, edits, to, rank, report)
    return export_merged(handle, edits, to, dtype, report) if format == "merged" else export_patch(edits, to)


def _report(draw: Draw, handle: Any, edits: Sequence[Any], to: Path, as_json: bool) -> None:
    from editcore.export.again import with_reports
    from editcore.export.whole import weight, whole

    told = with_reports(handle, edits)
    title = f"Edits of {handle.name}" if len(told) != 1 else f"{told[0].request.prompt} {told[0].request.target}"
    files = draw(title, handle.info(), told)
    with whole(to, sum(map(len, files.values()))) as made:
        made.mkdir()
        for name, data in files.items():
            (made / name).write_bytes(data)
    if as_json:
        return show_json({"kind": "report", "folder": str(to), "bytes": weight(to), "files": sorted(files)})
    out.print(f"Written to {to}: {', '.join(files)}", markup=False, highlight=False, style="bold")


def _tell(made: Any) -> None:
    from editcore.words import human_bytes

    out.print(f"Written to {made.folder}, {human_bytes(made.bytes)}.", markup=False, highlight=False, style="bold")
    if made.difference is not None:
        allowed = "" if made.tolerance is None else f" ({made.tolerance:.2g} allowed)"
        out.print(
            f"Logits differ from the attached edits by at most {made.difference:.2g}{allowed}; the edits move them"
            f" by up to {made.effect:.2g}.",
            markup=False, highlight=False,
        )  # fmt: skip
    for note in made.notes:
        out.print(note, markup=False, highlight=False, style="yellow")
    for report in (one for edit in made.reports for one in edit):
        out.print(f"{report.request.prompt} {report.sentence}", markup=False, highlight=False)
