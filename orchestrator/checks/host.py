"""Did the host answer, and completely?"""

from __future__ import annotations

from orchestrator.checks.registry import Case, Explanation, Topic, check, failed, passed
from orchestrator.model.finding import Finding

BECOME = "Let the login user become root: ansible_become: true, and sudo without a password."

CONVERGED = Topic(
    id="host.converged",
    title="The playbook finished",
    explanation=Explanation(
        proves="Everything that `kvmfleet provision` wanted to do on the host was done.",
        how="Ansible's own account of the run. Only `provision` finds this, and only where the playbook did not "
        "finish; the host is looked at all the same, and never called good.",
        todo="The finding names the task and its reason. Settle that and run `kvmfleet provision` again; what is done "
        "is not done twice.",
    ),
)

DRIFT = Topic(
    id="host.drift",
    title="Provisioning left no drift",
    explanation=Explanation(
        proves="Nothing on the host is other than it was when it was last good, but for what this run changed.",
        how="The host is compared with its baseline before and after the playbook. Only `provision` finds this. What "
        "the playbook left as it found it is no part of the new baseline: there the former one stays.",
        todo="`kvmfleet drift --diff` shows each item. Repair it on the host, or say that it is fine with "
        "`kvmfleet drift accept HOST`.",
    ),
)


@check(
    "host.reachable",
    "The host answers",
    sections=(),
    proves="The controller can log in on the host and start Python there.",
    how="One session a host. A host that stays silent is never counted as good: verdicts walk the inventory.",
    todo="Try `ssh` with the address, port, user and key of the inventory. The finding says at which step it ended.",
)
def reachable(case: Case) -> Finding:
    return passed(f"answered in {case.evidence.duration_ms / 1000:.1f} s")


@check(
    "host.evidence",
    "The host's answer is complete",
    sections=(),
    requires=("host.reachable",),
    proves="Every section of the evidence was collected, as root.",
    how="The collector reports its effective user, and each section that failed or took too long with the reason.",
    todo="Let the login user become root with sudo. For a section that takes too long, look at the host's load, disks "
    "and directory service.",
)
def evidence(case: Case) -> Finding:
    if case.evidence.system.uid > 0:
        return failed(
            f"collected as user {case.evidence.system.uid}, most answers need root",
            expected="uid 0",
            seen=f"uid {case.evidence.system.uid}",
            fix=BECOME,
        )
    if case.evidence.errors:
        problems = "; ".join(f"{section}: {why}" for section, why in sorted(case.evidence.errors.items()))
        return Finding(
            "", "error", f"incomplete: {problems}", fix="Look at the host's load and disks, then validate again."
        )
    system = case.evidence.system
    return passed(
        f"{system.os_name or system.os_id or 'unknown release'}, Linux {system.kernel}, Python {system.python}"
    )


CHECKS = (reachable, evidence)
