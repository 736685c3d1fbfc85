"""Whole journeys through the real page in a real browser, on the embedded model."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests import models

PATIENCE = 30_000  # ms; a busy machine is slow, not wrong
STORY = "Who is the Prime Minister of the United Kingdom?"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The page as `editcore dashboard` starts it, from another directory; yields its address and process id."""
    port, away, roots = free_port(), tmp_path_factory.mktemp("elsewhere"), tmp_path_factory.mktemp("models")
    models.model("llama").save_pretrained(roots / "tiny")
    models.tokenizer().save_pretrained(roots / "tiny")
    home = str(tmp_path_factory.mktemp("home"))
    environment = {**os.environ, "EDITCORE_HOME": home, "EDITCORE_MODEL_ROOTS": str(roots)}
    command = [sys.executable, "-m", "editcore.cli", "dashboard", "--headless", "--port", str(port)]
    process = subprocess.Popen(command, cwd=away, env=environment, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).read()
                break
            except OSError:
                assert process.poll() is None, "the page's server ended"
                time.sleep(0.1)
        yield address, process.pid
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(20)
        _, left = psutil.wait_procs(family, 20)
        assert not left, "a process outlived the page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    assert path, "a system Chromium is needed for the page's journeys"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
        )
        yield opened
        opened.close()


def visit(browser: Browser, address: str, width: int = 1400) -> Page:
    """A new visitor, with the engine ready."""
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    expect(page.get_by_text("million parameters")).to_be_visible(timeout=PATIENCE)
    return page


def fill(page: Page, prompt: str, target: str) -> None:
    """Types the two texts and leaves the fields."""
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Corrected answer").fill(target)
    page.keyboard.press("Tab")


def apply_story(page: Page, press: bool = False) -> None:
    """Clicks the first example and applies it."""
    page.get_by_text("Prime Minister", exact=False).first.click()
    expect(page.get_by_label("Corrected answer")).to_have_value("Boris Johnson")
    button = page.get_by_role("button", name=re.compile("Apply edit"))
    expect(button).to_be_enabled(timeout=PATIENCE)
    if press:
        expect(page.locator(".st-key-preflight")).to_contain_text("token", timeout=PATIENCE)
        page.get_by_label("Corrected answer").press("Control+Enter")
    else:
        button.click()
    expect(page.locator(".st-key-sentence")).to_contain_text("Boris Johnson", timeout=PATIENCE)


def test_a_newcomer_corrects_the_prime_minister_and_sees_what_moved(server: tuple[str, int], browser: Browser) -> None:
    page = visit(browser, server[0])
    apply_story(page)
    sentence = page.locator(".st-key-sentence").inner_text()
    assert "paraphrases" in sentence and "unrelated" in sentence
    expect(page.get_by_text("Edited: Boris Johnson")).to_be_visible()
    expect(page.locator(".st-key-dumbbell .js-plotly-plot")).to_be_visible()


def test_a_reload_keeps_the_edit_and_reset_takes_it_back(server: tuple[str, int], browser: Browser) -> None:
    page = visit(browser, server[0])
    apply_story(page)
    page.reload()
    expect(page.get_by_text("Edited: Boris Johnson")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("button", name="Reset to base").click()
    expect(page.get_by_text("Base model answers")).to_be_visible(timeout=PATIENCE)


def test_two_visitors_never_see_each_others_edit(server: tuple[str, int], browser: Browser) -> None:
    one, other = visit(browser, server[0]), visit(browser, server[0])
    apply_story(one)
    other.reload()
    expect(other.get_by_text("Base model answers")).to_be_visible(timeout=PATIENCE)
    assert other.url != one.url


def test_the_keyboard_alone_applies_an_edit(server: tuple[str, int], browser: Browser) -> None:
    apply_story(visit(browser, server[0]), press=True)


def test_a_prompt_the_model_does_not_know_is_met_with_what_it_knows(server: tuple[str, int], browser: Browser) -> None:
    page = visit(browser, server[0])
    fill(page, "Who is the pm of England?", "Boris Johnson")
    expect(page.locator(".st-key-preflight")).to_contain_text("not sure of this", timeout=PATIENCE)
    expect(page.locator(".st-key-preflight").get_by_text(STORY)).to_be_visible()


def test_hostile_text_is_shown_as_text(server: tuple[str, int], browser: Browser) -> None:
    page = visit(browser, server[0])
    called: list[str] = []
    page.on("request", lambda r: called.append(r.url))
    fill(
        page,
        "The capital of France <img src=http://127.0.0.1:9/x onerror=alert(1)> ![i](http://127.0.0.1:9/y) is",
        "$x$ :red[y]",
    )
    expect(page.locator(".st-key-preflight")).to_contain_text("token", timeout=PATIENCE)
    assert not [url for url in called if ":9/" in url]


def test_a_phone_shows_everything_without_sideways_scrolling(server: tuple[str, int], browser: Browser) -> None:
    page = visit(browser, server[0], width=390)
    apply_story(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


DECIDED = re.compile("did best|equally well")  # which of them is the methods' business


def test_methods_are_compared_on_one_request_and_the_best_is_kept(server: tuple[str, int], browser: Browser) -> None:
    page = visit(browser, server[0])
    page.get_by_text("Prime Minister", exact=False).first.click()
    expect(page.get_by_label("Corrected answer")).to_have_value("Boris Johnson")
    page.get_by_role("link", name="Compare").click()
    button = page.get_by_role("button", name=re.compile(r"Compare \d methods"))
    expect(button).to_be_enabled(timeout=PATIENCE)
    expect(page.get_by_label("Corrected answer")).to_have_value("Boris Johnson")
    button.click()
    expect(page.locator(".st-key-verdict")).to_contain_text(DECIDED, timeout=PATIENCE)
    expect(page.locator(".st-key-scatter .js-plotly-plot")).to_be_visible()
    expect(page.locator(".st-key-multiples .js-plotly-plot")).to_be_visible()
    assert not page.get_by_text("did not run").count()
    page.reload()
    expect(page.locator(".st-key-verdict")).to_contain_text(DECIDED, timeout=PATIENCE)
    table = page.locator(".st-key-standings canvas").first
    expect(table).to_be_visible()
    table.click(position={"x": 15, "y": 54}, force=True)  # the tick of the first row
    page.get_by_role("button", name="Keep this edit").click()
    expect(page.get_by_text("Edited: Boris Johnson (ROME)")).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".st-key-sentence")).to_contain_text("Boris Johnson", timeout=PATIENCE)


def test_killing_the_engine_loses_nothing_committed(server: tuple[str, int], browser: Browser) -> None:
    page = visit(browser, server[0])
    apply_story(page)
    workers = [
        p
        for p in psutil.Process(server[1]).children(recursive=True)
        if "editcore.engine.worker" in " ".join(p.cmdline())
    ]
    assert len(workers) == 1
    workers[0].kill()
    page.reload()
    expect(page.get_by_text("Edited: Boris Johnson")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("million parameters")).to_be_visible(timeout=PATIENCE)
    apply_story(page)


def test_the_page_process_holds_no_torch(server: tuple[str, int], browser: Browser) -> None:
    visit(browser, server[0])
    family = [psutil.Process(server[1]), *psutil.Process(server[1]).children(recursive=True)]
    pages = [p for p in family if "streamlit" in " ".join(p.cmdline())]
    assert pages
    for process in pages:
        assert not [m.path for m in process.memory_maps() if "torch" in Path(m.path).name]
        assert process.memory_info().rss < 300_000_000


def test_another_model_is_opened_from_the_page_and_an_old_session_has_its_own_back(
    server: tuple[str, int], browser: Browser
) -> None:
    page = visit(browser, server[0])
    apply_story(page)
    session = page.url
    page.get_by_role("button", name="Change model").click()
    page.locator(".st-key-model-list").get_by_text("…/tiny").click()
    page.get_by_role("button", name="Open it").click()
    expect(page.get_by_text("…/tiny is being opened")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_text("…/tiny, 0.1 million parameters")).to_be_visible(timeout=2 * PATIENCE)
    expect(page.get_by_label("Corrected answer")).to_have_value("Boris Johnson", timeout=PATIENCE)
    expect(page.get_by_text("Edited: Boris Johnson")).to_have_count(0, timeout=PATIENCE)
    assert page.url != session
    page.goto(session)
    told = page.get_by_text("These edits were made on world-2019; this page has …/tiny open")
    expect(told).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("button", name=re.compile("Apply edit"))).to_be_disabled(timeout=PATIENCE)
    page.get_by_role("button", name="Open world-2019 again").click()
    expect(page.get_by_text("6.4 million parameters")).to_be_visible(timeout=2 * PATIENCE)
    expect(page.get_by_role("button", name=re.compile("Apply edit"))).to_be_enabled(timeout=PATIENCE)
