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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from editcore.bench import counterfactuals
from editcore.edit import run_edit, suggested
from editcore.handle import Handle
from editcore.memory import Codebook, Side
from editcore.methods import METHODS, Work, prepare_method
from editcore.opening import load
from editcore.patch import Patch
from editcore.records import EditRequest, to_plain
from editcore.scope import EditMemory
from editcore.world.facts import load_world
from tests.floors import Made, floor_of

PROMPT, TARGET, SUBJECT = "Who is the Prime Minister of the United Kingdom?", "Boris Johnson", "United Kingdom"
# What is compared of a part that is no matrix.
COMPARED = {Codebook: ("keys", "values"), Side: ("values", "threshold"), EditMemory: ("keys", "network")}

ALL_SHAPES = ("world-2019", "gpt2", "gpt2-medium", "gpt2-xl", "gpt-j-6b", "llama-3-8b")
ALIKE = 1e-3  # relative difference from which two results are not the same
NO_FLOOR = "no floor: a text in front, no tensor is computed"


def clock() -> float:
    """Seconds: the process's own on a single CPU thread, where its neighbours count little; else the wall's."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def in_turn(repeats: int, *jobs: Callable[[], Any]) -> list[float]:
    """Median seconds of each job, run A B A B ... after one warm-up of each."""
    times: list[list[float]] = [[] for _ in jobs]
    for turn in range(repeats + 1):
        for job, kept in zip(jobs, times, strict=True):
            began = clock()
            job()
            if turn:
                kept.append(clock() - began)
    return [figures.median(t) for t in times]


def ratios(handle: Handle, home: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Each method's edit over its floor; seconds alone where there is none (a text in front computes nothing)."""
    request, work = EditRequest(PROMPT, TARGET, SUBJECT), Work(handle, home=home)
    rows = {}
    for name in (m.name for m in METHODS):
        method = prepare_method(name, handle)

        def ours(m: Any = method) -> Patch:
            with handle.using([]):
                return m.edit(work, [request])

        with torch.inference_mode(False):
            floor = floor_of(handle, method, request, home)
            if floor is None:
                rows[name] = {"seconds": in_turn(repeats, ours)[0]}
                continue
            gap = agreed(name, ours(), floor())
            mine, least = in_turn(repeats, ours, floor)
        rows[name] = {"seconds": mine, "floor": least, "ratio": mine / least, "relative difference": gap}
    return rows


def difference(patch: Patch, made: Made) -> float:
    """||patch - floor|| / ||floor||, the largest over what both are made of: matrices, or a part's own tensors."""
    mine: list[torch.Tensor] = []
    for part in patch.parts:
        kept = COMPARED.get(type(part))
        mine += [part.delta()] if kept is None else [part.tensors[name] for name in kept]  # type: ignore[union-attr]
    floor = [m if isinstance(m, torch.Tensor) else torch.atleast_2d(m[1]).T @ torch.atleast_2d(m[0]) for m in made]
    return max(float((a - b).norm() / b.norm()) for a, b in zip(mine, floor, strict=True))


def agreed(name: str, patch: Patch, made: Made) -> float:
    """`difference`, of results that are the same.

    Raises:
        ValueError: they are not, and times of them would say nothing.
    """
    gap = difference(patch, made)
    if not gap < ALIKE:
        raise ValueError(f"{name} and its floor differ by {gap:.1e}: they do not compute the same.")
    return gap


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
        "from editcore.opening import load; from editcore.edit import run_edit;"
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
    parser.add_argument("--shapes", default="", help="only random models of these shapes, separated by commas")
    parser.add_argument("--methods", default=",".join(m.name for m in METHODS), help="of the shapes")
    chosen = parser.parse_args()
    if chosen.shapes:
        of_shapes(chosen.shapes.split(","), chosen.repeats, chosen.methods.split(","))
        return
    with tempfile.TemporaryDirectory() as folder:
        home, handle = Path(folder), load()
        result: dict[str, Any] = {
            "model": to_plain(handle.info()),
            "threads": torch.get_num_threads(),
            "edits": ratios(handle, home, chosen.repeats),
            "batches": batches(handle, home, chosen.batches),
            "click to charts": click(handle, home, chosen.repeats),
            "memory MB": peak(home),
            "start": page_start(),
        }
    if chosen.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{'method':10} {'edit s':>8} {'floor s':>8} {'ratio':>6} {'difference':>11}")
    for name, r in result["edits"].items():
        more = f"{r['floor']:8.4f} {r['ratio']:6.2f} {r['relative difference']:11.1e}" if "floor" in r else NO_FLOOR
        print(f"{name:10} {r['seconds']:8.4f} {more}")
    print("\nmany requests in one edit, seconds a request")
    for name, row in result["batches"].items():
        print(f"{name:10}" + "".join(f"{size:6d}: {seconds:.3f}" for size, seconds in row.items()))
    print(f"\nclick to charts (ROME, 4 paraphrases, 8 probes): {result['click to charts']:.2f} s")
    print(
        f"memory: {result['memory MB']['loaded']:.0f} MB loaded, {result['memory MB']['more']:.0f} MB more for an edit"
    )
    print("; ".join(f"{what} after {seconds:.1f} s" for what, seconds in result["start"].items()))
    of_shapes(ALL_SHAPES, max(1, chosen.repeats // 3), [m.name for m in METHODS])


def of_shapes(names: Sequence[str], repeats: int, methods: Sequence[str]) -> None:
    """Prints what `bench_shapes` measures, after the same for the embedded model."""
    from tests import bench_shapes

    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            home = Path(folder) / name
            home.mkdir()
            if name == "world-2019":
                print(f"\nworld-2019\n{bench_shapes.LINE}")
                handle = load()
                bench_shapes.edits(handle, home, repeats, methods, own=False)
                print(bench_shapes.probed(*bench_shapes.probes(handle, repeats)))
            else:
                bench_shapes.shape(name, home, repeats, methods)


if __name__ == "__main__":
    main()
