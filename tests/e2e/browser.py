"""A browser before Airflow's page, for the tests of the page in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Frame, Page, Playwright, expect

from tests.e2e.conftest import Airflow

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOW_TO_INSTALL = "the page is tested in a browser: apt-get install chromium, or .venv/bin/playwright install chromium"
# Where `make screenshots` wants them.
SCREENSHOTS = os.environ.get("LEADSYNC_SCREENSHOTS")
SERIOUS = {"serious", "critical"}
PATIENCE = 60_000  # ms; the machine may be busy


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Debian's browser, or Playwright's own."""
    own = playwright.chromium.executable_path
    found = next(filter(None, map(shutil.which, NAMES)), own if Path(own).exists() else None)
    if found is None:
        # Whoever has no browser still wants the other tests; CI has one, or is broken.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HOW_TO_INSTALL)
    # Chromium's sandbox does not work as root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    browser = playwright.chromium.launch(executable_path=found, args=arguments)
    yield browser
    browser.close()


class Person:
    """Somebody who is logged in to Airflow and looks at Leadsync's page; what goes wrong in it is kept."""

    def __init__(self, browser: Browser, airflow: Airflow, name: str, **context: Any) -> None:
        self.airflow = airflow
        self.context = browser.new_context(**{"viewport": {"width": 1600, "height": 1000}, **context})
        self.context.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        self.page: Page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda line: self._listen(line.text) if line.type == "error" else None)
        self._login(name)

    def _listen(self, text: str) -> None:
        if "Content Security Policy" in text:
            self.wrong.append(text)

    def _login(self, name: str) -> None:
        self.page.goto(self.airflow.stack.ui_url)
        self.page.locator("input[name=username]").fill(name)
        self.page.locator("input[name=password]").fill(self.airflow.stack.secrets[f"ui_{name}_password"])
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(lambda url: "/auth/login" not in url)

    def open(self, view: str = "overview") -> Frame:
        """Goes to a view of the page within Airflow's; returns the frame, with the view in it."""
        if "/plugin/leadsync" not in self.page.url:
            self.page.goto(f"{self.airflow.stack.ui_url}/plugin/leadsync")
        frame = self.frame()
        frame.evaluate("view => { location.hash = view }", view)
        frame.locator(f"nav a[aria-current][href='#{view.partition('?')[0]}']").wait_for()
        frame.locator("main h2").first.wait_for()
        return frame

    def frame(self) -> Frame:
        """The page's frame, once it is there."""
        handle = self.page.locator("iframe").element_handle()
        frame = handle.content_frame()
        assert frame is not None
        frame.locator("nav a").first.wait_for()
        return frame

    def violations(self, frame: Frame) -> list[str]:
        """What axe-core finds that keeps people from using the view."""
        frame.evaluate(AXE_SCRIPT)
        found = frame.evaluate("() => axe.run()")["violations"]
        return [
            f"{each['id']} ({each['impact']}): {[node['target'] for node in each['nodes']][:3]}"
            for each in found
            if each["impact"] in SERIOUS
        ]

    def screenshot(self, name: str) -> None:
        """Kept when they are wanted."""
        if SCREENSHOTS:
            self.page.screenshot(path=f"{SCREENSHOTS}/{name}.png")

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []
