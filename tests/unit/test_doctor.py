"""Each problem of a controller, shown to the doctor on a machine that has it and on one that does not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import postgresql
import pytest

from orchestrator import doctor, pki
from orchestrator.errors import LabError
from orchestrator.history import tables
from orchestrator.history.store import Store
from orchestrator.lab.accelerator import Accelerator

ROOT = Path(__file__).resolve().parents[2]


def dump(*settings: dict[str, Any]) -> Callable[[], subprocess.CompletedProcess[str]]:
    """`ansible-config dump --only-changed --format json` with these settings."""
    entries = [{"name": "CONFIG_FILE", "origin": "", "value": None}, *settings, {"GALAXY_SERVERS": {}}]
    return lambda: subprocess.CompletedProcess([], 0, stdout=json.dumps(entries), stderr="")


def refuses(words: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    return lambda: subprocess.CompletedProcess([], 1, stdout="", stderr=words)


def test_the_worst_comes_first() -> None:
    levels = [doctor.LEVELS.index(problem.level) for problem in doctor.examine().problems]
    assert levels == sorted(levels)


@pytest.mark.parametrize("version", [(3, 11), (3, 14)])
def test_a_python_that_we_support_is_no_problem(version: tuple[int, int]) -> None:
    assert not list(doctor.python(version))


@pytest.mark.parametrize("version", [(3, 10), (3, 15)])
def test_a_python_that_we_do_not_support_is_an_error(version: tuple[int, int]) -> None:
    (problem,) = doctor.python(version)
    assert problem.level == "error"
    assert f"3.{version[1]}" in problem.what


def test_the_launcher_and_the_package_agree_on_the_pythons() -> None:
    (oldest, newest) = doctor.PYTHONS
    script = (ROOT / "scripts/venv").read_text()
    assert re.findall(r"^(?:oldest|newest)=(\d+)$", script, re.MULTILINE) == [str(oldest[1]), str(newest[1])]
    assert f'requires-python = ">=3.{oldest[1]},<3.{newest[1] + 1}"' in (ROOT / "pyproject.toml").read_text()


def environment(folder: Path, *, stamp: str | None) -> list[doctor.Problem]:
    (folder / "requirements.lock").write_text("one==1\n")
    if stamp is not None:
        (folder / "venv/.kvmfleet").mkdir(parents=True)
        (folder / "venv/.kvmfleet/requirements.lock").write_text(stamp)
    return list(doctor.environment(folder, folder / "venv"))


def test_the_environment_that_the_launcher_made_is_no_problem(tmp_path: Path) -> None:
    assert not environment(tmp_path, stamp="one==1\n")


@pytest.mark.parametrize("stamp", [None, "one==0.9\n"])
def test_an_environment_from_another_lock_is_a_problem(tmp_path: Path, stamp: str | None) -> None:
    (problem,) = environment(tmp_path, stamp=stamp)
    assert str(tmp_path / "kvmfleet") in problem.fix


def test_an_installed_kvmfleet_has_no_lock_to_differ_from(tmp_path: Path) -> None:
    assert not list(doctor.environment(tmp_path, tmp_path))


def test_a_missing_library_is_named() -> None:
    (problem,) = doctor.libraries(find=lambda name: None if name == "asyncssh" else name)
    assert (problem.level, "asyncssh" in problem.what, "click" in problem.what) == ("error", True, False)


def test_every_library_of_the_requirements_is_looked_for() -> None:
    wanted = re.findall(r"^[\w.-]+", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    modules = {"pyyaml": "yaml"}
    assert sorted(modules.get(name.lower(), name.lower().replace("-", "_")) for name in wanted) == sorted(
        doctor.MODULES
    )


@pytest.mark.parametrize(("found", "problems"), [("2.18.9", 1), ("2.19.0", 0), ("2.21.5", 0), ("3.0.0rc1", 0)])
def test_an_old_ansible_is_an_error(found: str, problems: int) -> None:
    assert len(list(doctor.ansible_version(lambda _: found))) == problems


def test_a_missing_ansible_is_left_to_the_libraries() -> None:
    def absent(_: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    assert not list(doctor.ansible_version(absent))


def test_plain_settings_are_no_problem() -> None:
    assert not list(doctor.ansible_settings(dump({"name": "DEFAULT_FORKS", "origin": "env", "value": 50})))


def test_host_keys_that_are_not_checked_are_a_warning_that_says_where_that_comes_from() -> None:
    setting = {"name": "HOST_KEY_CHECKING", "origin": "/etc/ansible/ansible.cfg", "value": False}
    (problem,) = doctor.ansible_settings(dump(setting))
    assert problem.level == "warning"
    assert "/etc/ansible/ansible.cfg" in problem.what


@pytest.mark.parametrize(("strategy", "problems"), [("mitogen_linear", 1), ("ansible.builtin.free", 0), ("debug", 1)])
def test_an_unusual_strategy_is_a_warning(strategy: str, problems: int) -> None:
    setting = {"name": "DEFAULT_STRATEGY", "origin": "env: ANSIBLE_STRATEGY", "value": strategy}
    assert len(list(doctor.ansible_settings(dump(setting)))) == problems


def test_a_locale_that_ansible_refuses_has_its_fix() -> None:
    (problem,) = doctor.ansible_settings(
        refuses("ERROR: Ansible requires the locale encoding to be UTF-8; Detected None.")
    )
    assert (problem.level, problem.fix) == ("error", "export LC_ALL=C.UTF-8")


def test_the_real_ansible_refuses_such_a_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    (problem,) = doctor.ansible_settings()
    assert problem.fix == "export LC_ALL=C.UTF-8"


def test_a_broken_ansible_cfg_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ansible.cfg").write_text("[defaults\nforks = many\n")
    monkeypatch.setenv("ANSIBLE_CONFIG", str(tmp_path / "ansible.cfg"))
    (problem,) = doctor.ansible_settings()
    assert problem.level == "error"
    assert "ansible.cfg" in problem.what


def test_a_home_that_cannot_be_written_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_HOME", "/proc/home")  # not even root makes a folder there
    (problem,) = doctor.ansible_settings()
    assert "/proc/home/tmp" in problem.what
    assert "Traceback" not in problem.what
    assert problem.fix == "Let ANSIBLE_HOME name a folder that you can write."


def test_an_ansible_that_cannot_be_started_is_an_error() -> None:
    def absent() -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(2, "No such file or directory", "ansible-config")

    (problem,) = doctor.ansible_settings(absent)
    assert (problem.level, "ansible-config" in problem.what) == ("error", True)


def test_words_of_ansible_carry_no_terminal_escapes() -> None:
    (problem,) = doctor.ansible_settings(refuses("\x1b[31mERROR: bad\x1b[0m"))
    assert "\x1b" not in problem.what


def test_a_configuration_that_does_not_exist_is_a_warning() -> None:
    (problem,) = doctor.ansible_files({"ANSIBLE_CONFIG": "~nobody-at-all/ansible.cfg"}, Path.cwd)
    assert "is not found" in problem.what
    (problem,) = doctor.ansible_files({"ANSIBLE_CONFIG": "/nowhere/ansible.cfg"}, Path.cwd)
    assert "/nowhere/ansible.cfg is not found" in problem.what


@pytest.mark.parametrize(("mode", "file", "problems"), [(0o777, True, 1), (0o755, True, 0), (0o777, False, 0)])
def test_a_configuration_in_a_folder_that_everybody_can_write_is_ignored_by_ansible(
    tmp_path: Path, mode: int, file: bool, problems: int
) -> None:
    if file:
        (tmp_path / "ansible.cfg").touch()
    tmp_path.chmod(mode)
    assert len(list(doctor.ansible_files({}, lambda: tmp_path))) == problems


def test_a_missing_ssh_is_an_error_with_the_command_that_installs_it() -> None:
    (problem,) = doctor.ssh(lambda _: None)
    assert problem.level == "error"
    assert "openssh-client" in problem.fix
    assert not list(doctor.ssh(lambda _: "/usr/bin/ssh"))


def test_an_agent_that_has_gone_is_a_warning(tmp_path: Path) -> None:
    path = str(tmp_path / "agent")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        assert not list(doctor.agent({"SSH_AUTH_SOCK": path}))
    (problem,) = doctor.agent({"SSH_AUTH_SOCK": path})
    assert "does not answer: Connection refused" in problem.what
    assert not list(doctor.agent({}))


def test_a_folder_that_is_still_to_be_made_is_judged_by_its_parent(tmp_path: Path) -> None:
    assert not list(doctor.folder(tmp_path / "a/b/c", 0, level="error"))


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user to whom modes apply."""
    if os.geteuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_what_this_user_cannot_look_into_is_a_problem(tmp_path: Path) -> None:
    (theirs := tmp_path / "theirs").mkdir(mode=0)
    with without_rights():
        (problem,) = doctor.folder(theirs / "state", 1, level="error")
        assert not list(doctor.authority(theirs / "state" / "pki"))
        (config,) = doctor.ansible_files({"ANSIBLE_CONFIG": str(theirs / "ansible.cfg")})
    assert problem.what.endswith("cannot be written by this user.")
    assert "goes on without it" in config.what


def test_a_file_where_a_folder_should_be_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    (problem,) = doctor.folder(tmp_path / "state" / "history", 0, level="error")
    assert "cannot be written" in problem.what


def test_a_full_disk_is_a_problem_that_says_how_much_is_wanted(tmp_path: Path) -> None:
    (problem,) = doctor.folder(tmp_path, 1 << 40, level="note")
    assert (problem.level, f"{1 << 40} are wanted" in problem.what) == ("note", True)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A state folder of our own."""
    monkeypatch.setenv("KVMFLEET_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_a_damaged_history_is_a_warning_and_stays_where_it_is(state: Path) -> None:
    (state / "history.sqlite3").write_text("these are not the tables that you are looking for" * 100)
    kept, (problem,) = doctor.history()
    assert (problem.level, "Move it away" in problem.fix) == ("warning", True)
    assert kept == doctor.History(str(state / "history.sqlite3"))
    assert [path.name for path in state.iterdir()] == ["history.sqlite3"]


def test_a_good_history_and_none_at_all_are_no_problem(state: Path) -> None:
    file = state / "history.sqlite3"
    assert doctor.history() == (doctor.History(str(file), 0, 0), [])
    assert not file.exists()
    with Store() as store:
        store.begin("validate").finish("ok")
    assert doctor.history() == (doctor.History(str(file), tables.SCHEMA, file.stat().st_size), [])


def test_a_history_elsewhere_is_the_one_that_is_looked_at(state: Path, tmp_path: Path) -> None:
    (state / "history.sqlite3").write_text("another, which is damaged")
    (tmp_path / "notes").write_text("not a database, but somebody's notes\n" * 100)
    for file, schema, problems in ((tmp_path / "fleet.sqlite3", 0, 0), (tmp_path / "notes", None, 1)):
        kept, found = doctor.history(f"sqlite:///{file}")
        assert (kept.where, kept.schema, len(found)) == (str(file), schema, problems)
    assert "not a database" in found[0].what
    (problem,) = doctor.history(f"sqlite:///{tmp_path}/notes/fleet.sqlite3")[1]
    assert "cannot be written" in problem.what
    (problem,) = doctor.history(f"sqlite:///{tmp_path}/{'x' * 300}")[1]
    assert "File name too long" in problem.what


def test_an_empty_file_is_a_history_still_to_be_made_and_one_that_has_been_more_is_damaged(
    state: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mktemp"
    file.touch()
    assert doctor.history(f"sqlite:///{file}") == (doctor.History(str(file), 0, 0), [])
    assert file.read_bytes() == b""
    (state / "history.sqlite3").touch()
    (problem,) = doctor.history()[1]
    assert "the file is empty. The next run moves it aside" in problem.what


def test_a_history_of_another_version_is_told_and_left_as_it_is(state: Path) -> None:
    Store().close()
    for version, problems in ((tables.SCHEMA - 1, 0), (tables.SCHEMA + 1, 1)):
        with closing(sqlite3.connect(state / "history.sqlite3")) as connection:
            connection.execute(f"UPDATE schema_version SET version = {version}")
            connection.commit()
        kept, found = doctor.history()
        assert (kept.schema, len(found)) == (None if problems else version, problems)
    assert "newer kvmfleet" in found[0].what
    assert "Upgrade kvmfleet" in found[0].fix


def test_a_history_on_a_server_is_looked_at_and_no_password_is_shown(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = postgresql.new_database(server.replace("tester@", "tester:sesame@"))
    assert doctor.history(url)[0].schema == 0
    Store(url).close()
    kept, found = doctor.history(url)
    assert (kept.schema, found) == (tables.SCHEMA, [])
    assert (kept.size_bytes or 0) > 8192 * len(tables.all_tables)
    assert kept.where.startswith("postgresql://tester:***@")
    for gone in (f"tester:sesame@/postgres?host={tmp_path}", f"tester@/postgres?host={tmp_path}&password=sesame"):
        monkeypatch.setenv("KVMFLEET_STORE", f"postgresql://{gone}")
        kept, (problem,) = doctor.history()
        assert (kept.where.startswith("postgresql://tester"), kept.schema, problem.level) == (True, None, "warning")
        assert "sesame" not in kept.where + problem.what + problem.fix
        assert "that the server answers there" in problem.fix


@pytest.mark.parametrize("url", ["mysql://u:sesame@h/d", "sesame", "postgresql://u:ses@ame@h/d"])
def test_a_url_that_is_none_is_an_error_with_what_to_write(url: str) -> None:
    kept, (problem,) = doctor.history(url)
    assert (kept, problem.level) == (doctor.History(), "error")
    assert "ame" not in problem.what.replace("name", "")
    assert "postgresql://" in problem.fix or "%40" in problem.fix


def test_a_clock_before_our_own_files_is_a_warning() -> None:
    (problem,) = doctor.clock(now_s=lambda: 0.0)
    assert "behind" in problem.what
    assert not list(doctor.clock())


def closed() -> Accelerator:
    raise LabError("/dev/kvm is there, but tester may not open it.")


def machine(tmp_path: Path, **differences: Any) -> list[doctor.Problem]:
    """What the lab finds on a machine that has all, but for the differences."""
    (tmp_path / "filesystems").write_text("nodev\tcgroup2\n")
    good: dict[str, Any] = {"missing": lambda _: (), "root": True, "choose": lambda: Accelerator("kvm", "")}
    return list(doctor.lab(**{**good, "filesystems": tmp_path / "filesystems", **differences}))


def test_a_machine_that_has_all_has_no_problem(tmp_path: Path) -> None:
    assert not machine(tmp_path)


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        ({"missing": lambda _: ("mmdebstrap", "nftables")}, "mmdebstrap, nftables"),
        ({"root": False, "missing": lambda provider: (provider,)}, "missing: vm"),
        ({"choose": closed}, "may not open it"),
        ({"choose": lambda: Accelerator("tcg", "there is no /dev/kvm")}, "no /dev/kvm, so containers"),
        ({"filesystems": Path("/dev/null")}, "no cgroup2"),
    ],
)
def test_what_a_lab_lacks_is_only_a_note(tmp_path: Path, difference: dict[str, Any], words: str) -> None:
    (problem,) = machine(tmp_path, **difference)
    assert problem.level == "note"
    assert words in problem.what


def test_missing_packages_come_with_the_command_that_installs_them(tmp_path: Path) -> None:
    (problem,) = machine(tmp_path, missing=lambda _: ("mmdebstrap", "nftables"))
    assert re.search(r"apt-get install .*mmdebstrap nftables", problem.fix)


def test_a_ca_that_ends_or_is_open_to_others_is_a_problem(tmp_path: Path) -> None:
    assert not list(doctor.authority(tmp_path / "none"))
    pki.init(tmp_path / "pki", days=400)
    assert not list(doctor.authority(tmp_path / "pki"))
    (tmp_path / "pki/ca.key").chmod(0o644)
    open_to_others, ends = doctor.authority(tmp_path / "pki", lambda: time.time() + 100 * 86400)
    assert (open_to_others.level, ends.level) == ("error", "warning")
    assert "299 days" in ends.what
    (tmp_path / "pki/ca.pem").write_text("nonsense")
    assert [problem.level for problem in doctor.authority(tmp_path / "pki")] == ["warning"]
