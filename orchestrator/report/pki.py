"""The fleet's CA on a terminal."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.pki import Authority
from orchestrator.text import printable

__all__ = ["status"]


def status(found: Authority, now_s: float | None = None) -> RenderableType:
    """The CA, then a line for each host and purpose."""
    now_s = time.time() if now_s is None else now_s
    key = "encrypted" if found.encrypted else "not encrypted"
    lines = [
        f"CA       {printable(found.subject)}",
        f"sha256   {found.sha256}",
        f"valid    {_until(found.not_after_s, now_s)}",
        f"folder   {printable(found.folder)}, key {key}" + ("" if found.private else ", AND OTHERS CAN READ IT"),
    ]
    head = Text("\n".join(lines))
    return Group(head, Text(), _table(found, now_s)) if found.issued else Group(head)


def _table(found: Authority, now_s: float) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for column in ("host", "for", "valid", "names"):
        table.add_column(column)
    for issued in found.issued:
        names = ", ".join(issued.names)
        table.add_row(
            printable(issued.host), printable(issued.purpose), _until(issued.not_after_s, now_s), printable(names)
        )
    return table


def _until(not_after_s: int, now_s: float) -> str:
    days = int((not_after_s - now_s) // 86400)
    date = datetime.fromtimestamp(not_after_s, UTC).strftime("%Y-%m-%d")
    return f"until {date}, {days} days" if not_after_s > now_s else f"EXPIRED on {date}"
