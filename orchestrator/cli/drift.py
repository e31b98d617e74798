"""Drift: how hosts compare with how they were when they were last good, and what was accepted."""

from __future__ import annotations

import fnmatch
import functools
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from orchestrator.cli.notify import destinations, notify_options, tell
from orchestrator.cli.options import ansible, connection_options, open_store, program_options, store_option
from orchestrator.cli.output import Reports, board, complain, console, log, print_json, written
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.history.store import Store
    from orchestrator.model.drift import Drift, HostDrift

__all__ = ["UNATTENDED", "drift", "history"]

UNATTENDED = object()
"""click's object where nobody is there to mend a command: it does what it can, and says the rest at its end."""


@click.group(invoke_without_command=True, short_help="Say what changed on the hosts since they were last good.")
@connection_options
@store_option
@click.option("-D", "--diff", is_flag=True, help="Show values whole, expected against seen.")
@program_options
@click.option(
    "--strict",
    is_flag=True,
    help="Exit 2 also where a changed inventory waits to be rolled out, and 1 where a notification was not sent.",
)
@notify_options
@click.pass_context
def drift(
    context: click.Context,
    /,
    diff: bool,
    as_json: bool,
    junit: str | None,
    prometheus: str | None,
    strict: bool,
    notify_file: str | None,
    notify_after: int,
    **given: Any,
) -> None:
    """Say what changed on the hosts since they were last provisioned and found good. Changes nothing.

    Exit codes: 0 in sync; 2 a host drifted; 1 it could not be told of a host.
    """
    if context.invoked_subcommand:
        return
    from orchestrator import inventory

    reports = Reports(as_json, strict, junit, prometheus)
    if context.obj is not UNATTENDED:
        reports.refuse_unwritable()
    options, secrets = ansible(given)
    log(options.verbosity)
    to = destinations(notify_file)
    with inventory.reading(options) as fleet_read:  # in a third of a second, which the imports need as well
        from orchestrator import collect, rollout
        from orchestrator.report import drift as drift_report
        from orchestrator.report import drift_json

        collect.get_ready()
        fleet = fleet_read()
    began_s = time.time()
    with board(fleet, "drift") as shown:
        edges = rollout.Edges(store=open_store)
        seen = rollout.watch(fleet, options, secrets=secrets, on_event=shown.event, edges=edges)
    checked = _Checked(seen.hosts, options.inventory, strict, began_s, time.time())
    if as_json:
        click.echo(drift_json.render(seen.hosts, options.inventory, began_s=checked.began_s, ended_s=checked.ended_s))
    else:
        asked = drift_report.Asked(options.inventory, options.limit)
        console().print(drift_report.report(seen.hosts, asked, diff=diff, verbose=bool(options.verbosity)))
    code = drift_report.exit_code(seen.hosts, strict=strict)
    for note in seen.notes:
        complain(note)
        code = note.exit_code
    for option, path in reports.files.items():
        code = written(option, path, functools.partial(_WRITERS[option], checked)) or code
    for problem in tell(seen.hosts, to, after=notify_after, inventory=options.inventory):
        complain(problem)
        code = problem.exit_code if strict else code
    raise SystemExit(code)


class _Checked(NamedTuple):
    """What there is to write; times in seconds since the epoch."""

    hosts: Sequence[HostDrift]
    inventory: Sequence[str]
    strict: bool
    began_s: float
    ended_s: float


def _write_junit(checked: _Checked, path: Path) -> None:
    from orchestrator import whole_file
    from orchestrator.report import junit

    whole_file.write(path, junit.render_drift(checked.hosts, checked.inventory, strict=checked.strict))


def _write_prometheus(checked: _Checked, path: Path) -> None:
    from orchestrator import whole_file
    from orchestrator.report import prometheus

    text = prometheus.render_drift(checked.hosts, began_s=checked.began_s, ended_s=checked.ended_s)
    whole_file.write(path, text, mode=0o644)  # node_exporter is another user


_WRITERS = {"--junit": _write_junit, "--prometheus": _write_prometheus}


@contextmanager
def _told_store() -> Iterator[Store]:
    """The history, and what is to be said of it: that this is a new one, because that before it was damaged.

    A command does what it can with it, and then exits as that says.
    """
    with open_store() as store:
        for note in store.notes:
            complain(note)
        yield store
        if store.notes:
            raise SystemExit(store.notes[0].exit_code)


def _complete_host(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    with context.scope(cleanup=False), _told_store() as store:  # click enters it for commands alone
        return [name for name in store.hosts() if name.startswith(typed)]


def _complete_item(context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    with context.scope(cleanup=False), _told_store() as store:
        seen = store.watched(context.params.get("host") or "")
    # a shell may take what it is offered as it is: ? stands for what would mean something to it
    offered = [re.sub(r"[^A-Za-z0-9_@:=,./+-]", "?", item.item) for item in seen.items] if seen else []
    return [pattern for pattern in offered if pattern.startswith(typed)]


@drift.command("accept")
@click.argument("host", shell_complete=_complete_host)
@click.argument("items", metavar="[ITEM]...", nargs=-1, shell_complete=_complete_item)
@store_option
@click.option("--reason", metavar="TEXT", help="Why this is fine; kept in the history beside your name.")
@click.option("--json", "as_json", is_flag=True, help="Print what was accepted as JSON.")
def accept(host: str, items: tuple[str, ...], reason: str | None, as_json: bool) -> None:
    """Expect from now on what the last drift check saw of a host.

    Without an ITEM that is all of it. An ITEM is written as `kvmfleet drift` shows it; * and ? stand for anything, as
    in 'package:*'. The next provision that ends well makes a new baseline, and all that was accepted before is in it
    or gone.
    """
    from orchestrator.text import printable, suggestion

    with _told_store() as store:
        seen = store.watched(host)
        if seen is None:
            known, look = store.hosts(), "Look first: kvmfleet drift"
            hint = f"{look} --limit {host}" if host in known else suggestion(host, known, look)
            raise UsageError(f"No drift check has seen a host {host!a}.", hint=hint)
        chosen = _chosen(seen, items)
        reason = reason if reason is not None else _ask_reason()
        if not reason.strip():
            raise UsageError("An acceptance needs a reason.", hint="Add --reason 'why this is fine'.")
        made = store.accept(host, chosen, reason=reason.strip())
        if as_json:
            print_json(made)
            return
        for one in made:
            click.echo(f"accepted {host}: {printable(one.item)}", err=True)


def _chosen(watched: HostDrift, wanted: Sequence[str]) -> list[Drift]:
    """What the patterns name; everything where there are none."""
    from orchestrator.model.drift import TOLD
    from orchestrator.text import printable, suggestion

    host, seen = watched.host, watched.items
    if not seen:
        why = (
            "saw no drift"
            if watched.state in TOLD
            else f"could not tell: {watched.state}, {printable(watched.problem)}"
        )
        raise UsageError(f"{host}: the last drift check {why}.", hint=f"Look again: kvmfleet drift --limit {host}")
    if not wanted:
        return list(seen)
    names = [item.item for item in seen]
    chosen: set[str] = set()
    for pattern in wanted:
        found = {pattern} if pattern in names else set(fnmatch.filter(names, pattern))  # names may hold [ and *
        if not found:
            hint = suggestion(pattern, names, f"Drifted are: {', '.join(names[:10])}")
            raise UsageError(f"{host}: no item of drift is called {pattern!a}.", hint=printable(hint, 2000))
        chosen |= found
    return [item for item in seen if item.item in chosen]


def _ask_reason() -> str:
    import sys

    if not sys.stdin.isatty():
        raise UsageError("An acceptance needs a reason, and there is no terminal to ask at.", hint="Add --reason TEXT.")
    return str(click.prompt("Why is this fine?", err=True))


class _History(click.Group):
    """`history HOST` is short for `history host HOST`, where HOST is no command."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["host", *args]
        return super().resolve_command(ctx, args)


lines_option = click.option(
    "-n", "--lines", type=click.IntRange(1, 10000), default=20, show_default=True, metavar="N", help="How many."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")


@click.group(cls=_History, invoke_without_command=True, short_help="Show past runs, or what is known of one host.")
@store_option
@lines_option
@json_option
@click.pass_context
def history(context: click.Context, lines: int, as_json: bool) -> None:
    """Show past runs; with the name of a host, its verdicts, its drift, and what was accepted."""
    if context.invoked_subcommand:
        return
    from orchestrator.report import drift as drift_report

    with _told_store() as store:
        runs = store.runs(lines)
        if as_json:
            print_json(runs)
        else:
            console().print(drift_report.past_runs(runs))


@history.command("host")
@click.argument("host", shell_complete=_complete_host)
@store_option
@lines_option
@json_option
def past(host: str, lines: int, as_json: bool) -> None:
    """Show the verdicts of one host, its drift, and what was accepted."""
    from orchestrator.report import drift as drift_report
    from orchestrator.text import suggestion

    with _told_store() as store:
        if host not in store.hosts():
            hint = suggestion(host, [*store.hosts(), *history.commands], "`kvmfleet history` lists the runs.")
            raise UsageError(f"The history knows no host {host!a}.", hint=hint)
        results, watched, accepted = store.past(host, lines), store.watches(host, lines), store.accepted(host)
        if as_json:
            print_json({"host": host, "results": results, "drift": watched, "accepted": accepted})
        else:
            console().print(drift_report.past_host(host, results, watched, accepted))


@history.command("prune")
@click.option(
    "--older-than", "days", type=click.IntRange(1, 36500), default=90, show_default=True, metavar="DAYS",
    help="Forget runs that ended so many days ago.",
)  # fmt: skip
@store_option
def prune(days: int) -> None:
    """Forget old runs, and give back their space. Kept is what is still needed: baselines, and the last that was seen
    of each host."""
    with _told_store() as store:
        click.echo(f"{store.prune(time.time() - days * 86400)} runs forgotten.", err=True)
        store.compact()
