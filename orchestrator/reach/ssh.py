"""Asks hosts over ssh; imports asyncssh, so import this module only when a host needs it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, NamedTuple

import asyncssh

from orchestrator.reach.question import Answer, Question, Silence, command_line, converse
from orchestrator.reach.route import SshRoute
from orchestrator.reach.ssh_config import FILES
from orchestrator.reach.ssh_failure import Target, explain
from orchestrator.reach.ssh_proxy import through
from orchestrator.reach.ssh_trust import HostKeys, KnownHosts
from orchestrator.text import printable

__all__ = ["Ssh"]

KEEPALIVES = 3  # that may stay without an answer before a host counts as silent
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
"""First: with asyncssh's own first, each host costs a sixth more."""
_DEFAULT_KEYS = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed25519", "id_ecdsa", "id_rsa")


class _Call(NamedTuple):
    """One attempt at one host."""

    arguments: dict[str, Any]  # of asyncssh.connect
    host_keys: HostKeys
    target: Target
    proxy: str  # ProxyCommand, or nothing


class Ssh:
    """Opens one session a host. Keys and known hosts are read once: checking an RSA key alone costs 0.1 s."""

    def __init__(self) -> None:
        self._keys: dict[str, asyncssh.SSHKey | str] = {}  # path -> key, or why it cannot be used
        self._known = KnownHosts()

    async def ask(self, route: SshRoute, question: Question) -> Answer | Silence:
        """Connecting has its own limit, as has silence; the limit of the whole is the caller's.

        Cancelling it closes the connection; a program on the host that does not notice ends by its own deadline.

        It cannot be ended from here: sshd passes signals on neither to root's processes nor to sudo's.
        """
        try:
            call = self._prepare(route, question.silence_s)
        except (asyncssh.ConfigParseError, OSError, ValueError) as e:
            return Silence(f"the ssh configuration cannot be used: {printable(str(e))}", "Check ~/.ssh/config.")
        async with through(call.proxy) as way:
            return await _ask(call, way, route, question)

    def _prepare(self, route: SshRoute, silence_s: float) -> _Call:
        """Ask the ssh configuration first, without keys, then say everything that it may not decide."""
        given: dict[str, Any] = {
            **({"port": route.port} if route.port else {}),
            **({"username": route.user} if route.user else {}),
        }
        files = [path for path in (Path(os.path.expanduser(file)) for file in FILES) if os.access(path, os.R_OK)]
        configured = asyncssh.SSHClientConnectionOptions(
            host=route.address, client_keys=None, known_hosts=None, config=files, **given
        )
        jump = route.jump or str(configured.tunnel or "")
        proxy = "" if jump else str(configured.config.get("ProxyCommand") or "")
        paths = self._key_paths(route, configured)
        keys = [key for path in paths if not isinstance(key := self._key(path), str)]
        host_keys = HostKeys(route, configured, self._known)
        arguments = {
            **given,
            **_read_once(configured, files, again=bool(jump)),
            "client_factory": lambda: host_keys,
            "client_keys": keys,
            "ignore_encrypted": True,
            "known_hosts": host_keys.trusted,
            "connect_timeout": route.connect_timeout_s,
            "login_timeout": route.connect_timeout_s,
            "keepalive_interval": silence_s / (KEEPALIVES + 1),
            "keepalive_count_max": KEEPALIVES,
            "client_version": "kvmfleet",
            "compression_algs": "none",  # asyncssh unpacks a packet whole: 256 KiB of a hostile host would be 260 MiB
            **({"tunnel": route.jump} if route.jump else {}),
            **({} if configured.config.get("Ciphers") else {"encryption_algs": CIPHERS}),
            **({"password": route.password} if route.password else {}),
            **(_only(paths) if route.identities_only or configured.config.get("IdentitiesOnly") else {}),
        }  # fmt: skip
        target = Target(
            address=str(configured.host or route.address),
            port=int(configured.port or 22),
            user=str(configured.username),
            jump=jump,
            proxied=bool(proxy),
            timeout_s=route.connect_timeout_s,
            keys={path: key if isinstance(key := self._key(path), str) else "" for path in paths},
            password=bool(route.password),
        )
        return _Call(arguments, host_keys, target, proxy)

    def _key_paths(self, route: SshRoute, configured: asyncssh.SSHClientConnectionOptions) -> list[str]:
        """As ssh does: the command line's, then the configuration's, and the default names only if there is none."""
        named = configured.config.get("IdentityFile")
        files = [*route.keys, *(named if isinstance(named, list) else [])]
        files = files or [f"~/.ssh/{name}" for name in _DEFAULT_KEYS]
        paths = [os.path.expanduser(file) for file in files]
        return paths if route.keys else [path for path in paths if Path(path).exists()]

    def _key(self, path: str) -> asyncssh.SSHKey | str:
        if path not in self._keys:
            self._keys[path] = _read_key(path)
        return self._keys[path]


async def _ask(call: _Call, way: dict[str, Any], route: SshRoute, question: Question) -> Answer | Silence:
    try:
        connection = await asyncssh.connect(route.address, **call.arguments, **way)
    except (OSError, asyncssh.Error) as e:
        return Silence(*call.host_keys.refusal) if call.host_keys.refusal else explain(e, call.target)
    try:
        return await _converse(connection, route, question)
    except (OSError, asyncssh.Error) as e:
        return (
            _mute(call.target, question)
            if "keepalive" in str(e)
            else Silence(
                f"the connection broke before the answer was complete: {printable(str(e))}",
                "The host may be restarting, or its sshd ends sessions: see its log.",
                unreachable=False,
            )
        )
    finally:
        await _close(connection)


def _read_once(configured: asyncssh.SSHClientConnectionOptions, files: list[Path], *, again: bool) -> dict[str, Any]:
    """For asyncssh to go on from what it read, unless something that it learns later makes it read anew."""
    if again or configured.canonicalize_hostname or configured.config.has_match_final():
        return {"config": files}
    return {"options": configured, "config": ()}


def _mute(target: Target, question: Question) -> Silence:
    return Silence(
        f"nothing was heard from {target.where} for {question.silence_s:g} s, after it had let us in",
        "It went down or hangs, or the network in between broke. Look at it, then run the same command again.",
    )


def _only(paths: list[str]) -> dict[str, Any]:
    """IdentitiesOnly: of the agent's keys only those whose public half lies beside a key file, so maybe none."""
    public = [f"{path}.pub" for path in paths if Path(f"{path}.pub").is_file()]
    return {"agent_identities": public} if public else {"agent_path": None, "agent_identities": None}


def _read_key(path: str) -> asyncssh.SSHKey | str:
    try:
        return asyncssh.read_private_key(path)
    except OSError as e:
        return (e.strerror or str(e)).lower()
    except asyncssh.KeyImportError as e:
        return "has a passphrase and is not in the agent" if "assphrase" in str(e) else "is no private key"


async def _converse(connection: asyncssh.SSHClientConnection, route: SshRoute, question: Question) -> Answer | Silence:
    command = command_line(python=route.python, sudo=route.sudo, password=bool(route.become_password))
    process: asyncssh.SSHClientProcess[bytes] = await connection.create_process(command, encoding=None)

    async def ended() -> int | None:
        await process.wait_closed()
        return process.exit_status

    return await converse(
        question, process.stdin, process.stdout, process.stderr, ended, password=route.become_password
    )


async def _close(connection: asyncssh.SSHClientConnection) -> None:
    """Say goodbye, but do not wait for a host that no longer listens."""
    connection.close()
    try:
        async with asyncio.timeout(1):
            await connection.wait_closed()
    except TimeoutError:
        connection.abort()
        await connection.wait_closed()
