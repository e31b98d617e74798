"""What the role kernel_modules does to a kernel and to a bootloader, on files and with commands that are ours."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ROLE = ROOT / "roles/kernel_modules"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"plugins/modules/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


arguments, options = load("kernel_arguments"), load("kernel_module_options")


# --- options of loaded modules


class Sysfs:
    """A kernel with kvm and kvm_amd on top of it. Its rmmod and modprobe do to the files what a kernel does."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []
        self.configured = {"kvm_amd": {"nested": "1"}, "kvm": {"halt_poll_ns": "200000", "mmu": "Y"}}
        self.refuses: set[str] = set()
        self.on_top = {"kvm": ["kvm_amd"]}
        for name in ("kvm", "kvm_amd"):
            self.insert(name)
        (root / "proc").mkdir()

    def insert(self, name: str, **given: str) -> None:
        folder = self.root / "sys" / name
        (folder / "parameters").mkdir(parents=True)
        (folder / "holders").mkdir()
        (folder / "initstate").write_text("live\n")
        (folder / "refcnt").write_text("0\n")
        for option, value in (self.configured.get(name, {}) | given).items():
            path = folder / "parameters" / option
            path.write_text(value + "\n")
            path.chmod(0o644 if option == "halt_poll_ns" else 0o444)
        for holders in (self.root / "sys").glob("*/holders"):
            for other in self.on_top.get(holders.parent.name, []):
                if (self.root / "sys" / other).exists():
                    (holders / other).touch()
                    (holders.parent / "refcnt").write_text("1\n")

    def use(self, name: str) -> None:
        path = self.root / "sys" / name / "refcnt"
        path.write_text(f"{int(path.read_text()) + 1}\n")

    def start_guest(self) -> None:
        (self.root / "proc/77/fd").mkdir(parents=True)
        (self.root / "proc/77/fd/9").symlink_to("anon_inode:kvm-vm")
        (self.root / "proc/77/comm").write_text("qemu-system-x86\n")

    def run(self, argv: list[str]) -> tuple[int, str]:
        self.calls.append(" ".join(argv))
        command, *rest = argv
        if command == "rmmod":
            if rest[0] in self.refuses:
                return 1, f"rmmod: ERROR: Module {rest[0]} is in use"
            subprocess.run(["rm", "-r", self.root / "sys" / rest[0]], check=True)
            for holder in (self.root / "sys").glob(f"*/holders/{rest[0]}"):
                holder.unlink()
                (holder.parents[1] / "refcnt").write_text("0\n")
            return 0, ""
        if rest[0] == "--config":
            self.insert(rest[2], **dict(word.split("=") for word in rest[3:]))
            return 0, ""
        for name in rest[1:]:
            if self.configured.get(name, {}).get("nested") == "maybe":
                return 1, f"modprobe: ERROR: could not insert '{name}': Invalid argument"
            self.insert(name)
        return 0, ""

    def settle(self, wishes: dict[str, dict[str, str]], **kwargs: Any) -> dict[str, Any]:
        kernel = options.Kernel(str(self.root / "sys"), str(self.root / "proc"), self.run)
        return dict(options.settle(kernel, wishes, **kwargs))

    def live(self, name: str, option: str) -> str:
        return (self.root / "sys" / name / "parameters" / option).read_text().strip()


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


OFF = {"kvm_amd": {"nested": "0"}}


def test_an_option_that_is_live_is_left_alone_however_the_kernel_spells_it(sysfs: Sysfs) -> None:
    done = sysfs.settle({"kvm_amd": {"nested": "1"}, "kvm": {"halt_poll_ns": "0x30d40", "mmu": "1"}})
    assert (done["changed"], sysfs.calls) == (False, [])


def test_a_module_that_nothing_uses_is_loaded_anew(sysfs: Sysfs) -> None:
    sysfs.configured |= OFF
    done = sysfs.settle(OFF)
    assert (done["changed"], done["reloaded"], done["pending"]) == (True, ["kvm_amd"], [])
    assert sysfs.calls == ["rmmod kvm_amd", "modprobe --all kvm_amd"]
    assert sysfs.live("kvm_amd", "nested") == "0"
    assert sysfs.settle(OFF)["changed"] is False


def test_what_stands_on_a_module_goes_before_it_and_comes_back_after_it(sysfs: Sysfs) -> None:
    sysfs.configured["kvm"]["mmu"] = "N"
    sysfs.configured |= OFF
    done = sysfs.settle({"kvm": {"mmu": "0"}} | OFF)
    assert sysfs.calls == ["rmmod kvm_amd", "rmmod kvm", "modprobe --all kvm kvm_amd"]
    assert (done["pending"], done["refused"]) == ([], [])
    assert (sysfs.live("kvm", "mmu"), sysfs.live("kvm_amd", "nested")) == ("N", "0")


def test_an_option_that_the_kernel_takes_at_run_time_is_written_also_while_guests_run(sysfs: Sysfs) -> None:
    sysfs.start_guest()
    done = sysfs.settle({"kvm": {"halt_poll_ns": "0"}})
    assert (done["changed"], done["written"], sysfs.calls) == (True, ["kvm.halt_poll_ns"], [])
    assert sysfs.live("kvm", "halt_poll_ns") == "0"


def test_while_a_guest_runs_no_module_is_unloaded_and_a_reboot_is_pending(sysfs: Sysfs) -> None:
    sysfs.configured |= OFF
    sysfs.start_guest()
    for _ in range(2):
        done = sysfs.settle(OFF)
        assert (done["changed"], sysfs.calls) == (False, [])
        assert done["pending"] == ["kvm_amd.nested is 1, not 0: guests run (77 qemu-system-x86)"]


def test_disruption_has_to_be_allowed(sysfs: Sysfs) -> None:
    sysfs.configured |= OFF
    sysfs.start_guest()
    assert sysfs.settle(OFF, disrupt=True)["reloaded"] == ["kvm_amd"]


def test_a_module_that_the_kernel_counts_as_used_stays_whatever_is_allowed(sysfs: Sysfs) -> None:
    sysfs.configured |= OFF
    sysfs.use("kvm_amd")
    done = sysfs.settle(OFF, disrupt=True)
    assert (sysfs.calls, done["pending"]) == ([], ["kvm_amd.nested is 1, not 0: kvm_amd is in use"])


def test_when_the_kernel_refuses_halfway_the_rest_is_put_back(sysfs: Sysfs) -> None:
    sysfs.configured["kvm"]["mmu"] = "N"
    sysfs.refuses = {"kvm"}
    done = sysfs.settle({"kvm": {"mmu": "0"}})
    assert sysfs.calls == ["rmmod kvm_amd", "rmmod kvm", "modprobe --all kvm_amd"]
    assert (done["changed"], done["pending"]) == (
        False,
        ["kvm.mmu is Y, not 0: rmmod: ERROR: Module kvm is in use"],
    )


def test_a_module_that_does_not_take_its_option_comes_back_with_the_old_one(sysfs: Sysfs) -> None:
    sysfs.configured["kvm_amd"] = {"nested": "maybe"}
    with pytest.raises(options.LoadError, match="Invalid argument"):
        sysfs.settle({"kvm_amd": {"nested": "maybe"}})
    assert sysfs.calls[-1] == "modprobe --config /dev/null kvm_amd nested=1"
    assert (sysfs.root / "sys/kvm_amd/initstate").exists()


def test_a_value_that_no_reload_brings_is_no_change_and_no_reason_to_reboot(sysfs: Sysfs) -> None:
    done = sysfs.settle(OFF)  # modprobe.d still says 1, as a processor that cannot do it would
    assert (done["changed"], done["pending"]) == (False, [])
    assert "kvm_amd.nested is 1, not 0, although" in done["refused"][0]


def test_a_module_that_is_built_in_needs_a_kernel_argument(sysfs: Sysfs) -> None:
    (sysfs.root / "sys/kvm_amd/initstate").unlink()
    assert "Add kvm_amd.nested=0 to kernel_modules_cmdline" in sysfs.settle(OFF)["refused"][0]
    done = sysfs.settle(OFF, arguments=["kvm_amd.nested=0"])
    assert (done["refused"], sysfs.calls) == ([], [])
    assert done["pending"] == ["kvm_amd.nested is 1, not 0: kvm_amd is built into the kernel"]


def test_an_option_that_the_kernel_does_not_show_and_an_absent_module_are_not_compared(sysfs: Sysfs) -> None:
    assert sysfs.settle({"kvm": {"hidden": "1"}, "kvm_intel": {"nested": "1"}})["changed"] is False


def test_check_mode_says_what_would_happen_and_does_nothing(sysfs: Sysfs) -> None:
    done = sysfs.settle(OFF | {"kvm": {"halt_poll_ns": "0"}}, check=True)
    assert (done["changed"], done["written"], done["reloaded"]) == (True, ["kvm.halt_poll_ns"], ["kvm_amd"])
    assert (done["pending"], done["refused"], sysfs.calls) == ([], [], [])
    assert sysfs.live("kvm", "halt_poll_ns") == "200000"


def looked(*question: str) -> dict[str, Any]:
    script = (ROLE / "files/look.sh").read_text()
    command = ["/bin/sh", "-s", "--", *question]
    said = subprocess.run(command, input=script, capture_output=True, text=True, check=True)
    return dict(json.loads(said.stdout))


SHOWN = next(
    (path for path in Path("/sys/module").glob("*/parameters/*") if options.read(str(path)) in ("Y", "N")), None
)


@pytest.mark.skipif(SHOWN is None, reason="this kernel shows no option that is on or off")
def test_a_look_at_the_host_tells_options_that_are_not_live() -> None:
    assert SHOWN
    option, on = f"{SHOWN.parts[3]}.{SHOWN.name}", options.read(str(SHOWN)) == "Y"
    assert looked(f"{option}={int(on)}", "no_such_module.nested=1")["stale"] is False
    assert looked(f"{option}={int(on)}", f"{option}={int(not on)}")["stale"] is True


# --- kernel arguments


class Machine:
    """A host below a folder: its bootloader's commands, and what they do to its files."""

    def __init__(self, root: Path, commands: str, **files: str) -> None:
        self.root, self.commands, self.calls = root, commands.split(), []
        self.entries = ["ro quiet", "ro"]  # grubby's
        self.put("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro quiet\n")
        self.boot("first")
        for path, text in files.items():
            self.put(path, text)

    def put(self, path: str, text: str) -> None:
        (self.root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path[1:]).write_text(text)

    def get(self, path: str) -> str:
        return (self.root / path[1:]).read_text()

    def boot(self, boot_id: str, cmdline: str = "") -> None:
        self.put("/proc/sys/kernel/random/boot_id", boot_id + "\n")
        if cmdline:
            self.put("/proc/cmdline", cmdline + "\n")

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        self.calls.append(" ".join(argv))
        if argv[0].endswith(("mkconfig", "update-grub")):
            self._mkconfig("/boot/grub2/grub.cfg" if "grub2" in argv[0] else "/boot/grub/grub.cfg")
        if argv[0] == "update-extlinux":
            words = self.get("/etc/update-extlinux.conf").split('default_kernel_opts="')[1].split('"')[0]
            self.put("/boot/extlinux.conf", f"LABEL lts\n  APPEND root=/dev/vda1 {words}\n")
        if argv == ["grubby", "--info=ALL"]:
            return 0, "".join(f'index={i}\nargs="{entry}"\n' for i, entry in enumerate(self.entries)), ""
        if argv[0] == "grubby":
            given = {word.split("=", 1)[0]: word.split("=", 1)[1].split() for word in argv[2:]}
            gone = given.get("--remove-args", [])
            for i, entry in enumerate(self.entries):
                self.entries[i] = " ".join([*(w for w in entry.split() if w not in gone), *given.get("--args", [])])
        return 0, "", ""

    def _mkconfig(self, path: str) -> None:
        """As grub-mkconfig: a shell reads the files, and the arguments go into every entry."""
        etc = self.root / "etc/default"
        script = 'for file; do [ ! -e "$file" ] || . "$file"; done; echo "$GRUB_CMDLINE_LINUX"'
        sources = [etc / "grub", *sorted((etc / "grub.d").glob("*.cfg"))]
        said = subprocess.run(["sh", "-euc", script, "sh", *sources], capture_output=True, text=True, check=True).stdout
        self.put(path, f"menuentry 'Linux' {{\n\tlinux\t/vmlinuz root=/dev/vda1 ro {said}}}\n")

    def settle(self, *wanted: str, check: bool = False) -> dict[str, Any]:
        where = {name: f"/usr/sbin/{name}" for name in self.commands}
        host = arguments.Host(str(self.root), self.run, where.get)
        return dict(arguments.settle(host, list(wanted), check=check))

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads(self.get(arguments.RECORD)))


def debian(root: Path) -> Machine:
    files = {"/etc/default/grub": 'GRUB_CMDLINE_LINUX="ro"\n', "/boot/grub/grub.cfg": "linux /vmlinuz ro\n"}
    mkconfig = {"/usr/sbin/grub-mkconfig": "for x in ${sysconfdir}/default/grub.d/*.cfg ; do\n"}
    return Machine(root, "update-grub grub-mkconfig", **files, **mkconfig)


def arch(root: Path) -> Machine:
    files = {"/etc/default/grub": 'GRUB_CMDLINE_LINUX="ro"', "/boot/grub/grub.cfg": "linux /vmlinuz ro\n"}
    return Machine(root, "grub-mkconfig", **files)


def suse(root: Path) -> Machine:
    files = {"/etc/default/grub": 'GRUB_CMDLINE_LINUX="ro"\n', "/boot/grub2/grub.cfg": "linux /vmlinuz ro\n"}
    return Machine(root, "grub2-mkconfig", **files)


def alpine(root: Path) -> Machine:
    files = {
        "/etc/update-extlinux.conf": 'overwrite=1\ndefault_kernel_opts="quiet rootfstype=ext4"\ndefault=lts\n',
        "/boot/extlinux.conf": "APPEND quiet\n",
    }
    return Machine(root, "update-extlinux", **files)


def systemd_boot(root: Path) -> Machine:
    files = {"/boot/efi/loader/loader.conf": "", "/lib/modules/6.12.0/vmlinuz": "", "/boot/vmlinuz-6.1.0": ""}
    (root / "lib/modules/6.1.0").mkdir(parents=True)
    return Machine(root, "bootctl kernel-install", **files)


def fedora(root: Path) -> Machine:
    return Machine(root, "grubby bootctl kernel-install", **{"/boot/loader/entries/a.conf": ""})


LOADERS = {
    # maker: (the loader's name, where the words are then, the command that was run last)
    debian: ("grub", "/boot/grub/grub.cfg", "update-grub"),
    arch: ("grub", "/boot/grub/grub.cfg", "grub-mkconfig -o /boot/grub/grub.cfg"),
    suse: ("grub", "/boot/grub2/grub.cfg", "grub2-mkconfig -o /boot/grub2/grub.cfg"),
    alpine: ("extlinux", "/boot/extlinux.conf", "update-extlinux"),
    systemd_boot: ("systemd-boot", "/etc/kernel/cmdline", "kernel-install add 6.12.0 /lib/modules/6.12.0/vmlinuz"),
    fedora: ("grubby", "", "grubby --update-kernel=ALL --args=intel_iommu=on hugepages=8"),
}
MAKERS = pytest.mark.parametrize("maker", LOADERS, ids=lambda maker: maker.__name__)


@MAKERS
def test_an_argument_reaches_the_next_boot_and_leaves_it_again(maker: Any, tmp_path: Path) -> None:
    machine, (name, place, command) = maker(tmp_path), LOADERS[maker]

    def words() -> list[str]:
        return (machine.get(place) if place else machine.entries[0]).replace("}", "").split()

    done = machine.settle("intel_iommu=on", "hugepages=8")
    assert (done["changed"], done["loader"], machine.calls[-1]) == (True, name, command)
    assert done["pending"] == ["intel_iommu=on is not active", "hugepages=8 is not active"]
    assert {"intel_iommu=on", "hugepages=8"} <= set(words())
    assert {"quiet", "ro"} & set(words()), "what was there before stays"

    again = machine.settle("intel_iommu=on", "hugepages=8")
    assert (again["changed"], again["pending"]) == (False, done["pending"])

    machine.boot("second", "ro intel_iommu=on hugepages=8")
    assert machine.settle("intel_iommu=on", "hugepages=8")["pending"] == []

    less = machine.settle("hugepages=8")
    assert (less["changed"], less["pending"]) == (True, ["intel_iommu=on is still active"])
    assert "intel_iommu=on" not in words()
    assert "hugepages=8" in words()
    assert machine.settle("hugepages=8")["changed"] is False

    machine.boot("third", "ro hugepages=8")
    settled = machine.settle("hugepages=8")
    assert (settled["changed"], settled["pending"], settled["refused"]) == (False, [], [])


@pytest.mark.parametrize("maker", [systemd_boot, fedora, alpine], ids=lambda maker: maker.__name__)
def test_what_somebody_else_added_is_never_removed(maker: Any, tmp_path: Path) -> None:
    machine = maker(tmp_path)
    machine.put("/etc/kernel/cmdline", "# mine\nro quiet\n")
    machine.entries = ["ro quiet"]
    assert machine.settle("quiet")["changed"] is False
    assert machine.settle("quiet", "hugepages=8")["added"] == ["hugepages=8"]
    machine.settle()
    place = "/etc/update-extlinux.conf" if maker is alpine else "/etc/kernel/cmdline"
    left = machine.entries[0] if maker is fedora else machine.get(place)
    assert "quiet" in left
    assert "hugepages" not in left
    assert maker is not systemd_boot or left == "# mine\nro quiet\n"


def test_the_files_of_grub_are_as_before_when_nothing_is_asked_for_any_more(tmp_path: Path) -> None:
    for maker in (debian, arch, suse):
        machine = maker(tmp_path / maker.__name__)
        before = machine.get("/etc/default/grub").rstrip("\n")
        machine.settle("hugepages=8")
        machine.settle()
        assert machine.get("/etc/default/grub").rstrip("\n") == before
        assert not (machine.root / "etc/default/grub.d/zz-kvmfleet.cfg").exists()


def test_every_kernel_of_systemd_boot_gets_the_arguments(tmp_path: Path) -> None:
    machine = systemd_boot(tmp_path)
    machine.settle("hugepages=8")
    assert machine.calls == [
        "kernel-install add 6.1.0 /boot/vmlinuz-6.1.0",
        "kernel-install add 6.12.0 /lib/modules/6.12.0/vmlinuz",
    ]
    assert machine.get("/etc/kernel/cmdline") == "root=/dev/vda1 ro quiet hugepages=8\n"


def test_a_configuration_that_lost_the_argument_is_made_again(tmp_path: Path) -> None:
    machine = debian(tmp_path)
    machine.settle("hugepages=8")
    machine.put("/boot/grub/grub.cfg", "linux /vmlinuz ro\n")
    assert machine.settle("hugepages=8")["changed"] is True
    assert "hugepages=8" in machine.get("/boot/grub/grub.cfg")


def test_a_run_that_ended_before_the_bootloader_knew_is_finished_by_the_next(tmp_path: Path) -> None:
    machine = debian(tmp_path)
    machine.settle("hugepages=8", "quiet")
    machine.put(arguments.RECORD, json.dumps(machine.record | {"refreshed": False}))
    assert machine.settle("hugepages=8", "quiet")["changed"] is True
    assert machine.record["refreshed"] is True


def test_a_bootloader_that_is_not_the_one_that_boots_is_found_out_and_no_reason_to_reboot_again(tmp_path: Path) -> None:
    machine = debian(tmp_path)
    assert machine.settle("hugepages=8")["pending"]
    machine.boot("second", "console=ttyS0")
    done = machine.settle("hugepages=8")
    assert (done["changed"], done["pending"]) == (False, [])
    assert "gets its kernel's arguments from somewhere else" in done["refused"][0]


def test_what_is_still_active_after_a_boot_is_somebody_elses(tmp_path: Path) -> None:
    machine = debian(tmp_path)
    machine.settle("hugepages=8")
    machine.boot("second", "ro hugepages=8")
    assert machine.settle()["pending"] == ["hugepages=8 is still active"]
    machine.boot("third", "ro hugepages=8")
    assert machine.settle()["pending"] == []


def test_a_command_that_leaves_the_argument_out_is_an_error(tmp_path: Path) -> None:
    machine = debian(tmp_path)
    machine.run = lambda argv: (0, "", "")  # type: ignore[method-assign]
    with pytest.raises(arguments.ArgumentsError, match="has no entry with hugepages=8"):
        machine.settle("hugepages=8")


def test_a_command_that_fails_is_an_error_with_its_words(tmp_path: Path) -> None:
    machine = debian(tmp_path)
    machine.run = lambda argv: (1, "", "no space left")  # type: ignore[method-assign]
    with pytest.raises(arguments.ArgumentsError, match="`update-grub` ended with 1: no space left"):
        machine.settle("hugepages=8")


def test_without_a_bootloader_arguments_are_refused_and_their_absence_is_not(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "")
    assert machine.settle() == {"changed": False, "loader": "", "added": [], "pending": [], "refused": []}
    with pytest.raises(arguments.ArgumentsError, match="direct kernel boot"):
        machine.settle("hugepages=8")


def test_grub_that_was_installed_and_never_set_up_is_no_bootloader(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "update-grub", **{"/etc/default/grub": ""})
    with pytest.raises(arguments.ArgumentsError, match=r"its grub\.cfg"):
        machine.settle("hugepages=8")


@MAKERS
def test_check_mode_says_what_would_change_and_writes_nothing(maker: Any, tmp_path: Path) -> None:
    machine = maker(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert machine.settle("hugepages=8", check=True)["changed"] is True
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert set(machine.calls) <= {"grubby --info=ALL"}


def test_a_damaged_record_is_not_guessed_at(tmp_path: Path) -> None:
    machine = debian(tmp_path)
    machine.put(arguments.RECORD, "{}")
    with pytest.raises(arguments.ArgumentsError, match="damaged"):
        machine.settle("hugepages=8")


# --- the reboot


@pytest.fixture
def reboot(tmp_path: Path) -> Any:
    """The script with a `shutdown` that only says so, and a search path in which it is first."""
    (tmp_path / "shutdown").write_text("#!/bin/sh\necho rebooted\n")
    (tmp_path / "shutdown").chmod(0o755)

    def run(how: str, path: str = "/usr/bin:/bin") -> tuple[int, str]:
        command = ["/bin/sh", "-c", (ROLE / "files/reboot.sh").read_text(), "sh", how]
        done = subprocess.run(command, env={"PATH": f"{tmp_path}:{path}"}, capture_output=True, text=True)
        return done.returncode, done.stdout.strip()

    return run


@pytest.mark.parametrize("name", ["qemu-system-x86_64", "qemu-kvm"])
def test_a_host_with_a_guest_does_not_reboot_unless_guests_may_be_ended(reboot: Any, tmp_path: Path, name: str) -> None:
    shutil.copy(Path("/bin/sleep").resolve(), tmp_path / name)
    with subprocess.Popen([tmp_path / name, "60"]) as guest:
        try:
            assert reboot("spare") == (3, "guests run")
            (tmp_path / name).unlink()  # as an update of QEMU does
            assert reboot("spare") == (3, "guests run")
            assert reboot("disrupt") == (0, "rebooted")
        finally:
            guest.kill()


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no usable /dev/kvm here")
def test_whoever_holds_a_virtual_machine_is_a_guest(reboot: Any) -> None:
    kvm = os.open("/dev/kvm", os.O_RDWR)
    machine = fcntl.ioctl(kvm, 0xAE01, 0)  # KVM_CREATE_VM
    try:
        assert reboot("spare") == (3, "guests run")
        assert f"{os.getpid()} " in " ".join(f"{guest} " for guest in options.Kernel().guests())
    finally:
        os.close(machine)
        os.close(kvm)


def test_a_host_does_not_reboot_when_it_cannot_look_for_guests(reboot: Any, tmp_path: Path) -> None:
    (tmp_path / "grep").write_text("#!/bin/sh\nexit 2\n")
    (tmp_path / "grep").chmod(0o755)
    assert reboot("spare") == (4, "cannot tell whether guests run")


def test_a_host_without_guests_reboots(reboot: Any, tmp_path: Path) -> None:
    (tmp_path / "ls").write_text("#!/bin/sh\necho 'lrwx 3 -> anon_inode:[eventpoll]'\n")
    (tmp_path / "ls").chmod(0o755)
    assert reboot("spare") == (0, "rebooted")
