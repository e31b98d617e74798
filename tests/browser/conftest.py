"""A real browser, in which every page is watched: what it says on its console, and what it asks the network for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.append(str(Path(__file__).resolve().parents[1] / "unit"))  # where evidence for tests is made

CHROMIUM = shutil.which("chromium")

expect.set_options(timeout=30_000)  # ms, as for all else that is waited for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents and not CHROMIUM:
            item.add_marker(pytest.mark.skip(reason="Chromium is not installed"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's own Chromium. Root may not have its sandbox, and the pages are ours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What pages said on the console and asked for; a test that expects some takes them out."""
    return []


@pytest.fixture
def visit(browser: Browser, tmp_path: Path, complaints: list[str]) -> Iterator[Callable[..., Page]]:
    """Opens a page from its text. Afterwards it must have complained about nothing and asked for nothing else."""
    contexts = []

    def call(text: str, **options: Any) -> Page:
        file = tmp_path / "report.html"
        file.write_text(text, encoding="utf-8")
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: request.url in (file.as_uri(), "data:,") or complaints.append(f"asked for {request.url}"),
        )
        page.goto(file.as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert complaints == []
