#!/usr/bin/python
"""Makes loaded kernel modules have the options that modprobe.d has for them, where that is possible without a reboot.

A module is unloaded only when nothing uses it, by the kernel's own count, and no guest runs. What was loaded before is
loaded again, whatever happens in between.
"""

from __future__ import annotations

import glob
import os
import re
import subprocess
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: kernel_module_options
short_description: Makes loaded kernel modules have their options
description:
  - The files below /etc/modprobe.d must have the options already. This makes them live where that is possible.
author:
  - kvmfleet developers (@kvmfleet)
options:
  options:
    description: Module -> option -> value, as in modprobe.d.
    type: dict
    required: true
  arguments:
    description: Kernel arguments of the next boot. The options of a module that is built in are among them or nowhere.
    type: list
    elements: str
    default: []
  allow_disruption:
    description: Whether to try a reload while guests run. The kernel still refuses for a module that is in use.
    type: bool
    default: false
"""

EXAMPLES = """
- name: Let guests have guests of their own
  kvmfleet.host.kernel_module_options:
    options:
      kvm_intel: {nested: 1}
"""

RETURN = """
written:
  description: Options that the kernel took at run time.
  returned: always
  type: list
  elements: str
reloaded:
  description: Modules that were unloaded and loaded again.
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


class LoadError(Exception):
    """A module that was loaded before does not load again."""


class Kernel(NamedTuple):
    """Where this touches the host; tests put something else there. `run` gives an exit code and what was said."""

    sys_module: str = "/sys/module"
    proc: str = "/proc"
    run: Any = None

    def live(self, module: str, option: str) -> str | None:
        """The value as the kernel prints it, or None where the option is not shown: then nobody can compare it."""
        return read(f"{self.sys_module}/{module}/parameters/{option}")

    def loaded(self, module: str) -> bool:
        """Only a module that is neither absent nor built in has an initstate."""
        return os.path.exists(f"{self.sys_module}/{module}/initstate")

    def holders(self, module: str) -> list[str]:
        """The modules that use this one."""
        return sorted(os.path.basename(path) for path in glob.glob(f"{self.sys_module}/{module}/holders/*"))

    def users(self, module: str) -> int:
        """How many use it beside other modules: open devices, guests, interfaces."""
        return int(read(f"{self.sys_module}/{module}/refcnt") or 0) - len(self.holders(module))

    def write(self, module: str, option: str, value: str) -> bool:
        """Whether the kernel took the value. It says no to what it does not understand."""
        path = f"{self.sys_module}/{module}/parameters/{option}"
        try:
            with open(path, "w") as stream:
                stream.write(value)
        except OSError:
            return False
        return True

    def writable(self, module: str, option: str) -> bool:
        """By its mode: root may open what it cannot write."""
        return bool(os.stat(f"{self.sys_module}/{module}/parameters/{option}").st_mode & 0o200)

    def guests(self) -> list[str]:
        """The processes that hold a virtual machine of KVM, as "PID NAME"."""
        held = {path.split("/")[-3] for path in glob.glob(f"{self.proc}/[0-9]*/fd/*") if link(path) == KVM_VM}
        return [f"{pid} {read(f'{self.proc}/{pid}/comm') or '?'}" for pid in sorted(held, key=int)]


KVM_VM = "anon_inode:kvm-vm"


def read(path: str) -> str | None:
    try:
        with open(path) as stream:
            return stream.read().strip()
    except OSError:
        return None


def link(path: str) -> str:
    """Where a symbolic link leads; "" for one that has just gone."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def plain(value: str) -> str:
    """One spelling for what the kernel prints in several ways: Y is 1, 0x10 is 16, and quotes are modprobe.d's."""
    bare = {"y": "1", "n": "0"}.get(value.strip('"').lower(), value.strip('"'))
    return str(int(bare, 0)) if re.match(r"(0[xX][0-9a-fA-F]+|[1-9][0-9]*|0)$", bare) else bare


def stale(kernel: Kernel, wishes: Any) -> list[tuple[str, str, str]]:
    """Module, option and wished value of what is live with another value."""
    return [
        (module, option, value)
        for module, options in sorted(wishes.items())
        for option, value in sorted(options.items())
        if (live := kernel.live(module, option)) is not None and plain(live) != plain(value)
    ]


def with_dependents(kernel: Kernel, module: str) -> list[str]:
    """The module and what stands on it, in the order in which they can be unloaded."""
    above: list[str] = []
    for holder in kernel.holders(module):
        above += [name for name in with_dependents(kernel, holder) if name not in above]
    return [*above, module]


def settle(kernel: Kernel, wishes: Any, *, arguments: Any = (), disrupt: bool = False, check: bool = False) -> Any:
    """What was done, and what could not be. With `check`, what would be.

    Raises:
        LoadError: a module was unloaded and does not load with its options.
    """
    before = stale(kernel, wishes)
    was = {wish[:2]: kernel.live(*wish[:2]) for wish in before}
    written = [wish for wish in before if kernel.writable(*wish[:2]) and (check or kernel.write(*wish))]
    rest = [wish for wish in before if wish not in written]
    reloaded, hindered = reload_all(kernel, {module for module, _, _ in rest}, was, disrupt=disrupt, check=check)
    if check:
        rest = [wish for wish in rest if wish[0] not in reloaded]
        changed = bool(written or reloaded)
    else:
        rest = stale(kernel, wishes)
        changed = was != {key: kernel.live(*key) for key in was}
    pending, refused = explain(kernel, rest, hindered, arguments)
    return {
        "changed": changed,
        "written": [f"{module}.{option}" for module, option, _ in written],
        "reloaded": reloaded,
        "pending": pending,
        "refused": refused,
    }


def reload_all(
    kernel: Kernel, modules: set[str], was: Any, *, disrupt: bool, check: bool
) -> tuple[list[str], dict[str, str]]:
    """The modules that were loaded anew, and what hindered the others.

    What carries others goes first: loading kvm anew does the same for kvm_amd.
    """
    guests = kernel.guests()
    reloaded: list[str] = []
    hindered: dict[str, str] = {}
    for module in sorted(modules, key=lambda name: (-len(with_dependents(kernel, name)), name)):
        if module in reloaded or not kernel.loaded(module):
            continue
        order = with_dependents(kernel, module)
        used = [name for name in order if kernel.users(name) > 0]
        if guests and not disrupt:
            why = f"guests run ({', '.join(guests[:5])}{', ...' if len(guests) > 5 else ''})"
        elif used:
            why = f"{', '.join(used)} is in use"
        else:
            why = "" if check else reload(kernel, order, was)
        if why:
            hindered[module] = why
        else:
            reloaded += order
    return reloaded, hindered


def explain(kernel: Kernel, rest: Any, hindered: Any, arguments: Any) -> tuple[list[str], list[str]]:
    """What a reboot settles, and what it does not, in sentences."""
    pending, refused = [], []
    for module, option, value in rest:
        seen, argument = (
            f"{module}.{option} is {kernel.live(module, option)}, not {value}",
            f"{module}.{option}={value}",
        )
        if module in hindered:
            pending.append(f"{seen}: {hindered[module]}")
        elif kernel.loaded(module):
            refused.append(f"{seen}, although the module was loaded anew. The kernel's log (dmesg) may say why.")
        elif argument in arguments:
            pending.append(f"{seen}: {module} is built into the kernel")
        else:
            refused.append(f"{seen}: {module} is built into the kernel. Add {argument} to kernel_modules_cmdline.")
    return pending, refused


def reload(kernel: Kernel, order: list[str], was: Any) -> str:
    """Why the modules could not be unloaded, or "" when they are loaded anew. `was` are the values to go back to."""
    gone: list[str] = []
    why = ""
    for name in order:
        code, said = kernel.run(["rmmod", name])
        if code:
            why = said or f"rmmod {name} ended with {code}"
            break
        gone.append(name)
    code, said = kernel.run(["modprobe", "--all", *reversed(gone)]) if gone else (0, "")
    if code:
        for name in reversed(gone):
            # without modprobe.d, whose options are what the module refuses
            old = [f"{option}={value}" for (module, option), value in was.items() if module == name]
            kernel.run(["modprobe", "--config", "/dev/null", name, *old])
        raise LoadError(said)
    return why


def run(argv: list[str]) -> tuple[int, str]:
    # rmmod(8) and modprobe(8) end with 1 for every refusal and say why on stderr
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": path, "LC_ALL": "C"},
        check=False,
    )
    return done.returncode, done.stderr.decode(errors="replace").strip()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "options": {"type": "dict", "required": True},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "allow_disruption": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    wishes = {
        name: {option: str(value) for option, value in options.items()}
        for name, options in module.params["options"].items()
    }
    try:
        result = settle(
            Kernel(run=run),
            wishes,
            arguments=module.params["arguments"],
            disrupt=module.params["allow_disruption"],
            check=module.check_mode,
        )
    except LoadError as error:
        module.fail_json(
            msg=f"{error}. The module was loaded again without its options; correct them in kernel_modules_options. "
            "The kernel's log (dmesg) names the option that it does not take."
        )
    for sentence in result["refused"]:
        module.warn(sentence)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
