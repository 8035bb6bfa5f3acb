"""Chromium without a window, for tests of the page and for its pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright


@contextmanager
def launched() -> Iterator[Browser]:
    """That of the machine, else Playwright's own."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        names = ("chromium", "chromium-browser", "google-chrome", own)
        found = next((path for name in names if (path := shutil.which(name)) is not None), None)
        # Playwright's own without a window is another program than the one that `executable_path` names.
        headless = list(Path(own).parents[2].glob("chromium_headless_shell-*")) if found is None else []
        if found is None and not headless:
            raise RuntimeError("no Chromium to test the page with: `make browser` installs it")
        # Neither does a container allow its sandbox, nor does it have much shared memory.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()
