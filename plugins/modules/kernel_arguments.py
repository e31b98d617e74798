#!/usr/bin/python
"""Hands arguments to the kernel of the next boot, through the tools of the bootloader that the host has.

Only what was added here is ever removed: a record on the host says which arguments those are.
"""

from __future__ import annotations

import glob
import json
import os
import re
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.kvmfleet.host.plugins.module_utils import commands

DOCUMENTATION = """
module: kernel_arguments
short_description: Hands arguments to the kernel of the next boot
description:
  - The arguments go through the tools of the bootloader that the host has.
  - A record on the host says which were added here. Only those are ever removed.
author:
  - kvmfleet developers (@kvmfleet)
options:
  arguments:
    description: What the kernel's command line should have. What was added before and is not named here is removed.
    type: list
    elements: str
    required: true
"""

EXAMPLES = """
- name: Hand the IOMMU to guests from the next boot on
  kvmfleet.host.kernel_arguments:
    arguments: [intel_iommu=on, iommu=pt]
"""

RETURN = """
loader:
  description: The bootloader's name, such as grub, or "" where none was found.
  returned: always
  type: str
added:
  description: Those of the arguments that are there because of this module.
  returned: always
  type: list
  elements: str
pending:
  description: What only a reboot settles, one sentence each.
  returned: always
  type: list
  elements: str
refused:
  description: What no reboot settles, one sentence each.
  returned: always
  type: list
  elements: str
"""

RECORD = "/etc/kvmfleet/kernel-arguments.json"
HEADER = "# Written by kvmfleet, role kernel_modules. Changes made here are lost.\n"
BEGIN = "# BEGIN kvmfleet: changes made inside are lost"
END = "# END kvmfleet"


GRUB = "/etc/default/grub"
GRUB_DROPIN = "/etc/default/grub.d/zz-kvmfleet.cfg"  # sorts after what assigns instead of adding
GRUB_CFG = "/boot/grub/grub.cfg"
GRUB2_CFG = "/boot/grub2/grub.cfg"
CMDLINE = "/etc/kernel/cmdline"
KERNEL_INSTALL = "kernel-install add {release} {image}"
SDBOOT = "/boot/loader/loader.conf /efi/loader/loader.conf /boot/efi/loader/loader.conf"
EXTLINUX_SOURCE = "/etc/update-extlinux.conf"
EXTLINUX_CONF = "/boot/extlinux.conf"


class Loader(NamedTuple):
    """One way to the next boot's arguments. Words are separated by spaces."""

    name: str
    commands: str  # all of them must be there
    places: str  # one of them must be there
    source: str  # the file with the arguments, "" where a command keeps them
    form: str  # how they are in it, see FORMS
    refresh: str = ""  # makes the next boot read the source; with {release} and {image} once for each kernel
    result: str = ""  # what the loader then reads, where we can tell


LOADERS = (  # The first that fits a host is its way.
    Loader("grubby", "grubby", "/boot/loader/entries /boot/grub2", "", "grubby"),
    Loader("sdbootutil", "sdbootutil", CMDLINE, CMDLINE, "words", "sdbootutil update-all-entries"),
    Loader("systemd-boot", "bootctl kernel-install", SDBOOT, CMDLINE, "words", KERNEL_INSTALL),
    Loader(
        "extlinux", "update-extlinux", EXTLINUX_SOURCE, EXTLINUX_SOURCE, "extlinux", "update-extlinux", EXTLINUX_CONF
    ),
    Loader("grub", "update-grub", GRUB_CFG, GRUB, "block", "update-grub", GRUB_CFG),
    Loader("grub", "grub2-mkconfig", GRUB2_CFG, GRUB, "block", f"grub2-mkconfig -o {GRUB2_CFG}", GRUB2_CFG),
    Loader("grub", "grub-mkconfig", GRUB_CFG, GRUB, "block", f"grub-mkconfig -o {GRUB_CFG}", GRUB_CFG),
)
NO_LOADER = (
    "No bootloader was found that could hand {} to the kernel: no grubby, systemd-boot, sdbootutil, update-extlinux or "
    "GRUB with its grub.cfg. Give the kernel its arguments where this machine gets its kernel from (a hypervisor's "
    "direct kernel boot, PXE, firmware), and take them out of kernel_modules_cmdline."
)
NOT_FROM_HERE = (
    "{} was handed to {} before the last boot and is not active: this machine gets its kernel's arguments from "
    "somewhere else. Set them there, and take them out of kernel_modules_cmdline."
)


class ArgumentsError(Exception):
    """What cannot be done, and what to do about it."""


class Host(NamedTuple):
    """Where this touches the host; tests put something else there. `run` gives an exit code, output and complaint."""

    root: str = ""
    run: Any = commands.run
    which: Any = commands.which

    def read(self, path: str) -> str:
        """The text of a file, "" where there is none."""
        try:
            with open(self.root + path) as stream:
                return stream.read()
        except FileNotFoundError:
            return ""

    def exists(self, path: str) -> bool:
        return os.path.exists(self.root + path)

    def write(self, path: str, text: str) -> None:
        """Whole or not at all. An empty text removes the file."""
        if not text:
            if self.exists(path):
                os.unlink(self.root + path)
            return
        os.makedirs(os.path.dirname(self.root + path), 0o755, exist_ok=True)
        with open(self.root + path + ".kvmfleet", "w") as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(text)
        os.replace(stream.name, self.root + path)

    def call(self, argv: list[str]) -> str:
        """The output. Raises ArgumentsError when the command complains."""
        code, out, complaint = self.run(argv)
        if code:
            raise ArgumentsError(f"`{' '.join(argv)}` ended with {code}: {complaint.strip() or out.strip()}")
        return str(out)


class Record(NamedTuple):
    """What earlier runs did. `boot_id` is that of the last change: what was dropped then is gone after a boot."""

    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    boot_id: str = ""
    refreshed: bool = True  # False while a run is between the source and the bootloader


def recall(host: Host) -> Record:
    text = host.read(RECORD)
    if not text:
        return Record()
    try:
        found = json.loads(text)
        return Record(tuple(found["added"]), tuple(found["dropped"]), found["boot_id"], found["refreshed"])
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentsError(f"{RECORD} is damaged. Remove it, and by hand what it held.") from error


def choose(host: Host) -> Loader | None:
    """The first row of LOADERS that fits."""
    for loader in LOADERS:
        if all(map(host.which, loader.commands.split())) and any(map(host.exists, loader.places.split())):
            return _grub(host, loader) if loader.form == "block" else loader
    return None


def _grub(host: Host, loader: Loader) -> Loader:
    """A file of our own where this GRUB reads one, which Debian's does and others do not."""
    mkconfig = host.which("grub-mkconfig") or host.which("grub2-mkconfig") or ""
    if "default/grub.d" in host.read(mkconfig):
        return loader._replace(source=GRUB_DROPIN, form="dropin")
    return loader


# --- the forms of a source: the arguments that others put there, and the text with ours


def dropin(_text: str, owned: Any, _drop: Any) -> str:
    return HEADER + _assignment(owned) if owned else ""


def block(text: str, owned: Any, _drop: Any) -> str:
    """At the end of a file that a shell reads. The distribution's own lines stay as they are."""
    rest = re.sub(f"^{re.escape(BEGIN)}\n.*?^{re.escape(END)}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    if not owned:
        return rest
    return f"{rest}{'' if rest.endswith(chr(10)) or not rest else chr(10)}{BEGIN}\n{_assignment(owned)}{END}\n"


def _assignment(owned: Any) -> str:
    return f'GRUB_CMDLINE_LINUX="${{GRUB_CMDLINE_LINUX}} {" ".join(owned)}"\n'


def words(text: str, owned: Any, drop: Any) -> str:
    """Plain words. Lines with a comment stay as they are."""
    comments = [line for line in text.splitlines() if line.startswith("#")]
    return "".join(f"{line}\n" for line in [*comments, _edited(" ".join(said(text)), owned, drop)])


def extlinux(text: str, owned: Any, drop: Any) -> str:
    """The words in default_kernel_opts="…"."""
    if not EXTLINUX.search(text):
        return f'{text}default_kernel_opts="{" ".join(owned)}"\n' if owned else text
    return EXTLINUX.sub(lambda found: f'{found[1]}"{_edited(found[2], owned, drop)}"', text)


EXTLINUX = re.compile(r'^(default_kernel_opts=)"?([^"\n]*)"?$', re.MULTILINE)


def _edited(present: str, owned: Any, drop: Any) -> str:
    kept = [word for word in present.split() if word not in drop]
    return " ".join([*kept, *(word for word in owned if word not in kept)])


def said(text: str) -> list[str]:
    """The words of a file, without its comments."""
    return [word for line in text.splitlines() if not line.startswith("#") for word in line.split()]


FORMS = {
    # form: (words that are in the source beside ours, the source with ours)
    "dropin": (lambda text: [], dropin),
    "block": (lambda text: [], block),
    "words": (said, words),
    "extlinux": (lambda text: [word for found in EXTLINUX.finditer(text) for word in found[2].split()], extlinux),
}


# --- what is to be done


def settle(host: Host, wanted: Any, *, check: bool = False) -> Any:
    """Makes the next boot have `wanted`. With `check`, only says whether it would have to.

    Raises:
        ArgumentsError: there is no bootloader, or it complained.
    """
    loader = choose(host)
    if loader is None:
        if wanted:
            raise ArgumentsError(NO_LOADER.format(" ".join(wanted)))
        return {"changed": False, "loader": "", "added": [], "pending": [], "refused": []}
    boot_id, live = host.read(BOOT_ID).strip(), host.read("/proc/cmdline").split()
    record = recall(host)
    before = record.dropped if record.boot_id == boot_id else ()
    dropped = tuple(word for word in dict.fromkeys((*record.added, *before)) if word not in wanted)
    apply = _through_grubby if loader.form == "grubby" else _through_source
    added, changed = apply(host, loader, record, wanted, dropped, boot_id, check)
    moment = record.boot_id if not changed and record.boot_id else boot_id
    absent = [word for word in wanted if word not in live]
    return {
        "changed": changed,
        "loader": loader.name,
        "added": list(added),
        "pending": [f"{word} is not active" for word in absent if moment == boot_id]
        + [f"{word} is still active" for word in dropped if word in live],
        "refused": [NOT_FROM_HERE.format(word, loader.name) for word in absent if moment != boot_id],
    }


def _through_source(
    host: Host, loader: Loader, record: Record, wanted: Any, dropped: Any, boot_id: str, check: bool
) -> tuple[Any, bool]:
    foreign, edit = FORMS[loader.form]
    text = host.read(loader.source) or (_first_words(host) if loader.form == "words" else "")
    added = tuple(word for word in wanted if word in record.added or word not in foreign(text))
    after = edit(text, added, dropped)
    ours = bool(added or dropped) or loader.form == "dropin"
    changed = (ours and after != host.read(loader.source)) or not record.refreshed or not _has(host, loader, wanted)
    if changed and not check:
        _remember(host, Record(added, dropped, boot_id, False))
        host.write(loader.source, after)
        for argv in _commands(host, loader):
            host.call(argv)
        if not _has(host, loader, wanted):
            raise ArgumentsError(
                f"`{loader.refresh}` read {loader.source}, but {loader.result} has no entry with "
                f"{' '.join(wanted)}. Look at both files."
            )
        _remember(host, Record(added, dropped, boot_id))
    return added, changed


def _through_grubby(
    host: Host, loader: Loader, record: Record, wanted: Any, dropped: Any, boot_id: str, check: bool
) -> tuple[Any, bool]:
    """grubby keeps the arguments of every entry, and those for kernels to come."""
    entries = [found.split() for found in re.findall(r'^args="(.*)"$', host.call(["grubby", "--info=ALL"]), re.M)]
    lacking = [word for word in wanted if not all(word in entry for entry in entries)]
    surplus = [word for word in dropped if any(word in entry for entry in entries)]
    added = tuple(word for word in wanted if word in record.added or word in lacking)
    changed = bool(lacking or surplus)
    if changed and not check:
        _remember(host, Record(added, dropped, boot_id))
        options = [f"--args={' '.join(lacking)}"] * bool(lacking) + [f"--remove-args={' '.join(surplus)}"] * bool(
            surplus
        )
        host.call(["grubby", "--update-kernel=ALL", *options])
    return added, changed


def _first_words(host: Host) -> str:
    """What kernel-install(8) takes where there is no /etc/kernel/cmdline yet."""
    given = ("BOOT_IMAGE=", "initrd=", "systemd.machine_id=")
    live = " ".join(word for word in host.read("/proc/cmdline").split() if not word.startswith(given))
    return host.read("/usr/lib/kernel/cmdline") or live


def _has(host: Host, loader: Loader, wanted: Any) -> bool:
    """Whether the first entry, which is the default or as good as it, has every word. True where nobody can tell."""
    if not loader.result:
        return True
    entry = re.search(r"^\s*(?:linux(?:16|efi)?|append)\s(.*)$", host.read(loader.result), re.M | re.I)
    return not wanted or bool(entry and set(wanted) <= set(entry[1].split()))


def _commands(host: Host, loader: Loader) -> Any:
    if "{release}" not in loader.refresh:
        yield loader.refresh.split()
        return
    for folder in sorted(glob.glob(f"{host.root}/lib/modules/*")):
        release = os.path.basename(folder)
        images = [path for path in (f"/lib/modules/{release}/vmlinuz", f"/boot/vmlinuz-{release}") if host.exists(path)]
        if images:
            yield loader.refresh.format(release=release, image=images[0]).split()


def _remember(host: Host, record: Record) -> None:
    host.write(RECORD, json.dumps(record._asdict(), indent=2, sort_keys=True) + "\n")


BOOT_ID = "/proc/sys/kernel/random/boot_id"


def main() -> None:
    module = AnsibleModule(
        argument_spec={"arguments": {"type": "list", "elements": "str", "required": True}}, supports_check_mode=True
    )
    try:
        result = settle(Host(), module.params["arguments"], check=module.check_mode)
    except ArgumentsError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=f"{error.filename}: {error.strerror}")
    for sentence in result["refused"]:
        module.warn(sentence)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
