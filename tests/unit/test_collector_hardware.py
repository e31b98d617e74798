"""What the collector makes of processors, memory and IOMMU: real texts, and machines larger than any at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.checks.cpu import LEVELS
from orchestrator.collector import cpu, iommu, kernel, kvm, limits, memory
from orchestrator.model.evidence import Cpu, Evidence, Iommu, Memory
from orchestrator.payload import shape

FLAGS = (
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush dts acpi mmx fxsr sse sse2 ss ht"
    " tm pbe syscall nx pdpe1gb rdtscp lm constant_tsc arch_perfmon pebs bts rep_good nopl xtopology nonstop_tsc cpuid"
    " aperfmperf pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 sdbg fma cx16 xtpr pdcm pcid dca sse4_1"
    " sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave avx f16c rdrand lahf_lm abm 3dnowprefetch fsgsbase"
    " tsc_adjust bmi1 avx2 smep bmi2 erms invpcid avx512f avx512dq rdseed adx smap avx512cd avx512bw avx512vl"
)


def xeon(number: int, *, flags: str = FLAGS, microcode: str = "0xd0003d1", mhz: float = 2400.0) -> str:
    """A block of /proc/cpuinfo, as Linux 6.1 writes it."""
    return (
        f"processor\t: {number}\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\n"
        f"model name\t: Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz\nstepping\t: 6\nmicrocode\t: {microcode}\n"
        f"cpu MHz\t\t: {mhz + number / 7:.3f}\ncache size\t: 61440 KB\nphysical id\t: {number // 128}\n"
        f"core id\t\t: {number % 128}\napicid\t\t: {number}\nfpu\t\t: yes\nflags\t\t: {flags}\n"
        "vmx flags\t: vnmi preemption_timer posted_intr ept vpid unrestricted_guest ept_ad ept_mode_based_exec\n"
        "bugs\t\t: spectre_v1 spectre_v2 mmio_stale_data\nbogomips\t: 4600.00\npower management:\n\n"
    )


ARM = (
    "processor\t: {}\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics cpuid\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x3\nCPU part\t: {}\nCPU revision\t: 1\n\n"
)


def fits(section: type, found: dict[str, Any]) -> Any:
    """As the document that a host prints: cut to the reader's limits, then decoded."""
    name = {Cpu: "cpu", Memory: "memory", Iommu: "iommu"}[section]
    return getattr(msgspec.convert(limits.bounded(HEAD | {name: found}, shape()), Evidence), name)


HEAD: dict[str, Any] = {"schema": 1, "collected_at_s": 0.0, "duration_ms": 0.0}


# --- processors


def test_256_processors_that_are_alike_are_one_line_of_evidence() -> None:
    found = cpu.processors("".join(map(xeon, range(256))))
    assert len(json.dumps(found)) < 1024
    decoded = fits(Cpu, found)
    assert (decoded.threads, decoded.kind_count) == (256, 1)
    assert (decoded.kinds[0].cpus, decoded.kinds[0].id) == ("0-255", "GenuineIntel 6 106 6")
    assert {"vmx", "ept", "unrestricted_guest", "avx512vl"} <= set(decoded.flags)
    assert "mmx" not in decoded.flags


def test_a_processor_without_a_flag_or_with_another_microcode_is_another_kind() -> None:
    blocks = [xeon(number, flags=FLAGS.replace(" vmx", "") if number == 63 else FLAGS) for number in range(64)]
    blocks[7] = xeon(7, microcode="0xd000389")
    kinds = {kind.cpus: kind for kind in fits(Cpu, cpu.processors("".join(blocks))).kinds}
    assert set(kinds) == {"0-6,8-62", "7", "63"}
    assert (kinds["63"].lacks, kinds["7"].lacks, kinds["7"].microcode) == (("vmx",), (), "0xd000389")


def test_the_flags_are_those_of_any_processor() -> None:
    assert "vmx" in cpu.processors(xeon(0, flags=FLAGS.replace(" vmx", "")) + xeon(1))["flags"]


def test_a_machine_without_two_equal_processors_stays_small() -> None:
    found = cpu.processors("".join(xeon(number, microcode=hex(number)) for number in range(4096)))
    assert len(json.dumps(found)) < 4096
    assert (found["threads"], found["kind_count"], len(found["kinds"])) == (4096, 4096, 16)


def test_cores_of_arm_are_told_apart_by_their_part() -> None:
    found = fits(Cpu, cpu.processors("".join(ARM.format(n, "0xd05" if n < 4 else "0xd0b") for n in range(8))))
    assert [(kind.cpus, kind.id) for kind in found.kinds] == [("0-3", "0x41 0xd05 0x3 1"), ("4-7", "0x41 0xd0b 0x3 1")]
    assert (found.vendor, found.threads, found.flags, found.kinds[0].microcode) == ("0x41", 8, (), "")


@pytest.mark.parametrize("text", ["", "\n\n\n", "processor\t: x\n\n", "Hardware\t: BCM2835\nRevision\t: a02082\n"])
def test_no_processor_is_made_up(text: str) -> None:
    assert (cpu.processors(text)["threads"], cpu.processors(text)["kinds"]) == (0, [])


def test_ranges_are_as_the_kernel_writes_them() -> None:
    assert cpu.ranges([5, 0, 1, 2, 8, 9]) == "0-2,5,8-9"
    assert cpu.ranges([]) == ""


def test_the_flags_of_every_level_leave_the_host() -> None:
    assert {name for names in LEVELS.values() for name in names} <= cpu.FLAGS


# --- firmware


def registers(folder: Path, values: dict[int, int], offset: int) -> str:
    for number, value in values.items():
        (folder / str(number)).mkdir(parents=True)
        with (folder / str(number) / "msr").open("wb") as stream:
            stream.seek(offset)  # a sparse file, as large as msr(4)
            stream.write(value.to_bytes(8, "little"))
    return str(folder)


def test_registers_are_read_from_every_processor(tmp_path: Path) -> None:
    folder = registers(tmp_path, {0: 0x5, 1: 0x5, 2: 0x1, 10: 0x5}, 0x3A)
    assert cpu.firmware_registers("GenuineIntel", folder) == {"0x5": "0-1,10", "0x1": "2"}
    folder = registers(tmp_path / "amd", {0: 0x18}, 0xC0010114)
    assert cpu.firmware_registers("AuthenticAMD", folder) == {"0x18": "0"}


def test_half_a_register_is_none(tmp_path: Path) -> None:
    folder = registers(tmp_path, {0: 0x5}, 0x3A)
    os.truncate(tmp_path / "0/msr", 0x3A + 4)
    assert cpu.firmware_registers("GenuineIntel", folder) == {}


def test_no_register_is_read_without_the_module_or_of_a_vendor_that_has_none(tmp_path: Path) -> None:
    assert cpu.firmware_registers("GenuineIntel", str(tmp_path)) == {}
    assert cpu.firmware_registers("0x41", registers(tmp_path, {0: 1}, 0x3A)) == {}


@pytest.mark.parametrize(
    "line",
    [
        "x86/cpu: VMX (outside TXT) disabled by BIOS",
        "SVM disabled (by BIOS) in MSR_VM_CR",
        "kvm_amd: SVM disabled (by BIOS) in MSR_VM_CR on CPU 3",
        "kvm_intel: VMX not enabled (by BIOS) in MSR_IA32_FEAT_CTL on CPU 0",
        "kvm: disabled by bios",
    ],
)
def test_the_kernels_complaints_are_known(line: str) -> None:
    log = ["5,0,0,-;Linux version 6.1.0\n", f"6,41,419631,-;{line}\n SUBSYSTEM=cpu\n", "6,42,419642,-;CPU0: fine\n"]
    assert cpu.judged(log) == {"log": "whole", "complaint": line}


@pytest.mark.parametrize(
    "record",
    [
        "6,9,1,-;x86/cpu: SGX disabled by BIOS.\n",
        "6,9,1,-;SMT: disabled by BIOS\n",
        "6,9,1,-;kvm: Nested Virtualization enabled\n",
        "12,9,1,-;somebody: VMX (outside TXT) disabled by BIOS\n",
    ],
)
def test_what_others_say_is_no_complaint(record: str) -> None:
    assert cpu.judged([record]) == {"log": "part", "complaint": ""}


def test_what_is_no_kernel_log_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "kmsg")
    assert cpu.kernel_log(str(tmp_path / "kmsg")) == {"log": ""}
    assert cpu.kernel_log(str(tmp_path / "absent")) == {"log": ""}
    assert cpu.kernel_log("/dev/zero") == {"log": ""}


# --- other hypervisors


def test_other_hypervisors_are_found(tmp_path: Path) -> None:
    (tmp_path / "modules/vboxdrv").mkdir(parents=True)
    (tmp_path / "dom0").write_text("control_d\n")
    (tmp_path / "domU").write_text("\n")
    listing = "vmmon 155648 0 - Live 0x0000000000000000 (OE)\nkvm 1 0\n"
    found = kernel.hypervisors(listing, str(tmp_path / "modules"), str(tmp_path / "dom0"))
    assert found == ["vboxdrv", "vmmon", "xen"]
    assert kernel.hypervisors("", str(tmp_path), str(tmp_path / "domU")) == []


def test_where_no_module_can_be_seen_no_hypervisor_is_ruled_out(tmp_path: Path) -> None:
    assert kernel.hypervisors("", str(tmp_path / "absent"), str(tmp_path / "absent")) is None


# --- KVM


def test_users_are_tried_and_those_without_an_account_are_named() -> None:
    found = kvm.users(["root", "no-such-user"] * 20)
    assert found["no-such-user"] == {"user": "no-such-user", "errno": "no such user", "tried": False}
    if os.geteuid() == 0:
        assert (found["root"]["tried"], found["root"]["errno"]) == (True, kvm.attempt())


# --- memory


TWO_TB = """\
MemTotal:       2113538888 kB
MemFree:        28364012 kB
MemAvailable:   27103304 kB
SwapTotal:       8388604 kB
SwapFree:        8388604 kB
CommitLimit:    22540144 kB
Committed_AS:   12094304 kB
HardwareCorrupted:     8 kB
HugePages_Total:    1996
Hugepagesize:    1048576 kB
Hugetlb:        2092957696 kB
"""


def test_memory_is_counted_in_mib_and_hugepages_of_all_sizes_with_it() -> None:
    found = fits(Memory, memory.amounts(TWO_TB))
    assert (found.total_mib, found.available_mib, found.hugepages_mib) == (2064002, 26468, 2043904)
    assert (found.swap_mib, found.swap_free_mib, found.failed_kib) == (8191, 8191, 8)
    assert (found.commit_limit_mib, found.committed_mib) == (22011, 11810)


def test_what_the_kernel_does_not_tell_is_not_zero() -> None:
    found = fits(Memory, memory.amounts("MemTotal: 1024 kB\n"))
    assert (found.available_mib, found.swap_mib, found.failed_kib, found.commit_limit_mib) == (None, None, None, None)


def test_the_time_in_which_everything_waited_is_read() -> None:
    text = "some avg10=9.00 avg60=8.00 avg300=7.00 total=1\nfull avg10=4.10 avg60=3.25 avg300=2.00 total=1\n"
    assert memory.stalled_percent(text) == 3.25
    assert memory.stalled_percent("") is None


def files(folder: Path, contents: dict[str, str]) -> str:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content + "\n")
    return str(folder)


def test_nodes_are_read_with_their_memory_and_processors(tmp_path: Path) -> None:
    folder = files(
        tmp_path,
        {
            "node0/meminfo": "Node 0 MemTotal:       131597824 kB\nNode 0 MemFree:        1 kB",
            "node0/cpulist": "0-31",
            "node10/meminfo": "Node 10 MemTotal:       0 kB",
            "node10/cpulist": "32-63",
            "node11/cpulist": "64-95",
            "possible": "0-10",
        },
    )
    assert memory.nodes(folder) == {
        "0": {"cpus": "0-31", "memory_mib": 128513},
        "10": {"cpus": "32-63", "memory_mib": 0},
    }


def test_errors_are_summed_and_the_module_is_named(tmp_path: Path) -> None:
    folder = files(
        tmp_path,
        {
            "mc0/ce_count": "17",
            "mc0/ue_count": "2",
            "mc0/dimm0/dimm_ue_count": "0",
            "mc0/dimm3/dimm_ue_count": "2",
            "mc0/dimm3/dimm_label": "CPU_SrcID#0_MC#0_Chan#1_DIMM#1",
            "mc1/ce_count": "1",
            "mc1/ue_count": "1",
            "mc1/rank5/dimm_ue_count": "1",
            "mc2/ce_count": "7",  # a driver that tells half of it
            "power/control": "auto",
        },
    )
    assert memory.errors(folder) == {
        "controllers": 2,
        "corrected": 18,
        "uncorrected": 3,
        "failing": ["CPU_SrcID#0_MC#0_Chan#1_DIMM#1", "mc1/rank5"],
    }
    assert memory.errors(str(tmp_path / "absent")) == {
        "controllers": 0,
        "corrected": 0,
        "uncorrected": 0,
        "failing": [],
    }


# --- the IOMMU


def test_devices_for_guests_are_found_with_their_group(tmp_path: Path) -> None:
    devices = {"0000:3b:00.0": ("0x030000", "vfio-pci"), "0000:3b:00.1": ("0x040300", "snd_hda_intel")}
    devices |= {"0000:3a:00.0": ("0x060400", "pcieport"), "0000:3b:00.2": ("0x0c0330", "")}
    group = tmp_path / "kernel/iommu_groups/14"
    (tmp_path / "kernel/iommu_groups/15/devices").mkdir(parents=True)
    (tmp_path / "class/iommu/dmar0").mkdir(parents=True)
    (group / "devices").mkdir(parents=True)
    for address, (kind, driver) in devices.items():
        device = tmp_path / "devices" / address
        files(device, {"class": kind})
        (device / "iommu_group").symlink_to(group)
        (group / "devices" / address).symlink_to(device)
        if driver:
            (tmp_path / "bus/pci/drivers" / driver).mkdir(parents=True)
            (device / "driver").symlink_to(tmp_path / "bus/pci/drivers" / driver)
            (tmp_path / "bus/pci/drivers" / driver / address).symlink_to(device)
    found = fits(Iommu, iommu.look(str(tmp_path)))
    assert (found.units, found.groups) == (1, 2)
    assert found.handed_out == {"14": ("0000:3b:00.0 vfio-pci", "0000:3b:00.1 snd_hda_intel", "0000:3b:00.2")}


def test_a_machine_without_an_iommu_has_none(tmp_path: Path) -> None:
    assert iommu.look(str(tmp_path)) == {"units": 0, "groups": 0, "handed_out": {}}
