"""What a person asks of a method: its name, and values for its settings, right in name, type and bounds. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from editcore.errors import BadSetting, UnknownMethod
from editcore.records import MethodInfo, SettingInfo

PRESETS = ("tuned", "published")


def known(name: str, names: Sequence[str]) -> str:
    """The method's name as the menu writes it.

    Raises:
        UnknownMethod: it is none of `names`.
    """
    if name.lower() in names:
        return name.lower()
    raise UnknownMethod(f"There is no method {name!r}.", f"Known methods: {', '.join(names)}.")


def check_plan(name: str, values: Mapping[str, Any], menu: Sequence[MethodInfo]) -> None:
    """Refuse a method that is not on the menu, or settings it does not take; whether they suit a model is not asked.

    Raises:
        UnknownMethod, BadSetting: a name or a value is wrong.
    """
    wanted = known(name, [method.name for method in menu])
    parted(next(method for method in menu if method.name == wanted), values)


def check_shared(names: Sequence[str], values: Mapping[str, Any], menu: Sequence[MethodInfo]) -> None:
    """Refuse settings for several methods that none of them takes; see `check_plan` for what it raises."""
    refused = []
    for name in names:
        try:
            check_plan(name, values, menu)
        except BadSetting as error:
            refused.append(error)
    if refused and len(refused) == len(names):
        raise refused[0]


def parted(method: MethodInfo, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset that is asked for, and the other values in the types of the method's settings.

    Raises:
        BadSetting: a name is unknown, or a value has the wrong type or is out of bounds.
    """
    others = dict(values)
    preset = others.pop("preset", PRESETS[0])
    if preset not in PRESETS:
        raise BadSetting(
            f"preset is {preset!r}.", f"One of {', '.join(PRESETS)} was wanted.", f"The default is {PRESETS[0]}."
        )
    return preset, checked(method, others)


def checked(method: MethodInfo, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` in the types of the method's settings.

    Raises:
        BadSetting: a name is unknown, or a value has the wrong type or is out of bounds.
    """
    dials = {d.name: d for d in method.settings}
    result = {}
    for name, value in values.items():
        if name not in dials:
            raise BadSetting(
                f"{method.title} has no setting {name!r}.",
                f"Its settings are {', '.join(dials)}.",
                "Check the spelling.",
            )
        result[name] = _checked(dials[name], value)
    return result


def _checked(dial: SettingInfo, value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "auto")):
        if dial.optional:
            return None
        raise BadSetting(f"{dial.name} has no value.", _wanted(dial), f"The default is {dial.default}.")
    try:
        made = _convert(dial, value)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise BadSetting(f"{dial.name} is {value!r}.", _wanted(dial), f"The default is {dial.default}.") from error
    bad = isinstance(made, float) and not math.isfinite(made)
    low, high = dial.low, dial.high
    if not isinstance(made, str | bool) and (
        bad or (low is not None and made < low) or (high is not None and made > high)
    ):
        raise BadSetting(f"{dial.name} is {value!r}.", _wanted(dial), f"The default is {dial.default}.")
    return made


def _convert(dial: SettingInfo, value: Any) -> Any:
    if dial.kind == "bool":
        if isinstance(value, bool):
            return value
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
    if dial.kind == "choice":
        if value not in dial.choices:
            raise ValueError(value)
        return value
    if isinstance(value, bool):
        raise ValueError(value)
    if dial.kind == "int":
        if float(value) != int(float(value)):
            raise ValueError(value)
        return int(float(value))
    return float(value)


def _wanted(dial: SettingInfo) -> str:
    if dial.kind == "choice":
        return f"One of {', '.join(dial.choices)} was wanted."
    if dial.kind == "bool":
        return "true or false was wanted."
    bounds = [
        f"at least {dial.low:g}" if dial.low is not None else "",
        f"at most {dial.high:g}" if dial.high is not None else "",
    ]
    limits = " and ".join(b for b in bounds if b)
    return f"A {'whole number' if dial.kind == 'int' else 'number'}{' of ' + limits if limits else ''} was wanted."
