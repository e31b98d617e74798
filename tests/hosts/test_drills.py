"""Every fault that a container can have, on a Debian 12 and a Debian 13 host: named as the one cause, and healed.

What was found goes into docs/drills.md. The tests of this file tell one story in order, on a lab of their own. They
look through the library that `kvmfleet validate` and `lab break` call: four commands a fault would double the time.
"""

import json
import re
from pathlib import Path

import pytest

from orchestrator import inventory, rollout
from orchestrator.inventory import AnsibleOptions
from orchestrator.lab import drills, labs
from orchestrator.lab.faults.catalogue import catalogue
from orchestrator.lab.spec import SYSTEMS
from orchestrator.model.run import Boot

pytestmark = pytest.mark.hosts

HOSTS = {"drill-1": "debian-12", "drill-2": "debian-13"}
WISH = Path("tests/hosts/drill.yml")
GUEST = '<domain type="qemu"><name>drill</name><memory unit="MiB">16</memory><os><type>hvm</type></os></domain>'
PAGE = Path("docs/drills.md")
DRILLED = [fault for fault in catalogue() if "container" in fault.providers]
OTHERS = [fault for fault in catalogue() if "container" not in fault.providers]
OF_THE_MACHINE = {
    "kvm.node": "/dev/kvm",
    "kvm.permission": "/dev/kvm",
    "kvm.open_as": "/dev/kvm",
    "kernel.devices": "/dev/net/tun",
}
MOMENTARY = ("memory.", "upkeep.oom")
"""What these find changes with what else this machine does, whose memory the hosts share."""

TEMPLATE = """\
# The drills

Hosts are broken on purpose, to see whether `kvmfleet validate` names what was broken: that check as the root cause,
and nothing else. Then they are healed, and everything is found as it was before. `pytest tests/hosts/test_drills.py`
does all of it on hosts in containers and writes this page; [lab.md](lab.md) tells how to do one by hand.

{summary}

| fault | what is wrong | check | {titles} |
|---|---|---|---|---|
{rows}

Detected: this check is the cause of all that does not pass and did before. Missed: it is not. False alarm: something
else was found as well.

## Not drilled there

A container cannot have these. `tests/vm/test_story_vm.py` drills those that its machine is told of; `kvmfleet lab
break` brings them about on any host of the provider vm.

| fault | what is wrong | check | why not |
|---|---|---|---|
{others}
"""

measured: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def own(environment, tmp_path_factory):
    """State of its own, for the stories begin without a CA; this process looks at the same."""
    with pytest.MonkeyPatch.context() as patch:
        state = str(tmp_path_factory.mktemp("drills"))
        patch.setenv("KVMFLEET_STATE_DIR", state)
        yield environment | {"KVMFLEET_STATE_DIR": state}


@pytest.fixture(scope="module")
def run(kvmfleet, own):
    return lambda *arguments: kvmfleet(*arguments, env=own)


@pytest.fixture(scope="module")
def lab(run):
    """The path of the inventory of a lab of bare hosts."""
    systems = [word for system in HOSTS.values() for word in ("--os", system)]
    up = run("lab", "up", "drill", "--provider", "container", *systems, "--bare", "--yes")
    try:
        assert up.returncode == 0, up.stderr
        yield json.loads(run("lab", "status", "drill", "--json").stdout)["inventory"]
    finally:
        down = run("lab", "down", "drill", "--yes")
        assert down.returncode == 0, down.stderr


@pytest.fixture(scope="module")
def look(lab, run):
    """Provisions the hosts; then validates them as deep as is asked for, and gives what was found by host."""
    assert run("pki", "init").returncode == 0
    done = run("provision", "-i", lab, "-e", f"@{WISH}", "--boot", "none")
    assert " 2 unknown" in done.stdout, done.stdout + done.stderr
    made = labs.find("drill")
    for host in made.hosts:
        define = f"echo '{GUEST}' > /root/drill.xml; virsh define /root/drill.xml && virsh autostart drill"
        labs.ask(made, host, "sudo -n sh", stdin=define)
    options = AnsibleOptions(inventory=(lab,))
    fleet = inventory.load(options)

    def look(depth):
        run = rollout.validate(fleet, options, boot=Boot(depth))
        return {result.host: result.judgement for result in run.results}

    return look


@pytest.fixture(scope="module")
def healthy(look):
    """What is found on hosts with nothing wrong, by depth."""
    return {depth: look(depth) for depth in ("proof", "firmware")}


def lasting(judgement):
    return [finding for finding in judgement.findings if not finding.check.startswith(MOMENTARY)]


def statuses(judgement):
    return {finding.check: finding.status for finding in lasting(judgement)}


def named(judgement, before):
    """Findings that are their own cause and were not there before; then the causes of everything that was skipped."""
    was = statuses(before)
    loud = {f.check for f in lasting(judgement) if f.status not in ("pass", "skip") and was.get(f.check) != f.status}
    return loud, {finding.cause for finding in lasting(judgement)} - {""}


def outcome(judgement, before, check):
    loud, causes = named(judgement, before)
    others = sorted((loud | causes) - {check} - {finding.cause for finding in before.findings})
    if check not in loud or (judgement.verdict == "failed" and judgement.cause.check != check):
        return "missed" + (f", found {', '.join(others)}" if others else "")
    return f"false alarm: {', '.join(others)}" if others else "detected"


# --- before anything is broken


def test_a_host_that_was_never_told_to_have_it_is_not_broken_with_it(lab, run):
    done = run("lab", "break", "drill-1", "network-stopped")
    assert done.returncode == 1
    assert "drill-1 could not be broken with network-stopped" in done.stderr
    assert "What had been done was taken back." in done.stderr
    assert run("lab", "heal", "drill-1").returncode == 0


def test_a_healthy_host_has_no_failure_and_no_more_than_the_machines_own_warnings(healthy):
    for judgements in healthy.values():
        for host, judgement in judgements.items():
            bad = {f.check: f.summary for f in judgement.findings if f.status in ("fail", "error")}
            assert bad == {}, host
            own = {"cpu.", "kernel.", "kvm.", "qemu.kvm", "libvirt.kvm", "guest.boot", "windows.hyperv"}
            warned = {f.check for f in lasting(judgement) if f.status == "warn"}
            assert {check for check in warned if not check.startswith(tuple(own))} == set(), host


def test_break_and_heal_at_the_command_line(run, healthy, lab):
    broke = run("lab", "break", "drill-1", "guests-service-stopped")
    assert (broke.returncode, broke.stdout) == (0, "")
    assert "drill-1: guests-service-stopped: Nobody would look after the guests" in broke.stderr
    assert "drill-1 is broken: guests-service-stopped" in run("lab", "status", "drill").stdout

    found = run("validate", "-i", lab, "-l", "drill-1", "--boot", "proof", "--json")
    host = json.loads(found.stdout)["hosts"][0]
    assert (found.returncode, host["verdict"], host["cause"]["check"]) == (2, "failed", "guests.service")

    for arguments, message in {
        ("break", "drill-1", "guests-service-stopped"): "is broken with guests-service-stopped already",
        ("break", "drill-1", "guests-service-stoped"): "Did you mean guests-service-stopped",
        ("break", "drill-1", "kvm-unloaded"): "drill-1 is a container, which cannot have the fault kvm-unloaded",
        ("break", "drill-9", "kvm-gone"): "No lab has a host 'drill-9'",
        ("heal", "drill-2", "kvm-gone"): "drill-2 is not broken with kvm-gone",
    }.items():
        done = run("lab", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr

    assert run("lab", "heal", "drill-1").returncode == 0
    assert run("validate", "-i", lab, "-l", "drill-1", "--boot", "proof").returncode == 0


# --- the drills


@pytest.mark.parametrize("fault", DRILLED, ids=lambda fault: fault.id)
def test_a_fault_is_named_as_the_one_cause_and_healed(fault, look, healthy):
    before = healthy[fault.depth]
    hosts = [host for host, system in HOSTS.items() if system in fault.systems]
    if fault.check in OF_THE_MACHINE and statuses(before[hosts[0]])[fault.check] != "pass":
        pytest.skip(f"this machine has no {OF_THE_MACHINE[fault.check]} that works")
    try:
        for host in hosts:
            drills.inject(host, fault.id, progress=lambda *_: None)
        broken = look(fault.depth)
    finally:
        for host in HOSTS:
            drills.heal(host, progress=lambda *_: None)
    for host in hosts:
        measured[fault.id, HOSTS[host]] = outcome(broken[host], before[host], fault.check)
    assert {host: measured[fault.id, HOSTS[host]] for host in hosts} == dict.fromkeys(hosts, "detected"), broken
    healed = look(fault.depth)
    other = {host: statuses(healed[host]).items() ^ statuses(before[host]).items() for host in HOSTS}
    assert not any(other.values()), "; ".join(
        f"{host}: {f.check}: {f.status}: {f.summary}"
        for host in HOSTS
        for f in healed[host].findings
        if (f.check, f.status) in other[host]
    )


# --- the record of it


def test_the_page_of_drills_says_what_was_measured():
    known = PAGE.read_text() if PAGE.exists() else ""
    now = page(known)
    PAGE.write_text(now)
    assert known == now, f"{PAGE} said something else than was measured; it is rewritten: look at it, and commit it"


def page(known):
    """docs/drills.md; what was not measured in this run keeps what the page knew."""
    cells = {fault.id: [_cell(fault, system, known) for system in HOSTS.values()] for fault in DRILLED}
    count = sum(cell != "-" for row in cells.values() for cell in row)
    good = sum(cell == "detected" for row in cells.values() for cell in row)
    titles = " | ".join(SYSTEMS[system].title for system in HOSTS.values())
    rows = [f"| `{f.id}` | {f.says} | `{f.check}` | {' | '.join(cells[f.id])} |" for f in DRILLED]
    others = [f"| `{f.id}` | {f.says} | `{f.check}` | {f.why} |" for f in OTHERS]
    summary = f"{len(DRILLED)} faults on {len(HOSTS)} systems: {good} of {count} detected."
    return TEMPLATE.format(summary=summary, titles=titles, rows="\n".join(rows), others="\n".join(others))


def _cell(fault, system, known):
    if system not in fault.systems:
        return "-"
    if (fault.id, system) in measured:
        return measured[fault.id, system]
    row = re.search(rf"^\| `{fault.id}` \|.*\| (.*?) \| (.*?) \|$", known, re.MULTILINE)
    return row[1 + list(HOSTS.values()).index(system)] if row else "not measured"
