"""Answers any command over ssh with recorded evidence, at once: thousands of targets in one process.

    python bench/answers.py FOLDER [SECONDS]

With SECONDS each answer takes so long.

FOLDER holds `answer`, `host_key`, and the client's `key.pub`. Prints its port when it listens there, on every address
of the loopback interface and on no other, until its stdin ends. In the answer, @ADDRESS@ stands for the address that
was asked, so that no two hosts are alike.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path

import asyncssh

from orchestrator.reach.question import READY


def loopback() -> socket.socket:
    """A port of every address in 127.0.0.0/8; bound to the device, nothing from outside reaches it."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
    found.bind(("0.0.0.0", 0))
    return found


async def serve(folder: Path, takes_s: float) -> None:
    recorded = (folder / "answer").read_bytes()

    async def answer(process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stdout.write(f"{READY}\n".encode())
        await process.stdin.read()
        await asyncio.sleep(takes_s)
        address = str(process.get_extra_info("sockname")[0])
        process.stdout.write(recorded.replace(b"@ADDRESS@", address.encode()))
        process.exit(0)

    place = loopback()
    await asyncssh.listen(
        sock=place,
        server_host_keys=[str(folder / "host_key")],
        authorized_client_keys=str(folder / "key.pub"),
        process_factory=answer,
        encoding=None,
        backlog=1000,
    )
    print(place.getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float("".join(sys.argv[2:]) or 0)))
