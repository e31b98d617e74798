"""Every check, with evidence of a host on which it passes and of one on which it does not."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evidence import FOLDER, Case, host, judged

from orchestrator.checks.catalogue import catalogue, explain, markdown, topics
from orchestrator.checks.kvm import CHECKS as KVM
from orchestrator.checks.registry import Case as Looked
from orchestrator.judge import read_contract

CASES = sorted(FOLDER.glob("*/*.json"))
DOCS = FOLDER.parents[1] / "docs" / "checks.md"


@pytest.mark.parametrize("path", CASES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_check_finds_what_its_evidence_shows(path: Path) -> None:
    case = msgspec.json.decode(path.read_bytes(), type=Case)
    findings = {finding.check: finding for finding in judged(host(case.evidence, case.contract), case.profile).findings}
    found = findings[path.parent.name]
    assert found.status == path.stem.split("-")[0], found
    assert case.summary in found.summary
    assert case.fix in found.fix
    assert case.cause == found.cause or not case.cause


@pytest.mark.parametrize("check", catalogue(), ids=lambda check: check.id)
def test_every_check_was_seen_passing_and_not_passing(check) -> None:
    seen = {path.stem.split("-")[0] for path in CASES if path.parent.name == check.id}
    assert "pass" in seen
    # host.reachable fails by silence, for which there is no evidence: test_judge.py
    assert seen & {"fail", "warn", "error"} or check.id == "host.reachable"


def test_every_evidence_belongs_to_a_check() -> None:
    assert {path.parent.name for path in CASES} <= {check.id for check in catalogue()}


def test_what_a_check_requires_comes_before_it() -> None:
    seen: set[str] = set()
    for check in catalogue():
        assert {*check.requires, *check.explained_by} <= seen, check.id
        seen.add(check.id)


def test_ids_are_unique() -> None:
    ids = [topic.id for topic in topics()]
    assert len(ids) == len(set(ids))


def test_what_does_not_pass_says_what_to_do_in_one_line() -> None:
    for path in CASES:
        case = msgspec.json.decode(path.read_bytes(), type=Case)
        for finding in judged(host(case.evidence, case.contract), case.profile).findings:
            assert "\n" not in finding.summary
            assert finding.fix or finding.status in ("pass", "skip"), (path, finding)


@pytest.mark.parametrize("count", [-1, 0, 2**63 - 1])
@pytest.mark.parametrize("moment", [-1e308, 0.0, 1.7e308])
def test_no_number_of_a_hostile_host_stops_the_judge(count: int, moment: float) -> None:
    disk = {"size_mib": count, "free_mib": count, "inodes": count, "inodes_free": count}
    runner = dict.fromkeys(("files", "files_max", "memlock_max", "tasks", "tasks_max", "tasks_refused"), count)
    limits = ("files", "files_max", "threads", "threads_max", "pid_max", "aio", "aio_max", "inotify", "inotify_max")
    evidence = {
        "collected_at_s": moment,
        "duration_ms": moment,
        "clock": {"max_error_ms": moment},
        "processes": [{"pid": count, "name": "libvirtd", "replaced": [], **runner}],
        "limits": dict.fromkeys(limits, count),
        "leaks": {"ksm_sharing": count},
        "upkeep": {"disks": {"/": disk}, "tainted": count, "oom_kills": count},
    }
    for profile in ("lab", "production", "multi-tenant"):
        assert judged(host(evidence, {"profile": profile}), profile).verdict


EVIL = "x:1;reboot"
OFF = {"load": "loaded", "active": "inactive", "enabled": "disabled"}
NAMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "units": (
        {
            "libvirt": {"units": {f"{EVIL}.socket": OFF}, "stale": [f"{EVIL}.service"]},
            "guests": {"unit": OFF, "defined": [EVIL]},
            "upkeep": {"failed_units": [EVIL]},
        },
        {
            "libvirt": {"sockets": [f"{EVIL}.socket"]},
            "guests": {"unit": f"{EVIL}.service", "autostart": [EVIL]},
        },
    ),
    "masked units": (
        {
            "libvirt": {"units": {f"{EVIL}.socket": OFF | {"load": "masked"}}},
            "guests": {"unit": OFF | {"load": "masked"}},
        },
        {"libvirt": {"sockets": [f"{EVIL}.socket"]}, "guests": {"unit": f"{EVIL}.service"}},
    ),
    "users": (
        {
            "members": {EVIL: [EVIL]},
            "kvm": {"node": {"group": EVIL}, "open_as": {"user": EVIL, "errno": "EACCES", "tried": True}},
            "security": {"sockets": {f"/run/libvirt/{EVIL}": {"exists": True, "mode": 438, "owner": EVIL}}},
        },
        {"libvirt": {"users": [f"other {EVIL}"], "group": EVIL}},
    ),
    "networks and pools": (
        {
            "network": {"networks": {EVIL: {"configured": "x"}}, "bridges": {}},
            "storage": {"pools": {EVIL: {"defined": True, "use": {"outcome": "broken"}}}},
        },
        {
            "networks": {EVIL: {"xml": "x"}},
            "bridges": {EVIL: [EVIL]},
            "pools": {EVIL: {"type": "dir", "path": f"/srv/{EVIL}", "files": True}},
        },
    ),
    "pools that run": (
        {
            "security": {"selinux": "enforcing"},
            "storage": {
                "pools": {
                    EVIL: {"defined": True, "active": True, "autostart": True, "inodes": 0, "use": {"outcome": "hangs"}}
                }
            },
        },
        {"pools": {EVIL: {"type": "dir", "path": f"/srv/{EVIL}", "files": True}}},
    ),
    "modules and processes": (
        {
            "kernel": {
                "hypervisors": [EVIL],
                "modules": {EVIL: {"state": "loaded", "params": {"a": "0"}}},
                "configured_options": {EVIL: {"a": "1"}},
            },
            "daemons": {"daemons": {EVIL: 1}, "replaced": [EVIL], "installed": "1", "journal": ["a fault"]},
            "processes": [{"pid": 1, "name": EVIL, "files": 9, "files_max": 9, "replaced": ["libx.so"]}],
            "iommu": {"handed_out": {"1": [f"{EVIL} nvme"]}},
        },
        {"modules": {EVIL: {"options": {"a": "1"}}}, "remote": {"sockets": [f"{EVIL}-tls.socket"]}},
    ),
}


@pytest.mark.parametrize("names", NAMED)
def test_no_name_of_a_hostile_host_is_a_command_in_what_is_advised(names: str) -> None:
    evidence = host(*NAMED[names])
    case = Looked(evidence, read_contract(evidence), "production")
    advised = [(check.id, command) for check in catalogue() for command in _commands(check.finding(case).fix)]
    assert any("reboot" in command for _, command in advised)
    assert [found for found in advised if _parts(found[1]) & {"reboot", "reboot.socket", "reboot.service"}] == []


def _commands(advice: str) -> list[str]:
    return re.findall("`([^`]*)`", advice)


def _parts(command: str) -> set[str]:
    """As a shell cuts it."""
    return set(shlex.shlex(command, posix=True, punctuation_chars=True))


@pytest.mark.parametrize("topic", topics(), ids=lambda topic: topic.id)
def test_every_topic_explains_itself(topic) -> None:
    assert explain(topic.id) is topic
    for text in (topic.title, topic.explanation.proves, topic.explanation.how, topic.explanation.todo):
        assert text.strip()
        assert "  " not in text


@pytest.mark.parametrize(
    ("profiles", "sentence"),
    [
        ((), ""),
        (("lab",), "In the profile lab a failure is a warning."),
        (("lab", "production"), "In the profiles lab and production a failure is a warning."),
    ],
)
def test_a_topic_names_the_profiles_that_are_lenient(profiles, sentence) -> None:
    assert msgspec.structs.replace(KVM[0], warns_in=profiles).leniency == sentence


def test_nobody_explains_an_unknown_check() -> None:
    assert explain("kvm.nonsense") is None


def test_the_documentation_is_the_catalogue() -> None:
    assert DOCS.read_text("utf-8") == markdown(), "run: python -m orchestrator.checks > docs/checks.md"


def test_no_digit_that_is_no_number_stops_the_judge() -> None:
    evidence = {"cpu": {"present": "²", "online": "0-²"}, "tuning": {"isolated": "²"}}
    contract = {"tuning": {"isolated_cpus": "²-³", "hugepages": [{"size": "²M", "pages": 1}]}}
    assert judged(host(evidence, contract), "production").verdict == "failed"
