"""Asks many hosts at once, each on the cheapest way that leads to it, and returns one line a host."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from orchestrator import identity, payload
from orchestrator.ansible_cfg import Settings
from orchestrator.errors import Interrupted
from orchestrator.inventory import AnsibleOptions, Host, Secrets
from orchestrator.model import Boot, Collected, Step
from orchestrator.reach import local, through_ansible
from orchestrator.reach.question import Answer, Question, Silence, interpret, too_late
from orchestrator.reach.route import AnsibleRoute, LocalRoute, SshRoute, choose
from orchestrator.text import printable

if TYPE_CHECKING:
    from orchestrator.reach.ssh import Ssh

__all__ = ["ask_all", "collect"]

log = logging.getLogger(__name__)

CONCURRENCY = 64  # sessions at once; more gain nothing, as one processor serves them all
CLEANING_UP_S = 5.0  # the collector on the host may need 3 s for it after its own deadline

OnAnswer = Callable[[Collected], None]
OnStep = Callable[[Step], None]


def collect(
    hosts: Sequence[Host],
    options: AnsibleOptions,
    *,
    boot: Boot,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
    settings: Settings = Settings(),  # noqa: B008 - frozen
    timeout_s: float = 60.0,
    on_answer: OnAnswer | None = None,
    on_step: OnStep | None = None,
) -> tuple[Collected, ...]:
    """One answer or one problem a host, in the order of `hosts`.

    No host takes longer than `timeout_s` from the moment its turn comes. `on_answer` is called as each one is settled,
    `on_step` whenever a guest that boots has come further.

    Raises:
        KeyboardInterrupt: everything that was started has ended.
        ConvergeError: a host needs Ansible, and Ansible could not be run at all.
    """
    program = payload.payload(boot, timeout_s=max(timeout_s - CLEANING_UP_S, timeout_s / 2))
    question = Question(program, payload.decode, timeout_s, Path(boot.luggage) if boot.luggage else None)
    return ask_all(hosts, question, options, secrets=secrets, settings=settings, on_answer=on_answer, on_step=on_step)


def ask_all(
    hosts: Sequence[Host],
    question: Question,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),  # noqa: B008 - frozen
    settings: Settings = Settings(),  # noqa: B008 - frozen
    on_answer: OnAnswer | None = None,
    on_step: OnStep | None = None,
) -> tuple[Collected, ...]:
    """The same for any question."""
    routes = {host.name: choose(host, secrets) for host in hosts}
    fast = {name: route for name, route in routes.items() if not isinstance(route, AnsibleRoute)}
    slow = {name: route for name, route in routes.items() if isinstance(route, AnsibleRoute)}
    answers: dict[str, Collected] = {}

    def settle(answer: Collected) -> None:
        answers[answer.host] = answer
        if on_answer:
            on_answer(answer)

    async def everything() -> None:
        turns, sessions = asyncio.Semaphore(options.forks or CONCURRENCY), _Sessions(question, on_step)

        async def one(name: str, route: SshRoute | LocalRoute) -> None:
            async with turns:
                settle(await sessions.ask(name, route))

        await asyncio.gather(
            *(one(name, route) for name, route in fast.items()),
            _through_ansible(
                [host for host in hosts if host.name in slow], question, options, secrets, settings, settle
            ),
        )

    for name, route in slow.items():
        log.info("%s goes through Ansible: %s", name, route.reason)
    asyncio.run(everything())
    return tuple(answers[host.name] for host in hosts)


class _Sessions:
    """The two fast ways, each answer within the deadline."""

    def __init__(self, question: Question, on_step: OnStep | None) -> None:
        self._question = question
        self._on_step = on_step
        self._ssh: Ssh | None = None

    async def ask(self, name: str, route: SshRoute | LocalRoute) -> Collected:
        asked_at_s = time.time()
        outcome = await self._in_time(name, route)
        path: Literal["local", "ssh"] = "local" if isinstance(route, LocalRoute) else "ssh"
        user = identity.user() if isinstance(route, LocalRoute) else route.user
        return interpret(name, path, outcome, self._question, asked_at_s=asked_at_s, python=route.python, user=user)

    async def _in_time(self, name: str, route: SshRoute | LocalRoute) -> Answer | Silence:
        try:
            async with asyncio.timeout(self._question.timeout_s):
                return await self._outcome(route, self._addressed(name))
        except TimeoutError:
            return too_late(self._question)
        except Exception as e:  # whatever one host provokes, the others keep their answers
            log.debug("%s", name, exc_info=True)
            return Silence(f"asking it failed: {type(e).__name__}: {printable(str(e))}", unreachable=False)

    def _addressed(self, name: str) -> Question:
        if (tell := self._on_step) is None:
            return self._question
        return msgspec.structs.replace(self._question, on_step=lambda text: tell(Step(name, text)))

    async def _outcome(self, route: SshRoute | LocalRoute, question: Question) -> Answer | Silence:
        if isinstance(route, LocalRoute):
            return await local.ask(route, question)
        if not self._ssh:
            from orchestrator.reach.ssh import Ssh  # asyncssh takes 0.2 s to import

            self._ssh = Ssh()
        return await self._ssh.ask(route, question)


async def _through_ansible(
    hosts: Sequence[Host],
    question: Question,
    options: AnsibleOptions,
    secrets: Secrets,
    settings: Settings,
    settle: OnAnswer,
) -> None:
    """In a thread, as Ansible is asked for all its hosts at once; a cancelled wait ends it first."""
    if not hosts:
        return
    stop = threading.Event()
    work = asyncio.ensure_future(
        asyncio.to_thread(through_ansible.ask, hosts, question, options, secrets, settings, stop.is_set)
    )
    try:
        answers = await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([work])
        if isinstance(work.exception(), Interrupted):
            log.debug("Ansible was ended")
        raise
    for answer in answers:
        settle(answer)
