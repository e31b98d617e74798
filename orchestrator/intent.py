"""The digest of what a host is told to be: equal digests mean that a new rollout would ask for the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from orchestrator import paths
from orchestrator.inventory import Fleet, Host

__all__ = ["digests"]

TRANSPORTS = "libvirt_remote_transports"
SOURCES = ("playbooks", "plugins", "roles")


def digests(fleet: Fleet, *, content: Path | None = None) -> Mapping[str, str]:
    """Host name to a SHA-256 of roles, playbooks and the host's variables, -e among them; with TLS, of the CA, too.

    Variables that say how to reach a host (`ansible_…`) are left out: another address, key or password asks for
    nothing else, and the digest, which leaves this machine, is no way to guess a login password.
    """
    common, authority = _content(content or paths.content()), _authority()
    return {
        host.name: _digest(common + authority if TRANSPORTS in host.variables else common, host) for host in fleet.hosts
    }


def _authority() -> bytes:
    """The CA's certificate as it is now: hosts with certificates of another one are to get new ones."""
    try:
        return (paths.pki() / "ca.pem").read_bytes()
    except OSError:
        return b""


def _digest(common: bytes, host: Host) -> str:
    variables = {name: value for name, value in host.variables.items() if not name.startswith("ansible_")}
    # The name is part of it: templates may use inventory_hostname.
    return hashlib.sha256(common + msgspec.json.encode([host.name, variables], order="deterministic")).hexdigest()


def _content(root: Path) -> bytes:
    total = hashlib.sha256()
    for path in sorted(_files(root)):
        name, body = str(path.relative_to(root)).encode(), path.read_bytes()
        total.update(b"%d %s %d " % (len(name), name, len(body)) + body)
    return total.digest()


def _files(root: Path) -> Iterator[Path]:
    """What can change a host: no documentation, no byte code, no editor's files."""
    for source in SOURCES:
        for path in (root / source).rglob("*"):
            inner = path.relative_to(root)
            hidden = any(part.startswith((".", "__pycache__")) or part.endswith("~") for part in inner.parts)
            if path.is_file() and not hidden and path.suffix != ".md":
                yield path
