"""What a package manager has installed, and how to take some of it away without touching anything else.

The lists come from the package manager's own database, never from a mirror: taking back works without a network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

Run = Callable[..., "tuple[int, str, str]"]
"""argv -> exit code, output, complaint."""


class PackageError(Exception):
    """The package manager refused: the message says what and why."""


class Manager(NamedTuple):
    """One package manager. `keep` names those of a set that something else needs now, and what needs them."""

    command: str
    listing: tuple[str, ...]
    pattern: str  # finds (name, state) in the listing
    keep: Callable[[Run, frozenset[str]], Mapping[str, str]]
    remove: Callable[[Run, frozenset[str], frozenset[str]], None]  # those to purge, those whose settings were there
    chosen: tuple[str, ...] = ()  # lists what a person asked for by name, where the manager knows
    also: tuple[str, ...] = ()  # what a provision installs without being told


def find(which: Callable[[str], str | None]) -> Manager | None:
    """The first manager that the host has. Where Debian's comes first: it may have rpm as a tool."""
    return next((manager for manager in MANAGERS if which(manager.command)), None)


def installed(run: Run, manager: Manager) -> dict[str, str]:
    """Name -> "installed", or "config-files" where a removed package has left its settings."""
    out = _said(run, manager.listing)
    return {name: state or "installed" for name, state in re.findall(manager.pattern, out, re.MULTILINE)}


def chosen(run: Run, manager: Manager) -> frozenset[str]:
    """What was asked for by name; nothing where the manager does not tell."""
    return frozenset(_said(run, manager.chosen).split()) if manager.chosen else frozenset()


def _said(run: Run, argv: Iterable[str], good: tuple[int, ...] = (0,)) -> str:
    code, out, complaint = run(list(argv))
    if code not in good:
        raise PackageError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}")
    return out


# --- Debian


class _Package(NamedTuple):
    provides: frozenset[str]
    groups: tuple[tuple[str, ...], ...]  # of each of these one must be there


def _dpkg_status(run: Run) -> dict[str, _Package]:
    form = "${binary:Package}\t${db:Status-Status}\t${Provides}\t${Pre-Depends}\t${Depends}\n"
    found = {}
    for line in _said(run, ["dpkg-query", "-W", "-f", form]).splitlines():
        name, state, provides, *depends = line.split("\t")
        if state != "config-files" and state != "not-installed":
            groups = [group for field in depends for group in field.split(",") if group.strip()]
            found[name] = _Package(
                frozenset([_bare(name), *(_bare(other) for other in provides.split(",") if other.strip())]),
                tuple(tuple(_bare(other) for other in group.split("|")) for group in groups),
            )
    return found


def _bare(relation: str) -> str:
    """The name in `name:any (>= 1.0)`."""
    return re.split(r"[\s(:\[]", relation.strip(), maxsplit=1)[0]


def _dpkg_keep(run: Run, ours: frozenset[str]) -> Mapping[str, str]:
    return needed(_dpkg_status(run), ours)


def needed(status: Mapping[str, _Package], ours: frozenset[str]) -> dict[str, str]:
    """Those of ours that a package which stays depends on -> that package. What they need in turn stays as well."""
    kept: dict[str, str] = {}
    provided = {name: set(package.provides) for name, package in status.items()}
    staying = [name for name in status if name not in ours]
    there = set().union(*(provided[name] for name in staying))
    while staying:
        name = staying.pop()
        for group in status[name].groups:
            if there & set(group):
                continue
            # alternatives in the order in which the package prefers them
            able = [other for wish in group for other in sorted(ours) if other in status and wish in provided[other]]
            for other in able[:1]:
                kept[other] = name
                staying.append(other)
                there |= provided[other]
    return kept


def _apt_remove(run: Run, purge: frozenset[str], leave: frozenset[str]) -> None:
    """Exactly these: a simulation must agree, because apt would take along what depends on them."""
    if run(["dpkg", "--audit"])[1].strip():  # somebody ended dpkg half-way, us among them
        run(["dpkg", "--configure", "-a"])  # what it cannot settle, apt says better
    for option, names in (("--purge", sorted(purge)), ("--no-purge", sorted(leave))):
        if not names:
            continue
        argv = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "remove", "--no-auto-remove", option]
        plan = _said(run, [*argv, "--simulate", *names])
        gone = set(re.findall(r"^(?:Remv|Purg) (\S+)", plan, re.MULTILINE))
        strange = sorted({_plain(name) for name in gone} - {_plain(name) for name in names})
        strange += re.findall(r"^Inst (\S+)", plan, re.MULTILINE)
        if strange:
            raise PackageError(
                f"apt would also take away or install {', '.join(strange)}, so nothing was removed. Look at "
                f"`{' '.join([*argv, '--simulate', *names])}`."
            )
        _said(run, [*argv, *names])


def _plain(name: str) -> str:
    return name.partition(":")[0]


# --- RPM, pacman, apk


def _rpm_keep(run: Run, ours: frozenset[str]) -> Mapping[str, str]:
    """rpm tells which capability is missing; what provides it is asked for."""
    kept: dict[str, str] = {}
    rest = set(ours)
    while rest:
        code, out, complaint = run(["rpm", "-e", "--test", *sorted(rest)])
        lacks = re.findall(r"^\s*(.+?) is needed by \(installed\) (\S+)", out + complaint, re.MULTILINE)
        if not code or not lacks:
            break
        found = {}
        for capability, needer in lacks:
            said = run(["rpm", "-q", "--qf", "%{NAME}\n", "--whatprovides", re.split(r"\s", capability)[0]])[1]
            found.update(dict.fromkeys(rest.intersection(said.split()), needer))
        if not found:
            break  # rpm itself says why when it removes
        kept.update(found)
        rest -= found.keys()
    return kept


def _rpm_remove(run: Run, purge: frozenset[str], _leave: frozenset[str]) -> None:
    """rpm and not dnf, which would clean up what came by other ways."""
    _said(run, ["rpm", "-e", *sorted(purge)])


def _pacman_keep(run: Run, ours: frozenset[str]) -> Mapping[str, str]:
    kept: dict[str, str] = {}
    rest = set(ours)
    while rest:
        code, out, complaint = run(["pacman", "-R", "--print", "--print-format", "%n", *sorted(rest)])
        lacks = re.findall(r"removing (\S+) breaks dependency \S+ required by (\S+)", out + complaint)
        if not code or not lacks:
            break
        kept.update(lacks)
        rest -= {name for name, _ in lacks}
    return kept


def _pacman_remove(run: Run, purge: frozenset[str], _leave: frozenset[str]) -> None:
    _said(run, ["pacman", "--noconfirm", "-Rn", *sorted(purge)])


def _apk_remove(run: Run, purge: frozenset[str], _leave: frozenset[str]) -> None:
    """apk keeps by itself what is still needed."""
    _said(run, ["apk", "del", "--purge", *sorted(purge)])


MANAGERS = (
    Manager(
        "dpkg-query",
        ("dpkg-query", "-W", "-f", "${binary:Package} ${db:Status-Status}\n"),
        r"^(\S+) (installed|config-files|unpacked|half-\S+|triggers-\S+)$",
        _dpkg_keep,
        _apt_remove,
        ("apt-mark", "showmanual"),
        ("python3-apt",),
    ),
    Manager("rpm", ("rpm", "-qa", "--qf", "%{NAME}\n"), r"^(\S+)()$", _rpm_keep, _rpm_remove),
    Manager("pacman", ("pacman", "-Qq"), r"^(\S+)()$", _pacman_keep, _pacman_remove, ("pacman", "-Qeq")),
    Manager("apk", ("apk", "info", "-q"), r"^(\S+)()$", lambda _run, _ours: {}, _apk_remove),
)
