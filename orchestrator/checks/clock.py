"""Is the host's clock right, does somebody keep it right, and does the kernel count time well?"""

from __future__ import annotations

from orchestrator.checks.registry import Case, check, failed, not_applicable, passed, undecided, warned
from orchestrator.model.finding import Finding

OFF_S, FAR_OFF_S = 2.0, 300.0  # Kerberos and many a certificate's issuer draw the second line there
UNSYNCHRONISED_MS = 16000.0  # NTP_PHASE_LIMIT of the kernel
CONTAINER = "a container has the clock of the machine below"
SLOW = ("hpet", "acpi_pm", "pit")
COARSE = ("jiffies", "refined-jiffies")
SYNCHRONISE = "Run `systemctl enable --now systemd-timesyncd` or `chronyd`; then `timedatectl` tells."


@check(
    "clock.synchronised",
    "Somebody keeps the clock right",
    sections=("clock", "system"),
    proves="The kernel's clock follows another one, so that logs, certificates and migrations of hosts fit together.",
    how="The largest error that the kernel takes its clock to have, adjtimex(2). timesyncd, chrony and ntpd keep it "
    "small; without them it grows to 16 s, which is what timedatectl calls not synchronised, and so begins every boot.",
    todo=f"{SYNCHRONISE} Where it reaches no server: UDP port 123 to the servers of its file, or servers of your own.",
)
def synchronised(case: Case) -> Finding:
    found = case.evidence.clock
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if found.max_error_ms is None:
        return undecided("the kernel does not tell", fix="Run `timedatectl` on the host.")
    if found.max_error_ms < UNSYNCHRONISED_MS:
        return passed(f"synchronised, to within {found.max_error_ms:.0f} ms")
    if case.profile == "lab":
        return not_applicable("a lab may go without")
    return warned("nothing keeps the clock right", expected="synchronised", seen="not synchronised", fix=SYNCHRONISE)


@check(
    "clock.offset",
    "The host's clock agrees with the controller's",
    sections=(),
    warns_in=("lab",),
    proves=f"The two clocks are at most {OFF_S:.0f} s apart: certificates are valid for both, logs can be compared.",
    how="The controller notes when it asks and when it has the answer; the host looks at its clock in between. Only "
    "what lies outside of that time is an offset, so a slow answer is none.",
    todo="Compare `date -u` on both machines; the one that is wrong needs a time server. If all hosts are off by the "
    "same, it is the controller.",
)
def offset(case: Case) -> Finding:
    evidence = case.evidence
    if not evidence.heard_at_s:
        return not_applicable("this evidence was recorded without the controller's time")
    behind = evidence.asked_at_s - evidence.collected_at_s
    ahead = evidence.collected_at_s + evidence.duration_ms / 1000 - evidence.heard_at_s
    off = max(behind, ahead)
    summary = f"{_span(off)} {'behind' if behind >= ahead else 'ahead of'} the controller's clock"
    fix = "Compare `date -u` on both; then `timedatectl set-ntp true`, or `chronyc makestep`, on the one that is wrong."
    if off > FAR_OFF_S:
        return failed(summary, expected=f"at most {OFF_S:.0f} s", seen=_span(off), fix=fix)
    if off > OFF_S and case.profile != "lab":
        return warned(summary, expected=f"at most {OFF_S:.0f} s", seen=_span(off), fix=fix)
    doubt = max(-behind, -ahead)
    return passed(summary if off > OFF_S else f"no offset, to within {max(doubt, off):.1f} s")


def _span(seconds: float) -> str:
    """A host may have set its clock to anything."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{min(seconds / unit, 1e9):.0f} {name}"
    return f"{seconds:.1f} s"


@check(
    "clock.source",
    "The kernel counts time with the processor",
    sections=("clock", "kernel", "system"),
    warns_in=("lab",),
    proves="Reading the clock costs nanoseconds, on the host and, through kvm-clock, in its guests.",
    how="/sys/devices/system/clocksource. With hpet or acpi_pm every reading goes to the chipset, and guests lose the "
    "clock that they can read without an exit; jiffies are as coarse as the timer.",
    todo="`dmesg | grep -i clocksource` says why the kernel gave tsc up: unstable, or told so by an argument. Update "
    "the firmware; take clocksource= and tsc= out of the kernel's arguments.",
)
def source(case: Case) -> Finding:
    found = case.evidence.clock
    if case.evidence.system.container:
        return not_applicable(CONTAINER)
    if not found.source:
        return undecided("the kernel does not tell", fix="Look at /sys/devices/system/clocksource on the host.")
    told = [word for word in case.evidence.kernel.cmdline.split() if word.startswith(("clocksource=", "tsc="))]
    fix = (
        f"Take {' '.join(told)} out of the kernel's arguments, then reboot."
        if told
        else "Read `dmesg | grep -i -e clocksource -e tsc` for why the kernel gave tsc up; then reboot."
    )
    seen = f"{found.source}, of {', '.join(found.sources)}"
    if found.source in COARSE:
        return failed(f"time is counted with {found.source}", expected="tsc", seen=seen, fix=fix)
    if found.source in SLOW and case.profile != "lab":
        return warned(f"time is counted with {found.source}, which is slow", expected="tsc", seen=seen, fix=fix)
    return passed(found.source)


CHECKS = (synchronised, offset, source)
