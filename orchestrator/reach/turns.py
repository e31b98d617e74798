"""How many hosts are asked at once, such that hosts that let us wait do not count."""

from __future__ import annotations

import asyncio

__all__ = ["Turn", "Turns"]

PATIENCE_S = 1.0
"""Most hosts have said their first word in a third of it."""
WAITING = 256
"""Hosts whose first word is still awaited. A controller that is itself too slow lends turns, too, and should not start
more handshakes by that than it can finish before they time out."""


class Turns:
    """A bound on the hosts that work for us, and a wider one on those that may be dead.

    A host has a turn from its first packet on. When it is silent for longer than PATIENCE_S, another host gets the
    turn; when it speaks at last, it waits for a new one before it is given work. So a dead host costs the others
    PATIENCE_S of one turn, not the whole time until it is given up, and no more hosts work than there are turns.
    """

    def __init__(self, number: int) -> None:
        self._free = asyncio.Semaphore(number)
        self._waiting = 0

    async def take(self) -> Turn:
        """The next free one."""
        await self._free.acquire()
        return Turn(self)

    async def again(self) -> None:
        """For a host that had lent its turn."""
        await self._free.acquire()
        self._waiting -= 1

    def lend(self) -> bool:
        """Whether there was room for one more host that waits."""
        if self._waiting >= WAITING:
            return False
        self._waiting += 1
        self._free.release()
        return True

    def give_back(self, *, lent: bool) -> None:
        """The host is done with."""
        if lent:
            self._waiting -= 1
        else:
            self._free.release()


class Turn:
    """That of one host, from `Turns.take` until `end`."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._lent = False
        self._timer = self._later()

    async def speaks(self) -> None:
        """The host said its first word; comes back when it may be given work."""
        self._timer.cancel()
        if self._lent:
            await self._turns.again()
            self._lent = False

    def end(self) -> None:
        """Always to be called."""
        self._timer.cancel()
        self._turns.give_back(lent=self._lent)

    def _later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(PATIENCE_S, self._lend)

    def _lend(self) -> None:
        self._lent = self._turns.lend()
        if not self._lent:
            self._timer = self._later()
