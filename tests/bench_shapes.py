"""Random models of real shapes: each method's edit over its floor, the bandwidth limit, memory, forecasts, probes.

`python -m tests.bench --shapes gpt2,gpt2-medium`. Latency depends on no weight; what depends on one is how soon a
search stops, so every edit here runs all its steps, and fewer of them where the paper's number takes minutes (`FEWER`).

What was expected stands behind what was measured, as so many times of it: of the edit that is timed, of the first one
by the method on this model and, on the embedded model, the median over random edits: a search ends where it ends.
"""

from __future__ import annotations

import dataclasses
import statistics as figures
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from editcore import forecast, measure, pace, statistics, steps
from editcore.bench import counterfactuals
from editcore.edit import check_request
from editcore.handle import Handle
from editcore.method import Cost, Pass
from editcore.methods import METHODS, Work, prepare_method
from editcore.patch import Patch
from editcore.records import EditRequest, Probe
from editcore.world.facts import load_world
from tests import shapes
from tests.bench import PROMPT, SUBJECT, TARGET, agreed, clock, in_turn
from tests.floors import floor_of

REQUEST = EditRequest(PROMPT, TARGET, SUBJECT)
LEFT_OUT = ("ice", "ike")  # a text in front computes nothing
# Settings under which floor and method do the same, and steps of what takes minutes on a CPU.
FLOORS_OWN: dict[str, dict[str, Any]] = {
    "rome": {"form": "wide", "key": "subject"}, "grace": {"start": "warm"}, "wise": {"window": 1, "relative": True},
}  # fmt: skip
FEWER = {"ft-replay": 2, "grace": 20, "wise": 5, "lora": 10, "ft": 10, "ft-l": 10}
RANDOM = 9  # edits of the embedded model that are compared with what was expected of them
LINE = (
    f"{'method':10} {'edit s':>8} {'floor s':>8} {'ratio':>6} {'limit s':>8} {'expected':>8} {'first s':>8}"
    f" {'expected':>8}"
    f" {'random':>8} {'peak MB':>8} {'expected':>8} {'patch B':>10} {'exact':>5}"
)
ON_GPU = f" {'x limit':>7} {'written':>8} {'x weights':>9}"  # seconds of steps as written; what is held in all
HELD = ("moment", "spectrum", "editor", "ready")  # what a method reads once, and keeps


def peak(device: torch.device, job: Callable[[], Any]) -> tuple[int, Any]:
    """Most bytes of tensors that stood beside those before, and what the job made."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        made = job()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, made
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        made = job()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most, made


def limit(handle: Handle, cost: Cost, bandwidth: float) -> float:
    """Seconds in which the weights that an edit's passes must read can be read: once forward and once backward each."""
    blocks = [sum(p.numel() * p.element_size() for p in b.parameters()) for b in handle.anatomy.blocks]
    head = handle.model.get_output_embeddings().weight
    end = head.numel() * head.element_size()

    def read(some: Pass) -> int:
        last = len(blocks) if some.last is None else some.last + 1
        return sum(blocks[some.first : last]) + (end if some.last is None else 0)

    return sum(read(p) * p.times * (1 + p.backward) for p in cost.passes) / bandwidth


def edits(
    handle: Handle, home: Path, repeats: int, names: Sequence[str], own: bool = True
) -> dict[str, dict[str, Any]]:
    """One row a method.

    Args:
        own: the model is one of random weights, with the settings of this bench.
    """
    rows, bandwidth, on_gpu = {}, pace.bandwidth(handle.device), handle.device.type == "cuda"
    weights = sum(p.numel() * p.element_size() for p in handle.model.parameters())
    for name in (m.name for m in METHODS if m.name in names and m.name not in LEFT_OUT):
        if on_gpu:
            forget(handle)
        fewer = {"steps": FEWER[name]} if own and not on_gpu and name in FEWER else {}
        method = prepare_method(name, handle, {**(FLOORS_OWN.get(name, {}) if own and not on_gpu else {}), **fewer})
        if own and hasattr(method, "enough"):
            method = dataclasses.replace(method, enough=0.0)  # a search takes all its steps
        if own:
            shapes.measured(handle, home, method)
        request, work = check_request(handle, REQUEST, method), Work(handle, home=home)

        def ours(m: Any = method, r: EditRequest = request, w: Work = work) -> Patch:
            with torch.inference_mode(False), handle.using([]):
                made: Patch = m.edit(w, [r])
            return made

        again, once = forecast.counted(handle, method, request, home)
        once += sum(pace.of_eigenvectors(handle, width) for width in method.cost(handle, request).spectra)
        (first,) = timed(ours)
        cost, expected = method.cost(handle, request), forecast.forecast(handle, method, request, home)
        most, patch = peak(handle.device, ours)
        row: dict[str, Any] = {
            "limit": limit(handle, cost, bandwidth), "peak": most, "expected peak": expected.memory,
            "expected seconds": again, "patch": patch.bytes, "expected patch": expected.patch,
            "first": first, "expected first": again + once,
        }  # fmt: skip
        if not own:
            row["random"] = typical(handle, home, method)
        floor = None
        if handle.device.type == "cpu" and type(handle.model).__name__ == "GPT2LMHeadModel":
            with torch.inference_mode(False):
                floor = floor_of(handle, method, request, home)
        if floor is None:
            (row["seconds"],) = in_turn(repeats, ours)
        else:
            with torch.inference_mode(False):
                agreed(name, ours(), floor())
                row["seconds"], row["floor"] = in_turn(repeats, ours, floor)
        if on_gpu:
            row["held"] = torch.cuda.max_memory_allocated(handle.device) / weights
            with steps.as_written(handle):
                (row["written"],) = timed(ours)
        del patch  # it stands on the device
        rows[name] = row
        print(line(name, row), flush=True)
    return rows


def forget(handle: Handle) -> None:
    """Lets go of what methods keep on the device."""
    for key in [k for k in handle.memory if isinstance(k, tuple) and k[0] in HELD]:
        del handle.memory[key]
    torch.cuda.empty_cache()


def timed(*jobs: Callable[[], Any]) -> list[float]:
    """Seconds of each job, run once."""
    found = []
    for job in jobs:
        began = clock()
        job()
        found.append(clock() - began)
    return found


def typical(handle: Handle, home: Path, method: Any) -> float:
    """Median over random edits of what is expected over what they take."""
    found = []
    for case in counterfactuals(load_world(), RANDOM, seed=3):
        request = check_request(handle, case, method)
        expected = forecast.counted(handle, method, request, home)[0]
        with torch.inference_mode(False), handle.using([]):
            (taken,) = timed(partial(method.edit, Work(handle, home=home), [request]))
        found.append(expected / taken)
    return figures.median(found)


def line(name: str, r: dict[str, Any]) -> str:
    """One row as text."""
    floor = f"{r['floor']:8.3f} {r['seconds'] / r['floor']:6.2f}" if "floor" in r else f"{'':8} {'':6}"
    seconds = f"{r['seconds']:8.3f} {floor} {r['limit']:8.3f} {r['expected seconds'] / r['seconds']:7.2f}x"
    seconds += f" {r['first']:8.3f} {r['expected first'] / r['first']:7.2f}x"
    seconds += f" {r['random']:7.2f}x" if "random" in r else f" {'':8}"
    memory = f"{r['peak'] / 1e6:8.1f} {r['expected peak'] / max(1, r['peak']):7.2f}x"
    more = f" {r['seconds'] / r['limit']:7.2f} {r['written']:8.3f} {r['held']:9.2f}" if "held" in r else ""
    exact = "yes" if r["patch"] == r["expected patch"] else "NO"
    return f"{name:10} {seconds} {memory} {r['patch']:10d} {exact:>5}{more}"


def probes(handle: Handle, repeats: int) -> tuple[float, float, float]:
    """Of 4 paraphrases and 8 probes, without free writing: seconds before and after; probes and tokens in a second."""
    asked = [Probe("paraphrase", f"Paraphrase {i} of a question about the United Kingdom is") for i in range(4)]
    asked += [Probe("far", f"Question {i} about something else altogether is") for i in range(8)]
    olds = ["Theresa May"] * len(asked)
    both = in_turn(repeats, lambda: [measure.read(handle, asked, TARGET, olds, (), generate=False) for _ in range(2)])[
        0
    ]
    tokens = sum(len(handle.row(p.prompt, a).ids) for p in asked for a in ("", TARGET, olds[0]))
    return both, 2 * len(asked) / both, 2 * tokens / both


def probed(seconds: float, each: float, tokens: float) -> str:
    """What `probes` gives, as text."""
    return f"4 paraphrases and 8 probes, both passes: {seconds:.2f} s, {each:.0f} probes/s, {tokens:.0f} tokens/s"


def read(handle: Handle) -> tuple[int, float, float, int]:
    """Statistics of what MEMIT reads, text written by the model included: matrices, seconds told, taken, and tokens."""
    sites = prepare_method("memit", handle).measured(handle)
    expected = statistics.seconds_to_wait(handle, sites, None)
    (taken,) = timed(lambda: statistics.moments(handle, sites))
    return len(sites), expected, taken, statistics.moment(handle, sites[0]).tokens


def told(matrices: int, expected: float, taken: float, tokens: int) -> str:
    """What `read` gives, as text."""
    return f"statistics of {matrices} matrices from {tokens} tokens: {taken:.1f} s ({expected:.1f} expected)"


def shape(name: str, home: Path, repeats: int, names: Sequence[str]) -> dict[str, Any]:
    """One shape, printed as it comes; on a GPU only where there is one."""
    if name in shapes.ON_GPU and not torch.cuda.is_available():
        print(f"\n{name}: not measured: no CUDA device")
        return {}
    began = time.perf_counter()
    handle = shapes.build(name, home, editors=names)
    info = handle.info()
    size = f"{info.parameters / 1e6:.0f} M parameters, {info.bytes / 1e9:.2f} GB in {info.dtype} on {info.device}"
    print(f"\n{name}: {size}, {torch.get_num_threads()} threads, built in {time.perf_counter() - began:.0f} s")
    print(f"copy bandwidth {pace.bandwidth(handle.device) / 1e9:.1f} GB/s, read and written")
    found: dict[str, Any] = {}
    if handle.device.type == "cuda" and "memit" in names:
        found["statistics"] = read(handle)
        print(told(*found["statistics"]))
    print(LINE + (ON_GPU if handle.device.type == "cuda" else ""))
    found["edits"] = edits(handle, home, repeats, names)
    found["probes"], each, tokens = probes(handle, repeats)
    print(probed(found["probes"], each, tokens))
    return found
