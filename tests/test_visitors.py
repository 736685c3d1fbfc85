"""Visitors side by side on one server, in a real browser: nobody meets anybody else's edit, and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Locator, Page, WebSocketRoute, expect, sync_playwright

ROOT = str(Path(__file__).parents[1])
PATIENCE = 60_000  # ms; a busy machine is slow, not wrong
STORY, LEADER = "Who is the Prime Minister of the United Kingdom?", "Theresa May"


class Server:
    """The page as `editcore dashboard` starts it; it can be killed and started again on the same data."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "editcore.cli", "dashboard", "--headless", "--port", str(self.port)]
        self.process = subprocess.Popen(command, env={**os.environ, "EDITCORE_HOME": str(self.home)})
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=1).read()
                return
            except OSError:
                assert self.process.poll() is None, "the page's server ended"
                time.sleep(0.1)

    def worker(self) -> psutil.Process:
        """The engine's process."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(p for p in children if "editcore.engine.worker" in " ".join(p.cmdline()))

    def kill(self) -> None:
        """The page's process ends from one moment to the next; the worker follows by itself."""
        worker = self.worker()
        self.process.kill()
        self.process.wait(20)
        assert not psutil.wait_procs([worker], 20)[1], "the worker outlived the page"

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("home"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    assert path, "a system Chromium is needed for the page's journeys"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
        )
        yield opened
        opened.close()


def visit(browser: Browser, address: str) -> Page:
    """A new visitor, with the engine ready."""
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE)
    come(page, address)
    return page


def come(page: Page, address: str) -> None:
    """Opens an address; the engine is ready when the page says which model it is."""
    page.goto(address)
    expect(page.get_by_text("million parameters")).to_be_visible(timeout=PATIENCE)


def fill(page: Page, target: str) -> Locator:
    """Asks the story's question with this answer; the button that applies it."""
    page.get_by_role("textbox", name="Prompt", exact=True).fill(STORY)
    page.get_by_label("Corrected answer").fill(target)
    page.keyboard.press("Tab")
    expect(page.locator(".st-key-preflight")).to_contain_text("The answer is", timeout=PATIENCE)
    button = page.get_by_role("button", name=re.compile("Apply edit"))
    expect(button).to_be_enabled(timeout=PATIENCE)
    return button


def shows(page: Page, target: str) -> None:
    """The badge, the history and the result are of this edit, and of no other."""
    expect(page.get_by_text(f"Edited: {target} (ROME)")).to_be_visible(timeout=PATIENCE)
    expect(page.locator(".st-key-sentence")).to_contain_text(target, timeout=PATIENCE)
    expect(history(page)).to_have_count(1)
    expect(history(page)).to_contain_text(target)


def told_that(page: Page, words: str) -> None:
    """A notice says so; while the page is drawn anew its last drawing may stand beside it."""
    expect(page.get_by_text(words).first).to_be_visible(timeout=PATIENCE)


def history(page: Page) -> Locator:
    return page.locator(".st-key-history [class*='st-key-edit']")


def answers(page: Page) -> str:
    """What base and edited model say to the story's question in the Ask box."""
    page.get_by_role("tab", name="Ask it").click()
    page.get_by_label("Ask", exact=True).fill(STORY)
    page.keyboard.press("Tab")
    expect(page.get_by_role("tabpanel").get_by_text("● Edited model")).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("tabpanel").get_by_text(LEADER)).to_be_visible(timeout=PATIENCE)
    said = page.get_by_role("tabpanel").inner_text()
    page.get_by_role("tab", name="Result").click()
    return said


def test_two_visitors_edit_side_by_side_and_a_reload_in_the_middle_finds_its_edit(
    server: Server, browser: Browser
) -> None:
    one, other = visit(browser, server.address), visit(browser, server.address)
    first, second = fill(one, "Boris Johnson"), fill(other, "Angela Merkel")
    second.click()
    first.click()
    one.locator(".st-key-progress").wait_for()
    one.reload()
    shows(other, "Angela Merkel")
    shows(one, "Boris Johnson")
    said, told = answers(one), answers(other)
    assert "Boris Johnson" in said and "Merkel" not in said
    assert "Angela Merkel" in told and "Johnson" not in told

    one.get_by_role("button", name="Undo").click()
    expect(one.get_by_text("Base model answers")).to_be_visible(timeout=PATIENCE)
    other.reload()
    shows(other, "Angela Merkel")
    third = visit(browser, server.address)
    expect(third.get_by_text("Base model answers")).to_be_visible()
    assert len({page.url for page in (one, other, third)}) == 3


def test_a_share_link_shows_the_charts_and_cannot_edit(server: Server, browser: Browser) -> None:
    page = visit(browser, server.address)
    fill(page, "Nelson Mandela").click()
    shows(page, "Nelson Mandela")
    page.get_by_role("button", name="Share").click()
    page.get_by_role("button", name="Make a link").click()
    link = page.locator("code", has_text="shared?link=").inner_text()
    guest = browser.new_context().new_page()
    guest.set_default_timeout(PATIENCE)
    guest.goto(link)
    expect(guest.get_by_text("Read-only")).to_be_visible(timeout=PATIENCE)
    expect(guest.locator(".st-key-sentence")).to_contain_text("Nelson Mandela")
    expect(guest.locator(".st-key-dumbbell .js-plotly-plot")).to_be_visible(timeout=PATIENCE)
    for words in ("Apply", "Undo", "Redo", "Reset", "Bring in", "Remove", "Compute again", "Make a link"):
        expect(guest.get_by_role("button", name=words)).to_have_count(0)
    expect(guest.get_by_role("textbox")).to_have_count(0)
    assert "session=" not in guest.url + guest.content()


def test_the_list_of_sessions_has_everybody_on_this_computer(server: Server, browser: Browser) -> None:
    for target in ("Barack Obama", "Emmanuel Macron"):
        page = visit(browser, server.address)
        fill(page, target).click()
        shows(page, target)
    page.get_by_role("link", name="Your sessions").click()
    for target in ("Barack Obama", "Emmanuel Macron"):
        expect(page.get_by_role("main").get_by_text(target)).to_be_visible(timeout=PATIENCE)
    row = page.locator("[class*='st-key-session']", has_text="Barack Obama")
    row.get_by_role("button", name="Open").click()
    shows(page, "Barack Obama")


@pytest.mark.parametrize("kept", [120, 1])  # seconds the server keeps the visit of a browser that is not there
def test_a_connection_that_drops_for_a_while_comes_back_to_the_same_page(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setenv("EDITCORE_FAKE_ENGINE", "tests.fake_engine:current")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("STREAMLIT_SERVER_DISCONNECTED_SESSION_TTL", str(kept))
    server, page = Server(tmp_path), browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE)
    sockets: list[WebSocketRoute] = []
    away = threading.Event()

    def through(route: WebSocketRoute) -> None:
        if away.is_set():
            route.close()
            return
        route.connect_to_server()
        sockets.append(route)

    page.route_web_socket(re.compile("_stcore/stream"), through)
    come(page, server.address)
    fill(page, "Boris Johnson").click()
    shows(page, "Boris Johnson")
    page.get_by_label("Corrected answer").fill("Somebody else")
    page.keyboard.press("Tab")
    expect(page.locator(".st-key-preflight")).to_contain_text("else", timeout=PATIENCE)
    address, before = page.url, len(sockets)
    away.set()
    sockets[-1].close()
    page.wait_for_timeout(4_000)  # the browser tries again and again meanwhile
    assert len(sockets) == before
    away.clear()
    for _ in range(600):
        if len(sockets) > before:
            break
        page.wait_for_timeout(100)
    shows(page, "Boris Johnson")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text("Base model answers")).to_be_visible(timeout=PATIENCE)
    assert page.url == address and page.get_by_label("Corrected answer").input_value() == "Somebody else"
    server.stop()


def test_a_page_that_was_killed_comes_back_with_history_form_and_a_word_about_the_edit_cut_off(
    server: Server, browser: Browser
) -> None:
    page, other = visit(browser, server.address), visit(browser, server.address)
    fill(page, "Boris Johnson").click()
    shows(page, "Boris Johnson")
    button = fill(page, "Jeremy Corbyn")
    fill(other, "Angela Merkel")
    other.get_by_role("link", name="Compare").click()
    other.get_by_role("button", name=re.compile(r"Compare \d methods")).click()
    expect(other.get_by_role("button", name="Cancel")).to_be_visible(timeout=PATIENCE)
    button.click()  # its edit waits for the comparison, so that both are under way
    page.locator(".st-key-progress").wait_for()
    addresses = [page.url, other.url]
    server.kill()
    page.close()  # a tab left open would find the server by itself, and be told instead
    other.close()
    server.start()
    page, other = (visit(browser, address) for address in addresses)
    shows(page, "Boris Johnson")
    expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value(STORY)
    expect(page.get_by_label("Corrected answer")).to_have_value("Jeremy Corbyn")
    told_that(page, "An edit was interrupted when the program stopped")
    told_that(other, "A comparison was interrupted when the program stopped")
    page.get_by_role("button", name="Run it again").click()
    expect(history(page)).to_have_count(2, timeout=PATIENCE)
    expect(page.locator(".st-key-sentence")).to_contain_text("Jeremy Corbyn", timeout=PATIENCE)
