"""Labs brought up, looked at and taken down: the story, told with the verbs of a provider.

Every step looks at what there is before it acts, so each function may be called again after any interruption.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

import msgspec

from orchestrator import lock, paths
from orchestrator.errors import LabError
from orchestrator.inventory import Fleet, Host
from orchestrator.lab import accelerator, access, record, subnet, tree
from orchestrator.lab.command import ESCAPE, last_lines, run
from orchestrator.lab.container import Container
from orchestrator.lab.provider import Provider
from orchestrator.lab.record import Lab, LabHost
from orchestrator.lab.spec import LabSpec, Progress, check_name, systems_of
from orchestrator.lab.vm import Vm
from orchestrator.text import counted

__all__ = [
    "HostStatus",
    "LabStatus",
    "alone",
    "ask",
    "chosen",
    "console",
    "down",
    "find",
    "harvest",
    "lab_of",
    "reboot",
    "running",
    "ssh_argv",
    "status",
    "up",
]

PROVIDERS: dict[str, Provider] = {"container": Container(), "vm": Vm()}
AUTO = "auto"

_APPEAR_LIMIT_S = 3.0  # from starting a host until its process can be seen
_GONE_LOOKS = 5  # in a row without its process, until a host has ended: between two boots there is none for a moment
_STOP_GRACE_S = 4.0
_PROBE_PAUSE_S = 0.3
_PROBE_LIMIT_S = 5.0  # for a connection to a host that starts; it is tried again
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_CONSOLE_SHOWN_BYTES = 16384


class HostStatus(msgspec.Struct, frozen=True):
    """One host as it is now. Absent: it was planned, and making it was interrupted."""

    name: str
    state: Literal["running", "stopped", "absent"]
    address: str
    ssh: str  # where its ssh is reached from this machine
    system: str
    image: str
    uptime_s: float | None = None
    faults: tuple[str, ...] = ()  # it was broken with, and not healed


class LabStatus(msgspec.Struct, frozen=True):
    """One lab as it is now."""

    name: str
    provider: str
    limits: str
    subnet: str
    folder: str
    inventory: str
    hosts: tuple[HostStatus, ...]


def up(spec: LabSpec, *, progress: Progress) -> Lab:
    """Makes the lab, or what is missing of it: hosts that exist are kept, and started when they are stopped.

    Raises:
        LockedError: Another process is changing this lab.
        LabError: It cannot be made; what is there already stays, for the next `up` or for `down`.
    """
    spec, why = chosen(spec)
    provider = _provider(spec.provider)
    folder = record.folder_of(spec.name)
    access.check_folder(folder)
    _refuse_senseless(spec, provider, folder.parent)  # before there is a trace
    if why:
        progress(why)
    with _room(folder), tree.hold(folder, wait=False):
        with provider.alone():  # nobody takes the subnet between choosing it and having it
            lab = _planned(spec, provider)
            provider.connect(lab, progress)
        lab = _with_images(lab, spec, provider, progress)
        for host in lab.hosts:
            _create(lab, host, provider, progress)
        with provider.alone():
            lab = _settled(lab, provider)
        access.write(lab)
        _start_all(lab, provider, progress)
    return lab


def chosen(spec: LabSpec) -> tuple[LabSpec, str]:
    """The wish with a provider: that of the lab as it is, the one that was asked for, or the best here; and why."""
    check_name(spec.name)
    lab = record.read(spec.name)
    if spec.provider != AUTO:
        return spec, ""
    if lab is not None:
        return msgspec.structs.replace(spec, provider=lab.provider), ""
    provider, why = _best(spec)
    return msgspec.structs.replace(spec, provider=provider), f"provider {provider}: {why}"


def _best(spec: LabSpec) -> tuple[str, str]:
    if spec.image or spec.accelerator:
        return "vm", "only virtual machines have an image or an accelerator of their own"
    if os.geteuid() != 0:
        return "vm", f"this is not root, and {accelerator.choose().why}"
    found = accelerator.choose()
    if found.name == "kvm":
        return "vm", found.why
    return "container", f"{found.why}, and containers are quicker than virtual machines in software"


def _refuse_senseless(spec: LabSpec, provider: Provider, folder: Path) -> None:
    lab = record.read(spec.name)
    systems = systems_of(spec, _systems(lab))
    provider.require(folder)
    running = [host for host in lab.hosts if provider.started_at_s(lab, host) is not None] if lab else []
    provider.fit(folder, spec, lab, len(systems) - len(running))


@contextlib.contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Says it when the disk is full or may not be written; an error of writing does not say where it was."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise LabError(
            f"{e.filename or f'The lab in {folder}'}: {e.strerror}.",
            hint=f"See what is free: df -h {folder.parent} {paths.cache()}",
        ) from e


def _provider(name: str) -> Provider:
    if name not in PROVIDERS:
        raise LabError(f"There is no provider {name!a}.", hint=f"Choose from {', '.join(PROVIDERS)}.")
    return PROVIDERS[name]


def _systems(lab: Lab | None) -> tuple[str, ...]:
    return tuple(host.system for host in lab.hosts) if lab else ()


def _planned(spec: LabSpec, provider: Provider) -> Lab:
    """The record of the lab, written before anything that it names is made."""
    lab = record.read(spec.name)
    if lab is not None and lab.provider != spec.provider:
        raise LabError(
            f"Lab {spec.name} is of provider {lab.provider}, not {spec.provider}.",
            hint=f"Give the new lab another name, or make it anew: kvmfleet lab down {spec.name}, then lab up.",
        )
    systems = systems_of(spec, _systems(lab))
    if lab is None:
        lab = Lab(
            name=spec.name,
            id=record.new_id(),
            provider=spec.provider,
            subnet=str(subnet.choose((*subnet.in_use(), *(IPv4Network(other.subnet) for other in record.labs())))),
            created_at_s=time.time(),
        )
    new = [lab.planned(number, system) for number, system in enumerate(systems, 1) if number > len(lab.hosts)]
    return _recorded(provider.shaped(lab, spec), (*lab.hosts, *new))


def _recorded(lab: Lab, hosts: Sequence[LabHost]) -> Lab:
    lab = msgspec.structs.replace(lab, hosts=tuple(hosts))
    record.write(lab)
    return lab


def _with_images(lab: Lab, spec: LabSpec, provider: Provider, progress: Progress) -> Lab:
    """The lab with the image of each host that has still to be made; the others keep theirs."""
    missing = dict.fromkeys(host.system for host in lab.hosts if not lab.host_folder(host).exists())
    images = {system: provider.image(system, spec, progress) for system in missing}
    return _recorded(
        lab,
        [
            host if lab.host_folder(host).exists() else msgspec.structs.replace(host, image=images[host.system])
            for host in lab.hosts
        ],
    )


def _create(lab: Lab, host: LabHost, provider: Provider, progress: Progress) -> None:
    folder = lab.host_folder(host)
    if folder.exists():
        return
    progress(f"{host.name}: making it from {host.image}")
    partial = folder.with_name(f"{folder.name}.partial")
    tree.remove(partial)  # of an `up` that was killed
    partial.mkdir(parents=True)
    provider.create(lab, host, partial)
    partial.rename(folder)


def _settled(lab: Lab, provider: Provider) -> Lab:
    """The lab with what its stopped hosts need to start; each is settled with those before it."""
    for host in lab.hosts:
        if provider.started_at_s(lab, host) is None:
            lab = lab.with_host(provider.settled(lab, host))
    return _recorded(lab, lab.hosts)


def _start_all(lab: Lab, provider: Provider, progress: Progress) -> None:
    for host in lab.hosts:
        if provider.started_at_s(lab, host) is None:
            progress(f"{host.name}: starting")
            provider.start(lab, host)
    for host in lab.hosts:
        _await(lab, host, provider)
        progress(f"{host.name}: answers at {host.ssh_at}")


def _await(lab: Lab, host: LabHost, provider: Provider, *, booted_before: str = "") -> None:
    """Returns when the host lets us in, and has booted since the boot that is named by its id."""
    began, answer, patience_s, gone = time.monotonic(), "", provider.patience_s(lab), 0
    while (waited_s := time.monotonic() - began) < patience_s:
        answer = _introduce(lab, host, booted_before)
        if not answer:
            return
        gone = gone + 1 if provider.started_at_s(lab, host) is None else 0
        if waited_s > _APPEAR_LIMIT_S and gone >= _GONE_LOOKS:
            raise LabError(f"{host.name} ended while it started. The end of its console:", hint=_console(lab, host))
        time.sleep(_PROBE_PAUSE_S)
    raise LabError(
        f"{host.name} does not answer at {host.ssh_at} after {patience_s:.0f} s: {answer}",
        hint=f"The end of its console, {lab.console(host)}:\n{_console(lab, host)}",
    )


def _introduce(lab: Lab, host: LabHost, booted_before: str) -> str:
    """Tells a host the names of all hosts, which proves ssh and sudo as well; "" or why it did not work."""
    command = f"cat {_BOOT_ID}; sudo -n tee /etc/hosts"
    try:
        told = ask(lab, host, command, stdin=access.hosts_file(lab), connect_s=_PROBE_LIMIT_S)
    except LabError as e:
        return e.hint or e.message
    return "it has not gone down yet" if booted_before and told.startswith(booted_before) else ""


def ask(
    lab: Lab,
    host: LabHost,
    command: str,
    *,
    stdin: str | None = None,
    timeout_s: float = 30,
    connect_s: float | None = None,
    ok: tuple[int, ...] = (0,),
) -> str:
    """Runs a command as the lab's user on a host; gives what it printed. The connection has all the time, or less.

    Raises:
        LabError: It ended with another code, the end of what it said is the hint; or there was no connection, 255.
    """
    options = ("BatchMode=yes", f"ConnectTimeout={connect_s or timeout_s:.0f}")
    argv = ["ssh", "-F", str(lab.ssh_config), *(word for option in options for word in ("-o", option)), host.name]
    return run([*argv, command], stdin=stdin, timeout_s=timeout_s, ok=ok)


def _console(lab: Lab, host: LabHost) -> str:
    with contextlib.suppress(FileNotFoundError), lab.console(host).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _CONSOLE_SHOWN_BYTES))
        return last_lines(file.read().decode(errors="replace"))
    return "(it wrote nothing)"


def find(name: str) -> Lab:
    """The lab of that name.

    Raises:
        LabError: There is none.
    """
    check_name(name)
    lab = record.read(name)
    if lab is None:
        have = ", ".join(record.names())
        raise LabError(f"There is no lab {name}.", hint=f"There is {have}." if have else "Make it: kvmfleet lab up")
    return lab


def status(name: str) -> LabStatus:
    """How the lab is now; changes nothing."""
    lab = find(name)
    provider = _provider(lab.provider)
    return LabStatus(
        name=lab.name,
        provider=lab.provider,
        limits=provider.limits,
        subnet=lab.subnet,
        folder=str(lab.folder),
        inventory=str(lab.inventory),
        hosts=tuple(_host_status(lab, host, provider) for host in lab.hosts),
    )


def _host_status(lab: Lab, host: LabHost, provider: Provider) -> HostStatus:
    started_s = provider.started_at_s(lab, host)
    made = lab.host_folder(host).exists()
    return HostStatus(
        name=host.name,
        state="running" if started_s is not None else "stopped" if made else "absent",
        address=host.address,
        ssh=host.ssh_at,
        system=host.system,
        image=host.image,
        uptime_s=None if started_s is None else max(0.0, time.time() - started_s),
        faults=host.faults,
    )


def ssh_argv(name: str, host: str, command: Sequence[str] = ()) -> list[str]:
    """The ssh that logs in to a host, or runs a command there (joined with spaces, as ssh does)."""
    lab, target = running(name, host)
    return ["ssh", "-F", str(lab.ssh_config), target.name, *command]


def running(name: str, host: str) -> tuple[Lab, LabHost]:
    """A host that runs, and its lab.

    Raises:
        LabError: It does not run, or there is none.
    """
    lab = find(name)
    target = lab.host(host)
    if _provider(lab.provider).started_at_s(lab, target) is None:
        hint = f"Start it: kvmfleet lab up {name}\nThe end of its console:\n{_console(lab, target)}"
        raise LabError(f"{host} is not running.", hint=hint)
    return lab, target


def console(name: str, host: str, *, follow: bool = False) -> Iterator[str]:
    """What the host has written to its console since its last start, in pieces, without a terminal's control sequences.

    `follow` goes on for as long as somebody takes more.
    """
    lab = find(name)
    file = lab.console(lab.host(host))
    try:
        stream = file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError as e:
        raise LabError(f"{host} has not been started yet.", hint=f"Start it: kvmfleet lab up {name}") from e
    with stream:
        while (line := stream.readline()) or follow:
            if line:
                yield ESCAPE.sub("", line)
            else:
                time.sleep(_PROBE_PAUSE_S)


def reboot(name: str, host: str, *, progress: Progress) -> None:
    """Boots a host again and returns when it answers. One that does not obey is stopped and started.

    Raises:
        LockedError: Somebody changes the lab, or provisions this host.
        LabError: It does not come back.
    """
    lab, target = running(name, host)
    provider = _provider(lab.provider)
    with alone(lab, target, "lab reboot"):
        progress(f"{host}: rebooting")
        try:
            before = ask(lab, target, f"cat {_BOOT_ID}")
            ask(lab, target, "sudo -n systemctl reboot", ok=(0, 255))  # 255: the connection went down with it
        except LabError as e:
            progress(f"{host}: it does not obey ({e.hint or e.message}), so it is stopped and started")
            provider.stop(lab, (target,), grace_s=_STOP_GRACE_S)
            provider.start(lab, target)
            before = ""
        _await(lab, target, provider, booted_before=before)
        progress(f"{host}: answers at {target.ssh_at}")


@contextlib.contextmanager
def alone(lab: Lab, host: LabHost, command: str) -> Iterator[None]:
    """Nobody else changes the lab, or provisions this host, meanwhile.

    Raises:
        LockedError: Somebody does.
    """
    with tree.hold(lab.folder, wait=False), lock.hold(Fleet((_fleet_host(host),), ()), command):
        yield


def harvest(lab: Lab) -> int:
    """Keeps the packages that the hosts downloaded, so that the next lab needs no network; the number of new ones."""
    return _provider(lab.provider).harvest(lab)


def down(name: str, *, dry_run: bool = False, progress: Progress) -> tuple[str, ...]:
    """Removes the lab and returns what that was; the images stay.

    Raises:
        LockedError: Another process is changing this lab, or one of its hosts.
        LabError: There is no such lab, or something in it is not ours to remove.
    """
    check_name(name)
    folder = record.folder_of(name)
    if not os.path.exists(folder):  # or it cannot be looked at, which finding it tells
        find(name)
    with tree.hold(folder, wait=False):
        traces: tuple[str, ...] = ()
        if (lab := record.read(name)) is not None:  # or `up` was killed before it wrote one: there is only the folder
            provider = _provider(lab.provider)
            provider.require(folder.parent)
            traces = provider.traces(lab)
            if not dry_run:
                with lock.hold(_fleet(lab), "lab down"):  # nobody provisions what goes away
                    _dismantle(lab, provider, progress)
        if not dry_run:
            _remove_folder(folder)
    return (*traces, f"folder {folder}")


def _fleet(lab: Lab) -> Fleet:
    return Fleet(tuple(_fleet_host(host) for host in lab.hosts), ())


def _fleet_host(host: LabHost) -> Host:
    return Host(host.name, host.ssh_address, port=host.port or None)


def _dismantle(lab: Lab, provider: Provider, progress: Progress) -> None:
    progress(f"stopping {counted(len(lab.hosts), 'host')}")
    provider.stop(lab, lab.hosts, grace_s=_STOP_GRACE_S)
    progress("removing the network")
    with provider.alone():
        provider.clean(lab)
    progress("removing files")


def _remove_folder(folder: Path) -> None:
    """The record goes last: whenever this is interrupted, the next `down` knows what there is."""
    for path in folder.iterdir():
        if path.is_dir():
            tree.remove(path)
    tree.remove(folder)
    with contextlib.suppress(OSError):  # other labs are in it
        folder.parent.rmdir()


def lab_of(host: str) -> str:
    """The name of the lab that has the host.

    Raises:
        LabError: None has it.
    """
    known = {known.name: name for name in record.names() for known in find(name).hosts}
    if host not in known:
        raise LabError(f"No lab has a host {host!a}.", hint=f"There is {', '.join(known) or 'no lab'}.")
    return known[host]
