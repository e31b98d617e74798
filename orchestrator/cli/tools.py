"""Commands that need no host."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import any_store_option, store_url
from orchestrator.cli.output import console, print_json
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.doctor import History

__all__ = ["completion", "doctor", "explain"]


def _complete_check(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
    from orchestrator.checks import catalogue

    return [topic.id for topic in catalogue.topics() if topic.id.startswith(typed)]


@click.command(short_help="Tell what a check proves, how, and what to do.")
@click.argument("check_id", metavar="CHECK-ID", required=False, shell_complete=_complete_check)
def explain(check_id: str | None) -> None:
    """Tell what a check proves, how, and what to do when it fails. Without CHECK-ID, list all checks."""
    from orchestrator.checks import catalogue
    from orchestrator.report import check as check_report

    if check_id is None:
        width = max(len(topic.id) for topic in catalogue.topics())
        for topic in catalogue.topics():
            click.echo(f"{topic.id:<{width}}  {topic.title}")
        return
    found = catalogue.explain(check_id)
    if found is None:
        raise UsageError(f"There is no check {check_id!a}.", hint=catalogue.meant(check_id))
    console().print(check_report.explanation(found))


@click.command(short_help="Show every problem of this controller, each with its fix.")
@any_store_option
@click.option("--json", "as_json", is_flag=True, help="Print where the history is, and the problems, as JSON.")
def doctor(as_json: bool) -> None:
    """Show where the history is, and every problem of this controller at once, each with its fix."""
    from orchestrator import doctor as surgery

    found = surgery.examine(store_url())
    if as_json:
        print_json(found)
    else:
        if found.history.where:
            click.echo(f"history {found.history.where}: {_known(found.history)}")
        for problem in found.problems:
            click.echo(f"{problem.level:<7} {problem.what}\n{textwrap.indent(problem.fix, ' ' * 8)}")
        click.echo("No problem found." if not found.problems else f"{len(found.problems)} found.")
    if any(problem.level == "error" for problem in found.problems):
        raise SystemExit(1)


def _known(history: History) -> str:
    """What there is, in words."""
    from orchestrator.history.tables import SCHEMA

    if history.schema is None or history.size_bytes is None:
        return "does not open for writing"
    if not history.schema:
        return "nothing yet; the first run begins it"
    later = "" if history.schema == SCHEMA else f", which the next run brings up to {SCHEMA}"
    return f"schema {history.schema}{later}, {history.size_bytes / (1 << 20):.1f} MiB"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: kvmfleet completion bash > ~/.local/share/bash-completion/completions/kvmfleet
    zsh:  kvmfleet completion zsh > "${fpath[1]}/_kvmfleet"
    fish: kvmfleet completion fish > ~/.config/fish/completions/kvmfleet.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None, shell
    click.echo(script(context.find_root().command, {}, "kvmfleet", "_KVMFLEET_COMPLETE").source())
