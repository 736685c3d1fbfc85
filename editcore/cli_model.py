"""The options that name a model, the same for every command, and `editcore models`: which could be opened here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from editcore.assets import WORLD_NAME
from editcore.errors import BadRequest
from editcore.terminal import out, show_json

Model = Annotated[str, typer.Option("--model", "-m", help="Embedded model, local folder or hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id; main when left out.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:0 ...; chosen for you when left out.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; chosen for you when left out.")]
DeviceMap = Annotated[
    str | None, typer.Option(help="Instead of a device: spread over several GPUs, auto or balanced; or JSON.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


SAVED = ("patch.json", "stack.json", "adapter_config.json")  # what a folder holds that an edit was saved in
MOST_NAMED = 10


def check_saved(folder: Path) -> None:
    """Raises BadRequest when there is no such folder; what else lies there is named."""
    if folder.is_dir():
        return
    beside = sorted(folder.parent.iterdir()) if folder.parent.is_dir() else []
    saved = [str(path) for path in beside if any((path / name).is_file() for name in SAVED)]
    more = f" and {len(saved) - MOST_NAMED} more" if len(saved) > MOST_NAMED else ""
    raise BadRequest(
        f"There is no patch {str(folder)!r}.",
        "A folder that `editcore edit --save` or `editcore export` has written was wanted.",
        f"Saved there: {', '.join(saved[:MOST_NAMED])}{more}." if saved else "Check the path.",
    )


def open_model(
    model: str = WORLD_NAME,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    device_map: str | None = None,
) -> Any:
    """The model that these options name, as a handle; see `handle.load`."""
    from editcore.opening import load

    return load(model, revision=revision, device=device, dtype=dtype, device_map=device_map)


def models(device: Device = None, dtype: Dtype = None, as_json: AsJson = False) -> None:
    """Lists the models of the local cache: size, whether it fits here, and the command that opens it."""
    import dataclasses

    from editcore.picker import choices
    from editcore.words import human_bytes

    found = choices(device, dtype)
    if as_json:
        rows = [{**dataclasses.asdict(c), "fits": c.fits, "command": c.command} for c in found]
        return show_json({"models": rows})
    for c in found:
        line = f"{c.name}  {', '.join(c.refs) or c.revision[:12]}  {human_bytes(c.disk)} on disk"
        if c.problem:
            out.print(f"{line}\n   {c.problem}", markup=False, highlight=False)
            continue
        verdict = "fits" if c.fits else "does not fit"
        out.print(
            f"{line}, {human_bytes(c.needed)} in {c.dtype}: {verdict} into {human_bytes(c.free)} free on {c.device}"
            f"\n   {c.command}",
            markup=False, highlight=False,
        )  # fmt: skip
    if not found:
        out.print("The local cache holds no model.", markup=False, highlight=False)
