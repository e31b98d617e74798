"""Do guests start and stop with their host as they were told to?"""

from __future__ import annotations

from shlex import quote

from orchestrator.checks.contract import PROVISION
from orchestrator.checks.registry import Case, check, differences, failed, not_applicable, passed, warned
from orchestrator.model.finding import Finding

NO_POLICY = "no policy is asked for"


@check(
    "guests.policy",
    "The shutdown policy of guests is written",
    sections=("guests",),
    requires=("contract.present",),
    explained_by=("contract.packages",),
    proves="libvirt-guests will do at boot and at shutdown what the inventory says.",
    how="The settings of the contract in the file that libvirt-guests reads when it starts and when it stops: the last "
    "value for a key counts. It keeps none in memory, so what is written is in force.",
    todo=f"Somebody changed the file below our block, or the block. {PROVISION}",
)
def policy(case: Case) -> Finding:
    wish = case.wishes.guests
    if not wish.settings:
        return not_applicable(NO_POLICY)
    wrong = differences(wish.settings, case.evidence.guests.settings)
    if wrong:
        return failed(f"{wish.file}: {'; '.join(wrong)}", expected="as in the contract", fix=PROVISION)
    return passed(f"{len(wish.settings)} settings in {wish.file}")


@check(
    "guests.service",
    "The shutdown policy of guests is in force",
    sections=("guests", "libvirt"),
    requires=("contract.present",),
    explained_by=("contract.packages",),
    proves="At the next shutdown somebody looks after the guests: now, and after another boot.",
    how="libvirt-guests acts when it is stopped, so its unit has to be active now and enabled for the next boot.",
    todo="`systemctl enable --now libvirt-guests.service`; guests that run do not notice. Without it they are killed "
    "at shutdown like any other process.",
)
def service(case: Case) -> Finding:
    wish, found = case.wishes.guests, case.evidence.guests.unit
    unit = quote(wish.unit)
    if not wish.unit:
        return not_applicable(NO_POLICY)
    if not case.evidence.libvirt.units:
        return not_applicable("systemd does not run this host")
    now = found.active == "active"
    later = found.enabled == "enabled"
    if now and later:
        return passed(f"{wish.unit} is active, and enabled for the next boot")
    if found.load == "masked":
        seen, fix = "masked", f"Run `systemctl unmask {unit} && systemctl enable --now {unit}`."
    elif not found.load:
        seen, fix = "no such unit", PROVISION
    else:
        seen = f"{found.active} now, {found.enabled} for the next boot"
        fix = f"Run `systemctl enable --now {unit}`: guests that run do not notice."
    return failed(f"{wish.unit}: {seen}", expected="active, enabled", seen=seen, fix=fix)


@check(
    "guests.autostart",
    "The guests that should start with the host do",
    sections=("guests",),
    requires=("contract.present",),
    proves="libvirt starts every guest of libvirt_guests_autostart when its daemon starts.",
    how="The guest's definition and its link in /etc/libvirt/qemu/autostart.",
    todo="`virsh autostart GUEST`. A guest that does not exist is a warning: define it, or take it out of the list.",
)
def autostart(case: Case) -> Finding:
    wanted, found = case.wishes.guests.autostart, case.evidence.guests
    if not wanted:
        return not_applicable("no guest is asked to start with the host")
    off = [name for name in wanted if name in found.defined and name not in found.autostart]
    absent = [name for name in wanted if name not in found.defined]
    if off:
        fix = f"Run `{' && '.join(f'virsh autostart {quote(name)}' for name in off)}`."
        return failed(f"would not start: {', '.join(off)}", expected="autostart", seen="no autostart", fix=fix)
    if absent:
        names = ", ".join(absent)
        return warned(
            f"there is no guest {names}",
            expected="defined",
            seen="not defined",
            fix="Define it, then run `kvmfleet provision`; or take it out of libvirt_guests_autostart.",
        )
    return passed(f"{len(wanted)} start with the host: {', '.join(wanted)}")


CHECKS = (policy, service, autostart)
