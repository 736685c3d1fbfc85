"""Commands that prepare a model for methods: train an editor, locate where to edit, keep a corpus or examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from editcore.assets import WORLD_NAME
from editcore.cli_model import Device, DeviceMap, Dtype, Model, Revision, open_model
from editcore.cli_show import show_finding
from editcore.errors import BadRequest
from editcore.terminal import FormOption, bar, form_of, out, show_json
from editcore.tuning import known_settings, path_in


def train(
    method: Annotated[str, typer.Argument(help="mend, malmen, enn, ke or serac.")],
    model: Model = WORLD_NAME,
    edits: Annotated[
        Path | None, typer.Option(help="A file of edits, as `bench` reads them; the embedded world has its own.")
    ] = None,
    form: FormOption = None,
    locality: Annotated[Path | None, typer.Option(help="Text that should be predicted as before.")] = None,
    layers: Annotated[list[int] | None, typer.Option("--layer", help="Block to edit; repeat for several.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Most optimiser steps.")] = 1500,
    batch: Annotated[int, typer.Option(min=1, help="Example edits a step.")] = 24,
    rate: Annotated[float, typer.Option(min=1e-8, help="Learning rate.")] = 1e-3,
    work: Annotated[
        Path, typer.Option(help="Folder for checkpoints; an interrupted training goes on from there.")
    ] = Path(".build/editors"),
    to: Annotated[
        Path | None, typer.Option(help="Folder the result goes to; the model's own, or the data folder.")
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Trains a method that learns to edit (MEND, MALMEN, ENN, KE, SERAC), once per model."""
    from editcore.corpus import read
    from editcore.engine import home_dir
    from editcore.examples import cases_of
    from editcore.learned import Dials, Heard
    from editcore.trained import path_in as artifact
    from editcore.training import learner_of, train_method

    if edits:
        cases_of(edits)
    if locality:
        read(locality)
    learner_of(method)
    handle = open_model(model, revision, device, dtype, device_map)
    folder = to or (handle.folder if handle.embedded and handle.folder else home_dir())
    read_as = form_of(handle, form)
    name = f"{handle.fingerprint}.{method}{'.chat' if read_as == 'chat' else ''}"
    best = "no look yet"
    with bar("training", quiet=as_json) as advance:

        def listen(heard: Heard) -> None:
            nonlocal best
            best = best if heard.validation is None else f"validation {heard.validation:.3f}"
            advance(heard.step, heard.steps, f"loss {heard.loss:.3f}, {best}")

        about = train_method(
            handle, method, work / name, folder, edits=edits, form=read_as, locality=locality,
            layers=layers or (), dials=dataclasses.replace(Dials(), steps=steps, edits=batch, rate=rate), listen=listen,
        )  # fmt: skip
    path = artifact(folder, handle, method)
    if as_json:
        return show_json({"method": method, "model": handle.name, "path": str(path), **about})
    out.print(f"Written to {path}: validation loss {about['validation']:.3f}.", markup=False, highlight=False)


def locate(
    model: Model = WORLD_NAME,
    facts: Annotated[
        Path | None,
        typer.Option(help="A file of edits, for their prompts and subjects; common ones when left out."),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Most facts to trace.")] = 24,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Finds out where to edit a model: traces a handful of its own facts, and keeps the answer for it."""
    from editcore import locate as finder
    from editcore.cases import read_file
    from editcore.engine import home_dir

    prompts = finder.prompts_of(read_file(facts).requests) if facts else ()
    handle, home = open_model(model, revision, device, dtype, device_map), home_dir()
    with bar("tracing", quiet=as_json) as advance:
        found = finder.locate(handle, prompts, facts=most, home=home, report=lambda p: advance(p.step, p.steps, p.text))
    show_finding(found, path_in(home, handle.fingerprint), known_settings(handle.name).source, as_json)


def corpus(
    file: Annotated[Path, typer.Argument(help="Plain text like what the model was trained on.")],
    model: Model = WORLD_NAME,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Keeps a text for a model: statistics are read on it and FT + replay replays it."""
    from editcore.corpus import read, store
    from editcore.engine import home_dir

    read(file)
    handle = open_model(model, revision, device, dtype, device_map)
    if handle.embedded:
        raise BadRequest(f"{handle.name} has its own training text.", "Another model was wanted.", "Use --model.")
    kept = store(handle, home_dir(), file)
    if as_json:
        return show_json({"model": handle.name, "path": str(kept)})
    out.print(f"Kept as {kept}.", markup=False, highlight=False)


def examples(
    file: Annotated[Path, typer.Argument(help="A file of edits with paraphrases and probes; see `bench`.")],
    model: Model = WORLD_NAME,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Keeps example edits for a model: IKE shows them in front of an edit."""
    from editcore.demonstrations import cases_of, store
    from editcore.engine import home_dir

    cases_of(file)
    handle = open_model(model, revision, device, dtype, device_map)
    if handle.embedded:
        raise BadRequest(f"{handle.name} has example edits of its own.", "Another model was wanted.", "Use --model.")
    kept = store(handle, home_dir(), file)
    if as_json:
        return show_json({"model": handle.name, "path": str(kept)})
    out.print(f"Kept as {kept}.", markup=False, highlight=False)
