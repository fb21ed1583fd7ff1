"""A real Chromium for tests of the web page, and a record of its errors and requests.

Use it in tests marked `browser`.
"""

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass
class Seen:
    """Errors and requests of a page."""

    errors: list[str] = field(default_factory=list)
    """From the console and the scripts of the page."""
    addresses: list[str] = field(default_factory=list)
    """Addresses of all requests."""


def installed() -> str | None:
    """The path of this machine's Chromium; None if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium():
    """A headless Chromium, for tests marked `browser`."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=installed(), args=["--no-sandbox"])
        yield browser
        browser.close()


def open_page(browser, address, **options):
    """Open a window at `address`; returns it and a record of its errors and requests."""
    page, seen = browser.new_page(**options), Seen()
    page.on("request", lambda request: seen.addresses.append(request.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console",
        lambda told: seen.errors.append(told.text) if told.type == "error" else None,
    )
    page.goto(address)
    return page, seen
