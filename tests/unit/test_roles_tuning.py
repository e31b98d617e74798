"""What the role host_tuning does to a kernel and to the files of a host, all of them ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from ansible_collections.kvmfleet.host.plugins.module_utils.record import Record, open_record
from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_host import Host, TuningError
from ansible_collections.kvmfleet.host.plugins.module_utils.tuning_plan import SYSCTL_FILE, UNIT, UNITS, Wish
from ansible_collections.kvmfleet.host.plugins.modules.host_tuning import DOCUMENTATION, settle

from orchestrator.collector import tuning as collector
from orchestrator.collector.contract import Contract
from orchestrator.model.contract import TuningWish

SMALL, HUGE = "hugepages/hugepages-2048kB", "hugepages/hugepages-1048576kB"
MM, NODE = "/sys/kernel/mm", "/sys/devices/system/node"
GIB = 1 << 20
NOTHING = Wish((), {}, "keep", {}, "keep", "", "", "keep", "", ())


def pages(*wishes: tuple[str, int] | tuple[str, int, int]) -> list[dict[str, Any]]:
    return [{"size": size, "pages": count, "node": node[0] if node else None} for size, count, *node in wishes]


class Machine:
    """A host below a folder: 8 processors, 64 GiB on two nodes, and a systemd that keeps its promises."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, []
        self.units: dict[str, list[bool]] = {}  # name -> [enabled, active]
        for size in (SMALL, HUGE):
            for parent in (MM, f"{NODE}/node0", f"{NODE}/node1"):
                for name in ("nr", "free", "surplus"):
                    self.put(f"{parent}/{size}/{name}_hugepages", "0")
        for node in (0, 1):
            self.put(f"{NODE}/node{node}/meminfo", f"Node {node} MemTotal:       {32 * GIB} kB\n")
        self.memory(available=60 * GIB)
        self.put(f"{MM}/transparent_hugepage/enabled", "[always] madvise never")
        self.put(f"{MM}/transparent_hugepage/defrag", "always defer defer+madvise [madvise] never")
        self.put(f"{MM}/ksm/run", "0")
        self.put(f"{MM}/ksm/pages_sharing", "0")
        for path, value in {"vm/swappiness": "60", "net/ipv4/ip_forward": "0", "vm/nr_hugepages": "0"}.items():
            self.put(f"/proc/sys/{path}", value)
        self.put("/proc/sys/kernel/osrelease", "6.1.0-37-amd64")
        self.put("/proc/cpuinfo", "processor\t: 0\nvendor_id\t: GenuineIntel\n")
        self.put("/proc/mounts", "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n")
        self.put("/sys/devices/system/cpu/present", "0-7")
        for policy in (0, 4):
            folder = f"/sys/devices/system/cpu/cpufreq/policy{policy}"
            self.put(f"{folder}/scaling_governor", "powersave")
            self.put(f"{folder}/scaling_available_governors", "performance powersave")

    def memory(self, *, available: int) -> None:
        text = f"MemTotal:       {64 * GIB} kB\nMemAvailable:   {available} kB\nHugepagesize:       2048 kB\n"
        self.put("/proc/meminfo", text)

    def put(self, path: str, text: str) -> None:
        (self.root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path[1:]).write_text(text + "\n")

    def get(self, path: str) -> str:
        return (self.root / path[1:]).read_text().strip()

    def exists(self, path: str) -> bool:
        return (self.root / path[1:]).exists()

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        command, *rest = argv
        if argv[:2] == ["systemctl", "show"]:
            blocks = [
                f"Id={name}\nLoadState=loaded\nUnitFileState={'enabled' if self.units[name][0] else 'disabled'}\n"
                f"ActiveState={'active' if self.units[name][1] else 'inactive'}\n"
                if name in self.units
                else f"Id={name}\nLoadState=not-found\nUnitFileState=\nActiveState=inactive\n"
                for name in rest[rest.index("--") + 1 :]
            ]
            return 0, "\n".join(blocks), ""
        self.calls.append(" ".join(argv))
        if command == "tuned-adm":
            manual = rest[0] == "profile"
            self.put("/etc/tuned/active_profile", rest[1] if manual else "balanced")
            self.put("/etc/tuned/profile_mode", "manual" if manual else "auto")
        elif rest[0] in ("enable", "disable", "start", "stop"):
            place = 0 if rest[0].endswith("able") else 1
            self.units.setdefault(rest[1], [False, False])[place] = rest[0] in ("enable", "start")
            link = self.root / f"etc/systemd/system/multi-user.target.wants/{rest[1]}"
            if rest[0] == "enable":
                link.parent.mkdir(parents=True, exist_ok=True)
                link.touch()
            elif rest[0] == "disable":
                link.unlink(missing_ok=True)
            if rest == ["start", "dev-hugepages1G.mount"]:
                self.put("/proc/mounts", self.get("/proc/mounts") + "\nhugetlbfs /dev/hugepages1G hugetlbfs rw 0 0\n")
        return 0, "", ""

    @property
    def host(self) -> Host:
        return Host(str(self.root), self.run, lambda command: f"/usr/bin/{command}")

    @property
    def record(self) -> dict[str, Any]:
        return dict(json.loads(self.get("/var/lib/kvmfleet/record.json")))

    def settle(self, *, check: bool = False, **asked: Any) -> dict[str, Any]:
        options = {key: asked.pop(key) for key in ("live", "units_before") if key in asked}
        record: Record
        with open_record(f"{self.root}/var/lib/kvmfleet/record.json", check=check) as record:
            return dict(settle(self.host, record, NOTHING._replace(**asked), check=check, **options))

    def tree(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.root)): path.read_text()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and "var/lib/kvmfleet" not in str(path)
        }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


ALL: dict[str, Any] = {
    "hugepages": pages(("2M", 512), ("1G", 4, 1)),
    "thp": {"enabled": "madvise", "defrag": None},
    "ksm": "enabled",
    "sysctls": {"vm.swappiness": 10, "net.ipv4.ip_forward": True},
    "bridge_netfilter": "bypass",
    "governor": "performance",
}


def test_nothing_asked_for_is_nothing_done(machine: Machine) -> None:
    before = machine.tree()
    done = machine.settle()
    assert (done["changed"], done["contract"], done["files"], done["arguments"]) == (False, {}, {}, [])
    assert (machine.tree(), machine.calls) == (before, [])


def test_everything_is_live_and_comes_back_at_the_next_boot(machine: Machine) -> None:
    done = machine.settle(**ALL)
    assert (done["changed"], done["pending"], done["mounted"]) == (True, [], True)
    assert machine.get(f"{MM}/{SMALL}/nr_hugepages") == "512"
    assert machine.get(f"{NODE}/node1/{HUGE}/nr_hugepages") == "4"
    assert machine.get(f"{MM}/transparent_hugepage/enabled") == "madvise"
    assert machine.get(f"{MM}/ksm/run") == "1"
    assert machine.get("/proc/sys/net/ipv4/ip_forward") == "1"
    assert machine.get("/sys/devices/system/cpu/cpufreq/policy4/scaling_governor") == "performance"
    assert machine.units[UNIT][0], "the unit is enabled"
    assert machine.units["dev-hugepages1G.mount"] == [True, True]
    assert "vm.swappiness = 10" in machine.get(SYSCTL_FILE)
    assert "br_netfilter" in machine.get("/etc/udev/rules.d/60-kvmfleet-bridge.rules")


def test_the_second_run_changes_nothing_and_so_says_check_mode(machine: Machine) -> None:
    machine.settle(**ALL)
    machine.put(f"{MM}/transparent_hugepage/enabled", "always [madvise] never")  # as a kernel prints it
    calls, before = list(machine.calls), machine.tree()
    for check in (True, False):
        assert machine.settle(check=check, **ALL)["changed"] is False
    assert (machine.calls, machine.tree()) == (calls, before)


def test_check_mode_says_what_would_change_and_changes_nothing(machine: Machine) -> None:
    before = machine.tree()
    done = machine.settle(check=True, **ALL)
    assert (done["would_change"], done["mounted"], machine.tree(), machine.calls) == (True, True, before, [])
    assert not machine.exists("/var/lib/kvmfleet")
    shown = "\n".join(part["after"] for part in done["diff"])
    assert "vm.swappiness = 10" in shown
    assert f"{MM}/{SMALL}/nr_hugepages = 512" in shown


def test_what_leaves_the_inventory_is_given_back_as_it_was(machine: Machine) -> None:
    before = machine.tree()
    machine.settle(**ALL)
    machine.settle()
    now = machine.tree()
    for tree in (before, now):
        tree.pop("proc/mounts")
        for key in ("enabled", "defrag"):  # which this kernel of ours does not put into brackets
            tree.pop(f"sys/kernel/mm/transparent_hugepage/{key}")
    assert now == before
    assert machine.get(f"{MM}/transparent_hugepage/enabled") == "always"
    assert machine.record == {}
    assert not machine.settle()["changed"]


def test_what_another_value_was_asked_for_still_goes_back_to_the_first(machine: Machine) -> None:
    for value in (10, 20, 30):
        machine.settle(sysctls={"vm.swappiness": value})
    machine.settle()
    assert machine.get("/proc/sys/vm/swappiness") == "60"


def test_a_file_that_was_there_before_us_comes_back(machine: Machine) -> None:
    machine.put(SYSCTL_FILE, "vm.swappiness = 1")
    machine.settle(sysctls={"vm.swappiness": 10})
    assert machine.record["file"][SYSCTL_FILE]["content"] == "vm.swappiness = 1\n"
    machine.settle()
    assert machine.get(SYSCTL_FILE) == "vm.swappiness = 1"


def test_a_container_gets_the_files_and_keeps_its_kernel(machine: Machine) -> None:
    kernel = {path: text for path, text in machine.tree().items() if path.startswith(("sys", "proc"))}
    done = machine.settle(live=False, **ALL)
    assert kernel == {path: text for path, text in machine.tree().items() if path.startswith(("sys", "proc"))}
    assert set(machine.record) == {"file"}
    assert set(done["files"]) == {f"/{path}" for path in machine.tree() if "kvmfleet" in path or "1G.mount" in path} - {
        f"{UNITS}/multi-user.target.wants/{name}" for name in (UNIT, "dev-hugepages1G.mount")
    }
    assert not machine.settle(live=False, **ALL)["changed"]


def test_fewer_pages_than_asked_for_are_pending_and_no_failure(machine: Machine) -> None:
    class Fragmented(Host):
        def set(self, path: str, value: str) -> None:
            super().set(path, "3" if path.endswith("nr_hugepages") else value)

    def pending() -> list[str]:
        with open_record(f"{machine.root}/record.json") as record:
            wish = NOTHING._replace(hugepages=pages(("1G", 4)))
            return list(settle(Fragmented(*machine.host), record, wish)["pending"])

    assert pending() == ["3 of 4 pages of 1G are reserved, memory is fragmented: a reboot settles it"]
    machine.put("/proc/cmdline", "ro hugepagesz=1G hugepages=4")
    assert pending()[0].endswith("no more was whole even at boot, ask for fewer")


def test_pages_that_ksm_has_merged_are_taken_apart_where_there_is_memory(machine: Machine) -> None:
    machine.put(f"{MM}/ksm/run", "1")
    machine.put(f"{MM}/ksm/pages_sharing", str(GIB // 4))
    machine.memory(available=3 * GIB // 2)
    done = machine.settle(ksm="disabled")
    assert machine.get(f"{MM}/ksm/run") == "0"
    assert done["pending"] == ["1.0 GiB stay merged by KSM: end guests, there is no memory to part them"]
    machine.memory(available=8 * GIB)
    machine.settle(ksm="disabled")
    assert machine.get(f"{MM}/ksm/run") == "2"
    machine.put(f"{MM}/ksm/pages_sharing", "0")
    assert not machine.settle(ksm="disabled")["changed"], "2 is off, too"


def test_ksm_can_be_off_where_the_kernel_has_none_and_not_on(machine: Machine) -> None:
    (machine.root / "sys/kernel/mm/ksm/run").unlink()
    assert machine.settle(ksm="disabled")["changed"] is False
    with pytest.raises(TuningError, match="no KSM"):
        machine.settle(ksm="enabled")


# --- services


def test_tuned_gets_its_profile_and_what_the_host_had_before(machine: Machine) -> None:
    machine.units["tuned.service"] = [True, True]
    machine.put("/etc/tuned/active_profile", "balanced")
    machine.put("/etc/tuned/profile_mode", "auto")
    asked = {"tuned_profile": "virtual-host", "units_before": {"tuned.service": {"enabled": True, "active": True}}}
    machine.settle(**asked)
    assert machine.calls == ["tuned-adm profile virtual-host"]
    assert not machine.settle(**asked)["changed"]
    machine.settle()
    assert machine.calls[1:] == ["tuned-adm auto_profile"]
    assert machine.units["tuned.service"] == [True, True]


def test_a_service_that_our_package_brought_is_off_when_it_leaves(machine: Machine) -> None:
    assert machine.settle(ksm="ksmtuned", check=True)["would_change"], "before its package is there"
    with pytest.raises(TuningError, match=r"no ksmtuned.service. Install the package ksmtuned"):
        machine.settle(ksm="ksmtuned")
    machine.units |= {"ksm.service": [True, True], "ksmtuned.service": [True, False]}  # as dpkg left them
    machine.settle(ksm="ksmtuned", units_before={})
    assert machine.units["ksmtuned.service"] == [True, True]
    machine.settle()
    assert machine.units == {"ksm.service": [False, False], "ksmtuned.service": [False, False]}


def test_ksm_disabled_turns_its_daemons_off(machine: Machine) -> None:
    machine.units |= {"ksm.service": [True, True], "ksmtuned.service": [True, True]}
    machine.settle(ksm="disabled")
    assert machine.units["ksm.service"] == machine.units["ksmtuned.service"] == [False, False]
    machine.settle()
    assert machine.units["ksm.service"] == machine.units["ksmtuned.service"] == [True, True]


# --- the command line


def test_pages_of_a_gigabyte_are_arguments_by_node_where_the_kernel_takes_that(machine: Machine) -> None:
    asked = {"hugepages": pages(("1G", 4, 0), ("1G", 2, 1), ("2M", 8))}
    assert machine.settle(check=True, **asked)["arguments"] == ["hugepagesz=1G", "hugepages=0:4,1:2"]
    machine.put("/proc/sys/kernel/osrelease", "5.14.0-503.el9")
    assert machine.settle(check=True, **asked)["arguments"] == ["hugepagesz=1G", "hugepages=6"]


@pytest.mark.parametrize(
    ("vendor", "enabled", "passthrough"),
    [
        ("vendor_id\t: GenuineIntel", ["intel_iommu=on"], ["intel_iommu=on", "iommu=pt"]),
        ("vendor_id\t: AuthenticAMD", [], ["iommu=pt"]),
        ("CPU implementer\t: 0x41", [], ["iommu.passthrough=1"]),
    ],
)
def test_the_iommu_needs_other_arguments_of_each_vendor(
    machine: Machine, vendor: str, enabled: list[str], passthrough: list[str]
) -> None:
    machine.put("/proc/cpuinfo", vendor)
    assert machine.settle(check=True, iommu="enabled")["arguments"] == enabled
    assert machine.settle(check=True, iommu="passthrough")["arguments"] == passthrough


def test_isolated_processors_get_three_arguments(machine: Machine) -> None:
    assert machine.settle(check=True, isolated_cpus="2-3,7")["arguments"] == [
        "isolcpus=2-3,7",
        "nohz_full=2-3,7",
        "rcu_nocbs=2-3,7",
    ]


# --- what cannot be


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "memory": (
        {"hugepages": pages(("2M", 31000))},
        "not enough memory for 31000 pages of 2M. They are 60.5 GiB, of which 0.0 GiB are reserved already; "
        "60.0 GiB of 64.0 GiB are available, and 1.0 GiB are left to the host itself.",
    ),
    "node": ({"hugepages": pages(("1G", 33, 1))}, "node 1 has 32.0 GiB of memory, and 33.0 GiB are asked for"),
    "size": ({"hugepages": pages(("4M", 1))}, "no pages of 4M, it has 2M and 1G"),
    "no-node": ({"hugepages": pages(("2M", 1, 2))}, "no NUMA node 2, only 0, 1"),
    "negative": ({"hugepages": pages(("2M", -1))}, "-1 pages of 2M cannot be"),
    "twice": ({"hugepages": pages(("2M", 1), ("2M", 1, 0))}, "named twice"),
    "elsewhere": ({"hugepages": pages(("2M", 1)), "kernel_arguments": ["hugepages=8"]}, "Say it in one place"),
    "sysctl-elsewhere": ({"hugepages": pages(("2M", 1)), "sysctls": {"vm.nr_hugepages": 3}}, "Say it in one place"),
    "no-sysctl": ({"sysctls": {"vm.swapiness": 1}}, "no vm.swapiness"),
    "name": ({"sysctls": {"../../etc/passwd": 1}}, "no name of a setting"),
    "value": ({"sysctls": {"vm.swappiness": "1\n2;x"}}, "cannot be"),
    "thp": ({"thp": {"enabled": "sometimes"}}, "Use one of always, madvise, never"),
    "thp-key": ({"thp": {"speed": "x"}}, "no speed, only enabled and defrag"),
    "governor-name": ({"governor": "performance; reboot"}, "is no name of a governor"),
    "governor-line": ({"governor": "performance\n"}, "is no name of a governor"),
    "profile-line": ({"tuned_profile": "virtual-host\n"}, "is no name of a profile"),
    "sysctl-line": ({"sysctls": {"net.ipv4.ip_forward\n": 1}}, "is no name of a setting"),
    "sysctl-nothing": ({"sysctls": {"vm.swappiness": None}}, "cannot be"),
    "cpu-line": ({"isolated_cpus": "2-7\n"}, "is no list of processors"),
    "governor": ({"governor": "turbo"}, "Use one of performance, powersave"),
    "governor-and-tuned": ({"governor": "performance", "tuned_profile": "virtual-host"}, "Keep one of the two"),
    "cpu": ({"isolated_cpus": "2-9"}, "no processor 8, 9. This host has 0-7"),
    "cpu-list": ({"isolated_cpus": "two"}, "look like 2-7,10"),
    "cpu-0": ({"isolated_cpus": "0-3"}, "processor 0 starts the host"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_stops_before_anything_changes(machine: Machine, name: str) -> None:
    asked, words = BAD[name]
    before = machine.tree()
    with pytest.raises(TuningError) as stopped:
        machine.settle(**asked)
    assert words in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert (machine.tree(), machine.calls) == (before, [])


def test_pages_that_are_reserved_already_need_no_memory_again(machine: Machine) -> None:
    machine.settle(hugepages=pages(("2M", 20480)))
    machine.memory(available=20 * GIB)
    assert not machine.settle(hugepages=pages(("2M", 20480)))["changed"]
    with pytest.raises(TuningError, match=r"They are 60\.0 GiB, of which 40\.0 GiB are reserved already"):
        machine.settle(hugepages=pages(("2M", 30720)))


def test_a_setting_whose_module_is_not_loaded_is_pending(machine: Machine) -> None:
    done = machine.settle(sysctls={"net.netfilter.nf_conntrack_max": 1 << 20}, bridge_netfilter="bypass")
    assert done["pending"] == ["net.netfilter.nf_conntrack_max does not exist until its module is loaded"]


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/sys/kernel/ostype"), reason="needs /proc/sys")
def test_a_value_that_the_kernel_refuses_is_said_in_its_words(machine: Machine) -> None:
    (machine.root / "proc/sys/vm/swappiness").unlink()
    (machine.root / "proc/sys/vm/swappiness").symlink_to("/proc/sys/kernel/ostype")  # which nobody can write
    with pytest.raises(TuningError, match=r"The kernel refuses 10 in /proc/sys/vm/swappiness"):
        machine.settle(sysctls={"vm.swappiness": 10})
    assert not machine.exists(SYSCTL_FILE), "nor will it try at the next boot"


# --- the other side


def test_the_contract_is_understood_as_it_was_meant(machine: Machine) -> None:
    asked = ALL | {"iommu": "enabled", "isolated_cpus": "2-3"}
    written = machine.settle(check=True, **asked)["contract"]
    decoded = msgspec.json.decode(json.dumps(written), type=TuningWish)
    assert msgspec.to_builtins(decoded) | written == msgspec.to_builtins(decoded) | {
        "hugepages": written["hugepages"]  # where the decoded one also has the nodes that nobody named
    }
    assert [(page.size, page.pages, page.node) for page in decoded.hugepages] == [("2M", 512, None), ("1G", 4, 1)]
    assert decoded.sysctls["net.ipv4.ip_forward"] == "1"


def test_the_collector_reads_the_unit_that_was_written(machine: Machine) -> None:
    machine.settle(**ALL)
    found = collector.unit_values(machine.get(f"{UNITS}/{UNIT}"))
    assert found == {
        f"{MM}/{SMALL}/nr_hugepages": "512",
        f"{NODE}/node1/{HUGE}/nr_hugepages": "4",
        f"{MM}/transparent_hugepage/enabled": "madvise",
        f"{MM}/ksm/run": "1",
        "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor": "performance",
    }


def test_the_collector_knows_sizes_mounts_and_the_order_of_sysctls() -> None:
    assert [collector.kibibytes(size) for size in ("64K", "2M", "1G", "many")] == [64, 2048, GIB, 0]
    mounts = "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\nx /mnt ext4 rw 0 0\n"
    assert collector.mounted(mounts) == {2048: "/dev/hugepages"}
    texts = ["vm.swappiness=1\n-net.ipv4.conf.eth0/1.forwarding = 1", "# vm.swappiness = 3\nvm/swappiness =  2\n"]
    assert collector.configured(texts) == {"vm/swappiness": "2", "net/ipv4/conf/eth0.1/forwarding": "1"}


def test_a_hostile_contract_does_not_stop_the_collector() -> None:
    assert collector.hugepages([{"size": 7}, "x", {"size": "2M", "node": "../.."}, None]) is not None
    assert collector.live("../../etc/passwd") is None


def test_ksm_is_told_where_the_contract_has_a_word_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is the distribution's, whose ksmtuned may start and stop it."""
    (tmp_path / "ksm").mkdir()
    (tmp_path / "ksm" / "run").write_text("1\n")
    monkeypatch.setattr(collector, "MM", str(tmp_path))

    def told(wishes: dict[str, str]) -> str:
        return str(collector.look(Contract({"tuning": wishes})).get("ksm_run"))

    assert told({"ksm": "enabled"}) == "1"
    assert told({"governor": "performance"}) == ""


def test_every_option_of_the_module_is_a_part_of_the_wish_or_says_how() -> None:
    options = yaml.safe_load(DOCUMENTATION)["options"]
    assert set(options) == {*Wish._fields, "live", "units_before"}
