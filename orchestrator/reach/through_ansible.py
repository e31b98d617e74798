"""Asks hosts through playbooks/collect.yml, for every way to a host that only Ansible knows."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from orchestrator import scratch
from orchestrator.ansible_cfg import Settings
from orchestrator.collector.marks import PREFIX
from orchestrator.converge import converge
from orchestrator.inventory import AnsibleOptions, Fleet, Host, Secrets
from orchestrator.model.run import Collected, HostConverged
from orchestrator.payload import MAX_BYTES
from orchestrator.reach.question import (
    PYTHONS,
    Answer,
    Question,
    Silence,
    argv,
    interpret,
    sudo_problem,
    too_late,
)

__all__ = ["ask"]


class _Handed(msgspec.Struct, frozen=True):
    """What the playbook writes for one host."""

    stdout: str
    stderr: str
    rc: int


def ask(
    hosts: Sequence[Host],
    question: Question,
    options: AnsibleOptions,
    secrets: Secrets,
    settings: Settings,
    cancelled: Callable[[], bool],
) -> list[Collected]:
    """One answer a host, in order.

    Raises:
        ConvergeError: Ansible could not be run at all.
        Interrupted: because `cancelled` said so.
    """
    fleet = Fleet(hosts=tuple(hosts), sources=options.sources, settings=settings)
    asked_at_s = time.time()
    with scratch.folder() as folder:
        program, answers = folder / "program.py", folder / "answers"  # apart: a host may have any name
        program.write_bytes(question.spoken)
        answers.mkdir()
        results = converge(
            "collect.yml", fleet, _options(options, question, program, answers), secrets=secrets, cancelled=cancelled
        )
        return [
            interpret(
                host.name,
                "ansible",
                _outcome(answers / host.name, result, question, host.user),
                question,
                asked_at_s=asked_at_s,
                user=host.user,
            )
            for host, result in zip(hosts, results, strict=True)
        ]


def _options(options: AnsibleOptions, question: Question, program: Path, answers: Path) -> AnsibleOptions:
    """The user's, but for those that select or forbid tasks: looking is never only pretended."""
    extra = {
        "kvmfleet_command": argv(sudo=False, pythons=()),  # Ansible becomes root itself
        "kvmfleet_pythons": PYTHONS,
        "kvmfleet_program": str(program),
        "kvmfleet_answers": str(answers),
        "kvmfleet_timeout_s": max(int(question.timeout_s), 1),
        "kvmfleet_luggage": str(question.luggage or ""),
        "kvmfleet_place": f"/var/tmp/{PREFIX}luggage-{uuid.uuid4().hex}",
    }
    return msgspec.structs.replace(
        options,
        extra_vars=(*options.extra_vars, msgspec.json.encode(extra).decode()),
        check=False, diff=False, tags=(), skip_tags=(), verbosity=0,
    )  # fmt: skip


def _outcome(file: Path, result: HostConverged, question: Question, user: str) -> Answer | Silence:
    if not file.exists():
        why = result.failure.message if result.failure else "Ansible did not get to it"
        if "Timed out after" in why:
            return too_late(question)
        hint = f"`ansible {result.host} -m ping -b -vvv` with the same options shows more."
        return Silence(*(sudo_problem(why, user) or (why, hint)), unreachable=result.outcome == "unreachable")
    if file.stat().st_size > 8 * MAX_BYTES:  # JSON may write one byte as six characters
        return Answer(b"", b"", None, flooded=True)
    handed = msgspec.json.decode(file.read_bytes(), type=_Handed)
    stdout, stderr = (text.encode(errors="backslashreplace") for text in (handed.stdout, handed.stderr))
    return Answer(stdout[: MAX_BYTES + 1], stderr, handed.rc, flooded=len(stdout) > MAX_BYTES)
