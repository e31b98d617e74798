"""What the role kernel_modules does to a kernel, on files and with commands that are ours."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROLE = Path(__file__).parents[2] / "roles/kernel_modules"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROLE / f"library/{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


options = load("kernel_module_options")


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
