"""Runs the ProxyCommand of the ssh configuration, as ssh does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

__all__ = ["through"]


@contextlib.asynccontextmanager
async def through(command: str) -> AsyncIterator[dict[str, Any]]:
    """Gives what leads `asyncssh.connect` through `command`, a line for the user's shell; nothing when there is none.

    asyncssh would cut the line into words, and takes a command that closes stderr for one that has ended. Afterwards
    the command is killed with all that it started.
    """
    if not command:
        yield {}
        return
    shell = os.environ.get("SHELL") or "/bin/sh"
    ours, its = socket.socketpair()
    with ours, its:
        process = await asyncio.create_subprocess_exec(
            shell, "-c", f"exec {command}",
            stdin=its.fileno(), stdout=its.fileno(), stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        its.close()
        try:
            yield {"sock": ours, "proxy_command": None}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
