"""Asks many hosts at once, each on the cheapest way that leads to it, and tells each answer as it comes."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from orchestrator import identity, payload
from orchestrator.ansible_cfg import Settings
from orchestrator.errors import Interrupted
from orchestrator.inventory import AnsibleOptions, Host, Secrets
from orchestrator.model.run import Boot, Collected, Step
from orchestrator.reach import local, through_ansible
from orchestrator.reach.question import Answer, Question, Silence, interpret, too_late
from orchestrator.reach.route import AnsibleRoute, LocalRoute, SshRoute, choose
from orchestrator.reach.turns import Turn, Turns
from orchestrator.text import printable

if TYPE_CHECKING:
    from orchestrator.reach.ssh import Ssh

__all__ = ["ask_all", "ask_each", "collect", "get_ready", "stream"]

log = logging.getLogger(__name__)

CONCURRENCY = 64
"""More is faster only on a controller that is idle: docs/connections.md has the measurement."""
CLEANING_UP_S = 5.0  # the collector on the host may need 3 s for it after its own deadline

OnAnswer = Callable[[Collected], None]
OnStep = Callable[[Step], None]


def get_ready() -> None:
    """All that can be done before the hosts are known, for a caller who waits for them. Most are asked over ssh."""
    import orchestrator.reach.ssh  # noqa: F401 - asyncssh takes 0.1 s to import

    payload.packed()


def collect(
    hosts: Sequence[Host],
    options: AnsibleOptions,
    *,
    boot: Boot,
    secrets: Secrets = Secrets(),
    settings: Settings = Settings(),
    timeout_s: float = 60.0,
    on_answer: OnAnswer | None = None,
    on_step: OnStep | None = None,
) -> tuple[Collected, ...]:
    """What `stream` tells, all of it at once, in the order of `hosts`."""
    question = _question(boot, timeout_s)
    return ask_all(hosts, question, options, secrets=secrets, settings=settings, on_answer=on_answer, on_step=on_step)


def stream(
    hosts: Sequence[Host],
    options: AnsibleOptions,
    *,
    boot: Boot,
    secrets: Secrets = Secrets(),
    settings: Settings = Settings(),
    timeout_s: float = 60.0,
    on_answer: OnAnswer,
    on_step: OnStep | None = None,
) -> None:
    """Tells `on_answer` one answer or one problem a host as it comes, one at a time, and keeps none of them.

    No host takes longer than `timeout_s` from the moment its turn comes, waiting for others not counted. `on_step` is
    called whenever a guest that boots has come further. It is called from this thread, and `on_answer` from another.

    Raises:
        KeyboardInterrupt: everything that was started has ended.
        ConvergeError: a host needs Ansible, and Ansible could not be run at all.
        Exception: whatever a listener raises ends it all.
    """
    question = _question(boot, timeout_s)
    ask_each(hosts, question, options, secrets=secrets, settings=settings, on_answer=on_answer, on_step=on_step)


def _question(boot: Boot, timeout_s: float) -> Question:
    program = payload.payload(boot, timeout_s=max(timeout_s - CLEANING_UP_S, timeout_s / 2))
    return Question(program, payload.decode, timeout_s, luggage=Path(boot.luggage) if boot.luggage else None)


def ask_all(
    hosts: Sequence[Host],
    question: Question,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),
    settings: Settings = Settings(),
    on_answer: OnAnswer | None = None,
    on_step: OnStep | None = None,
) -> tuple[Collected, ...]:
    """`collect` for any question."""
    answers: dict[str, Collected] = {}

    def settle(answer: Collected) -> None:
        answers[answer.host] = answer
        if on_answer:
            on_answer(answer)

    ask_each(hosts, question, options, secrets=secrets, settings=settings, on_answer=settle, on_step=on_step)
    return tuple(answers[host.name] for host in hosts)


def ask_each(
    hosts: Sequence[Host],
    question: Question,
    options: AnsibleOptions,
    *,
    secrets: Secrets = Secrets(),
    settings: Settings = Settings(),
    on_answer: OnAnswer,
    on_step: OnStep | None = None,
) -> None:
    """`stream` for any question."""
    fast, slow = _routes(hosts, secrets)

    async def everything() -> None:
        turns, sessions = Turns(options.forks or CONCURRENCY), _Sessions(question, on_step)
        tell = _Listener(on_answer).tell

        async def one(name: str, route: SshRoute | LocalRoute, turn: Turn) -> None:
            try:
                await tell(await sessions.ask(name, route, turn))
            finally:
                turn.end()  # only now: answers that wait to be heard are not to become many

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_through_ansible(slow, question, options, secrets, settings, tell))
            for name, route in fast.items():
                tasks.create_task(one(name, route, await turns.take()))

    try:
        asyncio.run(everything())
    except BaseExceptionGroup as several:  # of listeners and of Ansible; one is enough
        raise several.exceptions[0] from None


def _routes(hosts: Sequence[Host], secrets: Secrets) -> tuple[dict[str, SshRoute | LocalRoute], list[Host]]:
    """The fast ways by the names of the hosts that they lead to, and the hosts that need Ansible."""
    fast: dict[str, SshRoute | LocalRoute] = {}
    slow: list[Host] = []
    for host in hosts:
        route = choose(host, secrets)
        if isinstance(route, AnsibleRoute):
            log.info("%s goes through Ansible: %s", host.name, route.reason)
            slow.append(host)
        else:
            fast[host.name] = route
    return fast, slow


class _Listener:
    """Hears answers in a thread: it may wait for a disk or a database, and no host is late because of that.

    Those that come meanwhile are heard in one go: with a thread's turn for each, a host costs a quarter more.
    """

    def __init__(self, on_answer: OnAnswer) -> None:
        self._on_answer = on_answer
        self._unheard: list[Collected] = []
        self._next: asyncio.Task[None] | None = None  # hears them
        self._hearing = asyncio.Lock()

    async def tell(self, answer: Collected) -> None:
        """Comes back when it was heard."""
        self._unheard.append(answer)
        if self._next is None:
            self._next = asyncio.create_task(self._hear())
        await self._next

    async def _hear(self) -> None:
        async with self._hearing:
            answers, self._unheard, self._next = self._unheard, [], None
            await asyncio.to_thread(self._hear_each, answers)

    def _hear_each(self, answers: Sequence[Collected]) -> None:
        for answer in answers:
            self._on_answer(answer)


class _Sessions:
    """The two fast ways, each answer within the deadline."""

    def __init__(self, question: Question, on_step: OnStep | None) -> None:
        self._question = question
        self._on_step = on_step
        self._ssh: Ssh | None = None

    async def ask(self, name: str, route: SshRoute | LocalRoute, turn: Turn) -> Collected:
        call = _Call(self._question.timeout_s, turn)
        outcome = await self._in_time(name, route, call)
        path: Literal["local", "ssh"] = "local" if isinstance(route, LocalRoute) else "ssh"
        user = identity.user() if isinstance(route, LocalRoute) else route.user
        answer = interpret(
            name, path, outcome, self._question, asked_at_s=call.asked_at_s, python=route.python, user=user
        )
        return msgspec.structs.replace(answer, took_s=time.monotonic() - call.began_s)

    async def _in_time(self, name: str, route: SshRoute | LocalRoute, call: _Call) -> Answer | Silence:
        try:
            async with call.deadline:
                return await self._outcome(route, self._addressed(name, call))
        except TimeoutError:
            return too_late(self._question)
        except Exception as e:  # whatever one host provokes, the others keep their answers
            log.debug("%s", name, exc_info=True)
            return Silence(f"asking it failed: {type(e).__name__}: {printable(str(e))}", unreachable=False)

    def _addressed(self, name: str, call: _Call) -> Question:
        tell = self._on_step
        on_step = None if tell is None else lambda text: tell(Step(name, text))
        return msgspec.structs.replace(self._question, on_ready=call.ready, on_step=on_step)

    async def _outcome(self, route: SshRoute | LocalRoute, question: Question) -> Answer | Silence:
        if isinstance(route, LocalRoute):
            return await local.ask(route, question)
        if not self._ssh:
            from orchestrator.reach.ssh import Ssh  # late, as in `get_ready`: asyncssh takes long

            self._ssh = Ssh()
        return await self._ssh.ask(route, question)


class _Call:
    """One host that is being asked."""

    def __init__(self, timeout_s: float, turn: Turn) -> None:
        self.asked_at_s, self.began_s = time.time(), time.monotonic()
        self.deadline = asyncio.timeout(timeout_s)
        self._turn = turn

    async def ready(self) -> None:
        """The host can be given work: only now its clock runs, and waiting for a turn is not its fault."""
        clock = asyncio.get_running_loop().time
        came_at, deadline = clock(), self.deadline.when()
        self.deadline.reschedule(None)
        await self._turn.speaks()
        waited_s = clock() - came_at
        self.deadline.reschedule(None if deadline is None else deadline + waited_s)
        self.asked_at_s, self.began_s = time.time(), self.began_s + waited_s


async def _through_ansible(
    hosts: Sequence[Host],
    question: Question,
    options: AnsibleOptions,
    secrets: Secrets,
    settings: Settings,
    tell: Callable[[Collected], Awaitable[None]],
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
        await tell(answer)
