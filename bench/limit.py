"""The least that asking over ssh can cost with asyncssh: runs `true` on every target and waits for it.

    python bench/limit.py CONCURRENCY KEY KNOWN_HOSTS < TARGETS

A line of TARGETS is an address and a port.
"""

from __future__ import annotations

import asyncio
import sys

import asyncssh


async def ask_all(concurrency: int, key: str, known_hosts: str) -> None:
    targets = [line.split() for line in sys.stdin]
    keys, known = [asyncssh.read_private_key(key)], asyncssh.read_known_hosts(known_hosts)
    turns = asyncio.Semaphore(concurrency)

    async def ask(address: str, port: str) -> None:
        async with (
            turns,
            asyncssh.connect(
                address, int(port), username="root", client_keys=keys, known_hosts=known, agent_path=None, config=None
            ) as connection,
        ):
            await connection.run("true", check=True)

    await asyncio.gather(*(ask(*target) for target in targets))


if __name__ == "__main__":
    asyncio.run(ask_all(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
