"""Asks this machine, through the same command as any other host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess

from orchestrator.reach.question import PYTHONS, Answer, Question, Silence, argv, hear
from orchestrator.reach.route import LocalRoute

__all__ = ["ask"]


async def ask(route: LocalRoute, question: Question) -> Answer | Silence:
    """Run the question in a session of its own, so that nothing of it outlives a cancelled wait."""
    process = await asyncio.create_subprocess_exec(
        *argv(sudo=route.sudo, pythons=[route.python] if route.python else PYTHONS),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        return await _converse(process, question)
    finally:
        await _end(process)


async def _converse(process: asyncio.subprocess.Process, question: Question) -> Answer:
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdin.write(question.program)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it ended without reading: its status says why
        await process.stdin.drain()
    process.stdin.close()
    return await hear(process.stdout, process.stderr, process.wait)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of the session and let its pipes run dry, which is what lets asyncio close them."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:  # sudo runs as root; it let us start a process, so it lets us end it
        subprocess.run(["sudo", "-n", "kill", "-KILL", "--", f"-{process.pid}"], capture_output=True, timeout=5)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            for stream in (process.stdout, process.stderr):
                while stream and await stream.read(65536):
                    pass
            await process.wait()
