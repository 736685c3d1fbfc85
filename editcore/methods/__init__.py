"""The menu of methods: an explicit tuple. A new method is one file, one class, one name here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from editcore.errors import EditcoreError, Unsuited
from editcore.handle import Handle
from editcore.locate import helps
from editcore.method import Cost, Method, Work, describe
from editcore.methods.alphaedit import AlphaEdit
from editcore.methods.emmet import EMMET
from editcore.methods.enn import ENN
from editcore.methods.ft import FT
from editcore.methods.ft_l import FTL
from editcore.methods.ft_replay import FTReplay
from editcore.methods.grace import GRACE
from editcore.methods.ice import ICE
from editcore.methods.ike import IKE
from editcore.methods.ke import KE
from editcore.methods.lora import LoRA
from editcore.methods.malmen import MALMEN
from editcore.methods.memit import MEMIT
from editcore.methods.mend import MEND
from editcore.methods.pmet import PMET
from editcore.methods.rome import ROME
from editcore.methods.serac import SERAC
from editcore.methods.ultraedit import UltraEdit
from editcore.methods.wise import WISE
from editcore.records import MethodInfo
from editcore.tuning import WHERE, Suited, found_settings, known_settings
from editcore.values import PRESETS, checked, known, parted

METHODS: tuple[type[Method], ...] = (
    ROME,
    EMMET,
    MEMIT,
    PMET,
    AlphaEdit,
    FT,
    FTL,
    FTReplay,
    LoRA,
    MEND,
    MALMEN,
    ENN,
    KE,
    UltraEdit,
    GRACE,
    WISE,
    SERAC,
    ICE,
    IKE,
)
AS_SET = "as set"
RULE = "a rule of thumb"

__all__ = [
    "METHODS", "PRESETS", "Cost", "Method", "Work", "check_suited", "find_method", "menu", "prepare_method",
]  # fmt: skip


def find_method(name: str) -> type[Method]:
    """The method of that name.

    Raises:
        UnknownMethod: there is none.
    """
    named = {method.name: method for method in METHODS}
    return named[known(name, list(named))]


def menu() -> tuple[MethodInfo, ...]:
    """Every method as plain data."""
    return tuple(describe(method) for method in METHODS)


def check_suited(method: type[Method], handle: Handle) -> None:
    """Raises Unsuited when the method cannot edit a model of this kind."""
    if handle.encoder_decoder and method.one_stack:
        others = ", ".join(m.name for m in METHODS if not m.one_stack)
        raise Unsuited(
            f"{method.title} cannot edit {handle.name}: it is an encoder-decoder.", method.one_stack, f"Use {others}."
        )


def why_not(handle: Handle) -> dict[str, str]:
    """Of the methods that cannot edit this model, the reason."""
    found = {}
    for method in METHODS:
        try:
            prepare_method(method.name, handle)
        except EditcoreError as error:
            found[method.name] = str(error)
    return found


def prepare_method(name: str, handle: Handle, values: Mapping[str, Any] | None = None) -> Method:
    """A method with its settings: published defaults, then what suits the model, then `values`.

    What suits a model is in `assets/settings` if it is known, else in the data folder if somebody looked (`locate`).
    `values` may hold `preset`: "tuned" (the default) or "published", which leaves out what suits the model.

    Raises:
        UnknownMethod, BadSetting: a name or a value is wrong.
    """
    return prepared(name, handle, values)[0]


def prepared(name: str, handle: Handle, values: Mapping[str, Any] | None = None) -> tuple[Method, str]:
    """`prepare_method`, and in a few words who chose the blocks it edits; "" for a method that was given none.

    Raises:
        UnknownMethod, BadSetting: a name or a value is wrong.
        Unsuited: see `check_suited`.
    """
    method = find_method(name)
    check_suited(method, handle)
    info = describe(method)
    preset, asked = parted(info, values or {})
    none = Suited()
    of_model = known_settings(handle.name) if preset == "tuned" else none
    found = (found_settings(handle.home, handle.fingerprint) if preset == "tuned" else None) or none
    suited = checked(info, of_model.methods.get(method.name, {}))
    places = [place for place in WHERE if place in method.__dataclass_fields__]
    traced = checked(info, found.methods.get(method.name, {}))
    if any(suited.get(place) is not None for place in places):  # for this model it is known
        traced = {}
    # An empty field leaves the choice to the model, so what was found for it stands.
    made = method(**{**suited, **asked, **{n: v for n, v in traced.items() if asked.get(n) is None}})
    for layer in reversed(made.layers(handle)):
        handle.anatomy.site(layer)
    if not places:
        return made, ""
    if any(asked.get(place) not in (None, suited.get(place)) for place in places):
        return made, AS_SET
    if any(getattr(made, place) is not None and place in suited for place in places):
        return made, f"known to suit this model: {of_model.source}"
    if traced:
        return made, f"found by {found.source}"
    return made, f"{RULE}; {found.source}" if found.source and helps(method.name) else RULE
