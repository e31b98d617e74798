"""Our findings beside those of virt-host-validate on the same hosts: each of its lines is known, and why we differ.

docs/agreement.md tells people; its table has the rows of LINES.
"""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.hosts

HOSTS = ("story-1", "story-2")  # Debian 12, libvirt 9.0, and Debian 13, libvirt 11.3
DOCS = Path(__file__).resolve().parents[2] / "docs" / "agreement.md"
LINE = re.compile(
    r"^\s*QEMU: Checking (?P<subject>.+?)\s*: (?P<word>PASS|WARN|FAIL|NOTE)(?: \((?P<why>.*)\))?$", re.MULTILINE
)


class Line(NamedTuple):
    """What virt-host-validate looks at, and the check of ours that answers the same question."""

    subject: str  # a regular expression, as 9.0 and 11.3 quote differently
    check: str
    milder: bool  # whether we may call good what it does not


LINES = (
    Line("for hardware virtualization", "cpu.extensions", milder=True),
    Line("if device '?/dev/kvm'? exists", "kvm.node", milder=False),
    Line("if device '?/dev/kvm'? is accessible", "kvm.open_as", milder=False),
    Line("if device '?/dev/vhost-net'? exists", "kernel.vhost_net", milder=True),
    Line("if device '?/dev/net/tun'? exists", "kernel.tun", milder=False),
    Line("for cgroup '[a-z]+' controller support", "cgroups.controllers", milder=True),
    Line("for device assignment IOMMU support", "tuning.iommu", milder=True),
    Line("if IOMMU is enabled by kernel", "iommu.effective", milder=True),
    Line("for secure guest support", "confidential.sev", milder=True),
)


@pytest.fixture(scope="module")
def theirs(kvmfleet, inventory):
    """Host -> what virt-host-validate prints there."""
    up = kvmfleet("lab", "up", "story", "--boot", "none")  # whatever the stories before left
    assert up.returncode == 1, up.stderr  # without a guest every host is unknown
    # exits 1 where a line says FAIL, virt-host-validate(1)
    return {host: kvmfleet("lab", "ssh", host, "sudo", "virt-host-validate", "qemu").stdout for host in HOSTS}


@pytest.fixture(scope="module")
def ours(kvmfleet, theirs, inventory):
    """Host -> check -> status."""
    done = kvmfleet("validate", "-i", inventory, "--json", "--boot", "proof")
    return {
        host["name"]: {finding["check"]: finding["status"] for finding in host["findings"]}
        for host in json.loads(done.stdout)["hosts"]
    }


@pytest.mark.parametrize("host", HOSTS)
def test_every_line_of_virt_host_validate_is_known_and_contradicts_only_where_we_say_why(host, theirs, ours):
    lines = list(LINE.finditer(theirs[host]))
    assert len(lines) >= 4, theirs[host]
    for line in lines:
        known = next((known for known in LINES if re.fullmatch(known.subject, line["subject"])), None)
        assert known, f"{line[0]!r} is new: give it a row here and in docs/agreement.md"
        they_are_content, status = line["word"] in ("PASS", "NOTE"), ours[host][known.check]
        if they_are_content:
            assert status in ("pass", "skip"), (line[0], known.check, status)
        elif not known.milder:
            assert status in ("warn", "fail"), (line[0], known.check, status)


@pytest.mark.parametrize("host", HOSTS)
def test_we_see_that_kvm_works_where_virt_host_validate_fails_for_a_flag(host, theirs, ours):
    if not re.search(r"hardware virtualization\s*: FAIL", theirs[host]) or ours[host]["kvm.node"] != "pass":
        pytest.skip("this machine has no KVM without the processor's flag")
    assert (ours[host]["cpu.extensions"], ours[host]["kvm.exec"]) == ("pass", "pass")


def test_the_documentation_has_a_row_for_every_line():
    rows = re.findall(r"^\| (.+?) \| `(.+?)` \|", DOCS.read_text("utf-8"), re.MULTILINE)
    assert [check for _, check in rows] == [line.check for line in LINES]
    for (subject, _), line in zip(rows, LINES, strict=True):
        assert re.fullmatch(line.subject, subject), subject
