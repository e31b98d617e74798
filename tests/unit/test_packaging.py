"""What the locks, pyproject.toml and the wheel hold."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import orchestrator

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
CONTENT = ("playbooks", "roles", "inventory", "plugins", "ansible.cfg")


def wanted(name: str) -> list[Requirement]:
    """The lines of an .in file, comments and includes left out."""
    lines = (line.split(" #")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]


def pinned(name: str) -> list[Requirement]:
    """The pins of a lock; one name has several when it differs between Pythons."""
    lines = (ROOT / name).read_text().replace("\\\n", " ").splitlines()
    return [Requirement(line.split(" --hash")[0].strip()) for line in lines if line.strip()]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["dependencies"]]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_a_pin_with_hashes(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().replace("\\\n", " ").splitlines() if line.strip()]
    pin = re.compile(r"[\w.-]+==\S+( ; [^-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+")
    assert lines
    assert [line for line in lines if not pin.fullmatch(line.strip())] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_folder(lock: str) -> None:
    assert not re.search(r"https?:|file:|index-url|find-links|@ ", (ROOT / lock).read_text())


@pytest.mark.parametrize(("lock", "source"), [(LOCKS[0], "requirements.in"), (LOCKS[1], "requirements-dev.in")])
def test_a_lock_holds_what_was_asked_for(lock: str, source: str) -> None:
    assert names(wanted(source)) <= names(pinned(lock))


@pytest.mark.parametrize("minor", [11, 12, 13, 14])
def test_a_lock_serves_every_python_that_we_support(minor: int) -> None:
    environment = {key: str(value) for key, value in default_environment().items()}
    environment |= {"python_version": f"3.{minor}", "python_full_version": f"3.{minor}.0"}
    chosen = [pin for pin in pinned(LOCKS[0]) if not pin.marker or pin.marker.evaluate(environment)]
    assert len(chosen) == len(names(chosen)), "two pins of one name for the same Python"
    assert names(wanted("requirements.in")) <= names(chosen)


def test_the_tests_run_with_what_the_users_run_with() -> None:
    ours, theirs = ({(pin.name, str(pin.specifier)) for pin in pinned(lock)} for lock in LOCKS)
    assert ours <= theirs


def test_the_package_declares_what_the_launcher_installs() -> None:
    assert names(declared()) == names(wanted("requirements.in"))


def test_the_locked_versions_satisfy_what_the_package_declares() -> None:
    for requirement in declared():
        for pin in pinned(LOCKS[0]):
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name):
                assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), f"{pin} for {requirement}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel")))


def build(target: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


def tracked(*folders: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "--", *folders], cwd=ROOT, check=True, capture_output=True, text=True)
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_the_wheel_holds_the_package_and_the_content(wheel: zipfile.ZipFile) -> None:
    expected = tracked("orchestrator") | {f"orchestrator/content/{name}" for name in tracked(*CONTENT)}
    assert expected - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_that_only_the_checkout_needs(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"orchestrator", f"kvmfleet-{orchestrator.__version__}.dist-info"}
    assert not [name for name in wheel.namelist() if name.endswith(".pyc")]


def test_the_wheel_carries_the_licence(wheel: zipfile.ZipFile) -> None:
    (licence,) = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_the_source_archive_holds_what_is_tracked(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("orchestrator", "tests", "scripts", "kvmfleet", *LOCKS, *CONTENT) - held == set()


def test_an_installed_kvmfleet_needs_no_checkout(tmp_path: Path) -> None:
    """`pip install .` into an environment that sees our libraries and not our checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    (purelib,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    # A path file found through another one is not read, so the one that points at the checkout has no effect here.
    (purelib / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, ROOT], check=True)

    said = subprocess.run([tmp_path / "venv/bin/kvmfleet", "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert (said.returncode, said.stdout.split()[-1]) == (0, orchestrator.__version__)
    where = "from orchestrator import paths; print(paths.content())"
    content = subprocess.run([python, "-P", "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert Path(content.stdout.strip()).is_relative_to(tmp_path)
    assert (Path(content.stdout.strip()) / "playbooks/provision.yml").is_file()
