"""Does libvirt answer, in the right shape, with KVM?"""

from __future__ import annotations

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, differences, failed, not_applicable, passed, warned
from orchestrator.model import Finding, Unit

FAMILIES = {"monolithic": "libvirtd", "modular": "virtqemud"}


def _active(case: Case) -> list[str]:
    """The families of which a socket or a service is active. An idle daemon exits, its socket stays."""
    units = case.evidence.libvirt.units
    return [
        family
        for family, daemon in FAMILIES.items()
        if any(units.get(daemon + kind, Unit()).active in ("active", "activating") for kind in (".socket", ".service"))
    ]


@check(
    "libvirt.daemon",
    "One family of libvirt daemons is active",
    sections=("libvirt",),
    explained_by=("contract.packages",),
    proves="Either libvirtd or the modular daemons serve this host, never both, and it is the family of the contract.",
    how="State of libvirtd and virtqemud, socket or service: idle daemons exit after two minutes, so a stopped service "
    "with a listening socket is right.",
    todo="None: `systemctl enable --now libvirtd.socket` or `virtqemud.socket`. Both: stop and disable the family that "
    "the distribution does not use, while no guest runs.",
)
def daemon(case: Case) -> Finding:
    active, units = _active(case), case.evidence.libvirt.units
    wanted = case.contract.libvirt.family if case.contract else next(iter(active), "monolithic")
    if not units and case.evidence.libvirt.connected:
        return passed("libvirt answers; no systemd unit says which family")
    if active == [wanted]:
        return passed(f"{wanted}: {FAMILIES[wanted]}")
    start = f"Run `systemctl enable --now {FAMILIES[wanted]}.socket`."
    if not active and FAMILIES[wanted] + ".service" not in units:
        return failed("libvirt is not installed", expected=FAMILIES[wanted], seen="no unit", fix=PROVISION)
    socket, service = FAMILIES[wanted] + ".socket", FAMILIES[wanted] + ".service"
    if not active and "failed" in (units.get(socket, Unit()).active, units.get(service, Unit()).active):
        again = f"Read `journalctl -u {FAMILIES[wanted]}`; then `systemctl reset-failed && systemctl start {socket}`."
        return failed(
            f"{FAMILIES[wanted]} failed, its socket is closed", expected="listening", seen="failed", fix=again
        )
    if not active:
        summary = f"{FAMILIES[wanted]} is stopped, and its socket too"
        return failed(summary, expected="listening", seen="inactive", fix=start)
    others = [FAMILIES[family] for family in active if family != wanted]
    stop = f"Stop and disable the units of {' and '.join(others)} while no guest runs. {start}"
    names = " and ".join(FAMILIES[family] for family in active)
    return failed(
        f"active: {names}, instead of {FAMILIES[wanted]} alone", expected=FAMILIES[wanted], seen=names, fix=stop
    )


@check(
    "libvirt.sockets",
    "The sockets listen, now and after a boot",
    sections=("libvirt",),
    requires=("libvirt.daemon",),
    proves="Every socket of the contract listens, and it and every service is enabled for the next boot.",
    how="ActiveState and UnitFileState of the contract's units; without a contract, of the family's main socket.",
    todo="`systemctl enable --now UNIT`; a masked unit needs `systemctl unmask UNIT` first.",
)
def sockets(case: Case) -> Finding:
    wish, units = case.wishes.libvirt, case.evidence.libvirt.units
    listening = wish.sockets or tuple(f"{FAMILIES[family]}.socket" for family in _active(case))
    if not units:
        return not_applicable("systemd does not run this host")
    deaf = [name for name in listening if units.get(name, Unit()).active != "active"]
    # "static" and "indirect" units are started by others and have nothing to enable
    good = ("enabled", "enabled-runtime", "static", "indirect", "alias", "generated")
    forgotten = [name for name in (*listening, *wish.services) if units.get(name, Unit()).enabled not in good]
    if not deaf and not forgotten:
        return passed(f"{len(listening)} sockets listen and come back after a boot")
    problems = [f"{name} does not listen" for name in deaf] + [f"{name} is not enabled" for name in forgotten]
    names = " ".join(dict.fromkeys(deaf + forgotten))
    return failed("; ".join(problems), expected="active, enabled", fix=f"Run `systemctl enable --now {names}`.")


@check(
    "libvirt.connect",
    "libvirt answers",
    sections=("libvirt",),
    requires=("libvirt.daemon",),
    explained_by=("libvirt.sockets", "storage.reach"),
    proves="A client reaches the daemon, and the daemon answers.",
    how="virsh asks the contract's URI (qemu:///system) for its version and capabilities. This wakes an idle daemon.",
    todo="`journalctl -u libvirtd -u virtqemud` has the daemon's reason; a wrong line in a file of /etc/libvirt "
    "is the usual one.",
)
def connect(case: Case) -> Finding:
    found = case.evidence.libvirt
    if not found.connected:
        fix = "Read `journalctl -u libvirtd -u virtqemud`; then run `kvmfleet provision` for this host."
        return failed(f"libvirt does not answer: {found.error}", expected="an answer", seen=found.error, fix=fix)
    return passed(f"libvirt {found.version} answers")


@check(
    "libvirt.kvm",
    "libvirt offers KVM",
    sections=("libvirt",),
    requires=("libvirt.connect",),
    explained_by=("kvm.node", "kvm.exec", "kvm.open_as", "qemu.kvm"),
    lab_warns=True,
    proves="libvirt will start domains of type kvm.",
    how="The capabilities list a domain of type kvm for the host's own architecture.",
    todo="libvirt remembers what QEMU could do: restart the daemon after KVM or QEMU was repaired.",
)
def kvm(case: Case) -> Finding:
    types = case.evidence.libvirt.domain_types
    if "kvm" not in types:
        seen = ", ".join(types) or "none"
        return failed(
            f"libvirt offers no KVM, only: {seen}",
            expected="kvm",
            seen=seen,
            fix="Restart the libvirt daemon, then validate again.",
        )
    return passed(f"domain types: {', '.join(types)}")


@check(
    "libvirt.settings",
    "The daemons obey their settings",
    sections=("libvirt",),
    requires=("contract.present",),
    explained_by=("contract.packages",),
    proves="The settings of the contract are in the files, and the running daemons have read them.",
    how="Only the keys that the contract names are read, since these files may hold passwords. A daemon that started "
    "before its file was written obeys the old one.",
    todo=f"Written after the start: restart the daemon, guests keep running. Not written: {PROVISION}",
)
def settings(case: Case) -> Finding:
    found, wanted = case.evidence.libvirt, case.wishes.libvirt.settings
    wrong = [
        f"{file}: {text}" for file, wish in wanted.items() for text in differences(wish, found.settings.get(file, {}))
    ]
    if wrong:
        return failed("; ".join(wrong), expected="as in the contract", fix=PROVISION)
    if found.stale:
        names = " ".join(found.stale)
        return warned(
            f"older than its configuration: {names}", expected="restarted", fix=f"Run `systemctl restart {names}`."
        )
    return passed(f"{sum(map(len, wanted.values()))} settings are written, and the daemons have read them")


@check(
    "libvirt.users",
    "The users may manage guests",
    sections=("members",),
    requires=("contract.present",),
    explained_by=("kvm.users",),
    proves="Every user of the contract is in libvirt's group.",
    how="The members of the group, and those whose primary group it is.",
    todo="`usermod -aG libvirt USER`; the user logs in again. In that group a user is as mighty as root.",
)
def users(case: Case) -> Finding:
    wish = case.wishes.libvirt
    if not wish.users:
        return not_applicable("no users are asked for")
    missing = [user for user in wish.users if user not in case.evidence.members.get(wish.group, ())]
    if missing:
        names = ", ".join(missing)
        fix = " && ".join(f"usermod -aG {wish.group} {user}" for user in missing)
        return failed(
            f"not in the group {wish.group}: {names}", expected="members", seen=f"without {names}", fix=f"Run `{fix}`."
        )
    return passed(f"{len(wish.users)} users in the group {wish.group}")


CHECKS = (daemon, sockets, connect, kvm, settings, users)
