"""Does the kernel have its modules, options and arguments, now and after the next boot?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, Check, check, differences, failed, not_applicable, passed, warned
from orchestrator.model.contract import ModuleWish
from orchestrator.model.evidence import Module
from orchestrator.model.finding import Finding


def _here(case: Case, name: str) -> bool:
    return case.evidence.kernel.modules.get(name, Module()).state != "absent"


def _how_to_load(case: Case, name: str) -> str:
    """The command that brings a module in, or the machine on which that must happen."""
    kernel, system = case.evidence.kernel, case.evidence.system
    if system.container:
        return f"Run `modprobe {name}` on the machine that runs this container: they share the kernel {system.kernel}."
    if not kernel.modules.get(name, Module()).available:
        why = "a minimal kernel, or one that was updated without a reboot"
        return f"Boot a kernel that has the module {name}; {system.kernel} has not ({why})."
    if name in kernel.blacklisted:
        return f"Remove the line in /etc/modprobe.d that blacklists {name}, then run `modprobe {name}`."
    return f"Run `modprobe {name}`; the reason of a refusal is in `dmesg`."


@check(
    "kernel.module",
    "The kernel has KVM",
    sections=("kernel", "system"),
    requires=("cpu.extensions",),
    explained_by=("cpu.conflicts", "cpu.firmware", "cpu.flags_everywhere"),
    warns_in=("lab",),
    proves="KVM and the part of it for this processor are in the running kernel.",
    how="/proc/modules, /sys/module and /proc/misc, because builtin modules show only in some of them.",
    todo="`modprobe kvm_intel` or `modprobe kvm_amd`. 'Operation not supported' means that the firmware has it off. In "
    "a container, the modules are those of the machine below.",
)
def module(case: Case) -> Finding:
    vendor = (
        "kvm_amd" if "svm" in case.evidence.cpu.flags or case.evidence.cpu.vendor == "AuthenticAMD" else "kvm_intel"
    )
    loaded = [name for name in case.evidence.kernel.modules if name.startswith("kvm_") and _here(case, name)]
    if _here(case, "kvm") and (loaded or case.kvm_runs or case.evidence.system.arch == "aarch64"):
        return passed(f"kvm with {', '.join(loaded)}" if loaded else "kvm is in the kernel")
    if case.kvm_runs:
        return passed("KVM runs, under no name in the list of modules")
    missing = vendor if _here(case, "kvm") else "kvm"
    return failed(
        f"the module {missing} is not loaded",
        expected=f"kvm and {vendor}",
        seen="absent",
        fix=_how_to_load(case, vendor),
    )


@check(
    "kernel.persist",
    "The modules come back after a boot",
    sections=("kernel",),
    requires=("contract.present",),
    explained_by=("contract.files",),
    proves="After the next boot the modules are loaded again.",
    how="Each required module of the contract is builtin or listed in modules-load.d, /etc/modules or the command "
    "line, and not blacklisted.",
    todo=PROVISION,
)
def persist(case: Case) -> Finding:
    kernel = case.evidence.kernel
    if not kernel.can_load:
        return not_applicable("this host cannot load modules, its kernel is another machine's or closed")
    required = [name for name, wish in case.wishes.modules.items() if wish.required]
    loadable = [name for name in required if kernel.modules.get(name, Module()).state != "builtin"]
    lost = [name for name in loadable if name not in kernel.load_at_boot or name in kernel.blacklisted]
    if lost:
        return failed(f"not loaded at the next boot: {', '.join(lost)}", expected="in modules-load.d", fix=PROVISION)
    return passed(f"{len(required)} modules come back")


def _how_to_settle(case: Case, names: list[str]) -> str:
    """Whether a reload or only a reboot makes the options of these modules active."""
    modules = case.evidence.kernel.modules
    builtin = [name for name in names if modules[name].state == "builtin"]
    used = [name for name in names if modules[name].users]
    if not case.evidence.kernel.can_load:
        return f"Reload {', '.join(names)} when no guest runs, or reboot."
    if builtin:
        return f"Put the options of {', '.join(builtin)} into kernel_modules_cmdline, as {builtin[0]}.OPTION=VALUE."
    if used:
        return f"Reboot, or end the guests and provision again: {', '.join(used)} is in use."
    return f"Reload {', '.join(names)}, which nothing uses: {PROVISION}"


@check(
    "kernel.options",
    "The modules have their options",
    sections=("kernel",),
    requires=("contract.present",),
    explained_by=("contract.files",),
    proves="The options of the contract, such as nested, are active and will be after the next boot.",
    how="modprobe.d in the order of modprobe(8) for the next boot, /sys/module/NAME/parameters for now. "
    "Y and 1 are one value. A module that is built in has its options from the kernel's arguments.",
    todo="Written but not active: provision reloads a module that nothing uses; for one that guests use, end them and "
    f"provision, or reboot. Not written: {PROVISION}",
)
def options(case: Case) -> Finding:
    kernel = case.evidence.kernel
    wishes = {name: wish.options for name, wish in case.wishes.modules.items() if wish.options}
    known = {name: wish for name, wish in wishes.items() if _here(case, name) and name in kernel.modules}
    later = [
        f"{name}: {text}"
        for name, wish in known.items()
        if kernel.modules[name].state != "builtin"
        for text in differences(wish, kernel.configured_options.get(name, {}))
    ]
    live = {
        name: texts
        for name, wish in known.items()
        if (params := kernel.modules[name].params)
        and (texts := differences({key: value for key, value in wish.items() if key in params}, params))
    }
    if later and kernel.can_load:
        return failed(
            f"not configured for the next boot: {'; '.join(later)}", expected="as in the contract", fix=PROVISION
        )
    if live:
        words = "; ".join(f"{name}: {text}" for name, texts in live.items() for text in texts)
        fix = _how_to_settle(case, sorted(live))
        return warned(f"configured, not active: {words}", expected="as in the contract", fix=fix)
    if not known:
        return not_applicable("no options are asked for" if not wishes else "none of the modules is in this kernel")
    return passed(f"options of {', '.join(known)} are active and configured")


@check(
    "kernel.cmdline",
    "The kernel has its arguments",
    sections=("kernel", "system"),
    requires=("contract.present",),
    proves="The kernel runs with the arguments of the contract, and will after the next boot.",
    how="/proc/cmdline for now; for the next boot the default entry of GRUB, of the Boot Loader Specification or of "
    "extlinux, from the files that the bootloader itself reads.",
    todo="Not active: reboot when no guest runs, or set kernel_modules_reboot to if-needed. Not configured: "
    f"{PROVISION}",
)
def cmdline(case: Case) -> Finding:
    kernel, wished = case.evidence.kernel, case.wishes.cmdline
    if case.evidence.system.container or not wished:
        return not_applicable("a container has no kernel of its own" if wished else "no arguments are asked for")
    lost = [word for word in wished if word not in kernel.next_boot.cmdline.split()]
    lacking = [word for word in wished if word not in kernel.cmdline.split()]
    if lost and kernel.next_boot.source:
        return failed(
            f"not configured for the next boot: {' '.join(lost)}",
            expected=f"in {kernel.next_boot.source}",
            seen=kernel.next_boot.cmdline,
            fix=PROVISION,
        )
    if lacking:
        what = "configured, not active" if kernel.next_boot.source else "not active, and no bootloader was found"
        fix = "Reboot when no guest runs, or set kernel_modules_reboot to if-needed and provision."
        return warned(f"{what}: {' '.join(lacking)}", expected=" ".join(wished), seen=kernel.cmdline, fix=fix)
    return passed(f"{' '.join(wished)} active" + (" and configured" if kernel.next_boot.source else ""))


# Words that a bootloader adds by itself, and that no configuration has.
BY_THE_LOADER = ("BOOT_IMAGE=", "initrd=", "systemd.machine_id=", "vt.handoff=")


@check(
    "kernel.reboot",
    "No reboot is pending",
    sections=("kernel", "system"),
    proves="A reboot would bring the same kernel with the same arguments back.",
    how="The default entry of the bootloader against the running kernel, and /run/reboot-required. Arguments of the "
    "contract are the business of kernel.cmdline.",
    todo="Move the guests or end them, then reboot. Where a newer kernel must not start yet, pin the bootloader's "
    "default.",
)
def reboot(case: Case) -> Finding:
    kernel, system = case.evidence.kernel, case.evidence.system
    later = kernel.next_boot
    if system.container or not (later.source or later.required_by):
        return not_applicable("a container boots with its host" if system.container else "no bootloader was found")
    reasons = [f"{', '.join(later.required_by)} asks for it"] if later.required_by else []
    if later.kernel and later.kernel != system.kernel:
        reasons.append(f"the next boot starts Linux {later.kernel}, not {system.kernel}")
    if later.source and (words := _other_words(kernel.cmdline, later.cmdline, case.wishes.cmdline)):
        reasons.append(f"the next boot has other arguments: {' '.join(words)}")
    if reasons:
        return warned(
            f"a reboot is pending: {'; '.join(reasons)}",
            expected=f"Linux {system.kernel} {kernel.cmdline}",
            seen=f"Linux {later.kernel} {later.cmdline}",
            fix="Reboot when no guest runs.",
        )
    return passed(f"the next boot is like this one, says {later.source}" if later.source else "nobody asks for one")


def _other_words(now: str, later: str, wished: Sequence[str]) -> list[str]:
    """+ for what comes and - for what goes."""
    own = [[word for word in text.split() if not word.startswith(BY_THE_LOADER)] for text in (now, later)]
    gone = [f"-{word}" for word in own[0] if word not in own[1] and word not in wished]
    return [*gone, *(f"+{word}" for word in own[1] if word not in own[0] and word not in wished)]


def _device(name: str, purpose: str, *, required: bool, needs: str = "") -> Check:
    """A check for a module that gives guests something beside KVM. `required` holds where the contract is silent;
    `needs` is another module, without which it cannot be loaded."""

    @check(
        f"kernel.{name}",
        f"The kernel has {name}",
        sections=("kernel", "system"),
        explained_by=("contract.present", f"kernel.{needs}") if needs else ("contract.present",),
        proves=f"The kernel offers {name}: {purpose}.",
        how="/proc/modules, /sys/module and /proc/misc. A device node alone says nothing, it may be static.",
        todo=f"`modprobe {name}`. A container shares the kernel of the machine below: load it there.",
    )
    def look(case: Case) -> Finding:
        wish = case.wishes.modules.get(name, ModuleWish(required=required))
        if _here(case, name):
            return passed(f"{name} is {case.evidence.kernel.modules[name].state}")
        if not wish.required:
            return not_applicable(f"{name} is absent and not asked for")
        verdict: Callable[..., Finding] = failed if case.evidence.kernel.can_load else warned
        where = (
            f" in the kernel that this {case.evidence.system.container} shares"
            if case.evidence.system.container
            else ""
        )
        return verdict(
            f"{name} is absent{where}", expected="loaded or builtin", seen="absent", fix=_how_to_load(case, name)
        )

    return look


tun = _device("tun", "network interfaces of guests", required=True)
vhost_net = _device("vhost_net", "network packets of guests are moved inside the kernel", required=True, needs="tun")
vhost_vsock = _device("vhost_vsock", "sockets between a guest and its host", required=False)


# What does without the device: libvirt moves packets in QEMU instead, and only guests that ask for it get a vsock.
SPARED = ("/dev/vhost-net", "/dev/vhost-vsock")
# The kernel makes a node once, when its module is loaded; udev makes none.
MAKING = {
    "/dev/net/tun": "mknod -m 0666 /dev/net/tun c 10 200",
    "/dev/vhost-net": "mknod -m 0660 /dev/vhost-net c 10 238 && chgrp kvm /dev/vhost-net",
    "/dev/vhost-vsock": "mknod -m 0660 /dev/vhost-vsock c 10 241 && chgrp kvm /dev/vhost-vsock",
}


@check(
    "kernel.devices",
    "The devices of these modules open",
    sections=("kernel", "system"),
    explained_by=("host.evidence",),
    proves="libvirt can open what it makes network interfaces and sockets of guests from.",
    how="open(2) of /dev/net/tun, /dev/vhost-net and /dev/vhost-vsock, each where its module is in the kernel: a node "
    "alone may be static, and opening it would load the module.",
    todo="A node that was removed comes back with `mknod`, or when its module is loaded anew. In a container, pass it "
    "in and allow it in the cgroup.",
)
def devices(case: Case) -> Finding:
    found = {node: errno for node, errno in case.evidence.kernel.devices.items() if node in MAKING}
    container = case.evidence.system.container
    shut = {node: errno for node, errno in found.items() if errno}
    if not found:
        return not_applicable("none of their modules is in the kernel")
    kept = sorted(node for node in shut if node in SPARED and container)
    broken = sorted(set(shut) - set(kept))
    if broken:
        verdict: Callable[..., Finding] = warned if set(broken) <= set(SPARED) else failed
        seen = ", ".join(f"{node}: {shut[node]}" for node in broken)
        fix = "Pass it into the container, and allow it there." if container else f"Run `{MAKING[broken[0]]}`."
        if any(shut[node] == "ENODEV" for node in broken):
            fix = f"Find out what hides the device: `findmnt {broken[0]}`, `ls -l {broken[0]}`."
        elif any(shut[node] != "ENOENT" for node in broken):
            fix = f"Find out what keeps root out: `ls -l {broken[0]}`, and DeviceAllow= of the unit or container."
        return verdict(f"does not open: {seen}", expected="opens", seen=seen, fix=fix)
    opened = ", ".join(sorted(set(found) - set(kept))) or "none"
    return passed(f"opens: {opened}" + (f"; not handed to this container: {', '.join(kept)}" if kept else ""))


CHECKS = (module, persist, options, cmdline, reboot, tun, vhost_net, vhost_vsock, devices)
