"""What SELinux and AppArmor must know about the folders of storage pools."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.kvmfleet.host.plugins.module_utils import storage_pools
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record
from ansible_collections.kvmfleet.host.plugins.module_utils.storage_host import PoolError
from ansible_collections.kvmfleet.host.plugins.module_utils.storage_settling import Change, Settling

LIBVIRT_IMAGES = "/var/lib/libvirt/images"  # every platform's labels and rules know this one
HELPER = "/etc/apparmor.d/usr.lib.libvirt.virt-aa-helper"
HELPER_LOCAL = "/etc/apparmor.d/local/usr.lib.libvirt.virt-aa-helper"
PATTERN = re.compile(r"[.^$*+?()\[\]{}|\\]")  # what means something in a regular expression
BEGIN = "# BEGIN kvmfleet storage: changes made inside are lost"
END = "# END kvmfleet storage"


def labelled(this: Settling) -> bool:
    """Whether there is a rule of ours."""
    return bool(this.record.names("selinux_fcontext")) or BEGIN in this.host.read(HELPER_LOCAL)


def settle_labels(this: Settling, pools: Iterable[Mapping[str, Any]]) -> None:
    """What SELinux or AppArmor must know about folders that are not libvirt's own."""
    custom = [pool for pool in pools if storage_pools.holds_files(pool)]
    custom = [pool for pool in custom if not (storage_pools.path(pool) + "/").startswith(LIBVIRT_IMAGES + "/")]
    if this.host.read("/sys/fs/selinux/enforce"):
        _selinux(this, custom)
    if this.host.read("/sys/module/apparmor/parameters/enabled").strip() == "Y":
        _apparmor(this, sorted(storage_pools.path(pool) for pool in custom))


def _selinux(this: Settling, pools: list[Mapping[str, Any]]) -> None:
    """Volumes need virt_image_t. What comes over the network has no labels of its own, only a boolean."""
    labelled = [pool for pool in pools if storage_pools.kind(pool) != "netfs"]
    wanted = {PATTERN.sub(r"\\\g<0>", storage_pools.path(pool)) + "(/.*)?": pool for pool in labelled}
    present = (
        this.host.call(["semanage", "fcontext", "--list", "--locallist", "--noheading"])
        if (wanted or this.record.names("selinux_fcontext")) and (this.host.has("semanage") or not this.check)
        else ""
    )
    rules = {line.split()[0] for line in present.splitlines() if ":virt_image_t:" in line}
    for pattern, pool in wanted.items():
        if pattern in rules:
            continue
        change = Change(pool["name"])
        change.after = {"SELinux": f"{pattern} virt_image_t"}
        change.done.append("labelled")
        this.changes.append(change)
        this.record.note("selinux_fcontext", pattern)
        if not this.check:
            this.record.save()
            this.host.call(["semanage", "fcontext", "--add", "--type", "virt_image_t", pattern])
            try:
                this.host.call(["restorecon", "-R", storage_pools.path(pool)])
            except PoolError:  # the next run would find the rule, and be content
                this.host.run(["semanage", "fcontext", "--delete", pattern], "")
                raise
    for pattern in this.record.names("selinux_fcontext"):
        if pattern not in wanted:
            change = Change(pattern)
            change.before = {"SELinux": f"{pattern} virt_image_t"}
            change.done.append("label removed")
            this.changes.append(change)
            if not this.check and pattern in rules:
                this.host.call(["semanage", "fcontext", "--delete", pattern])
            this.record.forget("selinux_fcontext", pattern)
    if any(storage_pools.kind(pool) == "netfs" for pool in pools):
        _boolean(this, "virt_use_nfs")


def _boolean(this: Settling, name: str) -> None:
    code, said, _ = this.host.run(["getsebool", name], "")
    if code or said.strip().endswith("on"):  # a policy without that boolean lets QEMU do it anyway
        return
    change = Change("SELinux")
    change.before, change.after = {name: "off"}, {name: "on"}
    change.done.append(f"{name} on")
    this.changes.append(change)
    this.record.note("selinux_boolean", name, "off")
    if not this.check:
        this.record.save()
        this.host.call(["setsebool", "-P", name, "on"])


def _apparmor(this: Settling, paths: list[str]) -> None:
    """libvirt's helper reads the head of each image to find what is behind it, and writes each guest a profile with
    its own images alone. So the helper needs to read there, and no guest needs more than it gets."""
    text = this.host.read(HELPER_LOCAL)
    rest = re.sub(f"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    rules = "".join(f'"{path}/" r,\n"{path}/**" r,\n' for path in paths)
    after = f"{rest}{BEGIN}\n{rules}{END}\n" if paths else rest
    if after == text or not this.host.read(HELPER):
        return
    change = Change(HELPER_LOCAL)
    change.texts = (text, after)
    change.done.append("written")
    this.changes.append(change)
    if not this.check:
        replace(this.record, this.host.root + HELPER_LOCAL, after)
        if this.host.has("apparmor_parser"):  # or no profile is loaded: a kernel with AppArmor, without its package
            try:
                this.host.call(["apparmor_parser", "--replace", HELPER])
            except PoolError:  # the next run would find the lines, and be content
                replace(this.record, this.host.root + HELPER_LOCAL, text)
                raise


def replace(record: Record, path: str, text: str) -> None:
    """A whole file, with a note of what it was."""
    try:
        with open(path) as stream:
            state = os.fstat(stream.fileno())
            before: Any = {
                "content": stream.read(),
                "mode": f"{stat.S_IMODE(state.st_mode):04o}",
                "owner": state.st_uid,
                "group": state.st_gid,
            }
    except FileNotFoundError:
        before = None
    record.note("file", path, before)
    record.save()
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(path + ".kvmfleet", "w") as stream:
        os.fchmod(stream.fileno(), 0o644)
        stream.write(text)
    os.replace(path + ".kvmfleet", path)
