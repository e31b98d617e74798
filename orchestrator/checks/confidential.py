"""Can guests keep their memory from this host, where the contract wants that?"""

from __future__ import annotations

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, plain, undecided
from orchestrator.model.contract import Confidential
from orchestrator.model.evidence import Module
from orchestrator.model.finding import Finding

# Flag of the processor and option of kvm_amd, in the order in which they build on each other.
SEV: dict[Confidential, tuple[str, str]] = {
    "sev": ("sev", "sev"),
    "sev-es": ("sev_es", "sev_es"),
    "sev-snp": ("sev_snp", "sev_snp"),
}

BELOW = "Declare it for the machine that runs this container, and look there."


@check(
    "confidential.sev",
    "The host can run SEV guests",
    sections=("cpu", "kernel", "kvm", "system"),
    requires=("contract.present", "kernel.module"),
    proves="KVM encrypts guests the way the contract says: SEV, SEV-ES or SEV-SNP.",
    how="The option of kvm_amd, which KVM itself sets to N where processor, firmware or kernel do not play along; "
    "/dev/sev, through which guests are measured; and the flags in /proc/cpuinfo for the reason.",
    todo="Firmware: SMEE, SEV-ES ASID space, SNP memory coverage (RMP) and IOMMU. Kernel: 6.11 for SEV-SNP. The module "
    "ccp makes /dev/sev.",
)
def sev(case: Case) -> Finding:
    wanted = [name for name in SEV if name in case.wishes.qemu.confidential]
    if not wanted:
        return not_applicable("not asked for")
    params, flags = case.evidence.kernel.modules.get("kvm_amd", Module()).params, case.evidence.cpu.flags
    for name in wanted:
        flag, option = SEV[name]
        value = params.get(option, "")
        if plain(value) == "1":
            continue
        if flag not in flags:
            fix = "Enable SMEE and SEV in the firmware, or use a machine that has it."
            return failed(f"no {name}: the processor does not show it", expected=f"flag {flag}", seen="none", fix=fix)
        if not params and case.evidence.system.container:
            return undecided("the options of kvm_amd cannot be seen from this container", fix=BELOW)
        if not value:
            fix = "Boot a newer kernel (6.11 for SEV-SNP), with kvm_amd."
            return failed(f"no {name}: this kernel's KVM does not know it", expected=option, seen="none", fix=fix)
        fix = "Read `dmesg | grep -i -e sev -e ccp`: firmware settings, the IOMMU, or kvm_amd's options refuse it."
        return failed(f"no {name}: kvm_amd has {option}={value}", expected=f"{option}=Y", seen=value, fix=fix)
    if not case.evidence.kvm.sev:
        fix = "Run `modprobe ccp`; in a container, pass /dev/sev in."
        return failed("/dev/sev is missing", expected="a device", seen="absent", fix=fix)
    return passed(f"{', '.join(wanted)} in kvm_amd, and /dev/sev is there")


@check(
    "confidential.tdx",
    "The host can run TDX guests",
    sections=("cpu", "kernel", "system"),
    requires=("contract.present", "kernel.module"),
    proves="KVM runs guests in Intel's trust domains.",
    how="The option tdx of kvm_intel, which KVM itself sets to N where the TDX module did not start; and the flag "
    "tdx_host_platform for the reason.",
    todo="Firmware: TME-MT, TDX and SEAM loader on. Kernel: 6.16, with kvm_intel.tdx=1 and nohibernate.",
)
def tdx(case: Case) -> Finding:
    if "tdx" not in case.wishes.qemu.confidential:
        return not_applicable("not asked for")
    params = case.evidence.kernel.modules.get("kvm_intel", Module()).params
    value = params.get("tdx", "")
    if plain(value) == "1":
        return passed("kvm_intel runs trust domains")
    if "tdx_host_platform" not in case.evidence.cpu.flags:
        fix = "Enable TME-MT and TDX in the firmware, or use a machine that has it."
        return failed("no TDX: the platform does not show it", expected="tdx_host_platform", seen="none", fix=fix)
    if not params and case.evidence.system.container:
        return undecided("the options of kvm_intel cannot be seen from this container", fix=BELOW)
    if not value:
        fix = "Boot Linux 6.16 or newer, with kvm_intel."
        return failed("no TDX: this kernel's KVM does not know it", expected="kvm_intel.tdx", seen="none", fix=fix)
    fix = "Set kvm_intel's option tdx to 1 in kernel_modules_options and provision; `dmesg | grep -i tdx` tells more."
    return failed(f"no TDX: kvm_intel has tdx={value}", expected="tdx=Y", seen=value, fix=fix)


CHECKS = (sev, tdx)
