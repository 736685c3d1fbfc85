"""What is kept of records that never change, and for how long."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import plotly.graph_objects as go
import plotly.io

from dashboard.made import Made, Picture


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Record:
    name: str


def test_a_thing_is_made_once_for_each_record_and_name():
    made, one, like = Made(), Record("a"), Record("a")
    calls: list[str] = []
    for record, name in ((one, "x"), (one, "x"), (one, "y"), (like, "x")):
        made.of(record, name, lambda name=name: calls.append(name) or [name])
    assert calls == ["x", "y", "x"], "records that say the same are two all the same"
    assert made.of(one, "x", list) is made.of(one, "x", list)


def test_it_is_kept_no_longer_than_the_record():
    made, record = Made(), Record("a")
    made.of(record, "x", list)
    assert len(made._by_record) == 1
    del record
    gc.collect()
    assert not made._by_record


def test_a_picture_is_sent_as_the_chart_it_was_made_of():
    chart = go.Figure().add_scatter(x=[1, 2], y=[3, None], name="<b>").update_layout(height=300)
    assert plotly.io.to_json(Picture(chart)) == plotly.io.to_json(chart)
