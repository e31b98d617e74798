"""The variables of the roles: defaults, argument_specs and README say the same; and the platform tables as data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).parents[2] / "roles"
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")
NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())
TABLES = {role: sorted((ROLES / role / "vars/platforms").glob("*.yml")) for role in ("qemu_kvm", "libvirt")}
PLATFORMS = [path.stem for path in TABLES["qemu_kvm"]]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def table(role: str, platform: str) -> dict[str, Any]:
    (content,) = load(ROLES / role / "vars/platforms" / f"{platform}.yml").values()
    return content


def specs(role: str) -> dict[str, Any]:
    return load(ROLES / role / "meta/argument_specs.yml")["argument_specs"]


def sentences(role: str) -> dict[str, str]:
    """The comment above each variable of defaults/main.yml."""
    found = re.findall(r"((?:^# .*\n)+)^(\w+):", (ROLES / role / "defaults/main.yml").read_text(), re.MULTILINE)
    return {name: " ".join(comment.replace("# ", "").split()) for comment, name in found}


def readme_rows(role: str) -> dict[str, tuple[str, Any, str]]:
    rows = re.findall(
        r"^\| `(\w+)` \| (.+?) \| `(.*?)` \| (.*) \|$", (ROLES / role / "README.md").read_text(), re.MULTILINE
    )
    return {name: (kind, default, meaning) for name, kind, default, meaning in rows}


@pytest.mark.parametrize("role", NAMES)
def test_every_variable_is_named_after_its_role(role: str) -> None:
    names = load(ROLES / role / "defaults/main.yml")
    assert [name for name in names if name != role and not name.startswith(f"{role}_")] == []


@pytest.mark.parametrize("role", NAMES)
def test_defaults_and_argument_specs_agree(role: str) -> None:
    options = specs(role)["main"]["options"]
    assert {name: option["default"] for name, option in options.items()} == load(ROLES / role / "defaults/main.yml")
    assert {name: " ".join(option["description"].split()) for name, option in options.items()} == sentences(role)


@pytest.mark.parametrize("role", NAMES)
def test_the_readme_has_a_row_for_every_variable(role: str) -> None:
    for name, option in specs(role)["main"]["options"].items():
        kind, default, meaning = readme_rows(role)[name]
        expected = option["type"] + (f" of {option['elements']}" if "elements" in option else "")
        assert (kind, meaning) == (expected, " ".join(option["description"].split()))
        assert default == option["default"] or yaml.safe_load(default) == option["default"]
    assert list(readme_rows(role)) == list(specs(role)["main"]["options"])


@pytest.mark.parametrize("role", NAMES)
def test_the_preflight_validates_what_main_validates(role: str) -> None:
    assert specs(role)["preflight"] == specs(role)["main"]
    assert (ROLES / role / "tasks/preflight.yml").is_file()


def test_both_roles_know_the_same_platforms() -> None:
    assert [path.stem for path in TABLES["libvirt"]] == PLATFORMS
    assert {"Debian_12", "Debian_13", "Ubuntu_24.04", "RedHat_9", "Fedora", "Suse_15", "Archlinux", "Alpine"} <= set(
        PLATFORMS
    )


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_qemu_table_is_whole(platform: str) -> None:
    content = table("qemu_kvm", platform)
    assert set(content) == {"packages_by", "packages", "architectures"}
    assert content["packages_by"] in {"module", "hand"}
    assert set(content["architectures"]) == {"x86_64", "aarch64"}
    for architecture in content["architectures"].values():
        assert set(architecture) == {"packages", "binary"}
        assert architecture["binary"].startswith("/usr/")
        packages = content["packages"] + architecture["packages"]
        assert len(set(packages)) == len(packages)
        assert any(name.startswith("qemu") for name in packages)
        assert any(re.search(r"ovmf|edk2|efi|aavmf", name) for name in packages), "no UEFI firmware"
        assert "swtpm" in packages


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_libvirt_table_is_whole(platform: str) -> None:
    content = table("libvirt", platform)
    assert set(content) == {"family", "packages", "group", "qemu_user", "qemu_group"}
    assert content["family"] in {"monolithic", "modular"}
    assert len(set(content["packages"])) == len(content["packages"])
    assert any("libvirt" in name for name in content["packages"])
    assert all(re.fullmatch(r"[a-z-]+", content[key]) for key in ("group", "qemu_user", "qemu_group"))


@pytest.mark.parametrize("platform", [name for name in PLATFORMS if name.startswith(("Debian", "Ubuntu"))])
def test_debian_and_ubuntu_name_what_recommends_would_bring(platform: str) -> None:
    qemu, libvirt = table("qemu_kvm", platform), table("libvirt", platform)
    assert {"qemu-utils", "swtpm", "swtpm-tools"} <= set(qemu["packages"])
    assert "ovmf" in qemu["architectures"]["x86_64"]["packages"]
    assert "dnsmasq-base" in libvirt["packages"]
    assert "qemu-kvm" not in qemu["packages"], "a virtual name without candidate"
    group = "kvm" if platform.startswith("Ubuntu") else "libvirt-qemu"  # as the comments of their qemu.conf say
    assert (libvirt["qemu_user"], libvirt["qemu_group"]) == ("libvirt-qemu", group)


@pytest.mark.parametrize("platform", [name for name in PLATFORMS if name.startswith("RedHat")])
def test_enterprise_linux_hides_its_qemu_in_libexec(platform: str) -> None:
    binaries = {entry["binary"] for entry in table("qemu_kvm", platform)["architectures"].values()}
    assert binaries == {"/usr/libexec/qemu-kvm"}


def test_only_el8_cannot_be_installed_by_ansible() -> None:
    by_hand = [platform for platform in PLATFORMS if table("qemu_kvm", platform)["packages_by"] == "hand"]
    assert by_hand == ["RedHat_8"]


@pytest.mark.parametrize("role", [role for role in NAMES if (ROLES / role / "tasks/install.yml").exists()])
def test_packages_come_from_a_fresh_index_without_what_they_only_recommend(role: str) -> None:
    block = load(ROLES / role / "tasks/install.yml")[-1]
    assert [set(task) - {"name"} for task in block["block"]] == [{"ansible.builtin.package"}]
    defaults = block["module_defaults"]
    assert defaults["ansible.builtin.apt"].items() >= {"update_cache": True, "install_recommends": False}.items()
    assert defaults["community.general.apk"] == {"update_cache": True}
    assert defaults["ansible.builtin.dnf"] == defaults["ansible.builtin.dnf5"]
    assert defaults["ansible.builtin.dnf"]["install_weak_deps"] is False


def test_virtlogd_and_virtlockd_are_never_restarted() -> None:
    handlers = (ROLES / "libvirt/handlers/main.yml").read_text()
    names = [entry["ansible.builtin.service"]["name"] for entry in yaml.safe_load(handlers)]
    assert names == ["{{ item }}"]  # of the plan's readers: test_roles_libvirt.py


def test_only_the_role_libvirt_restarts_and_only_kernel_modules_reboots() -> None:
    """What others change reaches its handler through variables, so that everything happens once, in a known order."""
    handlers = {path.parts[-3] for path in ROLES.glob("*/handlers/*.yml")}
    assert handlers == {"libvirt"}
    words = {"state: restarted": set(), "ansible.builtin.reboot:": set()}
    for path in ROLES.glob("*/*/*.yml"):
        for word, roles in words.items():
            if word in path.read_text():
                roles.add(path.parts[-3])
    assert words == {"state: restarted": {"libvirt"}, "ansible.builtin.reboot:": {"kernel_modules"}}


@pytest.mark.ansible
def test_check_mode_tells_of_modules_that_would_be_loaded_and_loads_none(tmp_path: Path) -> None:
    (tmp_path / "modprobe").write_text(f"#!/bin/sh\necho $* >> {tmp_path}/calls\n")
    (tmp_path / "modprobe").chmod(0o755)
    tasks = yaml.safe_load((ROLES / "kernel_modules/tasks/configure.yml").read_text())
    task = next(task for task in tasks if task["name"].startswith("Load"))["block"]
    variables = {"__kernel_modules_loadable": ["kvm", "kvm_amd"], "ansible_python_interpreter": sys.executable}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables, "tasks": task}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for options, call in (["--check"], "--all --dry-run kvm kvm_amd\n"), ([], "--all kvm kvm_amd\n"):
        command = [
            Path(sys.executable).parent / "ansible-playbook",
            "-i",
            "localhost,",
            tmp_path / "play.yml",
            *options,
        ]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert "changed=1 " in done.stdout
        assert (tmp_path / "calls").read_text() == call
        (tmp_path / "calls").unlink()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", sorted(ROLES.glob("*/files/*.sh")), ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_shellcheck_finds_nothing(script: Path) -> None:
    assert subprocess.run(["shellcheck", script], capture_output=True, text=True).stdout == ""
