"""Drift and history, for people and machines."""

import json
import re
import xml.etree.ElementTree as ET
from datetime import datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families
from test_report import show

from orchestrator.history.store import Acceptance, PastResult, PastRun
from orchestrator.model.drift import Drift, HostDrift
from orchestrator.report import drift as report
from orchestrator.report import drift_json, junit, prometheus
from orchestrator.report.drift import Asked
from orchestrator.text import printable

SWAP = Drift("sysctl:vm.swappiness", "live 10", "live 60", since_s=1_700_000_000.0)
HOSTS = (
    HostDrift("hv1", "in-sync", since_s=1_700_000_000.0),
    HostDrift("hv2", "drifted", items=(SWAP, Drift("system:kernel", "6.1", "\x1b[2J6.2")), pending=True),
    HostDrift("hv3", "pending", pending=True),
    HostDrift("hv4", "unreachable", problem="connection \x1b[2Jrefused", hint="Look."),
)


def trimmed(text):
    return "\n".join(line.rstrip() for line in text.splitlines())


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
    text = show(report.report(HOSTS, Asked(("my inventory.yml",))))
    assert "hv2: sysctl:vm.swappiness (host_tuning), since 2023-11-1" in text
    assert "live 10 → live 60" in text
    assert re.search(r"^heal +kvmfleet provision -i 'my inventory.yml' --limit hv2$", trimmed(text), re.M)
    assert "hv2: system:kernel (no role changes it)" in text
    assert "kvmfleet drift accept hv2 system:kernel --reason" in text
    assert "drifted, pending" in text
    assert "host_tuning, no role" in text
    assert "hv2, hv3: the inventory or the roles changed" in text
    assert "hv4: connection \\x1b[2Jrefused" in text
    assert "4 hosts: 1 in-sync, 1 pending, 1 drifted, 1 unreachable" in text
    assert "\x1b" not in text


def fleet(drifted=3, silent=10, calm=90):
    """Hosts with one cause each: a package that was removed everywhere, a gateway that is down."""
    items = (Drift("package:ovmf", "1", "not installed", since_s=1_700_000_000.0), SWAP)
    return [
        *(HostDrift(f"calm{n}", "in-sync") for n in range(calm)),
        *(HostDrift(f"gone{n}", "unreachable", problem="no route", hint="Look.") for n in range(silent)),
        *(HostDrift(f"bad{n}", "drifted", items=items) for n in range(drifted)),
    ]


def test_a_fleet_is_told_worst_first_and_each_thing_once():
    lines = trimmed(show(report.report(fleet()), width=80)).splitlines()
    assert [line.split()[0] for line in lines[2:15]] == [f"bad{n}" for n in range(3)] + [f"gone{n}" for n in range(10)]
    text = "\n".join(lines)
    assert text.count("package:ovmf") == text.count("no route") == text.count("kvmfleet provision") == 1
    assert "bad0, bad1, bad2: package:ovmf (libvirt)" in text
    assert "gone0, gone1, gone2, gone3, gone4 and 5 more: no route" in text
    assert "calm0, calm1, calm2, calm3, calm4 and 85 more" in text
    assert len(lines) < 32
    assert max(map(len, lines)) <= 80
    assert "calm89" in show(report.report(fleet(), verbose=True))


def test_hosts_that_drifted_at_different_times_are_told_with_the_first():
    hosts = [
        HostDrift(name, "drifted", items=(Drift("package:ovmf", "1", "2", since_s=at_s),))
        for name, at_s in (("hv1", 1_800_000_000.0), ("hv2", 1_700_000_000.0))
    ]
    text = show(report.report(hosts))
    assert "since 2023-11-1" in text
    assert "or later" in text


def test_many_hosts_are_healed_by_a_command_that_can_be_typed():
    asked = Asked(("inv",), "rack 1")
    assert "provision -i inv --limit 'rack 1' --drifted" in show(report.report(fleet(drifted=6), asked))
    few = trimmed(show(report.report(fleet(drifted=5), asked)))
    assert re.search("provision -i inv --limit bad0,bad1,bad2,bad3,bad4$", few, re.M)


def test_one_host_that_is_not_what_it_was_at_all_does_not_hide_the_others():
    items = tuple(Drift(f"package:p{n:03}", "1", None) for n in range(300))
    hosts = [HostDrift("wreck", "drifted", items=items), HostDrift("hv2", "drifted", items=(SWAP,))]
    text = show(report.report(hosts))
    assert text.count("package:p") == report.ITEMS
    assert "and 280 more items" in text
    assert "hv2: sysctl:vm.swappiness" in text
    assert show(report.report(hosts, verbose=True)).count("package:p") == 300


def test_a_narrow_terminal_leaves_out_the_owners_before_it_breaks_a_name():
    hosts = [HostDrift("hv004.rack17.somewhere.example.com", "drifted", items=(SWAP,), pending=True, since_s=1.7e9)]
    head = show(report.report(hosts), width=80).splitlines()
    assert "owner" not in head[0]
    assert "hv004.rack17.somewhere.example.com" in head[2]
    assert "drifted, pending" in head[2]
    assert "owner" in show(report.report(hosts), width=120).splitlines()[0]


def test_a_terminal_that_is_nearly_wide_enough_breaks_no_owner():
    for width in range(48, 80):
        head, _, row, *_ = show(
            report.report([HostDrift("hv1", "drifted", items=(SWAP,), since_s=1.7e9)]), width=width
        ).splitlines()
        assert "…" not in head + row


def test_long_values_are_a_line_and_whole_with_diff():
    item = Drift(
        "network:lab definition",
        "<network>\n  <mtu size='1500'/>\n</network>",
        "<network>\n  <mtu size='9000'/>\n</network>",
    )
    hosts = [HostDrift("hv1", "drifted", items=(item,))]
    assert "+ <mtu size='9000'/> and 1 more line, see --diff" in show(report.report(hosts))
    whole = show(report.report(hosts, diff=True))
    assert "-  <mtu size='1500'/>" in whole
    assert "+  <mtu size='9000'/>" in whole


@pytest.mark.parametrize(
    ("expected", "seen", "told"),
    [
        ("a\nb", "a\nb\n", r"+'\n'"),
        ("a\r\nb", "a\nb", r"-'\r\nb'"),
        ("a\x85b\n", "a\nb\n", r"-'\x85b\n'"),
        ("rule\n" * 9000 + "accept\n", "rule\n" * 9000 + "drop\n", "+drop"),
        ("rule " * 9000 + "accept\n", "rule " * 9000 + "drop\n", r"+'drop\n'"),
    ],
    ids=["newline", "carriage return", "next line", "late", "late in a line"],
)
def test_values_that_look_alike_are_told_apart_and_so_are_long_ones(expected, seen, told):
    hosts = [HostDrift("hv1", "drifted", items=(Drift("contract", expected, seen),))]
    assert told in show(report.report(hosts, diff=True))
    assert told in show(report.report(hosts)) or "see --diff" in show(report.report(hosts))


def test_a_user_whom_nobody_asked_for_is_taken_out_by_hand():
    item = Drift("member:libvirt", "operator", "mallory operator")
    for left in (False, True):
        assert report.heal("hv1", item, (), left=left) == "gpasswd -d mallory libvirt"
    told = show(report.report([HostDrift("hv1", "drifted", items=(item,))]))
    assert "on the host: gpasswd -d mallory libvirt" in told, "all other commands are for here"
    missing = Drift("member:libvirt", "operator", "")
    assert report.heal("hv1", missing, (), left=False) == "kvmfleet provision --limit hv1"


def test_a_package_comes_back_by_the_playbook_and_its_former_version_does_not():
    removed, downgraded = (Drift("package:ovmf", "2.0", seen) for seen in ("not installed", "1.0"))
    assert report.heal("hv1", removed, (), left=False) == "kvmfleet provision --limit hv1"
    assert report.heal("hv1", downgraded, (), left=False).startswith("kvmfleet drift accept hv1 package:ovmf")


def test_what_the_last_provision_left_is_for_people_and_provision_is_not_offered_again():
    file = Drift("file:/etc/libvirt/qemu.conf", "sha256 1", "sha256 2", since_s=1.7e9)
    hosts = [
        HostDrift("hv1", "drifted", items=(file,), left=(file.item,)),
        HostDrift("hv2", "drifted", items=(file,)),
        HostDrift("hv3", "drifted", items=(Drift("kvm-node", "root:kvm 0660", "root:root 0600"),), left=("kvm-node",)),
    ]
    text = trimmed(show(report.report(hosts)))
    accept = "kvmfleet drift accept hv1 file:/etc/libvirt/qemu.conf --reason"
    told = f"the last provision left it as it found it: repair it on the host, or\n {accept}"
    assert told in re.sub(" +", " ", text)
    assert text.count("the last provision left it") == 1, "no role keeps the node anyway"
    assert text.count(file.item) == 3, "hv2 has a line of its own, and no command to accept it"
    assert re.search(r"^heal +kvmfleet provision --limit hv2$", text, re.M)
    document = json.loads(drift_json.render(hosts, began_s=0.0, ended_s=1.0))
    heals = {host["host"]: host["items"][0]["heal"] for host in document["hosts"]}
    assert heals["hv1"].startswith(accept)
    assert heals["hv2"] == "kvmfleet provision --limit hv2"
    assert f"heal: {accept}" in junit.render_drift(hosts)


def test_machines_read_the_same():
    text = drift_json.render(HOSTS, ("inv",), began_s=1.0, ended_s=2.5)
    document = json.loads(text)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert (document["command"], document["began_s"], document["ended_s"]) == ("drift", 1.0, 2.5)
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
    watched = HostDrift("hv1", "drifted", since_s=1.0, seen_s=4.0, items=(SWAP,))
    lines = show(report.past_host("hv1", results, [watched], accepted)).splitlines()
    assert "accepted system:kernel by ann: new\\x1b[2J kernel" in lines[1]
    assert "drifted sysctl:vm.swappiness" in lines[2], "since the same minute"
    assert "degraded in run 3: kvm.hardware" in lines[3]


def test_checks_in_a_row_that_saw_the_same_are_one_line_with_since_when():
    watched = HostDrift("hv1", "in-sync", since_s=60.0, seen_s=86400.0)
    (line,) = show(report.past_host("hv1", [], [watched], [])).splitlines()[1:]
    began, ended = (datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M") for at_s in (60, 86400))
    assert line.split() == [*ended.split(), "in-sync", "since", *began.split()]


def test_past_runs_are_a_table():
    runs = [
        PastRun(2, "unprovision", "ann", "desk", "1", 10.0, 12.0, None, "finished"),
        PastRun(1, "x", "a", "b", "1", 1.0, None, None, "interrupted"),
    ]
    narrow = show(report.past_runs(runs), width=60)
    assert "…" not in narrow
    assert "by" not in narrow
    text = show(report.past_runs(runs))
    assert "ann@desk" in text
    assert "2 s" in text
    assert "interrupted" in text


def metrics(*hosts):
    """Samples of the metrics, as Prometheus' own parser reads them: (name, labels) -> value."""
    text = prometheus.render_drift(hosts, began_s=1000.0, ended_s=1012.5)
    families = text_string_to_metric_families(text)
    return {(s.name.removeprefix("kvmfleet_"), *sorted(s.labels.items())): s.value for f in families for s in f.samples}


def test_metrics_tell_the_state_of_each_host_and_when_it_could_last_be_told():
    samples = metrics(
        HostDrift("hv1", "drifted", items=(SWAP, SWAP), pending=True, told_s=1010.0, took_s=0.25),
        HostDrift("hv2", "unreachable", told_s=900.0),
        HostDrift("hv3", "never-provisioned"),
    )
    assert samples["run_timestamp_seconds", ("command", "drift")] == 1012.5
    assert samples["run_duration_seconds", ("command", "drift")] == 12.5
    states = {tuple(labels): value for (name, *labels), value in samples.items() if name == "host_drift_state"}
    assert len(states) == 3 * len(report.STATES)
    assert {labels for labels, value in states.items() if value} == {
        (("host", "hv1"), ("state", "drifted")),
        (("host", "hv2"), ("state", "unreachable")),
        (("host", "hv3"), ("state", "never-provisioned")),
    }
    assert [samples["host_drift_items", ("host", host)] for host in ("hv1", "hv2")] == [2, 0]
    assert [samples["host_drift_pending", ("host", host)] for host in ("hv1", "hv2")] == [1, 0]
    success = "host_drift_check_last_success_timestamp_seconds"
    assert [samples.get((success, ("host", host))) for host in ("hv1", "hv2", "hv3")] == [1010.0, 900.0, None]
    duration = "host_drift_check_duration_seconds"
    assert [samples.get((duration, ("host", host))) for host in ("hv1", "hv2")] == [0.25, None]


@pytest.mark.parametrize("name", ['a"b', "a\\b", 'x"} 1\nkvmfleet_host_drift_items{host="good', "\udcff", "{}"])
def test_no_name_of_a_host_makes_a_series_of_its_own(name):
    samples = metrics(HostDrift(name, "in-sync"), HostDrift("good", "drifted", items=(SWAP,)))
    assert {dict(labels).get("host") for _, *labels in samples} - {None} == {printable(name), "good"}
    assert samples["host_drift_items", ("host", "good")] == 1


def test_junit_has_a_case_for_each_host_with_what_drifted():
    text = junit.render_drift(HOSTS, ("inv",))
    root = ET.fromstring(text)
    assert root.attrib == {"name": "kvmfleet", "tests": "4", "failures": "1", "errors": "1", "skipped": "0"}
    failure = root.find("testsuite[@name='drift']/testcase[@name='hv2']/failure")
    assert failure.get("message").startswith("2 items drifted; pending")
    assert "sysctl:vm.swappiness\n  expected: live 10\n  seen: live 60\n  since: 2023-11-14" in failure.text
    assert "heal: kvmfleet provision -i inv --limit hv2" in failure.text
    assert "\\x1b[2J6.2" in failure.text
    (alone,) = ET.fromstring(junit.render_drift([HostDrift("hv1", "drifted", items=(SWAP,))], ())).iter("failure")
    assert alone.get("message") == "1 item drifted"
    error = root.find("testsuite/testcase[@name='hv4']/error")
    assert error.get("message") == "unreachable: connection \\x1b[2Jrefused"
    assert "pending" in root.find("testsuite/testcase[@name='hv3']/system-out").text
    assert ET.fromstring(junit.render_drift(HOSTS, strict=True)).get("failures") == "2"


@pytest.mark.parametrize("state", ["never-provisioned", "unreachable", "unknown"])
def test_a_host_of_which_nothing_can_be_told_never_passes_in_junit(state):
    assert ET.fromstring(junit.render_drift([HostDrift("hv1", state)])).get("errors") == "1"
