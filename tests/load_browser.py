"""Real browser windows among the protocol clients: what a click takes until it is seen. Knows Playwright."""

from __future__ import annotations

import re
import shutil
import time
from typing import TYPE_CHECKING

from playwright.async_api import Page, async_playwright, expect

if TYPE_CHECKING:
    from tests.load import Load

PATIENCE = 120_000  # ms
PAUSE = 4000  # ms between two clicks


async def look_and_click(load: Load, windows: int) -> None:
    """Windows side by side, each with an edit of its own; one click after another from tab to tab."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        pages = []
        for _ in range(windows):
            async with load.few:
                pages.append(await _opened(load, await (await browser.new_context()).new_page()))
            load.present += 1
        await load.begun.wait()
        while not load.over:
            for page in pages:
                await _look(load, page)
        await browser.close()


async def _opened(load: Load, page: Page) -> Page:
    page.set_default_timeout(PATIENCE)
    page.on("websocket", lambda socket: socket.on("close", lambda _: _note_drop(load)))
    await page.goto(f"http://{load.page.address}")
    await expect(page.get_by_text("million parameters")).to_be_visible(timeout=PATIENCE)
    await page.get_by_text("Prime Minister", exact=False).first.click()
    button = page.get_by_role("button", name=re.compile("Apply edit"))
    await expect(button).to_be_enabled(timeout=PATIENCE)
    await button.click()
    await expect(page.locator(".st-key-sentence")).to_contain_text("Boris Johnson", timeout=PATIENCE)
    return page


def _note_drop(load: Load) -> None:
    load.dropped += not load.over


async def _look(load: Load, page: Page) -> None:
    """To the tab with a question and back, each until its content is seen."""
    for tab, seen in (("Ask it", page.get_by_label("Ask", exact=True)), ("Result", page.locator(".st-key-sentence"))):
        began = time.monotonic()
        await page.get_by_role("tab", name=tab).click()
        await expect(seen).to_be_visible(timeout=PATIENCE)
        load.note("chromium", time.monotonic() - began)
        await page.wait_for_timeout(PAUSE)
