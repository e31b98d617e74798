"""docs/platforms.md against the tables of the roles and the tests that run them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/platforms.md").read_text()
TABLES = sorted(ROOT.glob("roles/*/vars/platforms/*.yml"))
FAMILIES = (ROOT / "tests/hosts/test_families.py").read_text()


def table(role: str, platform: str) -> dict[str, Any]:
    (content,) = yaml.safe_load((ROOT / f"roles/{role}/vars/platforms/{platform}.yml").read_text()).values()
    return content


def rows() -> dict[str, list[str]]:
    """Platform -> the other cells of its row."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in cells if len(row) == 6 and row[0] != "table" and set(row[0]) != {"-"}}


def test_every_table_has_a_row_and_every_row_its_tables() -> None:
    for role in ("libvirt", "qemu_kvm"):
        assert sorted(rows()) == sorted(path.stem for path in TABLES if path.parts[-4] == role)


def test_the_tables_of_other_roles_are_for_platforms_of_this_page() -> None:
    """They may be for a whole family, such as Debian or RedHat, too."""
    known = {*rows(), *(re.split(r"[_.]", name)[0] for name in rows()), "default"}
    assert {path.stem for path in TABLES} - known == set()


def test_a_row_says_what_the_tables_say() -> None:
    for platform, (_, family, runs_as, group, binary) in rows().items():
        libvirt, qemu = table("libvirt", platform), table("qemu_kvm", platform)
        assert family == libvirt["family"]
        assert runs_as == f"{libvirt['qemu_user']}:{libvirt['qemu_group']}"
        assert group == libvirt["group"]
        assert binary == qemu["architectures"]["x86_64"]["binary"]


def test_every_word_about_how_it_was_run_is_explained() -> None:
    explained = set(re.findall(r"^\| ([a-z ]+) \| [^|]+ \|$", PAGE, re.MULTILINE)) - {"word"}
    assert {cells[0] for cells in rows().values()} == explained


def test_what_was_run_on_a_pretending_host_is_in_its_tests() -> None:
    for platform, (how, *_) in rows().items():
        named = f'"{platform}"' in FAMILIES
        assert named == (how in ("pretended", "sibling", "by hand")), platform
