"""The command line: thin. Each command calls what the page calls and prints text, or one JSON object with --json."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from editcore.admission import settle
from editcore.assets import WORLD_NAME
from editcore.cli_doctor import doctor
from editcore.cli_export import exporting
from editcore.cli_model import AsJson, Device, DeviceMap, Dtype, Model, Revision, check_saved, models, open_model
from editcore.cli_show import report_json, show_bench, show_edits, show_report
from editcore.cli_train import corpus, examples, locate, train
from editcore.errors import BadInput, BadRequest, EditcoreError
from editcore.records import EditRequest, Form, Probe, to_plain
from editcore.terminal import FormOption, bar, err, form_of, out, parse_settings, show_json
from editcore.values import check_plan, check_shared, known

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Edit what a language model believes, and see what moved."
)
world_app = typer.Typer(no_args_is_help=True, help="The embedded model: build it from its tables, check it.")
app.add_typer(world_app, name="world")

SetAny = Annotated[
    list[str] | None, typer.Option("--set", help="A limit or another setting, name=value; see `editcore doctor`.")
]

OPEN = (
    "No password is set: whoever reaches this address can edit. README, “For several people”, says how to ask for one."
)


def main() -> None:
    """Runs the command line; exit code 2 for bad input, 1 for failure."""
    try:
        app()
    except BadInput as error:
        err.print(str(error), style="red", markup=False, highlight=False)
        sys.exit(2)
    except EditcoreError as error:
        err.print(str(error), style="red", markup=False, highlight=False)
        sys.exit(1)


@app.command()
def dashboard(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Embedded model, local folder or hub id.", show_default=WORLD_NAME),
    ] = None,
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8501,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    address: Annotated[str, typer.Option(help="Address to listen on; this machine only by default.")] = "127.0.0.1",
    headless: Annotated[bool, typer.Option(help="Do not open a browser.")] = False,
    set_: SetAny = None,
) -> None:
    """Opens the page."""
    import dashboard as pages

    named = {"model": model, "revision": revision, "device": device, "dtype": dtype, "device_map": device_map}
    limits = settle({**parse_settings(set_ or []), **{name: value for name, value in named.items() if value}})
    if address not in ("127.0.0.1", "localhost", "::1") and limits.password is None:
        err.print(OPEN, style="yellow", markup=False, highlight=False)
    folder = Path(pages.__file__).resolve().parent
    # The page reads its settings from the working directory: beside the pages if installed, above them in a checkout.
    settings = folder if (folder / ".streamlit").is_dir() else folder.parent
    command = [
        sys.executable, "-m", "streamlit", "run", str(folder / "app.py"), f"--server.port={port}",
        f"--server.address={address}", f"--server.headless={'true' if headless else 'false'}",
        f"--server.maxUploadSize={limits.largest_upload}",
        *(f"--server.allowedHosts={name}" for name in ("localhost", "127.0.0.1", "::1", *limits.hosts)),
    ]  # fmt: skip
    os.chdir(settings)
    # Every drawing is a thread of its own; the C library would keep a heap for each of many, and give none back.
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    if os.name == "posix":  # the page takes this process's place, so a signal to it ends the page too
        os.execv(sys.executable, command)
    raise typer.Exit(subprocess.call(command))


@app.command()
def edit(
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What the model is asked.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="The corrected answer.")] = None,
    cases: Annotated[Path | None, typer.Option(help="Instead: a file of edits made together.")] = None,
    model: Model = WORLD_NAME,
    form: FormOption = None,
    method: Annotated[str, typer.Option(help="See `editcore methods`.")] = "rome",
    subject: Annotated[str | None, typer.Option(help="The name the fact is about; found when left out.")] = None,
    old: Annotated[str | None, typer.Option(help="The answer to replace; read from the model when left out.")] = None,
    paraphrase: Annotated[list[str] | None, typer.Option(help="The same question in other words; repeatable.")] = None,
    probe: Annotated[list[str] | None, typer.Option(help="An unrelated prompt; repeatable.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, name=value; repeatable.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the patch into this new folder.")] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: AsJson = False,
) -> None:
    """Edits one belief, or many together, and reports what moved; what it is checked by is proposed when not given."""
    settings = parse_settings(set_ or [])
    if save is not None and save.exists():
        raise BadRequest(f"{str(save)!r} exists already.", "A new folder was wanted.", "Choose another name.")
    if (cases is None) == (prompt is None and target is None):
        raise BadRequest(
            "Neither an edit nor a file of edits was given, or both.", "", "Give --prompt and --target, or --cases."
        )
    from editcore.engine.menu import method_menu
    from editcore.gate import check_request

    asked = edits_of(cases, None, None, distinct=True, told=True) if cases else ()
    request = EditRequest(
        (prompt or "").strip(), (target or "").strip(), (subject or "").strip() or None, (old or "").strip() or None,
        tuple(Probe("paraphrase", p.strip(), source="given") for p in paraphrase or ()),
        tuple(Probe("far", p.strip(), source="given") for p in probe or ()),
    )  # fmt: skip
    if not asked:
        check_request(request, method, settings)
    check_plan(method, settings, method_menu())
    from editcore.bench import average
    from editcore.edit import proposed, run_edit, run_edits
    from editcore.engine import home_dir
    from editcore.export import export_patch

    handle = open_model(model, revision, device, dtype, device_map)
    read_as = form_of(handle, form)
    if cases and read_as == "chat":
        asked = edits_of(cases, None, None, distinct=True, form=read_as)
    if asked:
        with bar(method, quiet=as_json) as advance:
            patch, reports = run_edits(
                handle, [proposed(handle, case) for case in asked], method, settings, home=home_dir(),
                report=lambda p: advance(p.step, p.steps, p.text),
            )  # fmt: skip
        if save is not None:
            export_patch([(patch, reports)], save)
        return show_edits(reports, average(r.scores for r in reports), save, as_json)
    request = proposed(handle, dataclasses.replace(request, form=read_as))
    with bar(method, quiet=as_json) as advance:
        patch, report = run_edit(
            handle, request, method, settings, home=home_dir(), report=lambda p: advance(p.step, p.steps, p.text)
        )
    if save is not None:
        export_patch([(patch, report)], save)
        report = dataclasses.replace(report, patch=dataclasses.replace(report.patch, path=str(save)))
    show_json(report_json(report)) if as_json else show_report(report)


def edits_of(
    file: Path, limit: int | None, most: float | None = math.inf, distinct: bool = False, form: Form = "raw",
    told: bool = False,
) -> tuple[EditRequest, ...]:  # fmt: skip
    """The edits of a file in any format that is known.

    Args:
        form: of edits that name none.
        told: what was not used is said on standard error.
    """
    from editcore.cases import read_file

    found = read_file(file, limit, most=most, distinct=distinct, form=form)
    for note in found.notes if told else ():
        err.print(note, style="dim", markup=False, highlight=False)
    return found.requests


@app.command()
def probe(
    prompts: Annotated[list[str], typer.Argument(help="Prompts to answer.")],
    model: Model = WORLD_NAME,
    patch: Annotated[Path | None, typer.Option(help="Folder of a saved patch.")] = None,
    form: FormOption = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: AsJson = False,
) -> None:
    """Asks the model, with or without a saved patch."""
    from editcore import gate

    gate.check_prompts(prompts)
    if patch:
        check_saved(patch)
    from editcore import measure
    from editcore.patch import load_patch

    handle = open_model(model, revision, device, dtype, device_map)
    read_as = form_of(handle, form)
    patches = [load_patch(patch, handle.fingerprint, handle.device)] if patch else []
    readings = measure.answer(handle, prompts, patches, read_as)
    if as_json:
        rows = [
            {"prompt": p, "text": r.text, "answer": measure.cut_answer(r.text), "top": r.top}
            for p, r in zip(prompts, readings, strict=True)
        ]
        said = {"model": model, "patch": str(patch) if patch else None, "form": read_as, "answers": rows}
        return show_json(said)
    for prompt, reading in zip(prompts, readings, strict=True):
        token, chance = reading.top[0]
        line = f"{prompt} → {measure.cut_answer(reading.text)}   (first token {token!r}, p = {chance:.2f})"
        out.print(line, markup=False, highlight=False)


@app.command()
def bench(
    method: Annotated[
        list[str] | None, typer.Option(help="Names separated by commas, or all.", show_default="rome,ft,ft-l")
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(help="A file of edits; left out: random counterfactual edits of the embedded world."),
    ] = None,
    model: Model = WORLD_NAME,
    limit: Annotated[int, typer.Option(min=1, help="Most edits.")] = 100,
    seed: Annotated[int, typer.Option(help="Draws the random edits.")] = 0,
    form: FormOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting for every method named, name=value.")
    ] = None,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: AsJson = False,
) -> None:
    """Scores methods over many edits, each made on the unedited model."""
    from editcore.engine.menu import method_menu

    menu = method_menu()
    wanted = [name.strip() for text in method or ("rome,ft,ft-l",) for name in text.split(",")]
    every = [m.name for m in menu]
    all_ = [name.lower() for name in wanted] == ["all"]
    names = every if all_ else list(dict.fromkeys(known(name, every) for name in wanted))
    shared = parse_settings(set_ or [])
    check_shared(names, shared, menu)
    listed = edits_of(cases, limit, told=True) if cases else ()
    from editcore.bench import counterfactuals, run_bench
    from editcore.edit import world_of
    from editcore.engine import home_dir

    handle = open_model(model, revision, device, dtype, device_map)
    world = world_of(handle)
    if cases is None and world is None:
        raise BadRequest(f"{model!r} has no tables to draw cases from.", "", "Name a file with --cases.")
    read_as = form_of(handle, form)
    if cases and read_as == "chat":
        listed = edits_of(cases, limit, form=read_as)
    requests = listed or (counterfactuals(world, limit, seed) if world else [])
    with bar("edits", quiet=as_json) as advance:
        rows = run_bench(
            handle,
            requests,
            names,
            {n: shared for n in names},
            home=home_dir(),
            listen=lambda m, d, t: advance(d, t, m),
        )
    if as_json:
        return show_json({"model": model, "cases": len(requests), "rows": [to_plain(r) for r in rows]})
    show_bench(rows)


@app.command()
def methods(
    model: Annotated[str | None, typer.Option("--model", "-m", help="Say which cannot edit this one, and why.")] = None,
    as_json: AsJson = False,
) -> None:
    """Lists the methods with their settings."""
    from editcore.engine.menu import method_menu

    menu, unsuited = method_menu(model or ""), {}
    if model:
        from editcore.methods import why_not

        unsuited = why_not(open_model(model))
    if as_json:
        extra = {m.name: {"problem": unsuited.get(m.name, "")} if model else {} for m in menu}
        return show_json([{**to_plain(m), **extra[m.name]} for m in menu])
    for m in menu:
        out.print(f"{m.name}  {m.title}: {m.sentence}", markup=False, highlight=False, style="bold")
        if m.name in unsuited:
            out.print(f"   {unsuited[m.name]}", markup=False, highlight=False, style="yellow")
        needs = ", ".join(m.needs) or "nothing else"
        out.print(f"   {m.paper}; needs {needs}", markup=False, highlight=False)
        for s in m.settings:
            default = "chosen for the model" if s.default is None else s.default
            out.print(f"   --set {s.name}=…   {s.help} (default: {default})", markup=False, highlight=False)


@world_app.command("build")
def world_build(
    work: Annotated[Path, typer.Option(help="Folder for checkpoints; an interrupted build continues from it.")] = Path(
        ".build/world"
    ),
    to: Annotated[
        Path | None, typer.Option(help="Where the finished model goes; the product's own folder when left out.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, to try a shorter build.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Trains the embedded model from its tables: the same text and seed each time."""
    from editcore.assets import world_dir
    from editcore.devices import choose_device
    from editcore.world.build import Recipe, build, save, write_statistics
    from editcore.world.facts import load_world

    choose_device(device)
    recipe = Recipe() if steps is None else dataclasses.replace(Recipe(), steps=steps, polish=0)
    with bar("training", quiet=False) as advance:
        model, tokenizer = build(
            load_world(), recipe, work, device=device,
            listen=lambda p: advance(p.step, p.steps, f"loss {p.loss:.3f}, {p.tokens_per_second:.0f} tokens/s"),
        )  # fmt: skip
    save(model, tokenizer, recipe, to or world_dir())
    write_statistics(to or world_dir())
    out.print(f"Written to {to or world_dir()}. Run `editcore world check` next.", markup=False, highlight=False)


@world_app.command("check")
def world_check(
    model: Model = WORLD_NAME,
    edits: Annotated[int, typer.Option(min=1, help="Random counterfactual edits for each method.")] = 200,
    revision: Revision = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    as_json: AsJson = False,
) -> None:
    """Measures the embedded model against its bars; exit code 1 when one is missed."""
    from editcore.world import check
    from editcore.world.facts import load_world

    handle, world = open_model(model, revision, device, dtype, device_map), load_world()
    bars = check.reference_bars(handle)
    with bar("recall", quiet=as_json) as advance:
        bars += check.recall_bars(handle, world, advance)
    with bar("edits", quiet=as_json) as advance:
        rows = check.edit_rows(handle, world, edits, listen=lambda m, d, t: advance(d, t, m))
    bars += check.edit_bars(rows[0])
    if as_json:
        show_json({"bars": [{**to_plain(b), "met": b.met} for b in bars], "rows": [to_plain(r) for r in rows]})
    else:
        for b in bars:
            least = f"  (at least {b.least})" if b.least is not None else ""
            out.print(
                f"{'met   ' if b.met else 'MISSED'}  {b.value:.4f}{least}  {b.name}", markup=False, highlight=False
            )
        show_bench(rows)
    if not all(b.met for b in bars):
        raise typer.Exit(1)


def _draw(title: str, model: Any, reports: Sequence[Any]) -> Any:
    from dashboard.report import report_files

    return report_files(title, model, reports)


app.command("export")(exporting(_draw))
app.command("models")(models)
app.command("doctor")(doctor)
app.command("train")(train)
app.command("locate")(locate)
app.command("corpus")(corpus)
app.command("examples")(examples)

if __name__ == "__main__":
    main()
