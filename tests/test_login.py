"""The framework's own login, end to end: an OpenID provider on loopback, the real page, a real browser."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.login import Provider
from tests.test_visitors import PATIENCE, Server, browser, fill, shows

__all__ = ["browser"]
ROOT = str(Path(__file__).parents[1])


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.close()


@pytest.fixture
def server(provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The page, with the provider in its owner's secrets file."""

    class Guarded(Server):
        def start(self) -> None:
            file = tmp_path / ".streamlit" / "secrets.toml"
            file.parent.mkdir()
            file.write_text(provider.secrets(self.address))
            with monkeypatch.context() as patch:
                patch.setenv("HOME", str(tmp_path))
                patch.setenv("EDITCORE_FAKE_ENGINE", "tests.fake_engine:current")
                patch.setenv("PYTHONPATH", os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]))
                super().start()

    started = Guarded(tmp_path / "data")
    yield started
    started.stop()


def seen(what: Locator) -> None:
    expect(what).to_be_visible(timeout=PATIENCE)


def come_in(browser: Browser, server: Server, provider: Provider, person: str) -> Page:
    """A browser of this person's own, logged in."""
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(f"{server.address}/sessions")
    seen(page.get_by_text("Log in to open this page."))
    assert page.get_by_text("New session").count() == 0
    provider.person = person
    page.get_by_role("button", name="Log in").click()
    seen(page.get_by_text("million parameters"))
    return page


def test_each_person_logs_in_sees_only_sessions_of_his_own_and_leaves(
    server: Server, provider: Provider, browser: Browser
) -> None:
    ada = come_in(browser, server, provider, "ada")
    assert {"/authorize", "/token", "/keys"} <= set(provider.asked) and "code=" not in ada.url
    fill(ada, "Boris Johnson").click()
    shows(ada, "Boris Johnson")
    address = ada.url
    ada.get_by_role("link", name="Your sessions").click()
    seen(ada.get_by_role("main").get_by_text("Boris Johnson").first)

    bob = come_in(browser, server, provider, "bob")
    bob.get_by_role("link", name="Your sessions").click()
    seen(bob.get_by_text("No session holds an edit yet"))

    again = come_in(browser, server, provider, "ada")  # at another computer
    again.get_by_role("link", name="Your sessions").click()
    again.get_by_role("button", name="Open").click()
    shows(again, "Boris Johnson")

    ada.get_by_role("button", name=re.compile("Log out")).click()
    seen(ada.get_by_text("Log in to open this page."))
    until = time.monotonic() + PATIENCE / 1000
    while "/leave" not in provider.asked and time.monotonic() < until:  # the browser goes there by way of the page
        ada.wait_for_timeout(100)
    assert "/leave" in provider.asked
    seen(ada.get_by_text("Log in to open this page."))
    ada.goto(address)
    seen(ada.get_by_text("Open its address once more"))
    assert ada.get_by_text("Boris Johnson").count() == 0


def test_a_forged_cookie_opens_nothing(server: Server, browser: Browser) -> None:
    context = browser.new_context()
    context.add_cookies([
        {"name": "_streamlit_user", "value": '{"is_logged_in": true, "sub": "ada"}', "url": server.address}
    ])  # fmt: skip
    page = context.new_page()
    page.goto(server.address)
    seen(page.get_by_text("Log in to open this page."))
