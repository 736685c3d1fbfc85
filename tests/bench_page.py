"""Seconds from a click to its result in a real browser; `python -m tests.bench_page` prints the medians.

The page is started as a person starts it, on the embedded model. Times are taken inside the browser, from the event
of the click to the first frame that shows the result, so that nothing of the harness is in them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE = 60_000  # ms
FIRST, NEXT = ("UK Prime Minister", "Boris Johnson"), ("Capital of Australia", "Sydney")  # chip, its answer
SENTENCE, CHART = ".st-key-sentence h3", ".st-key-dumbbell .js-plotly-plot"
VERDICT, SCATTER = ".st-key-verdict h3", ".st-key-scatter .js-plotly-plot"
# From the next click to the first frame in which each selector, in this order, finds a text; none may be there before.
_STOPWATCH = """selectors => {
  window.taken = {};
  document.addEventListener("click", () => {
    const began = performance.now(), left = [...selectors];
    const look = () => {
      while (left.length && document.querySelector(left[0])?.textContent)
        window.taken[left.shift()] = (performance.now() - began) / 1000;
      if (left.length) requestAnimationFrame(look);
    };
    look();
  }, {once: true, capture: true});
}"""


@contextlib.contextmanager
def served() -> Iterator[str]:
    """The page on the embedded model, with an empty folder of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "editcore.cli", "dashboard", "--headless", "--port", str(port)]
        environment = {**os.environ, "EDITCORE_HOME": home}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = f"http://127.0.0.1:{port}"
            while server.poll() is None:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{address}/_stcore/health", timeout=1).read()
                    break
                time.sleep(0.1)
            yield address
        finally:
            server.terminate()
            server.wait()


@contextlib.contextmanager
def opened() -> Iterator[Browser]:
    """The system's Chromium, without a window."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def visit(browser: Browser, address: str) -> Iterator[Page]:
    """A new visitor with nothing cached, once the engine is ready."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    expect(page.get_by_text("million parameters")).to_be_visible(timeout=PATIENCE)
    yield page
    context.close()


def take_example(page: Page, chip: str, target: str) -> None:
    """Clicks an example and waits until the form shows it."""
    time.sleep(0.5)  # a person looks first
    page.get_by_text(chip, exact=True).click()
    expect(page.get_by_label("Corrected answer")).to_have_value(target)


def timed(page: Page, button: str, sentence: str, chart: str) -> tuple[float, float]:
    """Clicks the button of this name; seconds until the sentence, and until the chart."""
    found = page.get_by_role("button", name=re.compile(button))
    expect(found).to_be_enabled(timeout=PATIENCE)
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=PATIENCE)
    time.sleep(0.5)  # a person reads; the page comes to rest
    page.evaluate(_STOPWATCH, [sentence, chart])
    found.click()
    page.wait_for_function("n => Object.keys(window.taken).length == n", arg=2, timeout=PATIENCE)
    taken = page.evaluate("window.taken")
    return taken[sentence], taken[chart]


def click_in_browser(repeats: int) -> dict[str, float]:
    """Median seconds from the click on "Apply edit" and on "Compare" to what each shows.

    Args:
        repeats: visits; each makes an edit, takes it back, makes another, and compares the methods chosen at first.
    """
    rows: dict[str, list[float]] = {}
    with served() as address, opened() as browser:
        for _ in range(repeats + 1):  # the first one warms up
            with visit(browser, address) as page:
                for name, example in (("first edit", FIRST), ("next edit", NEXT)):
                    take_example(page, *example)
                    sentence, chart = timed(page, "Apply edit", SENTENCE, CHART)
                    rows.setdefault(f"{name}: sentence", []).append(sentence)
                    rows.setdefault(f"{name}: chart", []).append(chart)
                    page.get_by_role("button", name="Reset to base").click()
                    expect(page.locator(".st-key-header")).to_contain_text("Base model answers", timeout=PATIENCE)
                page.get_by_role("link", name="Compare").click()
                verdict, scatter = timed(page, r"Compare \d", VERDICT, SCATTER)
                rows.setdefault("comparison: verdict", []).append(verdict)
                rows.setdefault("comparison: scatter", []).append(scatter)
    return {name: statistics.median(seconds[1:]) for name, seconds in rows.items()}


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    for name, seconds in click_in_browser(parser.parse_args().repeats).items():
        print(f"{name:22} {seconds:6.2f} s")


if __name__ == "__main__":
    main()
