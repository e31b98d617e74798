"""Breaking and healing, on hosts of paper behind an ssh that only writes down what it was told to do."""

import stat

import msgspec
import pytest
from test_lab_labs import Paper, quiet

from orchestrator.errors import LabError, LockedError
from orchestrator.lab import drills, labs, tree
from orchestrator.lab.spec import LabSpec

CONTAINER = "libvirt-stopped"
MACHINE = "kvm-unloaded"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab of two hosts; its ssh fails the calls whose numbers are in the file `fail`."""
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text("#!/bin/sh\ncat > /dev/null\n")
    ssh.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setitem(labs.PROVIDERS, "container", Paper())
    made = labs.up(LabSpec(provider="container"), progress=quiet)
    (tmp_path / "fail").touch()
    ssh.write_text(
        f"""#!/bin/sh
number=$(($(ls {tmp_path}/told.* 2>/dev/null | wc -l) + 1))
cat > {tmp_path}/told.$number
for last; do :; done
[ "$last" = "sudo -n sh" ] || exit 64
if grep -qx $number {tmp_path}/fail; then echo it went wrong >&2; exit 1; fi
"""
    )
    return made


@pytest.fixture
def told(tmp_path):
    """The scripts that hosts were given, in order."""
    return lambda: [file.read_text() for file in sorted(tmp_path.glob("told.*"))]


def faults(host="lab-1"):
    return {each.name: each.faults for each in labs.status("lab").hosts}[host]


def test_a_fault_is_remembered_until_it_is_healed(lab, told):
    drills.inject("lab-1", CONTAINER, progress=quiet)
    assert (faults(), faults("lab-2")) == ((CONTAINER,), ())
    assert drills.heal("lab-1", progress=quiet) == (CONTAINER,)
    assert faults() == ()
    broke, healed = told()
    assert "systemctl stop libvirtd" in broke
    assert "systemctl start libvirtd" in healed


def test_what_was_broken_last_is_healed_first(lab):
    for fault in ("kvm-gone", "qemu-gone", CONTAINER):
        drills.inject("lab-1", fault, progress=quiet)
    assert drills.heal("lab-1", "qemu-gone", progress=quiet) == ("qemu-gone",)
    assert drills.heal("lab-1", progress=quiet) == (CONTAINER, "kvm-gone")
    assert drills.heal("lab-1", progress=quiet) == ()


def test_a_fault_survives_the_next_up_of_the_lab(lab, tmp_path):
    drills.inject("lab-1", CONTAINER, progress=quiet)
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\ncat > /dev/null\n")
    labs.up(LabSpec(provider="container"), progress=quiet)
    assert faults() == (CONTAINER,)


def test_a_fault_that_fails_half_way_is_taken_back(lab, told, tmp_path):
    (tmp_path / "fail").write_text("1\n")
    with pytest.raises(LabError, match="lab-1 could not be broken with libvirt-stopped: it went wrong") as caught:
        drills.inject("lab-1", CONTAINER, progress=quiet)
    assert caught.value.hint == "What had been done was taken back."
    assert len(told()) == 2
    assert faults() == ()


def test_a_fault_that_cannot_be_taken_back_either_is_said_and_remembered(lab, tmp_path):
    (tmp_path / "fail").write_text("1\n2\n")
    with pytest.raises(LabError, match="could not be broken") as caught:
        drills.inject("lab-1", CONTAINER, progress=quiet)
    assert "half broken" in caught.value.hint
    assert "kvmfleet lab heal lab-1 libvirt-stopped" in caught.value.hint
    assert faults() == (CONTAINER,)
    assert drills.heal("lab-1", progress=quiet) == (CONTAINER,)


def test_a_fault_is_written_down_before_anything_is_done(lab, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(labs, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        drills.inject("lab-1", CONTAINER, progress=quiet)
    assert faults() == (CONTAINER,)


@pytest.mark.parametrize(
    ("host", "fault", "message", "hint"),
    [
        ("lab-9", CONTAINER, "No lab has a host 'lab-9'", "lab-1"),
        ("lab-1", "libvirt-stoped", "no fault 'libvirt-stoped'", CONTAINER),
        ("lab-1", MACHINE, "is a container, which cannot have the fault kvm-unloaded: a container", "--provider vm"),
    ],
)
def test_what_makes_no_sense_is_said_and_nothing_is_done(lab, told, host, fault, message, hint):
    with pytest.raises(LabError, match=message) as caught:
        drills.inject(host, fault, progress=quiet)
    assert hint in caught.value.hint
    assert told() == []


def test_the_same_fault_twice_is_refused(lab, told):
    drills.inject("lab-1", CONTAINER, progress=quiet)
    with pytest.raises(LabError, match="already") as caught:
        drills.inject("lab-1", CONTAINER, progress=quiet)
    assert "lab heal lab-1" in caught.value.hint
    assert len(told()) == 1


def test_only_what_is_broken_is_healed(lab):
    with pytest.raises(LabError, match="lab-1 is not broken with libvirt-stopped") as caught:
        drills.heal("lab-1", CONTAINER, progress=quiet)
    assert caught.value.hint == "Nothing of it was broken."
    with pytest.raises(LabError, match="no fault 'nonsense'"):
        drills.heal("lab-1", "nonsense", progress=quiet)


def test_a_system_that_the_fault_is_not_written_for_is_left_alone(lab, told, monkeypatch):
    monkeypatch.setattr(labs, "running", lambda *_: (lab, msgspec.structs.replace(lab.hosts[0], system="image")))
    with pytest.raises(LabError, match="is written for Debian 12, Debian 13, not for image"):
        drills.inject("lab-1", CONTAINER, progress=quiet)
    assert told() == []


def test_a_stopped_host_is_not_broken(lab):
    labs.PROVIDERS["container"].running.clear()
    with pytest.raises(LabError, match="lab-1 is not running"):
        drills.inject("lab-1", CONTAINER, progress=quiet)


def test_a_lab_that_someone_else_changes_is_left_to_them(lab, told):
    with tree.hold(lab.folder, wait=False), pytest.raises(LockedError):
        drills.inject("lab-1", CONTAINER, progress=quiet)
    assert (told(), faults()) == ([], ())
