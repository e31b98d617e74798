"""Drift and history, for people and machines."""

import json

import pytest
from test_report import show

from orchestrator.model import Drift, HostDrift
from orchestrator.report import drift as report
from orchestrator.store import Acceptance, PastResult, PastRun

SWAP = Drift("sysctl:vm.swappiness", "live 10", "live 60", since_s=1_700_000_000.0)
HOSTS = (
    HostDrift("hv1", "in-sync", since_s=1_700_000_000.0),
    HostDrift("hv2", "drifted", items=(SWAP, Drift("system:kernel", "6.1", "\x1b[2J6.2")), pending=True),
    HostDrift("hv3", "pending", pending=True),
    HostDrift("hv4", "unreachable", problem="connection \x1b[2Jrefused", hint="Look."),
)


@pytest.mark.parametrize(
    ("states", "strict", "code"),
    [
        (["in-sync"], False, 0),
        (["in-sync", "pending"], False, 0),
        (["in-sync", "pending"], True, 2),
        (["in-sync", "drifted"], False, 2),
        (["drifted", "unreachable"], False, 1),
        (["drifted", "never-provisioned"], False, 1),
        (["unknown"], True, 1),
        ([], False, 1),
    ],
)
def test_the_exit_code_follows_the_worst_host_and_not_knowing_wins(states, strict, code):
    assert report.exit_code([HostDrift(f"h{n}", state) for n, state in enumerate(states)], strict=strict) == code


def test_people_read_what_changed_since_when_who_owns_it_and_what_heals_it():
    text = show(report.report(HOSTS, ("my inventory.yml",)))
    assert "hv2: sysctl:vm.swappiness (host_tuning), since 2023-11-1" in text
    assert "live 10 → live 60" in text
    assert "kvmfleet provision -i 'my inventory.yml' --limit hv2" in text
    assert "hv2: system:kernel (no role changes it)" in text
    assert "kvmfleet drift accept hv2 system:kernel --reason" in text
    assert "drifted, pending" in text
    assert "pending hv3: the inventory or the roles changed" in text
    assert "unreachable hv4: connection \\x1b[2Jrefused" in text
    assert "4 hosts: 1 in-sync, 1 pending, 1 drifted, 1 unreachable" in text
    assert "\x1b" not in text


def test_long_values_are_a_line_and_whole_with_diff():
    item = Drift(
        "network:lab definition",
        "<network>\n  <mtu size='1500'/>\n</network>",
        "<network>\n  <mtu size='9000'/>\n</network>",
    )
    hosts = [HostDrift("hv1", "drifted", items=(item,))]
    assert "+ <mtu size='9000'/> and 1 more lines, see --diff" in show(report.report(hosts))
    whole = show(report.report(hosts, diff=True))
    assert "-  <mtu size='1500'/>" in whole
    assert "+  <mtu size='9000'/>" in whole


def test_a_user_whom_nobody_asked_for_is_taken_out_by_hand():
    item = Drift("member:libvirt", "operator", "mallory operator")
    assert report.heal("hv1", item, ()) == "gpasswd -d mallory libvirt"
    assert report.heal("hv1", Drift("member:libvirt", "operator", ""), ()) == "kvmfleet provision --limit hv1"


def test_machines_read_the_same():
    document = json.loads(report.render(HOSTS, ("inv",)))
    assert document["summary"] == {
        "in-sync": 1, "pending": 1, "drifted": 1, "never-provisioned": 0, "unreachable": 1, "unknown": 0,
    }  # fmt: skip
    assert document["hosts"][1]["items"][0] == {
        "item": "sysctl:vm.swappiness",
        "expected": "live 10",
        "seen": "live 60",
        "since_s": 1_700_000_000.0,
        "owner": "host_tuning",
        "heal": "kvmfleet provision -i inv --limit hv2",
    }


def test_the_past_of_a_host_is_its_verdicts_its_drift_and_who_accepted_what():
    results = [PastResult(3, "hv1", 3.0, "degraded", "kvm.hardware", "ssh", "", "", "", (), None)]
    accepted = [Acceptance("hv1", "system:kernel", "6.1", "6.2", "ann", "new\x1b[2J kernel", 5.0)]
    lines = show(
        report.past_host("hv1", results, [HostDrift("hv1", "drifted", seen_s=4.0, items=(SWAP,))], accepted)
    ).splitlines()
    assert "accepted system:kernel by ann: new\\x1b[2J kernel" in lines[1]
    assert "drifted sysctl:vm.swappiness" in lines[2]
    assert "degraded in run 3: kvm.hardware" in lines[3]


def test_past_runs_are_a_table():
    runs = [
        PastRun(2, "drift", "ann", "desk", "1", 10.0, 12.0, None, None, "finished"),
        PastRun(1, "x", "a", "b", "1", 1.0, None, None, None, "interrupted"),
    ]
    text = show(report.past_runs(runs))
    assert "ann@desk" in text
    assert "2 s" in text
    assert "interrupted" in text
