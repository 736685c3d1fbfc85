"""Tables, texts and charts: pure functions, no page."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import pandas as pd
import pytest

from dashboard import charts, tables, text
from editcore.records import EditRequest, Probe, Scores
from tests.fake_engine import PM, make_report, suggestions

HOSTILE = "<script>x</script> ![t](http://e.org/a.png) $x$ :red[y] **b** :material/delete: -> {} %s =1+1"


@pytest.fixture
def report():
    paraphrases, probes = suggestions(PM, "United Kingdom")
    request = EditRequest(PM, "Boris Johnson", "United Kingdom", None, paraphrases, probes)
    return make_report(request, "rome", {"steps": 20})


def test_every_prompt_has_a_row_for_the_new_and_for_the_old_answer(report):
    frame = tables.shifts(report)
    assert len(frame) == 2 * 13
    assert set(frame["role"]) == {"new", "old"}


def test_rows_come_in_the_order_edit_paraphrases_near_far(report):
    kinds = list(dict.fromkeys(tables.shifts(report)["kind"]))
    assert kinds == ["edit", "paraphrase", "near", "far"]


def test_the_dumbbell_draws_before_open_and_after_filled_in_constant_colours(report):
    figure = charts.dumbbell(tables.shifts(report))
    line, before, after = figure.data
    assert (before.name, before.marker.symbol, before.marker.color) == ("before", "circle-open", charts.BEFORE)
    assert (after.name, after.marker.symbol, after.marker.color) == ("after", "circle", charts.AFTER)
    assert list(before.x) == list(tables.shifts(report)["before"])
    assert list(after.x) == list(tables.shifts(report)["after"])


def test_the_joint_measure_draws_the_joint_probabilities(report):
    frame = tables.shifts(report)
    assert list(charts.dumbbell(frame, "joint").data[2].x) == list(frame["after_joint"])
    assert list(frame["after_joint"]) != list(frame["after"])


def test_the_dumbbell_grows_with_its_rows_and_spans_nought_to_a_hundred_percent(report):
    frame = tables.shifts(report)
    small, large = charts.dumbbell(frame[:2]), charts.dumbbell(frame)
    assert large.layout.height > small.layout.height
    assert large.layout.xaxis.range[0] <= 0 and large.layout.xaxis.range[1] >= 1


def test_held_out_wordings_are_marked_in_the_chart_and_explained_in_the_hover(report):
    figure = charts.dumbbell(tables.shifts(report))
    marked = [a.text for a in figure.layout.annotations if a.text.startswith("◆")]
    assert len(marked) == 2
    assert sum("held out" in hover for hover in figure.data[1].customdata) == 4


def test_a_number_that_is_none_is_written_and_not_drawn_as_zero():
    paraphrases, _ = suggestions(PM, "United Kingdom")
    report = make_report(EditRequest(PM, "Boris Johnson", None, None, paraphrases), "rome", {}, nan=True)
    figure = charts.dumbbell(tables.shifts(report))
    assert list(figure.data[2].x).count(None) == 4
    assert sum("n/a" in a.text for a in figure.layout.annotations) == 4


def test_an_empty_frame_gives_an_empty_figure():
    frame = tables.shifts(make_report(EditRequest(PM, "x"), "rome", {}))[:0]
    assert len(charts.dumbbell(frame).data[1].x) == 0


def test_hostile_text_reaches_the_chart_without_live_markup():
    report = make_report(EditRequest(HOSTILE + "<b>", "<i>new</i>"), "rome", {})
    figure = charts.dumbbell(tables.shifts(report))
    labels = [*(a.text for a in figure.layout.annotations), *figure.layout.yaxis.ticktext, *figure.data[1].customdata]
    own = "<b>The edit itself – should change</b>"
    assert not any("<" in label.replace("<br>", "") for label in labels if label != own)


def test_long_labels_keep_both_ends_and_the_hover_keeps_everything():
    prompt = "Who " + "really " * 40 + "is it?"
    figure = charts.dumbbell(tables.shifts(make_report(EditRequest(prompt, "x"), "rome", {})))
    label = next(a.text for a in figure.layout.annotations if a.text.startswith("Who"))
    assert len(label) <= 50 and label.endswith("is it?")
    assert prompt.strip() in figure.data[1].customdata[0]


def test_plain_escapes_every_mark_of_markdown():
    shown = text.plain(HOSTILE)
    assert "\\<\u2060script\\>" in shown and "\\$x\\$" in shown and "\\*\\*b\\*\\*" in shown
    assert ":material" not in shown and ":red[" not in shown and "->" not in shown
    assert text.plain("two\nlines") == "two ⏎ lines"


def test_lone_surrogates_and_control_characters_become_visible_and_encodable():
    assert text.plain("a\ud800b\x00c").encode() == "a\ufffdb\ufffdc".encode()


def test_right_to_left_text_is_isolated():
    assert text.visible("שלום").startswith("\u2068") and text.visible("שלום").endswith("\u2069")


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0 %"), (0.0004, "< 0.1 %"), (0.004, "0.4 %"), (0.97, "97 %"), (1.0, "100 %"), (math.nan, "n/a")],
)
def test_percentages_read_as_people_say_them(share, shown):
    assert text.percent(share) == shown


def test_changed_words_are_found_in_order():
    before, after = text.changed_words("Theresa May is the leader", "Boris Johnson is the new leader")
    assert [w for w, changed in before if changed] == ["Theresa", "May"]
    assert [w for w, changed in after if changed] == ["Boris", "Johnson", "new"]


def test_marked_words_stay_literal():
    _, after = text.changed_words("a", "a :red[b] **c**")
    shown = text.marked(after, "orange")
    assert shown.startswith("a :orange-background[**") and ":red[" not in shown and "\\*\\*c" in shown


def test_rank_movement_names_the_direction(report):
    frame = tables.next_tokens(report.probes[0])
    assert frame.loc[0, "after"] == "·Boris" and frame.loc[0, "movement"].startswith("▲")
    assert "▼ 1" in set(frame["movement"])


def test_tiles_count_what_they_judge(report):
    frame = tables.tiles(report.scores, report.probes).set_index("name")
    assert (frame.loc["Generality", "right"], frame.loc["Generality", "of"]) == (4, 4)
    assert (frame.loc["Locality", "right"], frame.loc["Locality", "of"]) == (7, 8)


def test_a_score_without_anything_to_judge_is_not_available():
    frame = tables.tiles(Scores(), ())
    assert frame["share"].isna().all() and frame["right"].isna().all()


def test_a_csv_cell_a_spreadsheet_would_run_gets_an_apostrophe():
    frame = pd.DataFrame({"text": ["=1+1", "+1", "-1", "@x", " =2", "fine"], "n": [-1.0, 2, 3, 4, 5, math.nan]})
    back = pd.read_csv(io.BytesIO(tables.to_csv(frame)), keep_default_na=False)
    assert list(back["text"]) == ["'=1+1", "'+1", "'-1", "'@x", "' =2", "fine"]
    assert list(back["n"])[0] == "-1.0" and list(back["n"])[-1] == "n/a"


def test_json_has_null_where_a_number_is_none():
    rows = json.loads(tables.to_json(pd.DataFrame({"a": [1.5, math.nan]})))
    assert rows == [{"a": 1.5}, {"a": None}]


def test_a_whole_report_survives_json(report):
    assert json.loads(tables.to_json(report))["request"]["target"] == "Boris Johnson"


def test_probes_survive_the_editable_tables():
    paraphrases, probes = suggestions(PM, "United Kingdom")
    assert tables.paraphrases_from(tables.paraphrase_rows(paraphrases)) == paraphrases
    assert tables.probes_from(tables.probe_rows(probes)) == probes


def test_a_row_added_by_hand_is_completed_and_an_empty_one_dropped():
    frame = pd.DataFrame([{"kind": None, "prompt": "Who wrote Emma?", "answer": None, "source": None},
                          {"kind": "near", "prompt": "  ", "answer": "x", "source": None}])  # fmt: skip
    assert tables.probes_from(frame) == (Probe("far", "Who wrote Emma?", None, False, tables.YOURS),)


def test_charts_load_neither_the_page_nor_torch():
    code = "import sys, dashboard.charts; print(sorted({'streamlit', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_lone_hyphen_is_shown_as_it_is_and_arrows_stay_apart():
    assert text.plain("FT-L") == "FT\\-L"
    for arrow in ("->", "<-", "--", ">=", "<->"):
        shown = text.plain(f"a {arrow} b").replace("\\", "")
        assert shown.replace("\u2060", "") == f"a {arrow} b" and arrow not in shown
    assert ":smile:" not in text.plain(":smile:").replace("\\", "")


def test_a_command_in_a_message_is_shown_as_one_and_nothing_else_is_markup():
    assert text.message("Run `editcore train mend`.") == "Run `editcore train mend`\\."
    assert text.message("an odd ` and *that*") == text.plain("an odd ` and *that*")
    assert "$x$" not in text.message("$x$ `y`")
