"""What Ansible would change on the hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.options import ansible, connection_options, tags_options
from orchestrator.cli.output import board, console, log

if TYPE_CHECKING:
    from orchestrator.report.progress import Board
    from orchestrator.rollout import Event

__all__ = ["plan"]


@click.command(short_help="Say what provision would change on the hosts; changes nothing.")
@connection_options
@tags_options
@click.option("-D", "--diff", is_flag=True, help="Show the changes in files; lines that may hold a secret are hidden.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON; nothing else on stdout.")
def plan(as_json: bool, **given: Any) -> None:
    """Say what provision would change on the hosts of the group kvm_hosts, as Ansible's check mode sees it.

    Every host is asked. Whether a host is still as it was when it was good is another question: kvmfleet drift.

    Exit codes: 0 nothing would change; 2 something would; 1 it could not be told of a host.
    """
    from orchestrator import inventory, rollout
    from orchestrator.report import plan as plan_report

    options, secrets = ansible(given | {"check": True})
    log(options.verbosity)
    fleet = inventory.load(options)
    with board(fleet, "plan") as shown:
        run = rollout.provision(fleet, options, secrets=secrets, on_event=lambda event: _show(shown, event))
    planned = plan_report.plan(run.converged)
    if as_json:
        click.echo(plan_report.render(planned))
    else:
        console().print(plan_report.report(planned, verbose=bool(options.verbosity)))
    raise SystemExit(plan_report.exit_code(planned))


def _show(board: Board, event: Event) -> None:
    """All but what Ansible prints: its diffs are in the report, at their hosts."""
    from orchestrator.converge import Progress

    if not (isinstance(event, Progress) and event.outcome == "text"):
        board.event(event)
