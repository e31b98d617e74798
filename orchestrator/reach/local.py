"""Asks this machine, through the same command as any other host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from orchestrator.reach.question import PYTHONS, Answer, Question, Silence, argv, converse
from orchestrator.reach.route import LocalRoute

__all__ = ["ask"]

CLEANING_UP_S = 4.0
"""The collector removes a guest in less."""


async def ask(route: LocalRoute, question: Question) -> Answer | Silence:
    """Run the question in a session of its own, so that nothing of it outlives a cancelled wait."""
    process = await asyncio.create_subprocess_exec(
        *argv(
            sudo=route.sudo,
            password=bool(route.become_password),
            pythons=[route.python] if route.python else PYTHONS,
        ),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        return await converse(
            question, process.stdin, process.stdout, process.stderr, process.wait, password=route.become_password
        )
    finally:
        await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let it clean up, kill what is left of the session, and let its pipes run dry: then asyncio closes them."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLEANING_UP_S):
                await process.wait()
    _signal(process, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            for stream in (process.stdout, process.stderr):
                while stream and await stream.read(65536):
                    pass
            await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
    except PermissionError:  # sudo runs as root; it let us start a process, so it lets us end it
        command = ["sudo", "-n", "kill", f"-{number}", "--", f"-{process.pid}"]
        subprocess.run(command, capture_output=True, timeout=5)
