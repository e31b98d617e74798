"""What a check is, for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.checks.registry import Topic

__all__ = ["explanation"]


def explanation(topic: Topic) -> RenderableType:
    """What it proves, how, what to do, and what it needs."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_row("proves", topic.explanation.proves)
    table.add_row("how", topic.explanation.how)
    table.add_row("to do", topic.explanation.todo)
    if topic.requires:
        table.add_row("needs", ", ".join(topic.requires))
    if topic.leniency:
        table.add_row("profile", topic.leniency)
    return Group(Text(f"{topic.id}: {topic.title}", style="bold"), table)
