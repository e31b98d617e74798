"""Does libvirt answer, in the right shape, with KVM?"""

from __future__ import annotations

import re
from shlex import quote

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, differences, failed, not_applicable, passed, undecided, warned
from orchestrator.model.evidence import Unit
from orchestrator.model.finding import Finding
from orchestrator.text import counted

FAMILIES = {"monolithic": "libvirtd", "modular": "virtqemud"}
SLOW_MS = 10_000
"""The first answer of an idle daemon brings its start and a look at every emulator: a second or two on hardware."""

HARMLESS = {
    # seen on fresh Debian 12 and 13
    r"Failed to get udev device for syspath '/sys/devices/virtual/dmi/id'": "the machine has no DMI tables",
    r"Child process \(\S*dmidecode .*\) unexpected exit status": "the same: what `virsh sysinfo` shows is empty",
    r"error from service: GDBus\.Error:org\.freedesktop\.DBus\.Error\.(FileNotFound|ServiceUnknown)": "no logind runs, "
    "which libvirt asks whether the host can sleep",
    r"Failed to get host power management capabilities": "the same",
    r"End of file while reading data: Input/output error": "a client went without a goodbye",
    r"Cannot recv data: Connection reset by peer": "the same",
    r"(internal error: )?End of file from qemu monitor": "a guest ended, by itself or by force",
}
"""What libvirt's daemons log as an error on a host with nothing wrong -> why."""


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
    if not active and (masked := [name for name in (socket, service) if units.get(name, Unit()).load == "masked"]):
        unmask = f"Run `systemctl unmask {' '.join(masked)} && systemctl enable --now {socket}`."
        return failed(f"masked: {', '.join(masked)}", expected="listening", seen="masked", fix=unmask)
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
    todo="`systemctl enable --now UNIT`; a masked unit needs `systemctl unmask UNIT` first. A socket does not start "
    "while its service runs: stop that before; guests go on.",
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
    names = list(dict.fromkeys(deaf + forgotten))
    return failed("; ".join(problems), expected="active, enabled", fix=_how_to_listen(case, names, deaf))


def _how_to_listen(case: Case, names: list[str], deaf: list[str]) -> str:
    """A socket does not start while its service runs, so that is stopped first: but not virtlogd or virtlockd."""
    units = case.evidence.libvirt.units
    masked = [name for name in names if units.get(name, Unit()).load == "masked"]
    services = [re.sub(r"(-ro|-admin)?\.socket$", ".service", name) for name in deaf if not name.startswith("virtlo")]
    busy = [service for service in dict.fromkeys(services) if units.get(service, Unit()).active == "active"]
    steps = {"unmask": masked, "stop": busy, "enable --now": names}
    commands = " && ".join(f"systemctl {verb} {' '.join(map(quote, which))}" for verb, which in steps.items() if which)
    return f"Run `{commands}`." + (" Guests keep running." if busy else "")


@check(
    "libvirt.connect",
    "libvirt answers",
    sections=("libvirt",),
    requires=("libvirt.daemon",),
    explained_by=("libvirt.sockets", "storage.reach"),
    proves="A client reaches the daemon, and the daemon answers.",
    how="virsh asks the contract's URI (qemu:///system) for its version and capabilities. This wakes an idle daemon. "
    f"More than {SLOW_MS // 1000} s is a warning, but not on a machine that is itself executed in software.",
    todo="`journalctl -u libvirtd -u virtqemud` has the daemon's reason; a wrong line in a file of /etc/libvirt "
    "is the usual one.",
)
def connect(case: Case) -> Finding:
    found = case.evidence.libvirt
    if not found.connected:
        fix = "Read `journalctl -u libvirtd -u virtqemud`; then run `kvmfleet provision` for this host."
        return failed(f"libvirt does not answer: {found.error}", expected="an answer", seen=found.error, fix=fix)
    if found.answer_ms > SLOW_MS and not _in_software(case):
        seen = f"{found.answer_ms / 1000:.0f} s"
        fix = "Look what the daemon waits for: `journalctl -u libvirtd -u virtqemud`; storage that is gone, often."
        return warned(
            f"libvirt {found.version} answers after {seen}", expected=f"{SLOW_MS // 1000} s", seen=seen, fix=fix
        )
    return passed(f"libvirt {found.version} answers in {found.answer_ms:.0f} ms")


def _in_software(case: Case) -> bool:
    """The machine, or the KVM that it has, is emulated: time tells nothing there."""
    # systemd-detect-virt(1) calls a QEMU without KVM qemu
    return case.evidence.system.virtual in ("qemu", "bochs") or case.evidence.kvm.speed.outcome == "emulated"


@check(
    "libvirt.current",
    "The running daemons are the installed ones",
    sections=("libvirt", "daemons"),
    requires=("libvirt.connect",),
    proves="After an upgrade the daemons were restarted: what answers is what is installed.",
    how="The version that answers, against that of the program that would be started; and /proc/PID/maps of each "
    "daemon, where files of libvirt that are gone are marked (deleted).",
    todo="`systemctl restart` the daemons; guests are processes of their own and keep running.",
)
def current(case: Case) -> Finding:
    found, answers = case.evidence.daemons, case.evidence.libvirt.version
    if not found.daemons:
        return not_applicable("libvirt runs in another place, a container perhaps")
    if found.replaced is None:
        return undecided("what the daemons run cannot be read", fix="Validate as root (become).")
    names = " ".join(map(quote, found.replaced or found.daemons))
    fix = f"Run `systemctl restart {names}`; guests keep running."
    if found.installed and answers and found.installed != answers:
        summary = f"libvirt {answers} answers, {found.installed} is installed"
        return warned(summary, expected=found.installed, seen=answers, fix=fix)
    if found.replaced:
        summary = f"replaced on disk since they started: {', '.join(found.replaced)}"
        return warned(summary, expected="restarted", seen="an older build", fix=fix)
    return passed(f"{', '.join(found.daemons)}: {answers}, as installed")


@check(
    "libvirt.journal",
    "The daemons complain about nothing",
    sections=("libvirt", "daemons"),
    requires=("libvirt.connect",),
    proves="libvirt's daemons logged no errors since they started.",
    how="The last 50 lines of priority err in the journal of the daemons that run, without those that a host with "
    "nothing wrong has: no DMI tables, no logind, clients and guests that ended. In the profile lab it is only told.",
    todo="`journalctl -b -p err -u libvirtd -u 'virt*d'` has them all. Restarting the daemon settles what is repaired.",
)
def journal(case: Case) -> Finding:
    found = case.evidence.daemons
    if found.silent:
        return not_applicable(found.silent)
    if found.journal is None:
        return undecided("the journal cannot be read", fix="Validate as root (become).")
    errors = [line for line in found.journal if not any(re.search(pattern, line) for pattern in HARMLESS)]
    if not errors:
        return passed(f"no errors of {', '.join(found.daemons)} since the start")
    summary = f"{counted(len(errors), 'error')} since the start of {', '.join(found.daemons)}, the last: {errors[-1]}"
    if case.profile == "lab":
        return passed(summary)
    fix = f"Read `journalctl -b -p err{''.join(f' -u {quote(name)}' for name in found.daemons)}`."
    return warned(summary, expected="no errors", seen=str(len(errors)), fix=fix)


@check(
    "libvirt.kvm",
    "libvirt offers KVM",
    sections=("libvirt",),
    requires=("libvirt.connect",),
    explained_by=("kvm.node", "kvm.exec", "kvm.open_as", "qemu.kvm"),
    warns_in=("lab",),
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
    "libvirt.offers",
    "libvirt offers what guests are made of",
    sections=("libvirt", "windows", "system"),
    requires=("libvirt.connect", "libvirt.kvm"),
    explained_by=("qemu.firmware", "qemu.tpm"),
    proves="A guest can have a machine q35; UEFI with secure boot and a TPM, where the contract does not leave them "
    "out; and the processor of the host.",
    how="domcapabilities of libvirt for a machine q35 with KVM.",
    todo="libvirt looks only once at firmware, swtpm and QEMU: restart its daemon when they came later.",
)
def offers(case: Case) -> Finding:
    found, wish = case.evidence.windows, case.wishes.qemu
    if case.evidence.system.arch != "x86_64":
        return not_applicable(f"{case.evidence.system.arch} has no machine q35")
    lacking = [
        name
        for name, there in (
            ("machine q35", "q35" in found.machine),
            ("UEFI", not wish.firmware or "efi" in found.firmware),
            ("TPM", not wish.swtpm or "emulator" in found.tpm_backends),
        )
        if not there
    ]
    fix = "Restart the libvirt daemon, then validate again."
    if found.error or lacking:
        seen = found.error or f"without {', '.join(lacking)}"
        return failed(f"libvirt does not offer all: {seen}", expected="q35, UEFI, TPM", seen=seen, fix=fix)
    missing = [f"processor {mode}" for mode in ("host-passthrough", "host-model") if mode not in found.cpu_modes]
    missing += ["secure boot"] if wish.firmware and "yes" not in found.secure else []
    if missing and case.profile != "lab":
        seen = f"without {', '.join(missing)}"
        return warned(f"libvirt does not offer all: {seen}", expected=", ".join(missing), seen=seen, fix=fix)
    return passed(", ".join([found.machine, *(f"no {name}" for name in missing), *found.cpu_modes]))


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
        fix = f"Run `systemctl restart {' '.join(map(quote, found.stale))}`."
        return warned(f"older than its configuration: {' '.join(found.stale)}", expected="restarted", fix=fix)
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
        fix = " && ".join(f"usermod -aG {quote(wish.group)} {quote(user)}" for user in missing)
        return failed(
            f"not in the group {wish.group}: {names}", expected="members", seen=f"without {names}", fix=f"Run `{fix}`."
        )
    return passed(f"{len(wish.users)} users in the group {wish.group}")


CHECKS = (daemon, sockets, connect, current, journal, kvm, offers, settings, users)
