"""Widgets made from records: a method's settings become a form without anyone writing one. Knows no engine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from dashboard import state
from dashboard.text import plain
from editcore.records import MethodInfo, SettingInfo

_PER_ROW = 2
_FIRST = (state.DEFAULT_METHOD, "ft-l", "ft")  # the first that this model can be edited with is chosen to start with
_CHOSEN = "_chose_method"  # known once a person has clicked on a method


def method_choice(methods: Sequence[MethodInfo], out: Mapping[str, str]) -> MethodInfo:
    """All methods by name, and in one plain sentence what the chosen one does.

    Args:
        out: methods that cannot run on this model, and why; none of them is where a person starts.
    """
    names, current = [m.name for m in methods], state.value(state.METHOD)
    if current not in names or (current in out and current == state.DEFAULT_METHOD and not state.known(_CHOSEN)):
        state.set_widget(state.METHOD, next((n for n in (*_FIRST, *names) if n in names and n not in out), names[0]))
    by_name = {m.name: m for m in methods}
    chosen = st.pills(
        "Method", names, key=state.METHOD, format_func=lambda n: label(by_name[n], out), required=True, wrap=True,
        persist_state="session", on_change=state.set_widget, args=(_CHOSEN, True),
        help="  \n".join(f"**{plain(m.title)}**: {plain(m.sentence)}" for m in methods),
    )  # fmt: skip
    st.caption(plain(by_name[chosen].sentence))
    return by_name[chosen]


def label(method: MethodInfo, out: Mapping[str, str]) -> str:
    """The method's name, marked when it is one of those that cannot run here."""
    return f":material/block: {plain(method.title)}" if method.name in out else plain(method.title)


def settings_form(method: MethodInfo) -> dict[str, Any]:
    """One widget per setting of the method; returns name -> value, None where it is left to the model."""
    values: dict[str, Any] = {}
    if method.published:
        with st.container(horizontal=True, gap="small", key=f"presets:{method.name}"):
            for label, chosen in (("Suited to this model", {}), ("As published", method.published)):
                st.button(
                    label, key=f"preset:{method.name}:{label}", type="tertiary", icon=":material/restart_alt:",
                    on_click=set_all, args=(method, chosen), help="Sets every field below.",
                )  # fmt: skip
    for start in range(0, len(method.settings), _PER_ROW):
        for column, setting in zip(st.columns(_PER_ROW), method.settings[start : start + _PER_ROW], strict=False):
            with column:
                values[setting.name] = setting_widget(method.name, setting)
    return values


def setting_widget(method: str, setting: SettingInfo) -> Any:
    """The widget for one setting."""
    key = setting_key(method, setting.name)
    label, tip = setting.name.replace("_", " ").capitalize(), plain(setting.help)
    default = {} if state.known(key) else {"value": setting.default}
    if setting.kind == "bool":
        return st.toggle(label, key=key, help=tip, persist_state="session", **default)
    if setting.kind == "choice":
        index = {} if state.known(key) else {"index": setting.choices.index(setting.default)}
        return st.selectbox(label, setting.choices, key=key, help=tip, persist_state="session", **index)
    number = int if setting.kind == "int" else float
    hint = "chosen for the model" if setting.optional else None
    return st.number_input(
        label, key=key, help=tip, placeholder=hint, persist_state="session",
        min_value=None if setting.low is None else number(setting.low),
        max_value=None if setting.high is None else number(setting.high),
        step=1 if number is int else _step(setting.default), format="%d" if number is int else "%g", **default,
    )  # fmt: skip


def settings_of(method: MethodInfo) -> dict[str, Any]:
    """What stands in the method's form, whether it is drawn now or not; as `settings_form` returns it."""
    keys = {setting.name: setting_key(method.name, setting.name) for setting in method.settings}
    return {s.name: state.value(keys[s.name]) if state.known(keys[s.name]) else s.default for s in method.settings}


def changed_settings(method: MethodInfo) -> dict[str, Any]:
    """Those of `settings_of` that a person changed."""
    values = settings_of(method)
    return {s.name: values[s.name] for s in method.settings if values[s.name] != s.default}


def set_all(method: MethodInfo, values: Mapping[str, Any]) -> None:
    """Fill the method's form; for callbacks only."""
    for setting in method.settings:
        state.set_widget(setting_key(method.name, setting.name), values.get(setting.name, setting.default))


def forget_settings(methods: Sequence[MethodInfo]) -> None:
    """What was chosen for another model goes: every field that has a value starts again."""
    for method in methods:
        for setting in method.settings:
            if state.known(key := setting_key(method.name, setting.name)):
                state.set_widget(key, setting.default)


def setting_key(method: str, name: str) -> str:
    """Widget key of one setting."""
    return f"set:{method}:{name}"


def _step(default: float | None) -> float:
    """A tenth to a whole of the default's size: 5e-4 moves by 1e-4."""
    return 0.1 if not default else 10.0 ** math.floor(math.log10(abs(default)))
