#!/usr/bin/python
"""Gives memory and processors of a host to its guests: now, where the kernel takes it, and at every boot.

What was there before is in the record, so that what leaves the inventory is given back.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, RecordError, open_record
from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_host import (
    KSM_RUN,
    MM,
    SERVICES,
    Host,
    TuningError,
    amount,
    memory_kib,
    own_share_kib,
    page_sizes,
    reserved,
    selected,
    spelled,
    sysctl_path,
    units,
)
from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_plan import (
    BRIDGE,
    SYSCTL_FILE,
    UDEV_FILE,
    UNIT,
    UNITS,
    Wish,
    arguments,
    files,
    knobs,
    mount_unit,
)
from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_problems import problems

DOCUMENTATION = """
module: host_tuning
short_description: Gives memory and processors of a host to its guests
description:
  - Hugepages, transparent hugepages, KSM, sysctls, the governor and a profile of tuned, live and for every boot.
  - What was there before is noted on the host. What is not asked for any more is given back as it was.
  - It looks before it changes anything, and stops where the host cannot be what is asked for.
author:
  - kvmfleet developers (@kvmfleet)
options:
  hugepages:
    description: Pages to reserve, each a table of size, pages and, for one NUMA node only, node.
    type: list
    elements: dict
    default: []
    suboptions:
      size:
        description: Size of one page as the kernel offers it, such as 2M or 1G.
        type: str
        required: true
      pages:
        description: How many.
        type: int
        required: true
      node:
        description: The NUMA node that they come from. The kernel spreads them over all nodes where it is left out.
        type: int
  thp:
    description: Transparent hugepages, a table of enabled and defrag. What is left out stays as it is.
    type: dict
    default: {}
  ksm:
    description: Who merges equal pages of guests, the kernel, the daemon ksmtuned, or nobody.
    type: str
    choices: [keep, disabled, enabled, ksmtuned]
    default: keep
  sysctls:
    description: Settings of the kernel, key -> value.
    type: dict
    default: {}
  bridge_netfilter:
    description: Whether packets that a bridge forwards pass the firewall of the host.
    type: str
    choices: [keep, bypass, filter]
    default: keep
  governor:
    description: What decides about the frequency of the processors, such as performance. Empty for no change.
    type: str
    default: ""
  tuned_profile:
    description: A profile of tuned, such as virtual-host. Empty for no change.
    type: str
    default: ""
  iommu:
    description: What the kernel is told about the IOMMU.
    type: str
    choices: [keep, enabled, passthrough]
    default: keep
  isolated_cpus:
    description: Processors that nothing but guests may use, such as 2-7,10.
    type: str
    default: ""
  kernel_arguments:
    description: Other arguments of the next boot, which must not speak of hugepages if O(hugepages) does.
    type: list
    elements: str
    default: []
  live:
    description: Whether the running kernel is this host's to change. It is not in a container.
    type: bool
    default: true
  units_before:
    description: RV(units) of a look before packages were installed, which is what the host goes back to.
    type: dict
"""

EXAMPLES = """
- name: Give half of the memory to guests
  kvmfleet.host.host_tuning:
    hugepages:
      - {size: 1G, pages: 32, node: 0}
      - {size: 2M, pages: 1024}
    thp: {enabled: madvise}
    ksm: disabled
    sysctls: {vm.swappiness: 10}
"""

RETURN = """
pending:
  description: What is configured and not live, one sentence each.
  returned: always
  type: list
arguments:
  description: What the kernel's command line should have.
  returned: always
  type: list
files:
  description: The files of this module, path -> digest and mode.
  returned: always
  type: dict
contract:
  description: What was asked for, in one spelling; empty when nothing was.
  returned: always
  type: dict
would_change:
  description: Whether there is something to do. As C(changed), but a task cannot overrule it.
  returned: always
  type: bool
mounted:
  description: Whether pages of a size were mounted that were not before. libvirt looks for them when it starts.
  returned: always
  type: bool
units:
  description: The services that this module knows and the host has, name -> enabled and active.
  returned: always
  type: dict
"""
TUNED_PROFILE = "/etc/tuned/active_profile"
TUNED_MODE = "/etc/tuned/profile_mode"

# --- what is done


def settings_of(text: str) -> dict[str, str]:
    """The keys and values of a file of sysctl.d."""
    lines = [line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith(("#", ";"))]
    return {key.strip(): value.strip() for key, value in lines}


class Work:
    """One run: what it changes, and what it would have to."""

    def __init__(self, host: Host, record: Record, *, live: bool, check: bool) -> None:
        self.host, self.record, self.live, self.check = host, record, live, check
        self.before: dict[str, str] = {}
        self.after: dict[str, str] = {}
        self.texts: list[tuple[str, str, str]] = []
        self.pending: list[str] = []
        self.mounted = False

    @property
    def changed(self) -> bool:
        return bool(self.before or self.texts)

    def change(self, what: str, before: str, after: str) -> bool:
        """Notes a difference for the report. Whether it is to be made."""
        self.before[what], self.after[what] = before, after
        return not self.check

    def knob(self, path: str, value: str, *, note: bool = True) -> None:
        """A file of /sys that has one value."""
        now = selected(self.host.read(path))
        if note:
            self.record.note("sysfs", path, now)
        if now != value and self.change(path, now, value):
            self.record.save()
            self.host.set(path, value)

    def pages(self, path: str, value: str) -> None:
        """Hugepages, of which the kernel may give fewer."""
        folder, wanted = os.path.dirname(path), int(value)
        now = reserved(self.host, folder)
        self.record.note("sysfs", path, str(now))
        if now == wanted:
            return
        if not self.check:
            self.record.save()
            for _ in range(2):  # once more when memory was moved together
                self.host.set(path, value)
                if reserved(self.host, folder) >= wanted:
                    break
                if self.host.exists("/proc/sys/vm/compact_memory"):
                    self.host.set("/proc/sys/vm/compact_memory", "1")
            got = reserved(self.host, folder)
            if got < wanted:
                size = spelled(int(folder.rsplit("-", 1)[1][:-2]))
                at_boot = f"hugepagesz={size}" in self.host.read("/proc/cmdline").split()
                why = "no more was whole even at boot, ask for fewer" if at_boot else "a reboot settles it"
                self.pending.append(f"{got} of {wanted} pages of {size} are reserved, memory is fragmented: {why}")
            wanted = got
        if now != wanted:
            self.change(path, str(now), str(wanted))

    def merge(self, value: str) -> None:
        """KSM. Off also means that pages which are merged are merged no longer, where there is memory for that."""
        now = selected(self.host.read(KSM_RUN))
        sharing = int(self.host.read(f"{MM}/ksm/pages_sharing") or 0) * 4
        self.record.note("sysfs", KSM_RUN, now)
        if value == "0" and sharing and now != "2":
            if sharing <= memory_kib(self.host, "MemAvailable") - own_share_kib(self.host):
                value = "2"
            else:
                self.pending.append(
                    f"{amount(sharing)} stay merged by KSM: end guests, there is no memory to part them"
                )
        if value == "0" and now == "2":
            return  # off, and nothing is merged
        self.knob(KSM_RUN, value)

    def setting(self, key: str, value: str, *, note: bool = True) -> None:
        """A sysctl."""
        path = sysctl_path(key)
        if not self.host.exists(path):
            if not (key in BRIDGE and value == "0"):  # without the module, nothing passes the firewall
                self.pending.append(f"{key} does not exist until its module is loaded")
            return
        now = " ".join(self.host.read(path).split())
        if note:
            self.record.note("sysctl", key, now)
        if now != value and self.change(key, now, value):
            self.record.save()
            self.host.set(path, value)

    def file(self, path: str, text: str | None, mode: int = 0o644) -> bool:
        """A file of ours. Whether it is to be written."""
        now = self.host.read(path) if self.host.exists(path) else None
        if now == text:
            return False
        self.texts.append((path, now or "", text or ""))
        if not self.check:
            self.record.save()
            self.host.write(path, text, mode)
        return not self.check

    def unit(self, name: str, now: dict[str, bool], wanted: dict[str, bool]) -> None:
        """Enables and starts a service, or the opposite. A container's own services are not started."""
        for key, verbs in (("enabled", ("disable", "enable")), ("active", ("stop", "start"))):
            if now[key] != wanted[key] and (key == "enabled" or self.live):
                words = [f"{'' if state else 'not '}{key}" for state in (now[key], wanted[key])]
                if self.change(f"{name} {key}", *words):
                    self.record.save()
                    self.host.call("systemctl", verbs[wanted[key]], name)


def settle(
    host: Host, record: Record, wish: Wish, *, live: bool = True, check: bool = False, units_before: Any = None
) -> Any:
    """Makes the host what is asked for. With `check`, only says what would have to be done.

    Raises:
        TuningError: the host cannot be that, or something complained.
    """
    wrong = problems(host, wish, live=live)
    if wrong:
        raise TuningError("\n".join(wrong))
    work = Work(host, record, live=live, check=check)
    known = units(host) if wish.services() or set(SERVICES) & set(record.names("unit")) else {}
    _services(work, wish, known, known if units_before is None else units_before)
    if live:
        _live_values(work, wish)
    _files(work, wish)
    if live:
        _mounts(work, wish)
    return {
        "changed": work.changed,
        "would_change": work.changed,
        "pending": work.pending,
        "arguments": arguments(host, wish),
        "files": {
            path: {"sha256": hashlib.sha256(text.encode()).hexdigest(), "mode": 0o644}
            for path, text in files(host, wish).items()
        },
        "contract": wish.contract(),
        "mounted": work.mounted,
        "units": known,
        "diff": [
            *({"before_header": p, "after_header": p, "before": old, "after": new} for p, old, new in work.texts),
            {"before_header": "live", "after_header": "live", "before": lines(work.before), "after": lines(work.after)},
        ],
    }


def lines(values: dict[str, str]) -> str:
    return "".join(f"{key} = {values[key]}\n" for key in sorted(values))


def _services(work: Work, wish: Wish, known: Any, before: Any) -> None:
    """ksmtuned and tuned, with the profile. Those that packages will bring are missing in check mode."""
    wanted, record = wish.services(), work.record
    for name in sorted(wanted, reverse=True):  # ksmtuned goes before ksm
        if name in known:
            record.note("unit", name, before.get(name))
            work.unit(name, known[name], dict.fromkeys(("enabled", "active"), wanted[name]))
        elif wanted[name]:
            if not work.check:
                raise TuningError(f"This host has no {name}. Install the package {name.split('.')[0]}.")
            work.change(f"{name} enabled", "absent", "enabled")
    if wish.tuned_profile:
        _tuned(work, wish.tuned_profile)
    elif record.holds("tuned", "profile"):
        _give_back_tuned(work, record.before("tuned", "profile"))
    for name in [name for name in record.names("unit") if name in SERVICES and name not in wanted]:
        if name in known:
            work.unit(name, known[name], record.before("unit", name) or {"enabled": False, "active": False})
        record.forget("unit", name)


def _tuned(work: Work, profile: str) -> None:
    now = {key: work.host.read(path).strip() for key, path in (("profile", TUNED_PROFILE), ("mode", TUNED_MODE))}
    work.record.note("tuned", "profile", now)
    if now != {"profile": profile, "mode": "manual"} and work.change("profile of tuned", now["profile"], profile):
        work.record.save()
        _choose_profile(work, profile, "manual")


def _give_back_tuned(work: Work, before: Any) -> None:
    if work.host.which("tuned-adm") and work.change("profile of tuned", "ours", before["profile"] or "its own choice"):
        _choose_profile(work, before["profile"], before["mode"])
    work.record.forget("tuned", "profile")


def _choose_profile(work: Work, profile: str, mode: str) -> None:
    """A container's daemon must not touch the kernel, so it only gets what it would find at its next start."""
    if work.live:
        work.host.call("tuned-adm", *(("profile", profile) if mode == "manual" and profile else ("auto_profile",)))
    else:
        work.host.write(TUNED_PROFILE, f"{profile}\n")
        work.host.write(TUNED_MODE, f"{mode}\n")


def _live_values(work: Work, wish: Wish) -> None:
    """Given back first: that may free the memory for what is asked for."""
    host, record = work.host, work.record
    values, settings = knobs(host, wish), wish.settings()
    for path in [path for path in record.names("sysfs") if path not in values]:
        if host.exists(path):
            work.knob(path, record.before("sysfs", path), note=False)
        record.forget("sysfs", path)
    for key in [key for key in settings_of(host.read(SYSCTL_FILE)) if key not in settings]:
        if record.holds("sysctl", key):
            work.setting(key, record.before("sysctl", key), note=False)
            record.forget("sysctl", key)
    pages = {path: value for path, value in values.items() if path.endswith("/nr_hugepages")}
    for path in sorted(pages, key=lambda path: int(pages[path]) - reserved(host, os.path.dirname(path))):
        work.pages(path, pages[path])
    for path, value in values.items():
        if path == KSM_RUN:
            work.merge(value)
        elif path not in pages:
            work.knob(path, value)
    for key, value in settings.items():
        work.setting(key, value)


def _files(work: Work, wish: Wish) -> None:
    """The files, and the links that start their units."""
    host, record, wanted = work.host, work.record, files(work.host, wish)
    reload = False
    for path in [path for path in record.names("file") if is_ours(path) and path not in wanted]:
        before = record.before("file", path)
        if path.startswith(UNITS) and not work.check:
            _remove_unit(work, os.path.basename(path))
        reload |= work.file(path, before and before["content"]) and path.startswith(UNITS)
        record.forget("file", path)
    for path, text in wanted.items():
        record.note("file", path, state(host, path))
        reload |= work.file(path, text) and path.startswith(UNITS)
    if reload:
        host.call("systemctl", "daemon-reload")
    for name in sorted(os.path.basename(path) for path in wanted if path.startswith(UNITS)):
        if not host.find(f"{UNITS}/*.wants/{name}") and work.change(f"{name} enabled", "not enabled", "enabled"):
            host.call("systemctl", "enable", name)


def is_ours(path: str) -> bool:
    return path in (SYSCTL_FILE, UDEV_FILE, f"{UNITS}/{UNIT}") or path.startswith(f"{UNITS}/dev-hugepages")


def _remove_unit(work: Work, name: str) -> None:
    """A mount that a guest uses stays mounted until the next boot."""
    work.host.run(["systemctl", "disable", name])
    if work.live:
        work.host.run(["systemctl", "stop", name])


def state(host: Host, path: str) -> Any:
    """A file as it is, for the record; None where there is none."""
    if not host.exists(path):
        return None
    found = os.stat(host.root + path)
    return {"content": host.read(path), "mode": found.st_mode & 0o7777, "owner": found.st_uid, "group": found.st_gid}


def _mounts(work: Work, wish: Wish) -> None:
    """libvirt hands pages to guests through a mount of their size."""
    host, sizes = work.host, page_sizes(work.host)
    mounted = {line.split()[1] for line in host.read("/proc/mounts").splitlines() if " hugetlbfs " in line}
    for size in sorted({page["size"] for page in wish.hugepages}):
        name = "" if sizes[size] == memory_kib(host, "Hugepagesize") else size
        if f"/dev/hugepages{name}" not in mounted:
            work.mounted = True
            if work.change(f"/dev/hugepages{name}", "not mounted", "mounted"):
                host.call("systemctl", "start", mount_unit(name))


# --- Ansible's side


CHOICES = {
    "ksm": ["keep", "disabled", "enabled", "ksmtuned"],
    "bridge_netfilter": ["keep", "bypass", "filter"],
    "iommu": ["keep", "enabled", "passthrough"],
}
PAGES = {"size": {"type": "str", "required": True}, "pages": {"type": "int", "required": True}, "node": {"type": "int"}}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "hugepages": {"type": "list", "elements": "dict", "default": [], "options": PAGES},
            "thp": {"type": "dict", "default": {}},
            "sysctls": {"type": "dict", "default": {}},
            **{name: {"type": "str", "choices": words, "default": "keep"} for name, words in CHOICES.items()},
            **{name: {"type": "str", "default": ""} for name in ("governor", "tuned_profile", "isolated_cpus")},
            "kernel_arguments": {"type": "list", "elements": "str", "default": []},
            "live": {"type": "bool", "default": True},
            "units_before": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    host = Host(run=commands.run, which=commands.which)
    wish = Wish(**{name: module.params[name] for name in Wish._fields})
    try:
        with open_record(check=module.check_mode) as record:
            result = settle(
                host,
                record,
                wish,
                live=module.params["live"],
                check=module.check_mode,
                units_before=module.params["units_before"],
            )
    except (TuningError, RecordError) as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
