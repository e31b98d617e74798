"""The processors: which kinds there are, what each lacks, and whether the firmware lets the kernel use them."""

import glob
import os
import re
from typing import Any, Dict, Iterable, Iterator, List, Set, Tuple

from . import files

CPUS = "/sys/devices/system/cpu"
VIRTUALIZATION = "vmx svm ept ept_ad npt vpid unrestricted_guest avic x2avic vgif hypervisor lm nx"
CONFIDENTIAL = "sev sev_es sev_snp tdx_host_platform"
LEVELS = (  # what x86-64-v2, v3 and v4 add
    "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3",
    "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave",
    "avx512f avx512bw avx512cd avx512dq avx512vl",
)
FLAGS = frozenset(" ".join((VIRTUALIZATION, CONFIDENTIAL, *LEVELS)).split())
IDENTITY = (
    ("vendor_id", "cpu family", "model", "stepping"),
    ("CPU implementer", "CPU part", "CPU variant", "CPU revision"),
)
REGISTERS = {"GenuineIntel": 0x3A, "AuthenticAMD": 0xC0010114, "HygonGenuine": 0xC0010114}
COMPLAINT = re.compile(r"\b(?:vmx|svm|kvm)\b.*\b(?:disabled|not enabled)\b.*\bbios\b", re.IGNORECASE)
KMSG = os.makedev(1, 11)
MOST_KINDS = 16
MOST_RECORDS = 32768


def look() -> Dict[str, Any]:
    found = processors(files.content("/proc/cpuinfo", 16 << 20))
    registers = firmware_registers(found["vendor"])
    return dict(
        found,
        hybrid={
            os.path.basename(folder)[len("cpu_") :]: files.text(folder + "/cpus").strip()
            for folder in glob.glob("/sys/devices/cpu_*")
            if os.path.exists(folder + "/cpus")
        },
        present=files.text(CPUS + "/present").strip(),
        online=files.text(CPUS + "/online").strip(),
        smt=files.text(CPUS + "/smt/control").strip(),
        old_microcode=files.text(CPUS + "/vulnerabilities/old_microcode").strip(),
        firmware=dict({"registers": registers}, **({} if registers else kernel_log())),
    )


def flags() -> List[str]:
    found: List[str] = processors(files.text("/proc/cpuinfo", 16 << 20))["flags"]
    return found


def processors(info: str) -> Dict[str, Any]:
    """/proc/cpuinfo, with equal processors as one kind. aarch64 has other names for the same lines."""
    alike: Dict[Tuple[str, str, str], List[int]] = {}
    first: Dict[str, str] = {}
    for number, lines in blocks(info):
        first = first or lines
        # since 5.10 ept, vpid and unrestricted_guest have a line of their own
        words = "{} {}".format(lines.get("flags", lines.get("Features", "")), lines.get("vmx flags", ""))
        alike.setdefault((identity(lines), lines.get("microcode", ""), words), []).append(number)
    sets = {kind: set(kind[2].split()) for kind in alike}
    every: Set[str] = set().union(*sets.values())
    kinds = [
        {"cpus": ranges(numbers), "id": kind[0], "microcode": kind[1], "lacks": sorted(every - sets[kind])}
        for kind, numbers in alike.items()
    ]
    return {
        "vendor": first.get("vendor_id", first.get("CPU implementer", "")),
        "model": first.get("model name", first.get("CPU part", "")),
        "threads": sum(map(len, alike.values())),
        "flags": sorted(every & FLAGS),
        "kinds": kinds[:MOST_KINDS],
        "kind_count": len(kinds),
    }


def blocks(info: str) -> Iterator[Tuple[int, Dict[str, str]]]:
    """Number and lines of each processor. What comes before the first one or after the last is about none."""
    for block in info.split("\n\n"):
        lines = dict(re.findall(r"^([^:\n\t]+?)[ \t]*:[ \t]*(.*?)[ \t]*$", block, re.MULTILINE))
        if lines.get("processor", "").isdigit():
            yield int(lines["processor"]), lines


def identity(lines: Dict[str, str]) -> str:
    names = IDENTITY["CPU implementer" in lines]
    return " ".join(lines[name] for name in names if name in lines)


def ranges(numbers: Iterable[int]) -> str:
    """0-2,5 of 0, 1, 2 and 5."""
    found: List[List[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join("{}-{}".format(*pair) if pair[0] < pair[1] else str(pair[0]) for pair in found)


def firmware_registers(vendor: str, folder: str = "/dev/cpu") -> Dict[str, str]:
    """Value -> processors, where the module msr is loaded; it is not for us to load it."""
    found: Dict[str, List[int]] = {}
    for path in glob.glob(folder + "/[0-9]*/msr") if vendor in REGISTERS else []:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # not root, or ENXIO: the processor is offline
            continue
        try:
            data = os.pread(fd, 8, REGISTERS[vendor])
            if len(data) == 8:
                found.setdefault(hex(int.from_bytes(data, "little")), []).append(int(path.split("/")[-2]))
        except OSError:  # EIO: this processor has no such register, msr(4)
            pass
        finally:
            os.close(fd)
    return {value: ranges(numbers) for value, numbers in found.items()}


def kernel_log(path: str = "/dev/kmsg") -> Dict[str, str]:
    try:
        if os.stat(path).st_rdev != KMSG:  # in a container it may be anything, the console for one
            return {"log": ""}
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # EPERM: kernel.dmesg_restrict
        return {"log": ""}
    try:
        return judged(records(fd))
    finally:
        os.close(fd)


def records(fd: int) -> Iterator[str]:
    """One a read(2). EPIPE: the next one was overwritten meanwhile; EAGAIN: that was all."""
    for _ in range(MOST_RECORDS):
        try:
            yield os.read(fd, 8192).decode("utf-8", "replace")
        except BrokenPipeError:
            continue
        except OSError:
            return


def judged(log: Iterable[str]) -> Dict[str, str]:
    """Whether the log goes back to the boot, whose record has the number 0, and the first complaint of a kernel."""
    extent, complaint = "", ""
    for record in log:
        head, _, message = record.partition(";")
        fields = head.split(",")
        extent = extent or ("whole" if fields[1:2] == ["0"] else "part")
        # facility 0 is the kernel; anybody may write into its log, but not as the kernel
        if not complaint and fields[0].isdigit() and int(fields[0]) < 8 and COMPLAINT.search(message):
            complaint = message.splitlines()[0][:256]
    return {"log": extent, "complaint": complaint}
