"""The report in its forms, from made-up results (no host needed)."""

import io
import json
import re
import time
import xml.etree.ElementTree as ET

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from orchestrator.model.drift import Drift
from orchestrator.model.evidence import Evidence, Execution, Guest, Kvm, Libvirt, Qemu, Speed, System
from orchestrator.model.finding import Finding, FleetFinding, Judgement
from orchestrator.model.run import Collected, EarlierBoot, HostConverged, HostResult, Step, TaskFailure
from orchestrator.report import html, junit, prometheus, summary, terminal
from orchestrator.report import json as json_report
from orchestrator.report.progress import Board
from orchestrator.tally import Progress
from orchestrator.text import moment, printable

PASS = Finding("cpu.arch", "pass", "x86_64")
FAIL = Finding("kvm.node", "fail", "/dev/kvm is absent", expected="a character device", seen="ENOENT", fix="Load kvm.")
SKIP = Finding("kvm.exec", "skip", "not tried", cause="kvm.node")
TOGETHER = FleetFinding(
    "fleet.names", "fail", "hv1, hv2 are all called \x1b[2J", fix="Rename one.", hosts=("hv1", "hv2")
)
HOSTILE = Finding("qemu.binary", "warn", "\x1b]0;owned\x07 [red]8.0[/red] \x00", fix="Look at it.")


def result(name, verdict, *findings, cause=None, evidence=None):
    return HostResult(name, Judgement(verdict, findings, cause), Collected(name, "ssh", evidence))


def show(renderable, width=160):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - lives as long as the console
    with console.file:
        console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize(
    ("verdicts", "strict", "code"),
    [
        (["proven"], False, 0),
        (["proven", "degraded"], False, 0),
        (["proven", "degraded"], True, 2),
        (["proven", "failed"], False, 2),
        (["failed", "unreachable"], False, 1),
        (["failed", "unknown"], True, 1),
        ([], False, 1),
    ],
)
def test_the_exit_code_follows_the_worst_host_and_not_knowing_wins(verdicts, strict, code):
    assert summary.exit_code([result(f"h{i}", v) for i, v in enumerate(verdicts)], strict=strict) == code


def test_the_table_names_cause_and_fix_once_for_hosts_that_share_them():
    shown = show(terminal.report([result(h, "failed", PASS, FAIL, SKIP, cause=FAIL) for h in ("hv1", "hv2")]))
    assert shown.count("/dev/kvm is absent") == 1
    assert "hv1, hv2: kvm.node" in shown
    assert "Load kvm." in shown
    assert "2 hosts: 2 failed" in shown


def test_what_a_host_says_reaches_the_terminal_escaped_and_is_no_markup():
    shown = show(terminal.report([result("hv1", "degraded", HOSTILE, cause=HOSTILE)]))
    assert "\x1b" not in shown
    assert "\\x1b]0;owned\\x07 [red]8.0[/red] \\x00" in shown


def test_verbose_lists_every_finding_with_the_cause_of_a_skip():
    shown = show(terminal.report([result("hv1", "failed", PASS, FAIL, SKIP)], verbose=True))
    assert "not tried (because of kvm.node)" in shown
    assert "cpu.arch" in shown


def test_the_table_says_whether_kvm_runs_on_the_processor():
    kvm = Kvm(execution=Execution("works"), speed=Speed("emulated"))
    evidence = Evidence(1, 0.0, 1.0, kvm=kvm, system=System(os_id="debian", os_version="12"))
    shown = show(terminal.report([result("hv1", "degraded", PASS, evidence=evidence)]))
    assert "emulated" in shown
    assert "debian 12" in shown


@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize("host", [result("hv1", "proven", PASS), result("hv1", "failed", FAIL, cause=FAIL)])
def test_one_blank_line_parts_the_hosts_from_what_follows(host, verbose):
    shown = "\n".join(line.rstrip() for line in show(terminal.report([host], verbose=verbose)).splitlines())
    assert "\n\n1 host: " in shown
    assert "\n\n\n" not in shown


def test_a_terminal_of_80_columns_breaks_no_word_of_the_table():
    kvm = Kvm(execution=Execution("works"), speed=Speed("emulated"))
    evidence = Evidence(
        1,
        0.0,
        1.0,
        kvm=kvm,
        system=System(os_id="debian", os_version="13"),
        qemu=Qemu(version="10.0.13"),
        libvirt=Libvirt(version="11.3.0"),
        guest=Guest(outcome="works", domain_type="kvm"),
    )
    shown = show(terminal.report([result("lab-1", "degraded", *[PASS] * 25, SKIP, evidence=evidence)]), width=80)
    for word in ("lab-1", "degraded", "debian", "emulated", "10.0.13", "11.3.0", "works", "25 pass"):
        assert word in shown, word


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_number_of_findings_is_parted_from_its_word(width):
    kvm = Kvm(execution=Execution("works"), speed=Speed("emulated"))
    evidence = Evidence(1, 0.0, 1.0, kvm=kvm, qemu=Qemu(version="10.0.13"), libvirt=Libvirt(version="11.3.0"))
    findings = [PASS] * 47 + [HOSTILE, FAIL] + [SKIP] * 83
    shown = show(terminal.report([result("hv1", "failed", *findings, cause=FAIL, evidence=evidence)]), width=width)
    for tally in ("47 pass", "1 warn", "1 fail", "83 skip"):
        assert tally in shown, tally


def test_a_terminal_too_narrow_for_the_facts_shows_fewer_of_them_and_all_in_whole_words():
    evidence = Evidence(1, 0.0, 1.0, qemu=Qemu(version="10.0.13"), libvirt=Libvirt(version="11.3.0"))
    long = result("hv004.rack17.somewhere.example.com", "unreachable", *[PASS] * 25, evidence=evidence)
    wide, narrow = show(terminal.report([long])), show(terminal.report([long]), width=72)
    assert "10.0.13" in wide
    assert "libvirt" in wide
    for word in ("hv004.rack17.somewhere.example.com", "unreachable", "25 pass"):
        assert word in narrow, word
    assert "libvirt" not in narrow


def test_advice_is_indented_where_it_goes_on():
    long = Finding("kvm.node", "fail", "word " * 30, fix="Do this. " * 20)
    lines = show(terminal.report([result("hv1", "failed", long, cause=long)]), width=60).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("fail  hv1: kvm.node: word"))
    assert all(line.startswith("      ") for line in lines[begin + 1 : -2])


def test_verbose_says_what_was_expected_and_what_to_do():
    shown = show(terminal.report([result("hv1", "failed", PASS, FAIL)], verbose=True))
    for words in ("expected: a character device", "seen: ENOENT", "to do: Load kvm."):
        assert words in shown


def test_json_holds_every_host_and_keeps_a_hosts_bytes_off_the_terminal():
    text = json_report.render([result("hv1", "degraded", HOSTILE), result("hv2", "unreachable")], command="validate")
    document = json.loads(text)
    assert document["summary"] == {"proven": 0, "degraded": 1, "failed": 0, "unreachable": 1, "unknown": 0}
    assert [host["name"] for host in document["hosts"]] == ["hv1", "hv2"]
    assert document["hosts"][0]["findings"][0]["summary"] == HOSTILE.summary
    assert all(c.isprintable() or c == "\n" for c in text)


def test_json_escapes_what_json_itself_would_let_through():
    finding = Finding("cpu.arch", "warn", "\x9b2J \u202e \U000e0001")
    text = json_report.render([result("hv1", "degraded", finding)], command="validate")
    assert "\x9b" not in text
    assert "\u202e" not in text
    assert json.loads(text)["hosts"][0]["findings"][0]["summary"] == finding.summary


def test_junit_has_a_case_for_each_check_and_counts_them():
    root = ET.fromstring(junit.render([result("hv1", "failed", PASS, FAIL, SKIP, HOSTILE)]))
    assert root.attrib == {"name": "kvmfleet", "tests": "4", "failures": "1", "errors": "0", "skipped": "1"}
    failure = root.find("testsuite/testcase[@name='kvm.node']/failure")
    assert failure.get("message") == "/dev/kvm is absent"
    assert "fix: Load kvm." in failure.text
    assert "warning:" in root.find("testsuite/testcase[@name='qemu.binary']/system-out").text


def test_a_silent_host_is_an_error_in_junit():
    silent = Finding("host.reachable", "error", "no route to host")
    root = ET.fromstring(junit.render([result("hv1", "unreachable", silent, cause=silent)]))
    assert root.get("errors") == "1"


def metrics(*results, fleet=()):
    """Samples of the metrics, as Prometheus' own parser reads them: (name, labels) -> value."""
    text = prometheus.render(results, fleet, command="validate", began_s=1000.0, ended_s=1012.5)
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_metrics_tell_verdicts_findings_and_the_run():
    samples = metrics(result("hv1", "failed", PASS, FAIL, SKIP), result("hv2", "unreachable"))
    assert samples["kvmfleet_run_timestamp_seconds", (("command", "validate"),)] == 1012.5
    assert samples["kvmfleet_run_duration_seconds", (("command", "validate"),)] == 12.5
    verdicts = {labels: value for (name, labels), value in samples.items() if name == "kvmfleet_host_verdict"}
    assert len(verdicts) == 2 * len(summary.VERDICTS)
    assert {labels for labels, value in verdicts.items() if value} == {
        (("host", "hv1"), ("verdict", "failed")),
        (("host", "hv2"), ("verdict", "unreachable")),
    }
    assert samples["kvmfleet_host_findings", (("host", "hv1"), ("status", "fail"))] == 1
    assert samples["kvmfleet_host_findings", (("host", "hv2"), ("status", "fail"))] == 0


def test_only_what_is_wrong_has_a_series_of_its_own():
    problems = [
        labels for name, labels in metrics(result("hv1", "failed", PASS, FAIL, SKIP)) if name.endswith("problem")
    ]
    assert problems == [(("check", "kvm.node"), ("host", "hv1"), ("status", "fail"))]


def test_what_is_wrong_among_the_hosts_has_a_series_too():
    samples = metrics(result("hv1", "proven"), fleet=[FleetFinding("fleet.cpu", "warn", "differ", hosts=("hv1",))])
    assert samples["kvmfleet_fleet_problem", (("check", "fleet.cpu"), ("status", "warn"))] == 1


@pytest.mark.parametrize("name", ['a"b', "a\\b", 'x"} 1\nkvmfleet_host_verdict{host="good', "\udcff", "{}", "é"])
def test_no_name_of_a_host_makes_a_series_of_its_own(name):
    samples = metrics(result(name, "failed", FAIL), result("good", "failed"))
    hosts = {dict(labels).get("host") for _, labels in samples} - {None}
    assert hosts == {printable(name), "good"}
    assert samples["kvmfleet_host_verdict", (("host", "good"), ("verdict", "proven"))] == 0


def test_the_page_leaves_out_no_check_that_the_catalogue_does_not_know():
    odd = Finding("zebra.stripes", "fail", "none")
    page = html.render([result("hv1", "failed", PASS, odd, cause=odd)], command="validate", ended_s=0.0)
    assert 'title="zebra.stripes"><span>zebra.stripes</span>' in page
    assert page.index("<span>cpu.arch</span>") < page.index("<span>zebra.stripes</span>")


@pytest.mark.parametrize(("terminal", "shown"), [(True, True), (False, False)])
def test_how_far_a_guest_is_shows_in_the_picture_and_not_in_a_log(terminal, shown):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=100)
    with Board(["h1"], title="validate", console=console) as board:
        board.event(Step("h1", "alpine with kvm: kernel"))
    assert ("alpine with kvm: kernel" in screen.getvalue()) == shown


def test_a_narrow_picture_shortens_what_a_host_does_before_its_name():
    screen = io.StringIO()
    task = "host_tuning : Stop where memory or processors do not suffice"
    with Board(["hv4.example.com"], title="plan", console=Console(file=screen, force_terminal=True, width=72)) as board:
        board.event(Progress("ok", task, "hv4.example.com", done=12))
    text = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    row = re.search(r"hv4\.example\.com +running +12 tasks, 0 changed +host_tun.*", text)
    assert row
    assert len(row[0]) < 70, "the ^C of a terminal has room behind it, or it begins a line that nobody takes away"


def test_the_last_task_is_not_shown_while_a_guest_boots():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with Board(["h1"], title="provision", console=console) as board:
        board.event(Progress("task", "libvirt_guests : Start guests"))
        board.event(Step("h1", "firmware with kvm: create"))
    last = screen.getvalue().rpartition("provision")[2]
    assert "firmware with kvm" in last
    assert "Start guests" not in last


def test_unprovisioning_tells_what_stays_and_who_was_left_as_it_is():
    guests = TaskFailure(task="Stop where guests run", message="Guests run on this host: web.")
    converged = (
        HostConverged("hv1", "ok", changed=1, notes=("stays: package qemu-utils: cloud needs it",)),
        HostConverged("hv2", "failed", failed=1, failure=guests),
    )
    text = show(terminal.given_back(converged, check=False))
    assert "hv1: taken back\n  stays: package qemu-utils: cloud needs it" in text
    assert "hv2: failed  Stop where guests run: Guests run on this host: web." in text
    assert "2 hosts: 1 unprovisioned, 1 not" in text


def test_what_hosts_are_together_is_in_every_report():
    results = [result("hv1", "proven", PASS), result("hv2", "proven", PASS)]
    fleet = [TOGETHER, FleetFinding("fleet.qemu", "pass", "QEMU 7.2.0 on hv1, hv2")]
    shown = show(terminal.report(results, fleet))
    assert "fail  hv1, hv2: fleet.names: hv1, hv2 are all called \\x1b[2J" in shown
    assert "Rename one." in shown
    assert "fleet.qemu" not in shown
    assert "fleet.qemu: QEMU 7.2.0 on hv1, hv2" in show(terminal.report(results, fleet, verbose=True))
    assert json.loads(json_report.render(results, fleet, command="validate"))["fleet"][0]["hosts"] == ["hv1", "hv2"]
    suite = ET.fromstring(junit.render(results, fleet)).find("testsuite[@name='fleet']")
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")


def test_hosts_on_which_the_playbook_was_not_run_are_in_every_report():
    told = {name: HostConverged(name, "unchanged", notes=("no drift",)) for name in ("hv1", "hv2")}
    unchanged = [msgspec.structs.replace(result(name, "proven", PASS), converged=one) for name, one in told.items()]
    converged = msgspec.structs.replace(result("hv3", "proven", PASS), converged=HostConverged("hv3", "ok", ok=3))
    shown = show(terminal.report([*unchanged, converged]))
    assert "hv1, hv2: unchanged: no drift" in shown
    assert "not run on any" not in shown
    assert "The playbook was not run on any host; `kvmfleet provision --force`" in show(terminal.report(unchanged))
    assert "unchanged" not in show(terminal.report([converged]))
    hosts = json.loads(json_report.render([*unchanged, converged], command="provision"))["hosts"]
    assert [host["converged"]["outcome"] for host in hosts] == ["unchanged", "unchanged", "ok"]
    suites = ET.fromstring(junit.render([*unchanged, converged])).findall("testsuite")
    told = [{p.get("name"): p.get("value") for p in suite.iter("property")} for suite in suites]
    assert [properties.get("unchanged") for properties in told] == ["no drift", "no drift", None]


def test_a_guest_that_booted_before_is_told_with_its_time():
    booted = EarlierBoot(time.time() - 3 * 3600 - 60, "firmware", "kvm")
    evidence = Evidence(
        1, 0.0, 1.0, kvm=Kvm(execution=Execution("works")), guest=Guest("skipped", detail="not asked for")
    )
    looked = msgspec.structs.replace(result("hv1", "proven", PASS, evidence=evidence), booted=booted)
    shown = show(terminal.report([looked]))
    assert ("booted 3 h ago, kvm" in shown, "skipped" in shown) == (True, False)
    page = html.render([looked], command="provision", ended_s=0.0)
    assert f"booted at {moment(booted.at_s)}: firmware kvm" in page
    (host,) = json.loads(json_report.render([looked], command="provision"))["hosts"]
    assert host["booted"] == {"at_s": booted.at_s, "depth": "firmware", "domain_type": "kvm"}


def test_what_the_playbook_left_is_in_the_json():
    drifted = msgspec.structs.replace(result("hv1", "degraded", PASS), left=(Drift("kvm-node", "0660", "0666"),))
    (host,) = json.loads(json_report.render([drifted], command="provision"))["hosts"]
    assert host["left"] == [{"item": "kvm-node", "expected": "0660", "seen": "0666", "since_s": 0.0}]


def test_a_log_says_which_hosts_the_playbook_leaves_alone():
    screen = io.StringIO()
    with Board(["h1"], title="provision", console=Console(file=screen, width=100)) as board:
        board.event(HostConverged("h1", "unchanged", notes=("no drift",)))
    assert screen.getvalue() == "h1: unchanged: no drift\n"
