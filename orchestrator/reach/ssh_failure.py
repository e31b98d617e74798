"""Says why an ssh connection did not come about, and what to do."""

from __future__ import annotations

import errno
import os
import shlex
import socket
from collections.abc import Mapping

import asyncssh
import msgspec

from orchestrator.reach.question import Silence
from orchestrator.text import printable

__all__ = ["Target", "explain"]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Whom we called, as the ssh configuration has it, and with what."""

    address: str
    port: int
    user: str
    jump: str
    proxied: bool = False  # by ProxyCommand
    timeout_s: float
    keys: Mapping[str, str]  # path -> why it cannot be used, "" when it was tried
    password: bool

    @property
    def where(self) -> str:
        """For messages: whom, and through what."""
        way = self.jump or ("its ProxyCommand" if self.proxied else "")
        through = f" (through {printable(way)})" if way else ""
        return f"{printable(self.address)} port {self.port}{through}"

    @property
    def by_hand(self) -> str:
        """The command with which a person tries the same."""
        jump = ["-J", self.jump] if self.jump else []
        return shlex.join(["ssh", *jump, "-p", str(self.port), f"{self.user}@{self.address}", "true"])


def explain(error: Exception, target: Target) -> Silence:
    """From the error to a sentence; the order matters, as the later ones include the earlier."""
    match error:
        case asyncssh.PermissionDenied():
            return _denied(target)
        case socket.gaierror():
            return Silence(
                f"the name {printable(target.address)} does not resolve: {error.strerror}",
                "Check the spelling in the inventory, or set ansible_host to an address.",
            )
        case TimeoutError():
            return Silence(
                f"{target.where} did not answer within {target.timeout_s:g} s",
                "Is it powered on, and does a firewall drop ssh? -T changes the time.",
            )
        case asyncssh.ConnectionLost() | ConnectionResetError() | BrokenPipeError():
            return Silence(
                f"{target.where} closed the connection before ssh was established",
                f"Try by hand: {target.by_hand}"
                if target.proxied
                else "Is it sshd that listens there? If so, its log says why: MaxStartups, DenyUsers, fail2ban, ...",
            )
        case ConnectionRefusedError():
            return Silence(f"{target.where} refused the connection", "Is sshd running there, and is this its port?")
        case OSError(errno=errno.EHOSTUNREACH | errno.ENETUNREACH):
            return Silence(
                f"no route to {target.where}",
                f"Is it powered on? If so, see which way leads there: ip route get {target.address}",
            )
        case OSError():
            reason = printable(error.strerror or str(error))
            return Silence(f"cannot connect to {target.where}: {reason}", f"Try by hand: {target.by_hand}")
    return Silence(f"ssh to {target.where} failed: {printable(str(error))}", f"Try by hand: {target.by_hand}")


def _denied(target: Target) -> Silence:
    keys = [f"{path} ({why})" if why else path for path, why in sorted(target.keys.items())]
    tried = [
        ", ".join(keys) or "no key file",
        "the agent's keys" if os.environ.get("SSH_AUTH_SOCK") else "no agent",
        "a password" if target.password else "no password",
    ]
    return Silence(
        f"{target.where} does not let {printable(target.user)} in; tried {', '.join(tried)}",
        f"Name the user with -u and the key with --private-key. Try by hand: {target.by_hand}",
    )
