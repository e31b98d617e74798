"""Tells people what changed on the fleet: once, and again only where it did not arrive."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

from orchestrator.errors import KvmfleetError, NotifyError, StoreError
from orchestrator.history.store import Store
from orchestrator.model.drift import HostDrift
from orchestrator.model.run import Message
from orchestrator.notify import destinations
from orchestrator.notify.destinations import Destination
from orchestrator.notify.message import message, trial
from orchestrator.notify.notices import Notices
from orchestrator.notify.transitions import Notice, Transition, transitions

__all__ = ["tell", "try_out"]

Send = Callable[[Sequence[tuple[Destination, Message]]], Mapping[Destination, str]]


def tell(
    hosts: Sequence[HostDrift],
    to: Sequence[Destination],
    *,
    after: int,
    inventory: Sequence[str] = (),
    store: Callable[[], Store] = Store,
    send: Send = destinations.send,
) -> tuple[KvmfleetError, ...]:
    """Sends each destination one message with all that it does not know yet of these hosts, if there is anything.

    `after`: so many checks in a row must have failed before a host that does not answer is worth a word. Gives what
    went wrong; what was not sent for it is told by the next run.
    """
    try:
        with store() as history:
            return _tell(Notices(history.engine), hosts, to, after, inventory, send)
    except StoreError as e:
        return (NotifyError(f"who was told what cannot be kept: {e.message}", hint=e.hint),)


def _tell(
    notices: Notices,
    hosts: Sequence[HostDrift],
    to: Sequence[Destination],
    after: int,
    inventory: Sequence[str],
    send: Send,
) -> tuple[KvmfleetError, ...]:
    silent = [host for host in hosts if host.state not in ("in-sync", "pending", "drifted")]
    checks = notices.silent_checks(silent, after)

    def choose(known: Mapping[str, Notice]) -> tuple[Transition, ...]:
        return transitions(known, hosts, checks, after=after)

    claims = {one: claimed for one in to if (claimed := notices.claim(one.id, choose))}
    if not claims:
        return ()
    problems = send([(one, message(claimed, inventory)) for one, claimed in claims.items()])
    for one, claimed in claims.items():
        notices.settle(one.id, claimed, delivered=not problems[one])
    return tuple(_failure(one, problem) for one, problem in problems.items() if problem)


def try_out(to: Sequence[Destination]) -> Mapping[Destination, str]:
    """Sends a test to each destination; gives why one did not take it, "" where it did."""
    return destinations.send([(one, trial()) for one in to])


def _failure(to: Destination, problem: str) -> NotifyError:
    test = shlex.join(["kvmfleet", "notify", "test", *([to.file] if to.file else [])])
    return NotifyError(
        f"the notification to {to.place} was not sent: {problem}.",
        hint=f"The next check sends it. Try the way there: {test}",
    )
