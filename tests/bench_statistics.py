"""Whether statistics from few tokens edit as well as those from many: `python -m tests.bench_statistics`.

The embedded model is treated as if nothing were known of its training text: it is read on what it writes itself and on
the neutral text (*few*). The same random edits are made with this estimate, with one from many times more tokens of the
text it was trained on (*many*), and with the shipped statistics. A value search reads no statistics: it is run once.
With `--loose 2.3`, also with an estimate that stops at an excess of 2.3 (see `moments`).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from editcore import algebra, corpus, factors, moments, statistics
from editcore.anatomy import Site
from editcore.bench import average, counterfactuals
from editcore.edit import Before, read_before, run_edit
from editcore.handle import Handle
from editcore.methods import prepare_method
from editcore.moments import Bounds, Estimate
from editcore.opening import load
from editcore.records import EditRequest, Scores
from editcore.world.facts import load_world

METHODS = ("rome", "memit", "emmet", "alphaedit")
SCORES = ("s", "es", "ps", "ns")


def sites_of(handle: Handle, methods: Sequence[str]) -> list[Site]:
    """Every site that one of the methods measures."""
    every = [site for name in methods for site in prepare_method(name, handle).measured(handle)]
    return list({site.path: site for site in every}.values())


def few(handle: Handle, sites: Sequence[Site], good: float = moments.GOOD) -> dict[str, Estimate]:
    """The estimate a model is given whose training text is not known; it stops at an excess of `good`."""
    return moments.estimate(handle, sites, corpus.foreign(handle), replace(moments.bounds(sites), good=good))


def many(handle: Handle, sites: Sequence[Site], tokens: int, kept: Path | None) -> dict[str, Estimate]:
    """An estimate from so many tokens of the training text; read from a file that has it, else written there."""
    if kept is None or not kept.exists():
        text = corpus.given(corpus.world_rows(handle, tokens), corpus.WORLD_TEXT, "world")
        made = moments.estimate(handle, sites, text, Bounds(tokens, tokens, tokens))
        if kept is None:
            return made
        save_file({f"{p} {m.tokens} {m.shrinkage} {m.excess}": m.second.contiguous() for p, m in made.items()}, kept)
    found = {}
    for key, second in load_file(kept).items():
        path, count, shrinkage, excess = key.split(" ")
        found[path] = Estimate(second, int(count), float(shrinkage), float(excess))
    return found


class Once:
    """Stands in for `algebra.search_values` and for the reading before an edit: the same question is answered once."""

    def __init__(self) -> None:
        self.search, self.values, self.before = algebra.search_values, {}, {}  # type: ignore[var-annotated]

    def searched(self, handle: Handle, site: Site, wishes: Any, dials: Any, *rest: Any, **options: Any) -> Any:
        """`algebra.search_values`."""
        key = site.path, tuple(row.ids for wish in wishes for row in wish.rows), dials, options.get("block", False)
        if key not in self.values:
            self.values[key] = self.search(handle, site, wishes, dials, *rest, **options)
        return self.values[key]

    def read(self, handle: Handle, request: EditRequest, generate: bool) -> Before:
        """`edit.read_before`."""
        if request not in self.before:
            self.before[request] = read_before(handle, request, generate)
        return self.before[request]


def use(handle: Handle, made: dict[str, Estimate] | None) -> None:
    """From now on, edits read these statistics; None: the shipped ones."""
    for key in [k for k in handle.memory if isinstance(k, tuple) and k[0] in ("moment", "spectrum")]:
        del handle.memory[key]
    for path, one in (made or {}).items():
        factor = factors.factorise(one.second, one.shrinkage)
        handle.memory["moment", path] = statistics.Moment(path, one.tokens, "", factor, one.shrinkage, one.excess)


def scored(handle: Handle, once: Once, cases: Iterable[EditRequest], method: str) -> list[list[float | None]]:
    """Scores of each case by one method."""
    found = []
    for case in cases:
        _, report = run_edit(handle, case, method, generate=False, before=once.read)
        found.append([getattr(report.scores, name) for name in ("reliability", "generality", "locality", *SCORES)])
    return found


def means(rows: list[list[float | None]]) -> dict[str, float]:
    """As a bench row has them."""
    names = ("reliability", "generality", "locality", *SCORES)
    made = average(Scores(**dict(zip(names, row, strict=True))) for row in rows)
    return {name: getattr(made, name) for name in SCORES}


def show(found: dict[str, dict[str, list[list[float | None]]]]) -> None:
    """A table, and the largest difference from what most tokens gave."""
    for variant, methods in found.items():
        for method, rows in methods.items():
            values = " ".join(f"{key.upper()} {value:.4f}" for key, value in means(rows).items())
            print(f"{variant:8} {method:10} {len(rows):4} edits  {values}")
    for variant in found:
        pairs = [(means(found[variant][m]), means(found["many"][m])) for m in found[variant] if "many" in found]
        apart = max((abs(a[key] - b[key]) for a, b in pairs for key in SCORES), default=math.nan)
        print(f"largest difference of {variant} from many: {apart:.4f}")


def main() -> None:
    """Estimates, edits and prints; or, given files that earlier runs wrote, puts them together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=100)
    parser.add_argument("--part", default="0/1", help="i/n: every n-th edit only, from the i-th")
    parser.add_argument("--times", type=int, default=100, help="how many times more tokens `many` has")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--loose", type=float, default=None, help="an excess at which one more estimate stops")
    parser.add_argument("--variants", default="few,loose,shipped,many")
    parser.add_argument("--keep", type=Path, default=None, help="a file for `many`")
    parser.add_argument("--to", type=Path, default=None, help="write every score as JSON")
    parser.add_argument("--merge", type=Path, nargs="*", default=[], help="only show what these files hold")
    chosen = parser.parse_args()
    found: dict[str, dict[str, list[list[float | None]]]] = {}
    for path in chosen.merge:
        for variant, methods in json.loads(path.read_text()).items():
            for method, rows in methods.items():
                found.setdefault(variant, {}).setdefault(method, []).extend(rows)
    if chosen.merge:
        return show(found)
    torch.set_num_threads(1)
    handle, methods = load(device="cpu"), chosen.methods.split(",")
    first, parts = map(int, chosen.part.split("/"))
    cases = counterfactuals(load_world(), chosen.edits)[first::parts]
    sites, once = sites_of(handle, methods), Once()
    algebra.search_values = once.searched
    made: dict[str, dict[str, Estimate] | None] = {"few": few(handle, sites), "shipped": None}
    wanted = chosen.times * max(one.tokens for one in (made["few"] or {}).values())
    if chosen.loose:
        made["loose"] = few(handle, sites, chosen.loose)
    made["many"] = many(handle, sites, wanted, chosen.keep)
    made = {name: one for name, one in made.items() if name in chosen.variants.split(",")}
    for name, estimate in made.items():
        for path, one in (estimate or {}).items():
            print(f"{name}: {path} {one.tokens:,} tokens, excess {one.excess}, shrinkage {one.shrinkage:g}", flush=True)
    for method in methods:
        for name, estimate in made.items():
            use(handle, estimate)
            found.setdefault(name, {})[method] = scored(handle, once, cases, method)
            print(f"  {name:8} {method:10}", means(found[name][method]), flush=True)
            if chosen.to:
                chosen.to.write_text(json.dumps(found) + "\n")
    show(found)


if __name__ == "__main__":
    main()
