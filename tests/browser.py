"""A real Chromium for tests of the page, and what it saw."""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """What the browser was told and asked."""

    errors: list[str] = field(default_factory=list)
    """Of its console and of the scripts of the page."""
    addresses: list[str] = field(default_factory=list)
    """Of every request."""


@contextmanager
def chromium():
    """A headless Chromium; without an installed one the test is skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium is installed ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


def open_page(browser, address, **options):
    """A new window at `address`, and what it saw."""
    page, seen = browser.new_page(**options), Seen()
    page.on("request", lambda request: seen.addresses.append(request.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console",
        lambda told: seen.errors.append(told.text) if told.type == "error" else None,
    )
    page.goto(address)
    return page, seen
