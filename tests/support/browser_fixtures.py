"""The browser of the tests of pages: headless Chromium of the system, through playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this system: apt-get install chromium")
    off = ["background-networking", "component-update", "sync", "gpu", "quic"]
    with sync.sync_playwright() as running:
        arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in off)]
        opened = running.chromium.launch(executable_path=CHROMIUM, headless=True, args=arguments)
        yield opened
        opened.close()
