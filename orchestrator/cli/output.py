"""Where the report of a command goes, and the exit code that it means."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Self

import click

from orchestrator.errors import KvmfleetError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.inventory import Fleet
    from orchestrator.report.progress import Board, Steps
    from orchestrator.rollout import Run

__all__ = ["Output", "Reports", "board", "complain", "console", "ignore", "log", "print_json", "steps", "written"]


class Reports(NamedTuple):
    """What the user wants to have of what was learned: the values of `report_options`."""

    as_json: bool = False
    strict: bool = False
    junit: str | None = None
    prometheus: str | None = None
    html: str | None = None
    save_evidence: str | None = None

    @classmethod
    def taken_from(cls, given: dict[str, Any]) -> Self:
        """Out of what click parsed; the rest stays there."""
        return cls(**{name: given.pop(name) for name in cls._fields})

    @property
    def files(self) -> Mapping[str, str]:
        """Option -> path of what is to be written beside the report on stdout."""
        named = {
            "--junit": self.junit,
            "--prometheus": self.prometheus,
            "--html": self.html,
            "--save-evidence": self.save_evidence,
        }
        return {option: path for option, path in named.items() if path}

    def refuse_unwritable(self) -> None:
        """Before anything is asked: a run whose report has nowhere to go is one to do again. Raises UsageError."""
        taken: dict[str, str] = {}
        for option, path in self.files.items():
            real = os.path.realpath(path)
            if other := taken.get(real):
                raise UsageError(f"{other} and {option} both name {path}.", hint="Give each report a file of its own.")
            if not os.path.exists(real) or os.path.isfile(real):  # /dev/null takes any number of them
                taken[real] = option
            try:
                _rehearse(option, Path(path))
            except OSError as e:
                raise UsageError(f"{option} {path}: {e.strerror}.", hint=_place_for(option, path)) from e


class _Learned(NamedTuple):
    """What there is to write; times in seconds since the epoch."""

    command: str
    run: Run
    began_s: float
    ended_s: float


class Output:
    """Where the report of one command goes, and the exit code that it means."""

    def __init__(self, command: str, reports: Reports, verbose: bool) -> None:
        self._command = command
        self._reports = reports
        self._verbose = verbose
        self._began_s = time.time()

    def finish(self, run: Run) -> NoReturn:
        """Prints the report before anything is written, so that a full disk loses nothing of it; then exits."""
        from orchestrator.report import json, summary, terminal

        if self._reports.as_json:
            click.echo(json.render(run.results, run.fleet, command=self._command))
        else:
            console().print(terminal.report(run.results, run.fleet, verbose=self._verbose))
        code = summary.exit_code(run.results, run.fleet, strict=self._reports.strict)
        learned = _Learned(self._command, run, self._began_s, time.time())
        for option, path in self._reports.files.items():
            code = written(option, path, functools.partial(_WRITERS[option], learned)) or code
        for note in run.notes:
            complain(note)
            code = note.exit_code
        raise SystemExit(code)

    def finish_pretended(self, run: Run) -> NoReturn:
        """The same for check mode, which proves nothing and leaves nothing to write."""
        from orchestrator.report import json, summary, terminal

        if self._reports.as_json:
            click.echo(json.render_pretended(run.converged, command=self._command))
        else:
            console().print(terminal.pretended(run.converged))
        raise SystemExit(summary.pretended_exit_code(run.converged))

    def finish_given_back(self, run: Run, check: bool) -> NoReturn:
        """For hosts that are no KVM hosts any more, so that nothing was proven."""
        from orchestrator.report import json, summary, terminal

        if self._reports.as_json:
            click.echo(json.render_pretended(run.converged, command=self._command, check_mode=check))
        else:
            console().print(terminal.given_back(run.converged, check=check))
        code = summary.pretended_exit_code(run.converged)
        for note in run.notes:
            complain(note)
            code = note.exit_code
        raise SystemExit(code)


def written(option: str, path: str, write: Callable[[Path], None]) -> int:
    """The exit code of writing one report to its file: 0, or that of the complaint about it."""
    try:
        write(Path(path))
    except OSError as e:
        problem = KvmfleetError(f"{path}: {e.strerror}.", hint=_place_for(option, path))
        complain(problem)
        return problem.exit_code
    return 0


def _rehearse(option: str, path: Path) -> None:
    """Raises OSError where nothing can be written. The folder for evidence is made when there is some."""
    from orchestrator import whole_file

    if option == "--save-evidence":
        path = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place)) / "evidence"
    whole_file.rehearse(path)


def _place_for(option: str, path: str) -> str:
    """What to do where a report cannot be written."""
    if option == "--save-evidence":
        return f"Give {option} a folder that can be written."
    if not os.path.exists(Path(path).parent):
        return f"Make the folder first: {shlex.join(['mkdir', '-p', str(Path(path).parent)])}"
    return f"Give {option} a file that can be written."


def _write_junit(learned: _Learned, path: Path) -> None:
    from orchestrator import whole_file
    from orchestrator.report import junit

    whole_file.write(path, junit.render(learned.run.results, learned.run.fleet))


def _write_prometheus(learned: _Learned, path: Path) -> None:
    from orchestrator import whole_file
    from orchestrator.report import prometheus

    run = learned.run
    text = prometheus.render(
        run.results, run.fleet, command=learned.command, began_s=learned.began_s, ended_s=learned.ended_s
    )
    whole_file.write(path, text, mode=0o644)  # node_exporter is another user


def _write_html(learned: _Learned, path: Path) -> None:
    from orchestrator import whole_file
    from orchestrator.report import html

    run = learned.run
    whole_file.write(path, html.render(run.results, run.fleet, command=learned.command, ended_s=learned.ended_s))


def _save_evidence(learned: _Learned, path: Path) -> None:
    from orchestrator import recording

    recording.save(learned.run.results, path)


_WRITERS: Mapping[str, Callable[[_Learned, Path], None]] = {
    "--junit": _write_junit,
    "--prometheus": _write_prometheus,
    "--html": _write_html,
    "--save-evidence": _save_evidence,
}


def console(*, stderr: bool = False) -> Console:
    """A terminal of the width it has; a pipe or a file gets wide lines and no colours."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def board(fleet: Fleet, title: str) -> Board:
    from orchestrator.report.progress import Board

    return Board([host.name for host in fleet.hosts], title=title, console=console(stderr=True))


def steps() -> Steps:
    from orchestrator.report.progress import Steps

    return Steps(console(stderr=True))


def ignore(message: str, fraction: float | None = None) -> None:
    """Progress that nobody looks at."""


def print_json(document: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def complain(error: KvmfleetError) -> None:
    """What, where and why; then what to do next."""
    click.echo(f"kvmfleet: {error.message}", err=True)
    if error.hint:
        click.echo(textwrap.indent(error.hint, "  "), err=True)


def log(verbosity: int) -> None:
    """The story on stderr: warnings, with -v what we do, with -vv what we decide."""
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("orchestrator").setLevel(level)
