"""What the model was asked for a visitor, and said: a page is drawn with what is there, and again when more comes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from streamlit.runtime.scriptrunner import get_script_run_ctx

from dashboard import resources, state

USABLE = "usable"  # the name under which it is asked which methods can run
AT_ONCE = 0.3  # seconds a run waits for all its answers; an idle model gives them sooner


def begin_run() -> None:
    """The page is drawn from the top: it has its time to wait for answers before it."""
    state.kept().setdefault("visit", secrets.token_hex(8))
    state.kept().update({"until": time.monotonic() + AT_ONCE, "awaited": {}})


def begin_part() -> bool:
    """A part of the page is drawn; when it is drawn alone, it has time of its own. Returns whether it is."""
    run = get_script_run_ctx()
    alone = bool(run and run.fragment_ids_this_run)
    if alone:
        state.kept()["until"] = time.monotonic() + AT_ONCE
    return alone


def remembered(name: str, content: Any) -> Any:
    """What was found out under this name for this content, without asking; None when it was not."""
    print_, found = state.kept().get(f"once:{name}", ("", None))
    return found if print_ == state.digest(content) else None


def refused(names: Sequence[str]) -> dict[str, str]:
    """Of these methods, those that the model's engine said cannot run here, and why; nothing until it was asked."""
    return {row["method"]: row["problem"] for row in remembered(USABLE, list(names)) or () if row["problem"]}


def once(name: str, content: Any, make: Callable[[], Any]) -> Any:
    """`make()`, unless the same was asked under `name` the last time; an error is not remembered."""
    print_, known = state.digest(content), state.kept().get(f"once:{name}", ("", None))
    if known[0] == print_:
        return known[1]
    made = make()
    state.kept()[f"once:{name}"] = (print_, made)
    return made


class _NotYet(Exception):
    """The answer is under way."""


def asked(name: str, content: Any, make: Callable[[], Any], lasting: bool = False) -> Any:
    """What `make` finds out from the model, remembered as by `once`; None while that is under way.

    Args:
        name: what it is about; a newer question of this visitor under the same name replaces the older one.
        lasting: the answer is the same for everybody and for ever.
    """

    def answer() -> Any:
        kept = state.kept()
        place = f"{kept['visit']}:{name}"
        with resources.turns().lent():
            found = resources.questions().put(
                place, f"{name}:{state.digest(content)}", make, kept["until"] - time.monotonic(), lasting
            )
        if not found.done():
            kept["awaited"][name] = place
            raise _NotYet
        kept["awaited"].pop(name, None)
        return found.result()

    try:
        return once(name, content, answer)
    except _NotYet:
        return None


def awaited(*names: str) -> bool:
    """True when this run goes without an answer that is still under way: one of these, or any."""
    places = state.kept()["awaited"]
    return any(name in places for name in names) if names else bool(places)


def have_come() -> bool:
    """True when an answer is there that a run went without."""
    return any(resources.questions().answered(place) for place in state.kept()["awaited"].values())


def forget(*only: str) -> None:
    """What was found out may have changed, all of it or what is known under some names: ask again."""
    some = {f"once:{name}" for name in only}
    for name in [name for name in state.kept() if name in some or (not only and name.startswith("once:"))]:
        del state.kept()[name]


def forget_all() -> None:
    """Another model answers from now on: neither what was heard counts, nor what is still under way."""
    state.kept().clear()
