"""`make bench`: each method's edit over its exact floor, click-to-charts, start times, memory; medians, one run.

Both sides of a ratio run in this process, in turn, and must agree on the result before they are timed.
"""

from __future__ import annotations

import argparse
import json
import statistics as figures
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch

from editcore import dials, spans, statistics, subject
from editcore.bench import counterfactuals
from editcore.edit import run_edit, suggested
from editcore.handle import Handle, load
from editcore.methods import METHODS, Work, prepare_method
from editcore.records import EditRequest, to_plain
from editcore.world.facts import load_world
from tests.floor import ft_floor, rome_floor

PROMPT, TARGET, SUBJECT = "Who is the Prime Minister of the United Kingdom?", "Boris Johnson", "United Kingdom"


def in_turn(repeats: int, *jobs: Callable[[], Any]) -> list[float]:
    """Median seconds of each job, run A B A B ... after one warm-up of each."""
    times: list[list[float]] = [[] for _ in jobs]
    for turn in range(repeats + 1):
        for job, kept in zip(jobs, times, strict=True):
            began = time.perf_counter()
            job()
            if turn:
                kept.append(time.perf_counter() - began)
    return [figures.median(t) for t in times]


def ratios(handle: Handle, home: Path, repeats: int) -> dict[str, Any]:
    """ROME, FT and FT-L over their floors."""
    request = EditRequest(PROMPT, TARGET, SUBJECT)
    work = Work(handle, home=home)
    rows = {}
    for name in ("rome", "ft", "ft-l"):
        method: Any = prepare_method(name, handle)
        layer = method.layers(handle)[0]
        site = handle.anatomy.site(layer)
        row = spans.encode(handle.tokenizer, PROMPT, TARGET, SUBJECT)
        if name == "rome":
            moment = statistics.moment(handle, site, home)
            every, about = subject.prompts(handle, request, method.contexts), subject.sentences(handle, SUBJECT)
            essence = subject.essence(handle, SUBJECT)
            parts = (handle.model, every, essence, about, layer, dials.search(method), moment.solve)

            def floor(parts: Any = parts) -> torch.Tensor:
                read, write = rome_floor(*parts)
                return torch.outer(write, read)

        else:
            parts = (handle.model, row, layer, method.rate, method.steps, method.enough)

            def floor(parts: Any = parts, distance: float | None = getattr(method, "distance", None)) -> torch.Tensor:
                return ft_floor(*parts, distance).T

        def ours(m: Any = method) -> torch.Tensor:
            with handle.using([]):
                return m.edit(work, [request]).parts[0].delta()

        with torch.inference_mode(False):
            gap = float((ours() - floor()).norm() / floor().norm())
            mine, least = in_turn(repeats, ours, floor)
        rows[name] = {"seconds": mine, "floor": least, "ratio": mine / least, "relative difference": gap}
    return rows


def others(handle: Handle, home: Path, repeats: int, known: Container[str]) -> dict[str, float]:
    """Median seconds of one edit by every method that has no floor here."""
    request, work = EditRequest(PROMPT, TARGET, SUBJECT), Work(handle, home=home)
    found = {}
    for name in (m.name for m in METHODS if m.name not in known):
        method = prepare_method(name, handle)

        def ours(m: Any = method) -> None:
            with handle.using([]):
                m.edit(work, [request])

        (found[name],) = in_turn(min(repeats, 3), ours)
    return found


def batches(handle: Handle, home: Path, sizes: Sequence[int]) -> dict[str, dict[int, float]]:
    """Seconds per request of one edit that holds so many random counterfactual requests."""
    cases, work = counterfactuals(load_world(), max(sizes), seed=1), Work(handle, home=home)
    found: dict[str, dict[int, float]] = {}
    for name in ("memit", "alphaedit"):
        method, found[name] = prepare_method(name, handle), {}
        for size in sizes:
            began = time.perf_counter()
            with handle.using([]):
                method.edit(work, cases[:size])
            found[name][size] = (time.perf_counter() - began) / size
    return found


def click(handle: Handle, home: Path, repeats: int) -> float:
    """Median seconds from request to report: ROME, 4 paraphrases, 8 probes, both passes and continuations."""
    full = suggested(handle, PROMPT, TARGET)
    request = EditRequest(PROMPT, TARGET, SUBJECT, None, full.paraphrases[:4], full.probes[:8])
    return in_turn(repeats, lambda: run_edit(handle, request, "rome", home=home))[0]


def peak(home: Path) -> dict[str, float]:
    """Peak memory of one edit in a process of its own, in MB: after loading, and after an edit."""
    code = (
        "import resource, sys; from pathlib import Path;"
        "from editcore.handle import load; from editcore.edit import run_edit;"
        "from editcore.records import EditRequest; h = load();"
        "a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        f"run_edit(h, EditRequest({PROMPT!r}, {TARGET!r}, {SUBJECT!r}), 'rome', home=Path(sys.argv[1]));"
        "print(a / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True)
    loaded, edited = map(float, done.stdout.split())
    return {"loaded": loaded, "edited": edited, "more": edited - loaded}


def page_start(port: int = 8577) -> dict[str, float]:
    """Seconds until the page's server answers, and until its engine is ready; the page process's memory in MB."""
    from editcore.engine import LocalEngine

    began = time.perf_counter()
    command = [sys.executable, "-m", "editcore.cli", "dashboard", "--headless", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while time.perf_counter() - began < 60:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=1).read()
                break
            except OSError:
                time.sleep(0.05)
        up = time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engine = LocalEngine(home=Path(folder))
        while engine.health().state == "starting" and time.perf_counter() - began < 120:
            time.sleep(0.05)
        ready = time.perf_counter() - began
        engine.close()
    return {"page answers": up, "engine ready": ready}


def main() -> None:
    """Prints the table, or one JSON object."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home, handle = Path(folder), load()
        edits = ratios(handle, home, chosen.repeats)
        result: dict[str, Any] = {
            "model": to_plain(handle.info()),
            "threads": torch.get_num_threads(),
            "edits": edits,
            "other edits": others(handle, home, chosen.repeats, edits),
            "batches": batches(handle, home, chosen.batches),
            "click to charts": click(handle, home, chosen.repeats),
            "memory MB": peak(home),
            "start": page_start(),
        }
    if chosen.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'method':8} {'edit s':>8} {'floor s':>8} {'ratio':>6} {'difference':>11}")
    for name, r in result["edits"].items():
        print(f"{name:8} {r['seconds']:8.3f} {r['floor']:8.3f} {r['ratio']:6.2f} {r['relative difference']:11.1e}")
    print("\nother methods, seconds an edit")
    print(", ".join(f"{name} {seconds:.3f}" for name, seconds in result["other edits"].items()))
    print("\nmany requests in one edit, seconds a request")
    for name, row in result["batches"].items():
        print(f"{name:10}" + "".join(f"{size:6d}: {seconds:.3f}" for size, seconds in row.items()))
    print(f"\nclick to charts (ROME, 4 paraphrases, 8 probes): {result['click to charts']:.2f} s")
    print(
        f"memory: {result['memory MB']['loaded']:.0f} MB loaded, {result['memory MB']['more']:.0f} MB more for an edit"
    )
    print("; ".join(f"{what} after {seconds:.1f} s" for what, seconds in result["start"].items()))


if __name__ == "__main__":
    main()
