"""Real sshd processes on loopback addresses, honest or hostile, for tests of the way to a host."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patience import until

from orchestrator.inventory import Host

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

CONFIG = """\
Port {port}
{listen}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 500:30:1000
LogLevel ERROR
{more}
"""


def make_key(path: Path, passphrase: str = "") -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    return path


class Sshd:
    """One sshd; `folder` holds its host key, the client's key, and a known_hosts file that names it."""

    def __init__(self, folder: Path, addresses: tuple[str, ...], port: int) -> None:
        self.folder = folder
        self.addresses = addresses
        self.port = port
        self.key = folder / "key"
        self.known_hosts = folder / "known_hosts"
        self.process: subprocess.Popen[bytes]

    def host(self, name: str = "hv1", *, ssh_args: str | None = None, **more: Any) -> Host:
        """As inventory.load would describe it."""
        known = f"-o UserKnownHostsFile={self.known_hosts}" if ssh_args is None else ssh_args
        fields = {"address": self.addresses[0], "port": self.port, "private_key": str(self.key), "ssh_args": known}
        return Host(name=name, **(fields | more))

    def trust(self, key: Path) -> None:
        """Write known_hosts as if the host had this key."""
        public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
        self.known_hosts.write_text("".join(f"[{a}]:{self.port} {public}\n" for a in self.addresses))


@contextmanager
def sshd(folder: Path, *addresses: str, force: str = "", more: str = "") -> Iterator[Sshd]:
    """`force` is a shell command that runs instead of what the client asked for, which is in SSH_ORIGINAL_COMMAND."""
    folder.mkdir(exist_ok=True)
    with _held_port() as port:
        server = Sshd(folder, addresses or ("127.0.0.1",), port)
        make_key(folder / "host_key")
        make_key(server.key)
        server.trust(folder / "host_key")
        if force:
            script = folder / "force"
            script.write_text(f"#!/bin/sh\n{force}\n")
            script.chmod(0o755)
            more += f"\nForceCommand {script}"
        listen = "\n".join(f"ListenAddress {address}" for address in server.addresses)
        config = folder / "sshd_config"
        config.write_text(CONFIG.format(port=port, listen=listen, folder=folder, more=more))
        process = server.process = _started(server, config)
    try:
        yield server
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _held_port() -> Iterator[int]:
    """A port that nobody else is given. Only who binds to it as sshd does, with this option, gets it as well."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("", 0))
        yield held.getsockname()[1]


def _started(server: Sshd, config: Path) -> subprocess.Popen[bytes]:
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    assert SSHD, "openssh-server is not installed"
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], start_new_session=True)
    try:
        until(lambda: _listens(server, process))
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _listens(server: Sshd, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "sshd ended at once"
    try:
        socket.create_connection((server.addresses[-1], server.port), timeout=1).close()
    except OSError:
        return False
    return True
