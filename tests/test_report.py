"""A report is one file that asks nobody for anything, shows text as it was written, and holds every number."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from playwright.sync_api import sync_playwright

from dashboard import charts, tables
from dashboard.drawing import svg
from dashboard.report import report_csv, report_files, report_html, report_json
from editcore.records import (
    AnswerScore,
    EditReport,
    EditRequest,
    PatchInfo,
    Probe,
    ProbeResult,
    Reading,
    Scores,
    Seconds,
)  # fmt: skip

HOSTILE = (
    "<script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=alert(1)></title></style>"
    "<svg onload=alert(2)>&lt;b&gt; ![i](http://127.0.0.1:9/y)"
)


def result(kind: str, prompt: str, before: float, after: float, text: str = "Paris") -> ProbeResult:
    def score(answer: str, mean: float) -> AnswerScore:
        return AnswerScore(answer, 2, mean**2, mean, 1, mean > 0.5, 1.0 if mean > 0.5 else 0.0)

    one = Reading(score("Lyon", before), score(text, 1 - before), ((" Pa", 1 - before), ("=1+1", before)), text)
    other = Reading(score("Lyon", after), score(text, 1 - after), (("=1+1", after), (" Pa", 1 - after)), "Lyon.")
    return ProbeResult(Probe(kind, prompt), one, other, 0.5, kind != "far")  # type: ignore[arg-type]


def report(prompt: str = "The capital of France is", target: str = "Lyon") -> EditReport:
    results = (
        result("edit", prompt, 0.01, 0.98, target), result("paraphrase", f"{prompt} so", 0.02, 0.9),
        result("near", "The capital of Spain is", 0.0, 0.0), result("far", "It is", 0.0, 0.3),
    )  # fmt: skip
    return EditReport(
        "world", "rome", {"layer": 0, "note": target}, EditRequest(prompt, target), "France",
        PatchInfo(5120, ("transformer.h.0.mlp.c_proj",), 1, 2.5, 0.1), Seconds(0.5, 0.2), results,
        Scores(1.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0), True, f"“{target}” 1 % → 98 %.", "", ("a warning",), 1000,
    )  # fmt: skip


class Attributes(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_file_holds_no_script_and_no_address() -> None:
    for reports in ([report()], [report(), report(HOSTILE, HOSTILE)]):
        tags = Attributes(report_html(HOSTILE, "a model", reports)).found
        assert not {tag for tag, _ in tags} & {"script", "img", "link", "iframe", "object", "base", "form", "image"}
        for tag, attributes in tags:
            assert not any(name.startswith("on") or name in ("src", "style") for name in attributes)
            assert str(attributes.get("href", "#")).startswith("#") and (tag != "svg" or "viewbox" in attributes)


def test_every_edit_is_there_with_its_chart_and_tables() -> None:
    text = report_html("Two edits", "a model", [report(), report("The capital of Spain is", "Rome")])
    assert text.count("<article") == text.count("<svg") == 2 and text.count("<details>") == 10
    assert "“Rome” 1 % → 98 %." in text and "1 of 2" in text and "transformer.h.0.mlp.c_proj" in text


def test_the_still_picture_marks_what_the_chart_marks() -> None:
    figure = charts.dumbbell(tables.shifts(report()))
    drawn = svg(figure, "title")
    marks = sum(len(trace.x) for trace in figure.data if trace.mode == "markers")
    assert drawn.count("<circle") == marks == 16
    assert drawn.count('stroke-opacity="0.55"') == 8 and drawn.count('class="grid"') == 5
    assert "The edit itself" in drawn and "<b>" not in drawn
    circles = [float(x) for x in re.findall(r'<circle cx="([-\d.]+)"', drawn)]
    assert 100 < min(circles) < max(circles) < 440


def test_a_value_that_is_no_number_is_written_and_not_drawn() -> None:
    one = report().probes[0]
    gone = replace(one, after=replace(one.after, new=replace(one.after.new, mean=float("nan"))))
    drawn = report_html("t", "m", [replace(report(), probes=(gone,))])
    assert "after: n/a" in drawn and "nan" not in drawn.lower().replace("nance", "")


def test_an_edit_without_probes_has_no_chart() -> None:
    assert "<svg" not in report_html("t", "m", [replace(report(), probes=(), scores=Scores())])


def test_json_and_csv_hold_every_number() -> None:
    told = json.loads(report_json("t", "m", [report()]))
    assert told["edits"][0]["probes"][3]["after"]["new"]["mean"] == 0.3 and told["model"] == "m"
    rows = list(csv.DictReader(io.StringIO(report_csv([report(), report()]).decode("utf-8-sig"))))
    held = {(r["edit"], r["kind"], r["figure"]): (r["before"], r["after"]) for r in rows}
    assert held["1", "scores", "locality"] == ("n/a", "0.5") and held["2", "patch", "bytes"][1] == "5120"
    assert held["1", "edit", "new answer: mean"] == ("0.01", "0.98") and held["1", "far", "kl"][1] == "0.5"
    assert held["1", "edit", "old answer: joint"][0] and ("1", "seconds", "edit") in held


def test_a_spreadsheet_runs_nothing() -> None:
    bad = '=HYPERLINK("http://127.0.0.1:9")'
    text = report_csv([report(f" {bad}", "+1"), report("@x", "-1")]).decode("utf-8-sig")
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row if not re.fullmatch(r"-?[\d.e-]+", cell)]
    assert f"' {bad}" in cells and not any(cell.lstrip()[:1] in ("=", "+", "-", "@") for cell in cells)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_asks_the_network_for_nothing_and_shows_hostile_text(tmp_path, scheme) -> None:
    for name, data in report_files(HOSTILE, HOSTILE, [report(), report(HOSTILE, HOSTILE)]).items():
        (tmp_path / name).write_bytes(data)
    path = next(found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_context(color_scheme=scheme, viewport={"width": 390, "height": 800}).new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: asked.append("a dialog"))
        page.goto((tmp_path / "report.html").as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert asked == [(tmp_path / "report.html").as_uri()] and page.title() == HOSTILE
        assert HOSTILE in page.locator("h1").inner_text() and HOSTILE in page.locator("#edit-2 h2").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ground, ink = (
            page.evaluate(f"getComputedStyle(document.body).{what}") for what in ("backgroundColor", "color")
        )
        light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ground, ink)]
        assert (light[0] > light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 500
        fill = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert fill == ink
        browser.close()
