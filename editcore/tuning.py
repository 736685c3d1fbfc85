"""Settings that suit a known model: data under `assets/settings`, never a requirement. Standard library only."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from editcore.assets import assets_root
from editcore.records import MethodInfo


def tuned_settings(model: str, method: str) -> dict[str, Any]:
    """Settings for a known model, empty for an unknown one. Patterns match the end of the model's name."""
    return dict(_known(model).get("methods", {}).get(method, {}))


def usual_steps(model: str, method: str) -> int | None:
    """Steps an edit by the method usually takes on a known model before it stops by itself; None: not known."""
    found = _known(model).get("usual steps", {}).get(method)
    return None if found is None else int(found)


def _known(model: str) -> dict[str, Any]:
    for path in sorted((assets_root() / "settings").glob("*.json")):
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if any(re.search(rf"(^|/){pattern}$", model, re.IGNORECASE) for pattern in data["models"]):
            return data
    return {}


def tuned(method: MethodInfo, model: str) -> MethodInfo:
    """The method as it starts on `model`: its defaults are the tuned ones, the published ones stand beside them."""
    values = tuned_settings(model, method.name)
    return replace(
        method,
        settings=tuple(replace(s, default=values.get(s.name, s.default)) for s in method.settings),
        published={s.name: s.default for s in method.settings if values.get(s.name, s.default) != s.default},
    )
