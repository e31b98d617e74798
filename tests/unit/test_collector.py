"""What runs on the host, piece by piece, and whole under every Python that this machine has."""

from __future__ import annotations

import ast
import contextlib
import grp
import os
import pwd
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from patience import longer, until

from orchestrator.collector import (
    bootimage,
    child,
    contract,
    files,
    inventory,
    kernel,
    kvm,
    libvirt,
    limits,
    machine_x86,
    proof,
    qemu,
    shell,
    system,
)
from orchestrator.collector.contract import Contract
from orchestrator.collector.limits import Deadline
from orchestrator.collector.main import SCHEMA, gather, this_machine
from orchestrator.model.contract import SCHEMA as MODEL_SCHEMA
from orchestrator.model.evidence import Evidence
from orchestrator.model.run import Boot
from orchestrator.payload import decode, payload, shape

MODULES = sorted(Path(shell.__file__).parent.glob("*.py"))


def pythons() -> list[str]:
    """Interpreters of other versions: in the search path, and those that pyenv keeps."""
    found = [path for minor in range(6, 16) if (path := shutil.which(f"python3.{minor}")) and not is_script(path)]
    kept = sorted(Path.home().glob(".pyenv/versions/3.*/bin/python3"))
    works = [
        path
        for path in [*found, *map(str, kept)]
        if not subprocess.run([path, "-c", ""], capture_output=True).returncode
    ]
    return sorted(set(works)) or [sys.executable]


def is_script(path: str) -> bool:
    """As the shims of pyenv are, which take long to say that they stand for nothing."""
    return Path(path).read_bytes()[:2] == b"#!"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_syntax_is_that_of_python_3_6(path: Path) -> None:
    ast.parse(path.read_text("utf-8"), feature_version=(3, 6))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_the_standard_library_is_imported(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert {name.name.split(".")[0] for name in node.names} <= sys.stdlib_module_names
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1 or node.module in ("typing",), ast.unparse(node)


@pytest.mark.parametrize("python", pythons())
def test_the_collector_runs_under(python: str) -> None:
    command = [python, "-W", "error", "-I", "-"]
    answer = subprocess.run(
        command, input=payload(Boot("proof"), timeout_s=30), capture_output=True, timeout=60, check=True
    )
    evidence = decode(answer.stdout)
    assert (evidence.errors, answer.stderr) == ({}, b"")
    expected = subprocess.run([python, "-c", "import platform; print(platform.python_version())"], capture_output=True)
    assert evidence.system.python == expected.stdout.decode().strip()


def test_collector_and_reader_have_one_schema() -> None:
    assert SCHEMA == MODEL_SCHEMA


# --- a section that fails


def test_a_section_that_raises_or_hangs_does_not_take_the_others_with_it() -> None:
    found = gather(
        [
            ("broken", 1, lambda found: 1 // 0),
            ("slow", 0.05, lambda found: time.sleep(5)),
            ("good", 1, lambda found: {"answer": 42}),
        ],
        Deadline(10),
    )
    assert found["good"] == {"answer": 42}
    assert found["errors"]["broken"].startswith("ZeroDivisionError")
    assert found["errors"]["slow"].startswith("not done after")
    assert set(found) == {"good", "errors"}


def test_a_section_that_swallows_exceptions_is_stopped_all_the_same() -> None:
    def stubborn(found: dict[str, Any]) -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(5)

    assert "slow" in gather([("slow", 0.05, stubborn)], Deadline(10))["errors"]


def test_when_the_time_is_over_nothing_more_is_begun() -> None:
    assert "not begun" in gather([("late", 5, lambda found: 1)], Deadline(0))["errors"]["late"]


@pytest.mark.parametrize(("kind", "factor"), [("qemu", limits.SOFTWARE), ("kvm", 1.0), ("", 1.0)])
def test_only_a_machine_in_software_has_more_time(kind: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.Patience, "factor", 1.0)
    monkeypatch.setattr(system, "look", lambda: {"virtual": kind})
    assert this_machine() == {"virtual": kind}
    assert limits.patient(2.0) == 2.0 * factor
    left_s = gather([("looks", 1.0, lambda found: signal.getitimer(signal.ITIMER_REAL)[0])], Deadline(10))["looks"]
    assert (left_s > 1.0) is (factor > 1.0)
    started = child.begin(lambda report: {}, 1.0)
    assert started.timeout_s == factor
    child.finish(started)


def test_cleaning_up_is_not_interrupted_and_the_signal_is_not_lost() -> None:
    done = []

    def clean() -> None:
        with limits.within(60), limits.undisturbed():
            signal.raise_signal(signal.SIGALRM)  # the time is over now
            done.append("cleaned")

    with pytest.raises(limits.Expired):
        clean()
    assert done == ["cleaned"]


# --- commands


def test_a_command_is_found_in_the_search_path_where_it_can_be_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "virsh").touch(0o644)
    (tmp_path / "one" / "nft").mkdir()
    (tmp_path / "other" / "virsh").touch(0o755)
    monkeypatch.setattr(shell, "PATH", f"{tmp_path}/one:{tmp_path}/other")
    assert shell.which("virsh") == str(tmp_path / "other" / "virsh")
    assert shell.which(str(tmp_path / "other" / "virsh")) == str(tmp_path / "other" / "virsh")
    assert [shell.which(name) for name in ("nft", "absent", "", "/absent", f"{tmp_path}/one/virsh")] == [""] * 5


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    began = tmp_path / "began"
    for limit_s in longer(0.5, began.is_symlink):
        with pytest.raises(OSError, match="no answer in time"):
            shell.run(["sh", "-c", f"sleep 90 & ln -s $! {began}; wait"], limit_s)
    until(lambda: not _runs(int(os.readlink(began))))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_never_stops_printing_is_ended() -> None:
    with pytest.raises(OSError, match="printed more than"):
        shell.run(["sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done"], 20)


def test_a_command_cannot_read_what_feeds_the_collector() -> None:
    assert shell.run(["cat"], 5) == shell.Result(0, "", "")


def test_a_command_speaks_english_whatever_the_login_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert "LC_ALL=C" in shell.run(["env"]).out.splitlines()


def test_output_that_is_no_utf_8_is_replaced() -> None:
    assert shell.run(["printf", r"\377"]).out == "\ufffd"


def test_commands_run_side_by_side_and_none_is_left(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    os.mkfifo(flag)
    # each end of a FIFO waits for the other: one after the other they would not end
    with shell.ahead(["cat", str(flag)], ["sh", "-c", f"echo met > {flag}"], ["sleep", "60"]) as (one, other, late):
        assert other.result(10).code == 0
        assert one.result(10).out == "met\n"
        pid = late.process.pid
    assert not _runs(pid)


def test_a_signal_ends_what_runs_side_by_side() -> None:
    pids: list[int] = []

    def wait() -> None:
        with limits.within(60), shell.ahead(["sleep", "60"], ["sleep", "60"]) as pending:
            pids.extend(one.process.pid for one in pending)
            signal.setitimer(signal.ITIMER_REAL, 0.2)  # the time is over soon
            pending[0].result(30)

    with pytest.raises(limits.Expired):
        wait()
    assert [_runs(pid) for pid in pids] == [False, False]


def test_what_is_said_to_a_command_arrives_and_one_that_does_not_listen_is_no_error() -> None:
    assert shell.talk(["cat"], b"hello") == shell.Result(0, "hello", "")
    assert shell.talk(["sh", "-c", "exec <&-; echo why >&2; exit 3"], b"x" * 60000) == shell.Result(3, "", "why\n")


# --- where we are


@pytest.mark.parametrize(
    ("noted", "container", "machine", "expected", "calls"),
    [
        pytest.param("", "none", "none", ("", ""), 1, id="bare-metal"),
        pytest.param("", "none", "kvm", ("", "kvm"), 1, id="machine"),
        pytest.param("systemd-nspawn\n", "systemd-nspawn", "kvm", ("systemd-nspawn", "kvm"), 1, id="container-noted"),
        pytest.param("", "docker", "none", ("docker", ""), 2, id="container-of-another-init"),
        pytest.param("oci\n", "podman", "qemu", ("podman", "qemu"), 2, id="noted-in-other-words"),
        pytest.param("", "none", "a-new-one", ("", "a-new-one"), 3, id="machine-that-we-do-not-know"),
        pytest.param("", "a-new-one", "kvm", ("a-new-one", "kvm"), 3, id="container-that-we-do-not-know"),
    ],
)
def test_container_and_hypervisor_are_told_apart(
    noted: str,
    container: str,
    machine: str,
    expected: tuple[str, str],
    calls: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool, asked = tmp_path / "systemd-detect-virt", tmp_path / "asked"
    inner = machine if container == "none" else container
    says = f'case "$1" in --container) echo {container};; --vm) echo {machine};; *) echo {inner};; esac'
    tool.write_text(f"#!/bin/sh\necho >> {asked}\n{says}\n")
    tool.chmod(0o755)
    (tmp_path / "noted").write_text(noted)
    monkeypatch.setattr(shell, "PATH", str(tmp_path))
    monkeypatch.setitem(shell.ENVIRONMENT, "PATH", f"{tmp_path}:/usr/bin:/bin")
    assert system.surroundings(str(tmp_path / "noted")) == expected
    assert len(asked.read_text()) == calls


# --- children


def test_a_child_answers_with_its_last_step() -> None:
    def job(report: child.Report) -> dict[str, Any]:
        report("one")
        report("two")
        return {"value": 7}

    assert child.ask(job, 5) == ({"value": 7}, "two", "")


def test_a_child_that_hangs_is_killed_and_its_step_is_known() -> None:
    def hang(report: child.Report) -> dict[str, Any]:
        report("run")
        time.sleep(60)
        return {}

    answers: list[tuple[dict[str, Any], str, str]] = []
    for limit_s in longer(0.2, lambda: answers[-1][1]):
        answers.append(child.ask(hang, limit_s))
    assert answers[-1] == ({}, "run", f"not done after {limit_s:g} s")


def test_a_child_that_ignores_its_alarm_is_killed() -> None:
    def deaf(report: child.Report) -> dict[str, Any]:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        time.sleep(60)
        return {}

    assert child.ask(deaf, 0.1)[2] == "not done after 0.1 s"


def test_a_child_that_crashes_is_a_reason_and_no_crash_of_ours() -> None:
    def crash(report: child.Report) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGUSR1)
        return {}

    assert child.ask(crash, 5)[2] == f"killed by signal {int(signal.SIGUSR1)}"


# --- files


def test_a_fifo_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert files.text(str(tmp_path / "fifo")) == ""
    assert files.sha256(str(tmp_path / "fifo")) == ""


def test_a_file_that_a_link_stands_for_is_told_with_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("as provisioned")
    (tmp_path / "link").symlink_to("plain")
    plain, link = (inventory.state(str(tmp_path / name)) for name in ("plain", "link"))
    assert (plain["link"], link["link"]) == ("", "plain")
    assert link["sha256"] == plain["sha256"]
    (tmp_path / "plain").unlink()
    assert inventory.state(str(tmp_path / "link")) == {"exists": False}


def test_a_huge_file_is_cut(tmp_path: Path) -> None:
    (tmp_path / "huge").write_bytes(b"x" * 200000)
    assert len(files.text(str(tmp_path / "huge"), 1000)) == 1000


def test_a_drop_in_of_etc_replaces_its_namesake_and_names_give_the_order(tmp_path: Path) -> None:
    for folder, name, text in (("lib", "b.conf", "b lib"), ("etc", "b.conf", "b etc"), ("lib", "a.conf", "a lib")):
        (tmp_path / folder / "modprobe.d").mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "modprobe.d" / name).write_text(text)
    found = files.dropins("modprobe.d", [str(tmp_path / "etc"), str(tmp_path / "lib")])
    assert [text for _, text in found] == ["a lib", "b etc"]


def test_a_drop_in_linked_to_null_hides_its_namesake(tmp_path: Path) -> None:
    for folder in ("etc", "lib"):
        (tmp_path / folder / "modprobe.d").mkdir(parents=True)
    (tmp_path / "lib/modprobe.d/a.conf").write_text("blacklist kvm")
    (tmp_path / "etc/modprobe.d/a.conf").symlink_to("/dev/null")
    found = files.dropins("modprobe.d", [str(tmp_path / "etc"), str(tmp_path / "lib")])
    assert [text for _, text in found] == [""]


# --- the contract


def look(path: Path) -> dict[str, str]:
    return contract.look(str(path), owner=os.getuid())


def test_a_contract_is_read(tmp_path: Path) -> None:
    (tmp_path / "contract.json").write_text('{"qemu": {"user": "qemu"}}')
    slot = look(tmp_path / "contract.json")
    assert slot["error"] == ""
    assert contract.parsed(slot).text("qemu.user") == "qemu"


def test_a_missing_contract_is_absent(tmp_path: Path) -> None:
    assert look(tmp_path / "contract.json") == {"text": "", "error": "absent"}


def test_a_contract_that_others_can_write_is_not_obeyed(tmp_path: Path) -> None:
    path = tmp_path / "contract.json"
    path.write_text("{}")
    path.chmod(0o666)
    assert "other than root" in look(path)["error"]
    path.chmod(0o644)
    assert "other than root" in contract.look(str(path), owner=os.getuid() + 1)["error"]


def test_a_contract_that_is_a_link_a_fifo_a_folder_or_huge_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").write_bytes(b" " * 300000)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert look(tmp_path / "link")["error"] == "a symbolic link"
    assert look(tmp_path / "fifo")["error"] == "not a regular file"
    assert look(tmp_path)["error"] == "not a regular file"
    assert "300000 bytes" in look(tmp_path / "huge")["error"]
    assert look(tmp_path / "binary")["error"] == "not UTF-8"


@pytest.mark.parametrize("document", [None, [], 7, {"qemu": []}, {"qemu": {"user": 7}}, {"qemu": {"user": "a\0b"}}])
def test_a_broken_contract_wishes_nothing(document: Any) -> None:
    broken = Contract(document)
    assert broken.text("qemu.user", "default") == "default"
    assert broken.names("packages") == []
    assert broken.table("libvirt.settings") == {}


# --- the kernel


def test_module_options_are_as_modprobe_reads_them() -> None:
    first = ("/lib/modprobe.d/a.conf", "options kvm-intel nested=0 \\\n  ept=1\nblacklist vboxdrv\n# options kvm x=1\n")
    second = ("/etc/modprobe.d/b.conf", 'options kvm_intel nested="1"\ninstall kvm_amd /bin/false\n')
    options, blacklisted = kernel.configured([first, second], "quiet kvm.ignore_msrs=1 module_blacklist=tun,vhost-net")
    assert options == {"kvm_intel": {"nested": "1", "ept": "1"}, "kvm": {"ignore_msrs": "1"}}
    assert blacklisted == {"vboxdrv", "kvm_amd", "tun", "vhost_net"}


def test_modules_of_the_next_boot_come_from_three_places() -> None:
    dropins = [("/etc/modules-load.d/a.conf", "# comment\nvhost-net\n; other\n\n")]
    assert kernel.load_at_boot(dropins, "loop\ntun args\n", "modules_load=kvm") == ["kvm", "loop", "tun", "vhost_net"]


def test_module_names_are_read_from_both_listings() -> None:
    assert kernel.module_names("kernel/arch/x86/kvm/kvm-amd.ko.xz: kernel/arch/x86/kvm/kvm.ko.xz\n") == ["kvm_amd"]
    assert kernel.module_names("kernel/drivers/net/tun.ko\nkernel/fs/ext4/ext4.ko\n") == ["tun", "ext4"]


def test_a_command_line_with_a_lone_quote_is_read() -> None:
    assert kernel.configured([], "a='b kvm.x=1")[0] == {"kvm": {"x": "1"}}


@pytest.mark.parametrize(("number", "errno"), [("1:3", ""), ("10:200", "ENODEV"), (None, "")])
def test_a_node_that_opens_is_the_device_that_the_kernel_has_under_this_name(
    number: str | None, errno: str, tmp_path: Path
) -> None:
    if number:
        (tmp_path / "null").mkdir()
        (tmp_path / "null/dev").write_text(f"{number}\n")
    assert kernel.opens("/dev/null", str(tmp_path)) == errno


# --- KVM


def test_a_statistic_is_found_by_its_name(tmp_path: Path) -> None:
    names = [b"exits", b"insn_emulation"]
    descriptors = b"".join(struct.pack("=IhHII24s", 0, 0, 1, 8 * i, 0, name) for i, name in enumerate(names))
    header = struct.pack("=6I", 0, 24, 2, 24, 64, 64 + len(descriptors))
    (tmp_path / "stats").write_bytes(header.ljust(64, b"\0") + descriptors + struct.pack("=QQ", 7, 40002))
    fd = os.open(tmp_path / "stats", os.O_RDONLY)
    try:
        assert machine_x86.statistic(fd, "insn_emulation") == 40002
        assert machine_x86.statistic(fd, "absent") is None
    finally:
        os.close(fd)


needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="no usable /dev/kvm here")


@needs_kvm
def test_a_guest_executes_and_its_speed_is_told() -> None:
    execution, speed = kvm.proof("proof", True)
    assert (execution["outcome"], execution["step"]) == ("works", "compare")
    assert speed["outcome"] in ("hardware", "emulated")


@needs_kvm
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param("345a", "345b", id="another-mask"),
        pytest.param("ee", "90", id="nothing-to-the-port"),
        pytest.param("8884ff00", "90909090", id="nothing-to-memory"),
    ],
)
def test_a_guest_that_does_something_else_is_no_proof(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = machine_x86.PROOF.replace(bytes.fromhex(right), bytes.fromhex(wrong))
    monkeypatch.setattr(machine_x86, "PROOF", code)
    answer = proof.execute(lambda report: machine_x86.prove(report, bytes(16)))
    assert (answer["outcome"], answer["step"]) == ("broken", "compare")


@needs_kvm
def test_a_guest_that_leaves_its_memory_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_x86, "PROOF", bytes.fromhex("b8 00f0 8ed8 a00000 f4"))  # reads at 0xf0000
    answer = proof.execute(lambda report: machine_x86.prove(report, bytes(16)))
    assert (answer["outcome"], answer["step"], answer["exit_reason"]) == ("broken", "run", 6)


def test_without_a_node_the_proof_is_skipped_with_the_reason() -> None:
    execution, speed = kvm.proof("proof", False)
    assert execution == {"outcome": "skipped", "detail": "there is no /dev/kvm"}
    assert speed["outcome"] == "unknown"


def test_a_broken_step_is_named_with_its_errno() -> None:
    def job(report: child.Report) -> dict[str, Any]:
        report("create_vm")
        raise OSError(16, "Device or resource busy")

    answer = proof.execute(job)
    assert (answer["outcome"], answer["step"], answer["errno"]) == ("broken", "create_vm", "EBUSY")


def test_opening_as_a_user_that_does_not_exist_says_so() -> None:
    found = kvm.open_as(Contract({"qemu": {"user": "no-such-user"}}))
    assert found == {"user": "no-such-user", "errno": "no such user", "tried": False}


def test_a_user_keeps_its_own_group_beside_the_one_that_qemu_gets() -> None:
    """On Debian the first is kvm, to which /dev/kvm belongs, and the second libvirt-qemu."""
    user = kvm.qemu_user(Contract({"qemu": {"user": "daemon", "group": "bin"}}))
    assert user is not None
    assert user.gid == grp.getgrnam("bin").gr_gid
    assert {user.gid, pwd.getpwnam("daemon").pw_gid} <= set(user.groups)


# --- libvirt and QEMU

ANSWER = """{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}
{"return": {}}
{"return": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian 1:7.2+dfsg-7+deb12u18+b3"}}
{"return": {"enabled": true, "present": true}}
{"return": [{"name": "type", "type": "string"}, {"name": "thread", "type": "string"}], "id": "tcg"}
{"id": "xen", "error": {"class": "DeviceNotFound", "desc": "Class 'xen-accel' not found"}}
{"id": "mshv", "error": {"class": "DeviceNotFound", "desc": "Class 'mshv-accel' not found"}}
{"timestamp": {"seconds": 1795761957}, "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}
{"return": {}}
"""


def test_qemu_tells_that_it_uses_kvm() -> None:
    found = qemu.answers(shell.Result(0, ANSWER, ""))
    accelerators = found.pop("accelerators")
    assert found == {"version": "7.2.22", "enabled": True, "outcome": "works", "detail": ""}
    assert accelerators == ["kvm", "tcg"]


def test_qemu_without_kvm_is_broken_and_silence_has_its_reason() -> None:
    without = qemu.answers(shell.Result(0, ANSWER.replace('"enabled": true', '"enabled": false'), ""))
    assert (without["outcome"], without["enabled"]) == ("broken", False)
    refused = qemu.answers(
        shell.Result(1, "", "Could not access KVM kernel module: Permission denied\n\nqemu: failed\n")
    )
    assert refused == {
        "outcome": "broken",
        "detail": "Could not access KVM kernel module: Permission denied qemu: failed",
    }
    assert qemu.answers(shell.Result(-11, "[]\n{\n", ""))["detail"] == "exit -11"


# Speaks as QEMU does: over QMP where KVM is there for it, and to people.
QEMU = """#!/bin/sh
echo "$@" >> {asked}
case "$*" in
    --version) echo "QEMU emulator version 7.2.22 (Debian 1:7.2)" ;;
    "-accel help") printf 'Accelerators supported in QEMU binary:\\n%s' '{offered}' ;;
    *) {qmp} ;;
esac
"""
USABLE = {"exists": True, "errno": ""}
Ask = Callable[..., tuple[dict[str, Any], list[str]]]


@pytest.fixture
def ask_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """What the collector finds, and what it asked QEMU for."""

    def ask(qmp: str, offered: str = "tcg\nkvm\n", node: dict[str, Any] = USABLE) -> tuple[dict[str, Any], list[str]]:
        binary, asked = tmp_path / "qemu", tmp_path / "asked"
        (tmp_path / "answer").write_text(ANSWER)
        binary.write_text(QEMU.format(asked=asked, offered=offered, qmp=qmp.format(answer=tmp_path / "answer")))
        binary.chmod(0o755)
        monkeypatch.setattr(kvm, "qemu_user", lambda contract: None)
        found = qemu.look(Contract({"qemu": {"binary": str(binary)}}), node)
        return found, asked.read_text().splitlines()

    return ask


def test_a_qemu_that_gets_kvm_is_started_once(ask_qemu: Ask) -> None:
    found, asked = ask_qemu("cat {answer}")
    assert (found["version"], found["accelerators"], len(asked)) == ("7.2.22", ["kvm", "tcg"], 1)
    assert found["accel"]["outcome"] == "works"
    assert "accelerators" not in found["accel"]


@pytest.mark.parametrize(
    ("qmp", "offered", "node", "accel"),
    [
        pytest.param("echo no >&2; exit 1", "tcg\nkvm\n", USABLE, "broken", id="refused"),
        pytest.param("sed s/DeviceNotFound/CommandNotFound/ {answer}", "tcg\nkvm\n", USABLE, "works", id="older"),
        pytest.param("echo invalid accelerator kvm >&2; exit 1", "tcg\n", USABLE, None, id="without-kvm"),
        pytest.param("exit 9", "tcg\nkvm\n", {"exists": True, "errno": "EACCES"}, None, id="closed"),
    ],
)
def test_a_qemu_that_does_not_tell_over_qmp_is_asked_as_people_do(
    qmp: str,
    offered: str,
    node: dict[str, Any],
    accel: str | None,
    ask_qemu: Ask,
) -> None:
    found, asked = ask_qemu(qmp, offered, node)
    assert (found["version"], found["accelerators"]) == ("7.2.22", sorted(offered.split()))
    assert {"--version", "-accel help"} <= set(asked)
    assert found.get("accel", {}).get("outcome") == accel


def test_a_qemu_that_hangs_is_ended(tmp_path: Path) -> None:
    (tmp_path / "qemu").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "qemu").chmod(0o755)
    found = qemu.accel(str(tmp_path / "qemu"), None, 0.3)
    assert found["outcome"] == "broken"
    assert "no answer in time" in found["detail"]


CONF = """
# vnc_password = "commented"
vnc_password = "s3cret"
user = "libvirt-qemu"   # why
max_core = 0
max_core = 1
cgroup_device_acl = [
    "/dev/null", # first
    "/dev/kvm"
]
"""


def test_of_two_values_of_a_setting_the_first_counts_as_in_libvirt() -> None:
    """Seen with libvirt 11.3: max_clients 77 above 99 makes it 77."""
    assert libvirt.parse("max_clients = 77\nmax_clients = 99\n") == {"max_clients": "77"}


def test_settings_are_read_as_libvirt_reads_them() -> None:
    found = libvirt.parse(CONF)
    assert found["user"] == '"libvirt-qemu"'
    assert found["max_core"] == "0"
    assert found["cgroup_device_acl"].startswith('[ "/dev/null",')


def test_only_the_settings_that_were_asked_for_leave_the_host(tmp_path: Path) -> None:
    (tmp_path / "qemu.conf").write_text(CONF)
    folder = f"{tmp_path}/"
    wished = {"qemu.conf": {"user": "x", "vnc_password": "x", "absent": "x"}, "/etc/passwd": {"root": "x"}, "../x": {}}
    assert libvirt.settings(wished, folder) == {"qemu.conf": {"user": '"libvirt-qemu"'}}


def test_a_daemon_that_is_older_than_its_file_is_told_but_those_that_guests_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """virtlogd is reloaded, which reads its file and leaves its start as it was; to restart it is never advised."""
    monkeypatch.setattr(libvirt, "FOLDER", f"{tmp_path}/")
    for name in ("libvirtd.conf", "virtlogd.conf"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() + 60,) * 2)
    pids = dict.fromkeys(("libvirtd.service", "virtlogd.service", "virtqemud.service"), os.getpid())
    assert libvirt.stale(pids) == ["libvirtd.service"]


def test_domain_types_are_those_of_the_hosts_architecture() -> None:
    xml = """<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
      <guest><arch name='i686'><domain type='xen'/></arch></guest>
      <guest><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"""
    assert libvirt.domain_types(xml) == ["kvm", "qemu"]


def test_files_of_the_administrator_that_change_a_unit_are_told_and_those_of_packages_are_not(tmp_path: Path) -> None:
    own, masked = tmp_path / "own.conf", tmp_path / "masked.service"
    own.write_text("[Service]\nExecStartPre=/bin/true\n")
    masked.symlink_to("/dev/null")
    shown = {
        "libvirtd.service": {
            "FragmentPath": "/lib/systemd/system/libvirtd.service",
            "DropInPaths": f"/lib/a.conf {own}",
        },
        "libvirtd.socket": {"FragmentPath": str(masked), "DropInPaths": ""},
        "Nightly.service": {"FragmentPath": str(tmp_path / "Nightly.service"), "DropInPaths": ""},
    }
    found = libvirt.unit_files(shown, ["libvirtd.service", "libvirtd.socket"], (f"{tmp_path}/",))
    assert found == {str(own): files.sha256(str(own))}
    (tmp_path / "Nightly.service").touch()
    assert libvirt.unit_files(shown, ["libvirtd.service", "libvirtd.socket"], (f"{tmp_path}/",)) == found


def test_hooks_are_the_scripts_that_libvirt_would_run(tmp_path: Path) -> None:
    (tmp_path / "qemu.d").mkdir()
    for name, mode in {"qemu": 0o755, "qemu.d/10-log": 0o700, "network": 0o644, "qemu.sample": 0o755}.items():
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    found = libvirt.hooks(f"{tmp_path}/")
    assert list(found) == [f"{tmp_path}/qemu", f"{tmp_path}/qemu.d/10-log"]
    assert found[f"{tmp_path}/qemu"]["sha256"] == files.sha256(str(tmp_path / "qemu"))
    assert found[f"{tmp_path}/qemu.d/10-log"]["mode"] == 0o700


def test_a_unit_is_asked_for_where_it_has_a_file_or_was_started(tmp_path: Path) -> None:
    etc, lib, started = (tmp_path / name for name in ("etc", "lib", "units"))
    for folder in (etc, lib, started):
        folder.mkdir()
    (etc / "libvirtd-tcp.socket").symlink_to("/dev/null")  # masked
    (lib / "libvirtd.service").touch()
    (started / "invocation:virtqemud.socket").symlink_to("0123456789abcdef")
    names = ["libvirtd-tcp.socket", "libvirtd.service", "virtqemud.socket", "virtqemud.service"]
    folders = [str(folder) for folder in (etc, lib, started, tmp_path / "absent")]
    assert libvirt.somewhere(names, folders) == names[:3]


def test_versions_are_found_in_what_programs_print() -> None:
    assert qemu.version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright") == "7.2.22"
    assert qemu.version("TPM emulator version 0.7.1, Copyright (c) 2014") == "0.7.1"
    assert qemu.version("Segmentation fault") == ""


def test_a_broken_firmware_descriptor_fits_no_architecture() -> None:
    for text in ("", "{", "[]", "7", '{"targets": [{}]}', '{"targets": null}'):
        assert qemu.architectures(text) == []
    assert qemu.architectures('{"targets": [{"architecture": "x86_64"}]}') == ["x86_64"]


# --- the boot image


def test_the_boot_image_is_a_bootable_megabyte() -> None:
    image = bootimage.image("ab" * 16)
    assert len(image) == 1 << 20
    assert image[510:512] == b"\x55\xaa"


def test_the_nonce_is_not_on_the_disk_in_clear() -> None:
    image = bootimage.image("0123456789abcdef")
    assert b"0123" not in image
    assert bootimage.GREETING.encode() not in image
    assert b"KVMFLEET 0123456789abcdef\r\n\0" in bytes(byte ^ bootimage.MASK for byte in image[:512])


def test_the_boot_code_points_at_its_text() -> None:
    code = bootimage.machine_code(0x7C00)
    address = struct.unpack_from("<H", code, code.index(b"\xfc\xbe") + 2)[0]
    assert address == 0x7C00 + len(code)
    assert bytes([bootimage.image("")[address - 0x7C00] ^ bootimage.MASK]) == b"K"


# --- limits


def test_everything_is_cut_to_the_limits_of_its_type() -> None:
    shape = {"fields": {"name": 3, "names": {"items": 2, "of": 3}, "table": {"entries": 1, "key": 2, "of": 3}}}
    found = {"name": "abcdef", "names": ["abcdef", "b", "c"], "table": {"key": "value", "other": "x"}, "unknown": 1}
    assert limits.bounded(found, shape) == {"name": "abc", "names": ["abc", "b"], "table": {"ke": "val"}}


def test_lone_surrogates_of_file_names_do_not_break_the_document() -> None:
    assert limits.bounded({"x\udcff": "y\udcff"}, {"entries": 9, "key": 9, "of": 9}) == {"x?": "y?"}


def test_numbers_and_absent_values_stay_as_they_are() -> None:
    assert limits.bounded({"a": None, "b": 1.5}, {"fields": {"a": None, "b": None}}) == {"a": None, "b": 1.5}


def test_the_evidence_of_a_hostile_host_still_decodes() -> None:
    """Names and texts far beyond every limit, as a broken host would report them."""
    huge: dict[str, Any] = {
        "schema": 1,
        "collected_at_s": 0.0,
        "duration_ms": 0.0,
        "packages": {f"{i}" * 300: "x" * 9999 for i in range(3000)},
    }
    huge["kernel"] = {"cmdline": "x" * 99999, "blacklisted": ["y" * 999] * 9999}
    evidence = msgspec.convert(limits.bounded(huge, shape()), Evidence)
    assert len(evidence.kernel.cmdline) == 4096
    assert len(evidence.kernel.blacklisted) == 2048


def test_no_module_prints_or_exits_but_the_last() -> None:
    for path in MODULES:
        if path.stem != "main":
            assert not re.search(r"\bprint\(|sys\.(exit|stdout)", path.read_text("utf-8")), path
