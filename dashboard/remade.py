"""What computing edits again changed: a sentence and a small table. Knows the history's rows and no engine."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from dashboard import results
from dashboard.text import percent, plain, shorten, visible
from editcore.history import Row
from editcore.remade import Remade, Stand, told


def again(rows: Sequence[Row], edit: str) -> tuple[Row, ...]:
    """The edits that are made when this one is computed again: it and all above it, oldest first."""
    return tuple(rows[[row.edit for row in rows].index(edit) :])


def names(rows: Sequence[Row]) -> str:
    """ "#2", "#2 and #3", "#2 to #5"."""
    numbers = [f"#{row.number}" for row in rows]
    if len(numbers) < 3:
        return " and ".join(numbers)
    run = [row.number for row in rows] == list(range(rows[0].number, rows[0].number + len(rows)))
    return f"{numbers[0]} to {numbers[-1]}" if run else f"{', '.join(numbers[:-1])} and {numbers[-1]}"


def changes(made: Sequence[Remade], rows: Sequence[Row]) -> None:
    """Those of the edits that are still in the history, before and after."""
    numbers = {row.edit: row.number for row in rows}
    found = [one for one in made if one.new in numbers]
    if not found:
        return
    with st.container(border=True, key="remade", gap="small"):
        st.markdown(f":material/refresh: {plain(told(found))}")
        st.dataframe(
            pd.DataFrame([_line(one, numbers[one.new]) for one in found]), hide_index=True, height="content",
            alt="Every edit that was computed again, as it stood before and as it stands now",
            column_config={
                "Edit": st.column_config.TextColumn(pinned=True),
                "New answer": st.column_config.TextColumn(help="How likely the corrected answer is, per token"),
                "Paraphrases": st.column_config.TextColumn(help="Other wordings that give it too"),
                "Unmoved": st.column_config.TextColumn(help="Unrelated prompts whose answer did not move"),
            },
        )  # fmt: skip
        st.caption("Before: the old patch on what is beneath it now. After: the new one. Both at 100 %.")
        results.downloads(frame(found, numbers), "computed-again")


def _line(one: Remade, number: int) -> dict[str, str]:
    before, after = one.before, one.after
    return {
        "Edit": f"#{one.number} → #{number} {visible(shorten(one.target, 24))}",
        "Took": f"{_took(before)} → {_took(after)}",
        "New answer": f"{percent(before.probability)} → {percent(after.probability)}",
        "Paraphrases": _moved(before.paraphrases, after.paraphrases, after.paraphrases_of),
        "Unmoved": _moved(before.unmoved, after.unmoved, after.unmoved_of),
    }


def _took(stand: Stand) -> str:
    if stand.requests > 1:
        return f"{stand.took} of {stand.requests}"
    return "yes" if stand.holds else "no"


def _moved(before: int, after: int, of: int) -> str:
    return f"{before} → {after} of {of}" if of else "n/a"


def frame(made: Sequence[Remade], numbers: dict[str, int]) -> pd.DataFrame:
    """Every figure as a number, an edit a row."""
    return pd.DataFrame([
        {"was": one.number, "edit": numbers[one.new], "target": one.target,
         **{f"{name}_{when}": getattr(stand, name) for name in Stand.__slots__
            for when, stand in (("before", one.before), ("after", one.after))}}
        for one in made
    ])  # fmt: skip
