"""Images: what every host of a system starts from, built once and kept by its content.

A recipe says what is in it. mmdebstrap does the work, as root or in a user namespace.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import pty
import re
import shlex
import subprocess
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from orchestrator import paths, scratch
from orchestrator.errors import LabError, LockedError
from orchestrator.lab import apt, tree
from orchestrator.lab.command import ESCAPE, bound, last_lines
from orchestrator.lab.record import USER
from orchestrator.lab.spec import SYSTEMS, Progress

__all__ = [
    "APT_CONF",
    "CONTAINER",
    "PACKAGES",
    "SETUP",
    "Meter",
    "Recipe",
    "bootstrap",
    "build",
    "clean",
    "debs",
    "folder",
    "key",
    "once",
    "root",
]

RECIPE = 2
"""Raise it when the way of building changes in a way that the digest below does not see."""

PACKAGES = (
    "systemd-sysv",
    "dbus",
    "udev",
    "openssh-server",
    "sudo",
    "python3",
    "iproute2",
    "ca-certificates",
    "procps",
    "kmod",
)
"""What a bare host has: init, ssh, sudo, the Python that Ansible wants, and the tools to look around."""

APT_CONF = 'Acquire::Languages "none";\nAPT::Keep-Downloaded-Packages "true";\n'
"""No translations; and packages stay in the host's cache, where the next lab gets them from."""

LOGIN_KEY = "/etc/ssh/lab_key.pub"
"""Holds the key of the lab's user on a host, whatever that user does to the files of its own."""

DPKG_CONF = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)
"""A third of a system's files are for readers; a lab copies, fills and removes systems all day."""

SETUP = f"""set -eu
useradd --create-home --shell /bin/bash {USER}
echo '{USER} ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/{USER}
chmod 0440 /etc/sudoers.d/{USER}
rm -f /etc/ssh/ssh_host_*  # every host gets its own
: > /etc/machine-id
cat > /etc/ssh/sshd_config.d/10-lab.conf <<'END'
PasswordAuthentication no
UseDNS no
AuthorizedKeysFile .ssh/authorized_keys {LOGIN_KEY}
END
systemctl --quiet enable systemd-networkd.service ssh.service
systemctl --quiet mask systemd-networkd-wait-online.service systemd-resolved.service
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
rm -f /etc/apt/apt.conf.d/99mmdebstrap  # the way to the archive is this machine's business, each host gets it anew
"""
"""Runs in the finished root, before it becomes an image."""

_CONTAINER_SETUP = """
# A machine's udev gives /dev/kvm to its group; a container has none, and systemd leaves /dev alone in one.
cat > /etc/tmpfiles.d/lab-devices.conf <<'END'
z /dev/kvm 0660 root kvm
z /dev/vhost-net 0660 root kvm
z /dev/vhost-vsock 0660 root kvm
END
systemctl --quiet mask getty.target console-getty.service
"""


class Recipe(msgspec.Struct, frozen=True):
    """What an image has besides the base of its system, and the script that runs in the finished root."""

    kind: str
    packages: tuple[str, ...]
    setup: str


CONTAINER = Recipe("container", PACKAGES, SETUP + _CONTAINER_SETUP)

_ROOT, _WORK, _DEBS = "root", "work", "debs"


def key(system: str, recipe: Recipe = CONTAINER) -> str:
    """Names the content of an image: the same recipe gives the same key."""
    suite = SYSTEMS[system].suite
    parts = (str(RECIPE), suite, platform.machine(), *recipe.packages, APT_CONF, *DPKG_CONF, recipe.setup)
    return f"{system}-{recipe.kind}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:12]}"


def folder(image: str) -> Path:
    """Where an image is kept."""
    return paths.cache().absolute() / "images" / image


def root(image: str) -> Path:
    """The image's tree. It was never booted, so its content can be trusted."""
    return folder(image) / _ROOT


def debs(image: str) -> Path:
    """Packages that hosts of this image installed."""
    return folder(image) / _DEBS


def build(system: str, progress: Progress) -> str:
    """Builds the tree of a container unless it is there; returns its key.

    Raises:
        LabError: mmdebstrap failed; the hint holds its last lines.
    """
    image, title = key(system), SYSTEMS[system].title
    return once(image, root(image), title, progress, lambda work, meter: bootstrap(system, CONTAINER, work, meter))


def once(
    image: str, product: Path, title: str, progress: Progress, make: Callable[[Path, Meter], Path], *, does: str = ""
) -> str:
    """Has `product`, in the folder of the image, made in an empty folder; returns the image's key.

    Whoever comes second waits for the first, and nothing is left of what was killed.
    """
    if product.exists():
        return image
    progress(f"image of {title}: {does or 'building it, once for all labs'}")
    with tree.hold(folder(image), wait=True):
        if product.exists():
            return image
        work = folder(image) / _WORK
        tree.remove(work)  # of a build that was killed
        try:
            work.mkdir()
            make(work, Meter(f"image of {title}", progress)).rename(product)
        finally:
            tree.remove(work)
    return image


def clean() -> None:
    """Removes what killed builds left behind; leaves alone what is being built now."""
    for work in (paths.cache().absolute() / "images").glob(f"*/{_WORK}"):
        with contextlib.suppress(LockedError), tree.hold(work.parent, wait=False):
            tree.remove(work)
            with contextlib.suppress(OSError):  # it holds an image
                work.parent.rmdir()
                work.parent.parent.rmdir()


def bootstrap(system: str, recipe: Recipe, work: Path, meter: Meter, *, tar: bool = False) -> Path:
    """Builds the root of a system in the folder `work`: a tree, which takes root to make, or a tar archive."""
    suite, made = SYSTEMS[system].suite, work / (_ROOT + ".tar" if tar else _ROOT)
    as_root = os.geteuid() == 0
    with scratch.folder() as inputs:
        # Not in argv: a proxy's address may hold a password. In a user namespace mmdebstrap is somebody else, and can
        # read what it knows the name of.
        inputs.chmod(0o700 if as_root else 0o711)
        conf, setup = inputs / "apt.conf", inputs / "setup.sh"
        tree.write(conf, APT_CONF + apt.options())
        tree.write(setup, recipe.setup)
        argv = [
            "mmdebstrap",
            f"--mode={'root' if as_root else 'unshare'}",
            f"--format={'tar' if tar else 'directory'}",
            "--variant=apt",
            f"--include={','.join(recipe.packages)}",
            f"--aptopt={conf}",
            *(f"--dpkgopt={line}" for line in DPKG_CONF),
            "--skip=cleanup/apt/lists,output/dev",
            f'--customize-hook=chroot "$1" /bin/sh -s < {shlex.quote(str(setup))}',
            suite,
            str(made),
            *apt.sources(suite),
        ]
        code, output = _watched(argv, meter.read)
    if code != 0:
        raise LabError(f"mmdebstrap could not build {suite} (code {code}).", hint=last_lines(output))
    return made


class Meter:
    """Reads what mmdebstrap writes to a terminal, and tells how far the image is. Never goes back."""

    STAGES: Mapping[str, tuple[str, float]] = {
        "running apt-get update": ("reading the package index", 0.0),
        "downloading packages": ("downloading", 0.12),
        "extracting archives": ("extracting", 0.3),
        "installing essential": ("installing the base", 0.42),
        "installing remaining": ("installing the rest", 0.6),
        "running --customize-hook": ("setting up", 0.95),
        "cleaning": ("cleaning", 0.97),
        "success": ("done", 1.0),
    }
    """What a line begins with, what it means, and the share of the time that is over then (of a build on two cores)."""

    _PERCENT = re.compile(r"(?:\w+:)?\s+(\d+(?:\.\d+)?)(?: \[.*)?")

    def __init__(self, title: str, progress: Progress) -> None:
        self._title, self._progress = title, progress
        self._stage, self._start, self._end, self._told = "starting", 0.0, 0.0, 0.0

    def read(self, line: str) -> None:
        """Takes one line without its escapes, whether it ended in a line feed or in a carriage return."""
        if line.startswith("I: "):
            self._enter(line[3:])
        elif match := self._PERCENT.fullmatch(line.rstrip()):
            self._tell(self._start + (self._end - self._start) * min(float(match[1]), 100) / 100)

    def _enter(self, text: str) -> None:
        starts = [start for _, start in self.STAGES.values()]
        for beginning, (stage, start) in self.STAGES.items():
            if text.startswith(beginning):
                self._stage, self._start = stage, start
                self._end = min((later for later in starts if later > start), default=1.0)
                self._tell(start)

    def _tell(self, fraction: float) -> None:
        self._told = max(self._told, fraction)
        self._progress(f"{self._title}: {self._stage}", self._told)


def _watched(argv: Sequence[str], on_line: Callable[[str], None]) -> tuple[int, str]:
    """Runs a command on a terminal of its own, for that is where mmdebstrap shows how far it is; its code and output.

    Root's runs in a process namespace that dies with us, with all that the command started; a user's mmdebstrap makes
    one itself.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    alone = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount-proc") if os.geteuid() == 0 else ()
    command = bound(["setsid", "--ctty", *alone, *argv])
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    told: list[str] = []
    try:
        for line in _lines(ours):
            on_line(line)
            told.append(line)
        return process.wait(), "\n".join(told)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _lines(terminal: int) -> Iterator[str]:
    rest = ""
    while chunk := _read(terminal):
        *lines, rest = re.split(r"[\r\n]+", rest + chunk)
        yield from (ESCAPE.sub("", line) for line in lines)
    yield rest


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError as e:
        if e.errno == errno.EIO:  # how a terminal says that nobody has it open any more
            return ""
        raise
