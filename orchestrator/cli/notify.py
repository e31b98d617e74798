"""Whom to tell, and a way to see whether that works."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator.cli.options import PlaceType, open_store
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.errors import KvmfleetError
    from orchestrator.model.drift import HostDrift
    from orchestrator.notify.destinations import Destination

__all__ = ["destinations", "notify", "notify_options", "tell"]

F = TypeVar("F", bound=Callable[..., Any])


def notify_options(command: F) -> F:
    """Of a command that may tell somebody what it found."""
    command = click.option(
        "--notify-after",
        type=click.IntRange(1, 1000),
        default=2,
        show_default=True,
        metavar="N",
        help="Tell of a host that does not answer after so many checks in a row.",
    )(command)
    return click.option(
        "--notify",
        "notify_file",
        type=PlaceType(),
        metavar="FILE",
        help="Tell what changed since it was last told, through the services whose apprise URLs are in this file of "
        "mode 0600, one a line; without it, through those in the variable KVMFLEET_NOTIFY.",
    )(command)


def destinations(file: str | None) -> tuple[Destination, ...]:
    """Those that the user named. Their variable leaves the environment: programs that we start have no use for it.

    Raises:
        UsageError: see `orchestrator.notify.destinations.read`.
    """
    from orchestrator.notify import destinations

    return destinations.read(file, os.environ.pop("KVMFLEET_NOTIFY", ""))


def tell(
    hosts: Sequence[HostDrift], to: Sequence[Destination], *, after: int, inventory: Sequence[str]
) -> tuple[KvmfleetError, ...]:
    """Gives what went wrong."""
    if not to:
        return ()
    from orchestrator.notify import telling

    return telling.tell(hosts, to, after=after, inventory=inventory, store=open_store)


@click.group()
def notify() -> None:
    """Try the services that `kvmfleet drift --notify FILE` tells."""


@notify.command("test")
@click.argument("file", required=False, type=PlaceType())
def test(file: str | None) -> None:
    """Send a test message to each apprise URL in FILE.

    Without FILE they are taken from the variable KVMFLEET_NOTIFY. Exits 1 when one was not sent.
    """
    to = destinations(file)
    if not to:
        raise UsageError(
            "There is nobody to send a test to.", hint="Name a file that holds apprise URLs, or set KVMFLEET_NOTIFY."
        )
    from orchestrator.notify import telling

    sent = telling.try_out(to)
    for one, problem in sent.items():
        click.echo(f"{one.place}: {f'not sent: {problem}' if problem else 'sent'}")
    raise SystemExit(int(any(sent.values())))
