"""`editcore doctor`: what is installed, on what it runs, what is set and where, what is stored. Changes nothing."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from editcore import __version__
from editcore.errors import BadSetting
from editcore.records import to_plain
from editcore.terminal import out, parse_settings, show_json

LIBRARIES = ("torch", "transformers", "accelerate", "streamlit", "plotly", "pandas")


def doctor(
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="As for `editcore dashboard`, to see what would be in force.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Says what is installed, which device is used and why, what is set and stored, and which models are at hand."""
    from editcore import settings

    flags = parse_settings(set_ or [])
    try:
        shown = settings.shown(flags)
    except BadSetting as error:
        if flags:
            raise
        shown, trouble = [], str(error)
    else:
        trouble = ""
    facts = {**_machine(), **({"settings are wrong": trouble} if trouble else _stored())}
    if as_json:
        return show_json({**facts, "settings": [to_plain(s) for s in shown]})
    for name, value in facts.items():
        said = (", ".join(value) or "none") if isinstance(value, list) else value
        out.print(f"{name:26} {f'{said:,}' if isinstance(said, int) else said}", markup=False, highlight=False)
    out.print()
    for s in shown:
        out.print(f"{s.name:26} {s.value:24} {s.origin:12} {s.meaning}", markup=False, highlight=False)
    for name in settings.unknown():
        out.print(f"{name} is no setting and was ignored.", markup=False, highlight=False, style="yellow")


def _machine() -> dict[str, Any]:
    from importlib.metadata import version

    import psutil

    from editcore.assets import world_dir
    from editcore.devices import choose_device, choose_dtype
    from editcore.local import local_models

    device, why = choose_device()
    dtype, why_dtype = choose_dtype(device)
    memory = psutil.virtual_memory()
    present = (world_dir() / "config.json").exists()
    return {
        "editcore": __version__,
        "python": sys.version.split()[0],
        **{name: version(name) for name in LIBRARIES},
        "device": f"{device} ({why})",
        "number format": f"{str(dtype).removeprefix('torch.')} ({why_dtype})",
        "memory free": f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB",
        "embedded model": "present" if present else "missing: run `editcore world build`",
        "models in the local cache": local_models(),
    }


def _stored() -> dict[str, Any]:
    from editcore import settings
    from editcore.home import home_dir
    from editcore.store.inventory import inventory

    file = home_dir() / settings.FILE
    there = "read" if file.is_file() else "not there"
    return {"data folder": str(home_dir()), "settings file": f"{file} ({there})", **inventory(home_dir())}
