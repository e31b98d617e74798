"""Recording a command's output into a page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RECORD = Path(__file__).resolve().parents[2] / "scripts/record"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text("before\n<!-- here: begin -->\nold\n<!-- here: end -->\nafter\n")
    return path


def record(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RECORD, *arguments], capture_output=True, text=True)


def test_the_output_replaces_what_was_there(page: Path) -> None:
    assert record(page, "here", "echo", r"a \1 b").returncode == 0
    assert page.read_text() == "before\n<!-- here: begin -->\na \\1 b\n<!-- here: end -->\nafter\n"


def test_a_console_block_starts_with_the_command(page: Path) -> None:
    record("--console", page, "here", "echo", "two words")
    assert "```console\n$ echo 'two words'\ntwo words\n```\n" in page.read_text()


@pytest.mark.parametrize("arguments", [("elsewhere", "echo", "x"), ("here", "false")])
def test_a_page_stays_as_it_is_when_something_is_wrong(page: Path, arguments: tuple[str, ...]) -> None:
    before = page.read_text()
    assert record(page, *arguments).returncode != 0
    assert page.read_text() == before
