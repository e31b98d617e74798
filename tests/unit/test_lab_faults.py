"""The catalogue of faults, and the programs made of it: as root on a host that is a folder."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checks.catalogue import catalogue as checks
from orchestrator.errors import LabError
from orchestrator.lab.faults.catalogue import catalogue, find
from orchestrator.lab.faults.fault import Fault, heal_program, inject_program
from orchestrator.lab.spec import SYSTEMS

PAGE = Path(__file__).parents[2] / "docs" / "drills.md"
FEWEST = 60
Run = Callable[[str], subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a program whose /var/lib and /etc are in a folder."""

    def run(program: str) -> subprocess.CompletedProcess[str]:
        moved = program.replace("/var/lib/kvmfleet-drill", f"{tmp_path}/kept").replace("/etc/kvmfleet", str(tmp_path))
        return subprocess.run(["sh"], input=moved, capture_output=True, text=True, check=False)

    return run


def fault(inject: str, heal: str, *needs: str) -> Fault:
    return Fault(id="drill", says="", check="", inject=inject, heal=heal, needs=needs)


def test_there_are_enough_and_ids_are_unique() -> None:
    ids = [fault.id for fault in catalogue()]
    assert len(ids) == len(set(ids)) >= FEWEST


@pytest.mark.parametrize("fault", catalogue(), ids=lambda fault: fault.id)
def test_every_fault_is_whole(fault: Fault) -> None:
    assert fault.check in {check.id for check in checks()}
    assert fault.says.endswith(".")
    assert {*fault.providers} <= {"container", "vm"}
    assert fault.why or len(fault.providers) == 2
    assert {*fault.systems} <= SYSTEMS.keys()
    for program in (inject_program(fault), heal_program(fault)):
        checked = subprocess.run(["sh", "-n"], input=program, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("fault", catalogue(), ids=lambda fault: fault.id)
def test_every_fault_is_in_the_table_of_drills(fault: Fault) -> None:
    row = next((line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{fault.id}` |")), "")
    assert f"| `{fault.check}` |" in row, "run: pytest tests/hosts/test_drills.py"


def test_an_unknown_fault_is_told_what_is_near() -> None:
    with pytest.raises(LabError, match="no fault 'libvirt-stoped'") as caught:
        find("libvirt-stoped")
    assert "libvirt-stopped" in caught.value.hint
    with pytest.raises(LabError) as caught:
        find("?")
    assert "--list" in caught.value.hint


def test_what_was_hidden_or_changed_comes_back_as_it_was(run: Run, tmp_path: Path) -> None:
    file, link, folder = tmp_path / "a file", tmp_path / "link", tmp_path / "folder"
    file.write_text("before")
    file.chmod(0o640)
    link.symlink_to("nowhere")
    folder.mkdir()
    (folder / "inside").write_text("before")
    broken = fault(
        f"keep '{file}' {folder}; echo after > '{file}'; chmod 0666 '{file}'; rm {folder}/inside; hide {link}",
        f"back '{file}' {folder} {link}",
    )
    assert run(inject_program(broken)).returncode == 0
    assert (file.read_text(), link.is_symlink(), list(folder.iterdir())) == ("after\n", False, [])
    assert run(heal_program(broken)).returncode == 0
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("before", 0o640)
    assert (str(link.readlink()), (folder / "inside").read_text()) == ("nowhere", "before")
    assert not (tmp_path / "kept").exists()


def test_an_injection_that_failed_half_way_is_healed(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("before")
    broken = fault(f"hide {first} {second}", f"back {first} {second}")
    assert run(inject_program(broken)).returncode != 0
    assert not first.exists()
    assert run(heal_program(broken)).returncode == 0
    assert first.read_text() == "before"


def test_healing_what_was_never_broken_does_nothing(run: Run, tmp_path: Path) -> None:
    assert run(heal_program(fault("", f"touch {tmp_path}/made"))).returncode == 0
    assert not (tmp_path / "made").exists()


def test_half_a_program_does_nothing(run: Run, tmp_path: Path) -> None:
    program = inject_program(fault(f"touch {tmp_path}/made\ntrue the end", ""))
    assert run(program.partition("true the end")[0]).returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_script_gets_what_the_contract_names_and_healing_gets_the_same(run: Run, tmp_path: Path) -> None:
    contract = {"pools": {"images": {"path": "/srv/a b"}}, "sockets": ["tls"], "windows": True}
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    tell = f'printf "%s," "$@" > {tmp_path}/'
    broken = fault(f"{tell}given", f"{tell}again", "pools", "pools/*/path", "sockets", "windows")
    assert run(inject_program(broken)).stderr == ""
    (tmp_path / "contract.json").unlink()
    assert run(heal_program(broken)).stderr == ""
    assert (tmp_path / "given").read_text() == (tmp_path / "again").read_text() == "images,/srv/a b,tls,True,"


@pytest.mark.parametrize("need", ["networks", "pools/*/path", "pools/*/*/nothing"])
def test_a_host_that_was_not_told_to_have_it_is_left_alone(run: Run, tmp_path: Path, need: str) -> None:
    (tmp_path / "contract.json").write_text('{"pools": {}}')
    done = run(inject_program(fault(f"touch {tmp_path}/made", "", need)))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"the contract of this host has no {need}"
    assert [path.name for path in tmp_path.iterdir()] == ["contract.json"]
