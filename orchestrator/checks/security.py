"""Are guests kept apart, and is libvirt out of strangers' reach?"""

from __future__ import annotations

import shlex

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.host import BECOME
from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, plain, undecided, warned
from orchestrator.collector.inventory import MIGHTY
from orchestrator.model.contract import FirewallWish, SecurityWish
from orchestrator.model.evidence import Firewall, Module, Process
from orchestrator.model.finding import Finding

NAMES = {"selinux": "SELinux", "apparmor": "AppArmor"}
SEEN_BEFORE = "End those guests and start them again: they were started before that was set."


def _called(guests: list[Process]) -> str:
    return ", ".join(guest.name or f"process {guest.pid}" for guest in guests[:5]) + (", ..." if guests[5:] else "")


def _confined(guest: Process, how: str) -> bool:
    if how == "selinux":
        return ":svirt" in guest.label
    return guest.label.startswith("libvirt-") and guest.label.endswith("(enforce)")


@check(
    "security.svirt",
    "Guests are confined",
    sections=("security", "libvirt", "system"),
    requires=("contract.present", "libvirt.connect"),
    warns_in=("lab",),
    proves="SELinux or AppArmor keeps every guest away from the host and the others, and libvirt starts none without.",
    how="The security models in libvirt's capabilities, SELinux's mode, and the label of every QEMU that runs.",
    todo="Off in the kernel: boot with apparmor=1 security=apparmor, or selinux=1 security=selinux. Permissive: "
    f"`setenforce 1`. A guest that is not confined: end and start it. libvirt without it: {PROVISION}",
)
def svirt(case: Case) -> Finding:
    wish, found = case.wishes.security, case.evidence.security
    if wish.svirt in NAMES:
        name, models = NAMES[wish.svirt], case.evidence.libvirt.confined_by
        if wish.svirt not in models:
            seen = ", ".join(models) or "nothing"
            why = f"Restart the libvirt daemon, which looks for {name} when it starts. {PROVISION}"
            return failed(f"libvirt confines guests with {seen}, not {name}", expected=wish.svirt, seen=seen, fix=why)
        if wish.svirt == "selinux" and found.selinux != "enforcing":
            fix = "Run `setenforce 1`, and set SELINUX=enforcing in /etc/selinux/config."
            return failed(f"SELinux is {found.selinux or 'off'}", expected="enforcing", seen=found.selinux, fix=fix)
        loose = [guest for guest in found.guests if not _confined(guest, wish.svirt)]
        if loose:
            return failed(
                f"not confined by {name}: {_called(loose)}",
                expected="a label of its own for every guest",
                seen=loose[0].label or "no label",
                fix=SEEN_BEFORE,
            )
        return passed(f"{name} confines guests, of which {len(found.guests)} run")
    if wish == SecurityWish() or case.profile == "lab":
        return not_applicable("not asked for")
    if case.evidence.system.container and not wish.svirt:
        return not_applicable("a container's kernel is another machine's")
    summary = "nothing keeps guests apart: " + (
        "declared so" if wish.svirt else "this kernel has no SELinux or AppArmor"
    )
    return warned(summary, expected="SELinux or AppArmor", seen="neither", fix="Boot with one of them, and provision.")


@check(
    "security.user",
    "Guests do not run as root",
    sections=("security",),
    requires=("contract.present",),
    warns_in=("lab",),
    proves="A guest that breaks out of QEMU is not root.",
    how="The user of the contract, and the owner of every QEMU process that runs.",
    todo="Take user = root out of qemu.conf and the inventory, provision, then end and start those guests.",
)
def user(case: Case) -> Finding:
    mighty = [guest for guest in case.evidence.security.guests if guest.uid == 0]
    wished = case.wishes.qemu.user
    if wished in ("root", "0", "+0"):
        fix = "Take it out of libvirt_security_user and libvirt_qemu_settings, and provision."
        return failed("QEMU is told to run as root", expected="a user of its own", seen=wished, fix=fix)
    if mighty:
        return failed(f"runs as root: {_called(mighty)}", expected=wished, seen="root", fix=SEEN_BEFORE)
    return passed(f"guests run as {wished or 'the user of the platform'}")


@check(
    "security.sandbox",
    "QEMU runs in its sandbox",
    sections=("security", "libvirt"),
    requires=("contract.present",),
    explained_by=("libvirt.settings",),
    proves="The kernel refuses QEMU the system calls that no guest needs.",
    how="seccomp_sandbox in qemu.conf, and whether the kernel filters the system calls of every QEMU that runs.",
    todo=f"Not set: {PROVISION} A guest without it: end and start it.",
)
def sandbox(case: Case) -> Finding:
    if not case.wishes.security.sandbox:
        return not_applicable("not asked for")
    set_to = case.evidence.libvirt.settings.get("qemu.conf", {}).get("seccomp_sandbox", "")
    if plain(set_to) != "1":
        return failed(
            f"seccomp_sandbox is {set_to or 'not set'}", expected="1", seen=set_to, fix=f"In qemu.conf. {PROVISION}"
        )
    guests = case.evidence.security.guests
    loose = [guest for guest in guests if not guest.sandboxed]
    if loose:
        summary = f"without a sandbox: {_called(loose)}"
        return failed(summary, expected="a filter of system calls", seen="none", fix=SEEN_BEFORE)
    return passed(f"on, and {len(guests)} guests run in it")


@check(
    "security.sockets",
    "Only those who may can open libvirt's sockets",
    sections=("security",),
    requires=("contract.present", "libvirt.daemon"),
    proves="Who opens a socket for changing guests is asked by polkit, or is root or in the group of the contract; and "
    "libvirt does not listen on plain TCP.",
    how="Owner, mode and group of the sockets in /run/libvirt, auth_unix_rw of the daemon, and /proc/net/tcp for port "
    "16509.",
    todo=f"{PROVISION} It gives the sockets their mode without a restart, and masks the units of plain TCP.",
)
def sockets(case: Case) -> Finding:
    wish, found = case.wishes.security, case.evidence.security
    if 16509 in found.tcp and not wish.plain_tcp:
        fix = (
            f"Run `systemctl disable --now libvirtd-tcp.socket virtproxyd-tcp.socket`, restart the daemon. {PROVISION}"
        )
        return failed("libvirt listens on plain TCP, port 16509", expected="no listener", seen="16509", fix=fix)
    if theirs := {path: socket.owner for path, socket in found.sockets.items() if socket.owner != "root"}:
        path, owner = min(theirs.items())
        fix = f"Run `chown root {shlex.quote(path)}`, and look for SocketUser= in `systemctl cat` of its unit."
        return failed(f"{path} belongs to {owner}", expected="root", seen=owner, fix=fix)
    asks = found.asks.get("libvirtd" if case.wishes.libvirt.family == "monolithic" else "virtqemud", "")
    wide = [path for path, socket in found.sockets.items() if socket.mode & 0o002]
    if wide and asks == "none":
        return failed(
            f"everybody on this host is root through {wide[0]}: its mode is open and auth_unix_rw is none",
            expected="polkit, or mode 0660",
            seen=f"mode {found.sockets[wide[0]].mode:04o}, none",
            fix=f"Take auth_unix_rw out of the daemon's file, or set libvirt_security_access to group. {PROVISION}",
        )
    if wish.socket_group:
        wrong = [
            f"{path} has mode {socket.mode:04o} and group {socket.group}"
            for path, socket in found.sockets.items()
            if socket.mode & 0o007 or (socket.mode & 0o070 and socket.group not in (wish.socket_group, "root"))
        ]
        if wrong:
            expected = f"mode 0660, group {wish.socket_group}"
            return failed("; ".join(wrong), expected=expected, seen=wrong[0], fix=PROVISION)
        return passed(f"{len(found.sockets)} sockets are open to root and the group {wish.socket_group}")
    if wide and case.wishes.libvirt.users and not found.polkit:
        fix = "Install polkit, or set libvirt_security_access to group and provision."
        return warned(f"no polkit here lets {', '.join(case.wishes.libvirt.users)} in", expected="polkit", fix=fix)
    return passed(f"{len(found.sockets)} sockets, and polkit is asked" if wide else f"{len(found.sockets)} sockets")


@check(
    "security.firewall",
    "The guarded ports are open to the sources alone",
    sections=("security",),
    requires=("contract.present",),
    proves="Ports for migration and TLS are open to the hosts of the contract, and closed to everybody else together "
    "with those of plain TCP and the guests' screens; now and after a boot.",
    how="`nft list table inet kvmfleet` and the unit that loads it, or firewalld's policy kvmfleet; and ufw's rules.",
    todo="Gone after `nft flush ruleset`: `systemctl restart kvmfleet-firewall`. Changed: provision, or put the change "
    "into libvirt_security_migration_sources.",
)
def firewall(case: Case) -> Finding:
    wish, found = case.wishes.security.firewall, case.evidence.security.firewall
    if not wish.backend:
        return not_applicable("no ports are guarded")
    if found.error:
        again = "systemctl restart kvmfleet-firewall" if wish.backend == "nftables" else "systemctl restart firewalld"
        fix = f"Run `{again}`. {PROVISION}"
        return failed(f"the rules are not there: {found.error}", expected=wish.backend, seen="nothing", fix=fix)
    wrong = _differences(wish, found)
    if wrong:
        return failed("; ".join(wrong[:5]), expected="as in the contract", seen=f"{len(wrong)} changed", fix=PROVISION)
    if wish.backend == "nftables" and found.unit != "enabled":
        seen = found.unit or "absent"
        fix = f"Run `systemctl enable kvmfleet-firewall`. {PROVISION}"
        return failed("no unit loads the rules at boot", expected="enabled", seen=seen, fix=fix)
    return passed(f"{wish.backend} has its {len(wish.rules)} rules{_beside(found)}")


def _differences(wish: FirewallWish, found: Firewall) -> list[str]:
    wrong = [
        f"{name} has {', '.join(found.sets.get(name, ())) or 'nothing'}, not {', '.join(elements) or 'nothing'}"
        for name, elements in wish.sets.items()
        if sorted(found.sets.get(name, ())) != sorted(elements)
    ]
    wrong += [f"lacks the rule {rule}" for rule in wish.rules if rule not in found.rules]
    wrong += [f"has the rule {rule}" for rule in found.rules if rule not in wish.rules]
    if not wrong and found.rules != wish.rules and wish.backend == "nftables":
        wrong.append("the rules are in another order")
    if found.ufw_installed:
        wrong += [f"ufw lacks {rule}" for rule in wish.ufw if rule not in found.ufw]
    return wrong


def _beside(found: Firewall) -> str:
    """Who else filters; what a chain drops by its policy no table can open."""
    others = [
        name for name in found.closed_by if not (found.ufw_active and name in ("ip filter INPUT", "ip6 filter INPUT"))
    ]
    ufw = ", and ufw lets the sources in" if found.ufw_active and found.ufw else ""
    return ufw + (f"; {', '.join(others)} drops what it does not accept itself" if others else "")


@check(
    "security.nested",
    "Guests of strangers run no guests of their own",
    sections=("kernel", "system"),
    requires=("contract.present", "kernel.module"),
    warns_in=("lab",),
    proves="In the profile multi-tenant guests do not see the part of KVM that is for hypervisors.",
    how="The option nested of kvm_intel or kvm_amd as it is live.",
    todo="Set kernel_modules_nested to false, provision, and end the guests or reboot where the modules are in use.",
)
def nested(case: Case) -> Finding:
    if case.profile != "multi-tenant":
        return not_applicable("guests are not strangers' in this profile")
    modules = case.evidence.kernel.modules
    values = {name: modules.get(name, Module()).params.get("nested", "") for name in ("kvm_intel", "kvm_amd")}
    on = [name for name, value in values.items() if plain(value) == "1"]
    if not on:
        return passed("off" if any(values.values()) else "no module here could nest")
    asked = [
        name
        for name in on
        if name in case.wishes.modules and plain(case.wishes.modules[name].options.get("nested", "")) == "1"
    ]
    fix = "Set kernel_modules_nested to false and provision; a module that is in use needs a reboot."
    if asked or case.evidence.system.container:
        why = "declared so" if asked else "of the kernel that this container shares"
        return warned(f"{', '.join(on)} nests, {why}", expected="0", seen="1", fix=fix)
    return failed(f"{', '.join(on)} nests", expected="0", seen="1", fix=fix)


@check(
    "security.listeners",
    "Screens and consoles of guests are not open to everybody",
    sections=("processes", "security"),
    requires=("contract.present",),
    explained_by=("security.firewall",),
    proves="No QEMU listens on all addresses of the host without TLS: a screen (VNC, SPICE) is the guest's console, "
    "and its password can be guessed or overheard.",
    how="The sockets of every QEMU against /proc/net/tcp and tcp6; a VNC screen with tls-creds and the tls-port of "
    "SPICE are left out, and so is what the firewall of the contract closes, and the ports of migrations.",
    todo="Take listen='0.0.0.0' out of the guest's <graphics>, and vnc_listen and spice_listen out of qemu.conf; then "
    "end and start the guest. Tunnel instead: `virt-viewer -c qemu+ssh://HOST/system GUEST`.",
)
def listeners(case: Case) -> Finding:
    if case.evidence.processes is None:
        return undecided("the sockets of guests cannot be looked at", fix=BECOME)
    guests = [runner for runner in case.evidence.processes if runner.guest]
    shut = _closed(case)
    heard = {guest.name: [address for address in guest.listens if not _migrates(address)] for guest in guests}
    open_ = {name: [one for one in addresses if _port(one) not in shut] for name, addresses in heard.items()}
    found = [f"{name} {', '.join(addresses)}" for name, addresses in open_.items() if addresses]
    if found and case.profile != "lab":
        verdict = failed if case.profile == "multi-tenant" else warned
        names = "; ".join(found[:4]) + ("; ..." if found[4:] else "")
        fix = "Take listen='0.0.0.0' out of its <graphics> and vnc_listen out of qemu.conf, then end and start it."
        return verdict(f"open to everybody: {names}", expected="127.0.0.1, or TLS", seen=found[0], fix=fix)
    hidden = sum(map(bool, heard.values())) - len(found)
    words = (
        f"; {len(found)} listen for everybody"
        if found
        else f"; the firewall closes those of {hidden}"
        if hidden
        else ""
    )
    return passed(f"{len(guests)} guests{words}")


def _port(address: str) -> int:
    port = address.rpartition(":")[2]
    return int(port) if port.isdecimal() else 0


def _migrates(address: str) -> bool:
    """libvirt's ports for migrations, on which QEMU listens as long as one lasts."""
    return 49152 <= _port(address) <= 49215


def _closed(case: Case) -> set[int]:
    """Ports that the firewall of the contract closes, where its rules are live."""
    wish, found = case.wishes.security.firewall, case.evidence.security.firewall
    if not wish.backend or found.error or _differences(wish, found):
        return set()
    ranges = [text.partition("-") for text in wish.sets.get("closed", ())]
    pairs = [(first, last or first) for first, _, last in ranges]
    return {
        port for first, last in pairs if first.isdecimal() and last.isdecimal()
        for port in range(int(first), min(int(last), 65535) + 1)
    }  # fmt: skip


@check(
    "security.members",
    "Only those who were named may manage guests",
    sections=("members",),
    requires=("contract.present",),
    proves="Nobody but the users of the contract is in libvirt's group: with libvirt, who can change guests can become "
    "root.",
    how="The members of the group, and the local users whose primary group it is. Who is in sudo, wheel or admin as "
    "well gains nothing by it, and is left out.",
    todo="`gpasswd -d USER libvirt`, and end the user's sessions; or put the user into libvirt_users and provision.",
)
def members(case: Case) -> Finding:
    wish, found = case.wishes, case.evidence.members
    group = wish.libvirt.group
    if group not in found:
        return not_applicable(f"there is no group {group}")
    mighty = {user for name in MIGHTY for user in found.get(name, ())}
    strange = [user for user in found[group] if user not in {*wish.libvirt.users, "root"} | mighty]
    if not strange:
        return passed(f"{len(found[group])} in the group {group}, all of them known")
    names = ", ".join(strange)
    if case.profile == "lab" and wish.qemu.user not in strange:
        return passed(f"in the group {group} without being declared: {names}")
    verdict = failed if case.profile == "multi-tenant" or wish.qemu.user in strange else warned
    quit_ = " && ".join(shlex.join(["gpasswd", "-d", user, group]) for user in strange[:5])
    return verdict(
        f"can become root through the group {group}, and was not declared: {names}",
        expected=", ".join(wish.libvirt.users) or "nobody",
        seen=names,
        fix=f"Run `{quit_}`, or put them into libvirt_users and provision.",
    )


# Setting of qemu.conf, in one spelling -> what it does.
LOOSE = {
    "user": (("root", "0", "+0"), "guests run as root"),
    "group": (("root", "0", "+0"), "guests run in the group root"),
    "security_driver": (("none", "[none]"), "nothing confines guests"),
    "security_default_confined": (("0",), "guests that do not ask for it are not confined"),
    "clear_emulator_capabilities": (("0",), "QEMU keeps capabilities"),
    "seccomp_sandbox": (("0",), "QEMU has no sandbox"),
    "namespaces": (("[]",), "QEMU sees every device in /dev"),
    "relaxed_acs_check": (("1",), "devices that can reach each other go to different guests"),
}


@check(
    "security.qemu_conf",
    "qemu.conf takes no protection away",
    sections=("security",),
    requires=("contract.present",),
    explained_by=("libvirt.settings", "security.user", "security.sandbox"),
    proves="Guests that are started from now on are confined as libvirt does by default. What the contract itself sets "
    "is left out, the other checks of this group look at that.",
    how="In qemu.conf: " + ", ".join(LOOSE) + ".",
    todo="Take the line out of /etc/libvirt/qemu.conf and restart the daemon; guests that run are not changed by it. "
    "If it is meant, put it into libvirt_qemu_settings and provision.",
)
def qemu_conf(case: Case) -> Finding:
    found = case.evidence.security.qemu_conf
    if found is None:
        return undecided("/etc/libvirt/qemu.conf cannot be read", fix=BECOME)
    settings = {
        key: value
        for name, table in case.wishes.libvirt.settings.items()
        if name.rpartition("/")[2] == "qemu.conf"
        for key, value in table.items()
    }
    loose = {
        key: why
        for key, (values, why) in LOOSE.items()
        if key in found and plain(found[key]) in values and plain(settings.get(key, "")) != plain(found[key])
    }
    if not loose:
        return passed("nothing is taken away")
    words = "; ".join(f"{key} = {found[key]}: {why}" for key, why in loose.items())
    if case.profile == "lab" and "user" not in loose:
        return passed(words)
    fix = f"Take {', '.join(loose)} out of /etc/libvirt/qemu.conf, then restart the daemon; guests go on."
    return (failed if case.profile == "multi-tenant" else warned)(
        words, expected="libvirt's defaults", seen=words, fix=fix
    )


CHECKS = (svirt, user, sandbox, sockets, firewall, nested, listeners, members, qemu_conf)
