"""Which settings suit the embedded model: `python -m tests.sweep`, on edits of the validation entities.

Tries every line of `GRID`, prints one row each, and keeps all of them in `assets/settings/world-2019.sweep.csv`. What
suits best goes into `assets/settings/world-2019.json` by hand; scores are then measured on the test entities.
"""

from __future__ import annotations

import argparse
import csv
import json

from editcore.assets import assets_root
from editcore.bench import counterfactuals, run_bench
from editcore.opening import load
from editcore.world.facts import load_world

WIDE = {"layer": 0, "form": "wide", "key": "subject", "contexts": 1, "decay": 1e-3, "limit": 4.0}
SPREAD = {"first": 0, "last": 1, "key": "subject", "contexts": 1, "rate": 1.0, "decay": 1e-3, "limit": 4.0, "steps": 30}
PLAIN = {"eased": 1.0, "calm": 0.0, "kl": 0.0625}
GRID: dict[str, list[dict[str, object]]] = {
    "rome": [
        {**WIDE, "momentum": 0.9, "rate": 0.5, "steps": 40, "enough": 0.02},
        {**WIDE, "momentum": 0.5, "rate": 1.0, "steps": 30, "enough": 0.03},
        {**WIDE, "momentum": 0.5, "rate": 1.0, "steps": 30, "enough": 0.05},
        *(
            {**WIDE, "form": "r-rome", "momentum": 0.5, "rate": 1.0, "steps": 30, "enough": e, "limit": limit}
            for e, limit in ((0.03, 4.0), (0.01, 4.0), (0.01, 10.0))
        ),
    ],
    "memit": [{**SPREAD, "momentum": m, "enough": 0.01, "weight": w} for m in (0.5, 0.7) for w in (0.1, 1.0)],
    "pmet": [
        {**SPREAD, "momentum": 0.5, "limit": 20.0, "weight": 0.1},
        {**SPREAD, **PLAIN, "momentum": 0.5, "limit": 12.0, "enough": 0.02, "weight": 0.1},
        {**SPREAD, **PLAIN, "momentum": 0.5, "limit": 20.0, "enough": 0.01, "weight": 0.1},
    ],
    "alphaedit": [
        {**SPREAD, "momentum": 0.7, "enough": 0.01, "penalty": 0.01, "relative": True, "cut": c} for c in (0.3, 1.0)
    ],
    "ft": [{"layer": layer, "rate": rate} for layer in (0, 2, 4) for rate in (5e-4, 2e-3)]
    + [{"layer": layer, "rate": rate, "enough": 0.0} for layer in (0, 4) for rate in (5e-4, 2e-3)],  # without a stop
    "ft-l": [{"layer": 0, "distance": d} for d in (5e-4, 2e-3, 4e-3, 8e-3)]
    + [{"layer": 4, "rate": 2e-3, "distance": d} for d in (4e-3, 8e-3)]
    + [{"layer": 0, "rate": 2e-3, "distance": d, "enough": 0.0} for d in (4e-3, 8e-3)],
    "ft-replay": [
        {"layer": 0, "rate": rate, "weight": weight, "rows": 24, "length": 48}
        for rate, weight in ((5e-4, 1.0), (5e-4, 30.0), (2e-3, 30.0))
    ]
    + [{"layer": 4, "rate": 2e-3, "weight": 1.0, "rows": 24, "length": 48}]
    + [
        {"layer": 0, "rate": rate, "weight": weight, "rows": 24, "length": 48, "enough": 0.0, "steps": 25}
        for rate, weight in ((5e-4, 10.0), (2e-3, 10.0), (2e-3, 300.0))
    ],
    "lora": [{"layer": layer, "rate": rate} for layer in (0, 2, 4) for rate in (1e-3, 5e-3)],
    "ultraedit": [{"first": 0, "last": 5, "rate": r} for r in (5e-5, 1e-4, 2e-4)]
    + [{"first": 3, "last": 5, "rate": r} for r in (1e-4, 1.5e-4, 2e-4, 3e-4)]
    + [{"first": layer, "last": layer, "rate": r} for layer in (3, 4) for r in (2e-4, 4e-4)],
    "mend": [{"strength": strength} for strength in (1.0, 1.1, 1.2, 1.5)],
    "enn": [{"strength": strength} for strength in (1.0, 1.1, 1.2)],
    "malmen": [{"strength": strength} for strength in (1.0, 1.1, 1.2, 1.5)],
    "ike": [{"form": "sentence", "count": count} for count in (0, 1, 2, 3, 4, 32)] + [{"form": "prompt"}],
    "serac": [{"threshold": threshold} for threshold in (0.1, 0.2, 0.3, 0.5, 0.7)],
}
FIELDS = ("reliability", "generality", "locality", "es", "ps", "ns", "s")


def main() -> None:
    """Prints a row for each point and rewrites the kept table for the methods that were tried."""
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", default=list(GRID))
    parser.add_argument("--edits", type=int, default=40)
    chosen = parser.parse_args()
    handle, cases = load(), counterfactuals(load_world(), chosen.edits, seed=11, share="validation")
    path = assets_root() / "settings" / "world-2019.sweep.csv"
    kept = [row for row in csv.reader(path.open()) if row[0] not in chosen.methods][1:] if path.exists() else []
    for method in chosen.methods:
        for settings in GRID[method]:
            (row,) = run_bench(handle, cases, [method], {method: settings}, generate=False)
            figures = [f"{getattr(row.scores, name):.3f}" for name in FIELDS]
            kept.append([method, json.dumps(settings), str(row.edits), *figures, f"{row.seconds:.2f}"])
            print(*kept[-1], flush=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["method", "settings", "edits", *FIELDS, "seconds"], *kept])


if __name__ == "__main__":
    main()
