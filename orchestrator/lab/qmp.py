"""Talks to a running QEMU through its control socket."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qemu.qmp import QMPClient, QMPError

from orchestrator.errors import LabError

__all__ = ["LONGEST_PATH", "execute"]

LONGEST_PATH = 107
"""Bytes that a socket's name has room for: unix(7)."""

_TIMEOUT_S = 5.0


def execute(socket: Path, command: str) -> object:
    """What QEMU answers to a command without arguments.

    Raises:
        LabError: It is not there, does not answer, or refuses.
    """
    try:
        return asyncio.run(asyncio.wait_for(_execute(socket, command), _TIMEOUT_S))
    except (QMPError, OSError, TimeoutError) as e:
        raise LabError(f"{command}: QEMU does not take it at {socket} ({type(e).__name__}: {e}).") from e


async def _execute(socket: Path, command: str) -> object:
    client = QMPClient("kvmfleet")
    await client.connect(str(socket))
    try:
        return await client.execute(command)
    finally:
        await client.disconnect()
