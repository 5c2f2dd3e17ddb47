"""Opens pages in headless Chromium with Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@contextmanager
def opened_page(browser: Browser, file: Path, **context_options: Any) -> Iterator[Page]:
    """Opens the page of a file; fails at its end if the page logged anything or made a network request."""
    context = browser.new_context(
        **{"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | context_options
    )
    page = context.new_page()
    wrong: list[str] = []
    ours = file.as_uri()
    page.on("console", lambda message: wrong.append(message.text) if page.url == ours else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(ours)
    yield page
    context.close()
    assert wrong == []
