"""What a check is, for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.checks.registry import Check

__all__ = ["explanation"]


def explanation(check: Check) -> RenderableType:
    """What it proves, how, what to do, and what it needs."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_row("proves", check.explanation.proves)
    table.add_row("how", check.explanation.how)
    table.add_row("to do", check.explanation.todo)
    if check.requires:
        table.add_row("needs", ", ".join(check.requires))
    if check.lab_warns:
        table.add_row("profile", "in the profile lab a failure is a warning")
    return Group(Text(f"{check.id}: {check.title}", style="bold"), table)
