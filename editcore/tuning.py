"""Settings that suit a model: published or tuned ones under `assets/settings`, found ones in the data folder.

None is ever required. Standard library only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from editcore.assets import assets_root
from editcore.records import MethodInfo

OTHER = "other.json"  # numbers that depend on no model's scale
WHERE = ("layer", "first", "last")  # the settings that say which blocks are edited


@dataclass(frozen=True, slots=True)
class Suited:
    """Settings that suit one model."""

    source: str = ""  # whose they are, in words; "": nobody has any
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by method, values by setting
    steps: Mapping[str, int] = field(default_factory=dict)  # by method, those an edit usually takes


def known_settings(model: str) -> Suited:
    """Those of a known model, else those that any model is met with, without a source.

    A pattern has to match the model's own name, in any case; see `names_in`.
    """
    names, folder = names_in(model), assets_root() / "settings"
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if any(re.fullmatch(pattern, name, re.IGNORECASE) for pattern in data["models"] for name in names):
            return Suited(data["source"], data["methods"], data.get("usual steps", {}))
    return Suited(methods=json.loads((folder / OTHER).read_text(encoding="utf-8"))["methods"])


def names_in(model: str) -> list[str]:
    """What a hub id or a path says the model is called: its last part, and the model whose cache it lies in.

    "EleutherAI/gpt-j-6b" -> gpt-j-6b; ".../models--EleutherAI--gpt-j-6b/snapshots/47e169" -> 47e169 and gpt-j-6b.
    """
    parts = [part for part in re.split(r"[/\\\\]", model) if part]
    return [*parts[-1:], *(part.rpartition("--")[2] for part in parts if part.startswith("models--"))]


def tuned_settings(model: str, method: str) -> dict[str, Any]:
    """What suits a model, for one method."""
    return dict(known_settings(model).methods.get(method, {}))


def usual_steps(model: str, method: str) -> int | None:
    """Steps an edit by the method usually takes on a known model before it stops by itself; None: not known."""
    return known_settings(model).steps.get(method)


def tuned(method: MethodInfo, model: str) -> MethodInfo:
    """The method as it starts on `model`: its defaults are the tuned ones, the published ones stand beside them."""
    values = tuned_settings(model, method.name)
    return replace(
        method,
        settings=tuple(replace(s, default=values.get(s.name, s.default)) for s in method.settings),
        published={s.name: s.default for s in method.settings if values.get(s.name, s.default) != s.default},
    )


def path_in(home: Path, fingerprint: str) -> Path:
    """Where the data folder keeps what was found for a model."""
    return home / "settings" / f"{fingerprint}.json"


def found_settings(home: Path | None, fingerprint: str) -> Suited | None:
    """What was found for this very model (see `locate`); None where nobody has looked, or the file is damaged."""
    if home is None:
        return None
    try:
        data = json.loads(path_in(home, fingerprint).read_text(encoding="utf-8"))
        return Suited(str(data["source"]), {str(m): dict(values) for m, values in data["methods"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def keep_settings(home: Path, fingerprint: str, name: str, found: Suited, more: Mapping[str, Any]) -> Path:
    """Stores what was found, in the form of `assets/settings`, with `more` beside it."""
    path = path_in(home, fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    data = {"models": [re.escape(name)], "source": found.source, "methods": found.methods, **more}
    part.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
    return path
