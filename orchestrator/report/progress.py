"""What is going on right now: hosts by tasks on a terminal, otherwise one line a host when something of it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from orchestrator.converge import Progress
from orchestrator.model.run import Collected, HostConverged, Step
from orchestrator.text import printable

__all__ = ["Board", "Steps"]

ROWS = 20
"""Hosts shown at once on a terminal; the busy and the failed ones first."""


class _Row(msgspec.Struct):
    host: str
    state: str = "waiting"
    done: int = 0
    changed: int = 0
    note: str = ""

    @property
    def rank(self) -> int:
        return {"failed": 0, "unreachable": 0, "running": 1, "proving": 1, "waiting": 2}.get(self.state, 3)


class Board:
    """Shows a run while it goes on. Used as a context manager; `event` takes whatever the rollout tells."""

    def __init__(self, hosts: Sequence[str], *, title: str, console: Console) -> None:
        self._rows = {host: _Row(host) for host in hosts}
        self._title = title
        self._console = console
        self._task = ""
        self._started_s = time.monotonic()
        # An interactive terminal gets a picture that is redrawn; a log gets lines.
        self._draws = console.is_terminal
        self._live = Live(console=console, get_renderable=self._draw, transient=True, refresh_per_second=8)

    def __enter__(self) -> Board:
        if self._draws:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._draws:
            self._live.stop()

    def event(self, event: Progress | HostConverged | Collected | Step) -> None:
        """Takes one event, of a host that it was made for."""
        if isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, HostConverged):
            self._converged(event)
        elif isinstance(event, Step):
            self._reached(event)
        else:
            self._collected(event)

    def _progress(self, event: Progress) -> None:
        if event.outcome == "task":
            self._task = event.task
        elif event.outcome == "text":
            self._console.print(Text(event.text.rstrip("\n")))
        if event.outcome in ("task", "text"):
            return
        row = self._rows[event.host]
        row.done = max(row.done, event.done)
        row.changed += event.outcome == "changed"
        row.state = event.outcome if event.outcome in ("failed", "unreachable") else "running"
        row.note = event.text or event.task
        if row.state != "running":
            self._say(f"{event.host}: {row.state} in {event.task}: {event.text}", "red")

    def _converged(self, event: HostConverged) -> None:
        row = self._rows[event.host]
        row.state, row.note = "converged" if event.outcome == "ok" else event.outcome, ""
        if event.outcome == "unchanged":
            self._say(f"{event.host}: unchanged: {' '.join(event.notes)}")
            return
        self._say(
            f"{event.host}: {event.outcome}, {event.ok} tasks ok, {event.changed} changed, {event.failed} failed "
            f"after {time.monotonic() - self._started_s:.0f} s"
        )

    def _reached(self, event: Step) -> None:
        """Only for the picture: a log has the milestones in the report."""
        row = self._rows[event.host]
        row.state, row.note, self._task = "proving", event.text, ""

    def _collected(self, event: Collected) -> None:
        row = self._rows[event.host]
        silence = "unreachable" if event.unreachable else "no evidence"
        row.state, row.note = "answered" if event.evidence else silence, event.problem
        self._say(f"{event.host}: {row.state}{': ' + event.problem if event.problem else ''}")

    def _say(self, line: str, style: str = "") -> None:
        """A line for a log; a terminal shows only what went wrong, as the rest is in the picture."""
        if not self._draws or style:
            self._console.print(Text(printable(line, 2000), style=style), soft_wrap=True)

    def _draw(self) -> RenderableType:
        table = Table(box=None, show_header=False, padding=(0, 1))
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        table.add_column()  # rich narrows this one first, as it may be wrapped; what is in it says that it is not
        rows = sorted(self._rows.values(), key=lambda row: row.rank)
        for row in rows[:ROWS]:
            numbers = f"{row.done} tasks, {row.changed} changed" if row.done else ""
            note = Text(printable(row.note, 80), style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row(Text(row.host, style="bold"), row.state, numbers, note)
        more = [Text(f"and {len(rows) - ROWS} more hosts", style="dim")] if len(rows) > ROWS else []
        clock = f"{self._title} {time.monotonic() - self._started_s:.0f} s  {printable(self._task, 80)}"
        rows_of_hosts = Constrain(table, self._console.width - 2)  # a terminal shows ^C behind the last one
        return Group(Spinner("dots", Text(clock)), rows_of_hosts, *more)


class Steps:
    """Shows the steps of something that is no playbook, such as making a lab. Called with a message and a fraction."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started_s = clock()
        self._message = ""
        self._fraction: float | None = None
        self._live = Live(console=console, get_renderable=self._draw, transient=True, refresh_per_second=8)

    def __enter__(self) -> Steps:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, message: str, fraction: float | None = None) -> None:
        """A new message is a line; a new fraction of the same message only moves the picture."""
        if message != self._message:
            self._console.print(Text(f"{self._clock() - self._started_s:5.0f} s  {printable(message, 300)}"))
        self._message, self._fraction = message, fraction

    def _draw(self) -> RenderableType:
        share = "" if self._fraction is None else f" {self._fraction:4.0%}"
        return Spinner("dots", Text(f"{printable(self._message, 100)}{share}"))
