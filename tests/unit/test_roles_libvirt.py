"""Which daemons a host should have, and how libvirt's settings are written."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError

SOURCE = Path(__file__).parents[2] / "plugins/filter/libvirt_units.py"
LOOK = Path(__file__).parents[2] / "roles/libvirt/files/look.sh"


def plugin() -> ModuleType:
    spec = importlib.util.spec_from_file_location("libvirt_units", SOURCE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


units = plugin()
ON = {"enabled": True, "active": True}
IDLE = {"enabled": True, "active": False}
OFF = {"enabled": False, "active": False}
MASKED = OFF | {"masked": True}
DEBIAN = {
    "libvirtd.service": IDLE,
    "libvirtd.socket": ON,
    "libvirtd-ro.socket": ON,
    "libvirtd-admin.socket": ON,
    "virtlogd.socket": ON,
    "virtlogd.service": IDLE,
}
MODULAR = units.sockets("modular", systemd=True)
FRESH_EL9 = (
    {name: {"enabled": True, "active": False} for name in MODULAR}
    | dict.fromkeys(units.services("modular", systemd=True), OFF)
    | {"libvirtd.service": OFF, "libvirtd.socket": OFF}
)


def plan(seen: dict[str, Any], asked: str = "auto", usual: str = "monolithic", systemd: bool = True) -> dict[str, Any]:
    return dict(units.plan(seen, asked, usual, systemd=systemd))


def moves(seen: dict[str, Any], **options: Any) -> list[tuple[str, Any, Any]]:
    return [(move["unit"], move.get("enabled"), move.get("state")) for move in plan(seen, **options)["moves"]]


def test_a_converged_host_is_left_alone() -> None:
    assert moves(DEBIAN) == []


def test_only_what_runs_and_reads_settings_is_restarted() -> None:
    """virtlogd and virtlockd hold the guests' logs and locks; virtproxyd is what other machines reach."""
    running = dict.fromkeys([*DEBIAN, "virtlockd.service"], ON)
    assert plan(running)["readers"] == ["libvirtd.service"]
    assert plan(running | {"libvirtd.service": IDLE})["readers"] == []
    modular = dict.fromkeys([*FRESH_EL9, "virtproxyd.service", "virtlogd.service"], ON)
    assert plan(modular, asked="modular")["readers"] == ["virtqemud.service", "virtproxyd.service"]


def test_a_bare_host_has_a_plan_and_no_moves() -> None:
    bare = plan({}, usual="modular")
    assert (bare["family"], bare["present"], bare["moves"]) == ("modular", False, [])
    assert "virtqemud.socket" in bare["sockets"]


def test_a_stopped_socket_is_started() -> None:
    assert moves(DEBIAN | {"libvirtd.socket": IDLE}) == [("libvirtd.socket", True, "started")]


def test_a_running_daemon_makes_way_for_its_sockets() -> None:
    seen = DEBIAN | {"libvirtd-ro.socket": IDLE, "libvirtd.service": ON}
    assert moves(seen) == [("libvirtd.service", None, "stopped"), ("libvirtd-ro.socket", True, "started")]


def test_a_disabled_socket_that_listens_needs_no_stop() -> None:
    seen = DEBIAN | {"libvirtd.socket": {"enabled": False, "active": True}, "libvirtd.service": ON}
    assert moves(seen) == [("libvirtd.socket", True, "started")]


def test_virtlogd_is_never_stopped() -> None:
    seen = DEBIAN | {"virtlogd.socket": OFF, "virtlogd.service": ON}
    assert moves(seen) == [("virtlogd.socket", True, None)]


def test_an_idle_service_is_enabled_and_not_started() -> None:
    assert moves(DEBIAN | {"libvirtd.service": OFF}) == [("libvirtd.service", True, None)]


def test_a_fresh_modular_host_starts_its_sockets() -> None:
    result = plan(FRESH_EL9, usual="modular")
    assert result["family"] == "modular"
    started = [move["unit"] for move in result["moves"] if move.get("state") == "started"]
    assert started == MODULAR
    masked = [move["unit"] for move in result["moves"] if move.get("masked")]
    assert masked == ["libvirtd.socket", "libvirtd.service"]


def test_a_host_upgraded_from_el8_keeps_libvirtd() -> None:
    seen = FRESH_EL9 | {name: OFF for name in MODULAR if name != "virtlogd.socket"} | DEBIAN
    result = plan(seen, usual="modular")
    assert result["family"] == "monolithic"
    others = set(units.units(systemd=True)) & seen.keys() - DEBIAN.keys()
    assert {move["unit"] for move in result["moves"]} == others
    assert all(move["masked"] and move["state"] == "stopped" for move in result["moves"])


def test_exactly_one_family_stays_active() -> None:
    seen = FRESH_EL9 | DEBIAN
    result = plan(seen, asked="modular")
    stopped = [move["unit"] for move in result["moves"] if move.get("state") == "stopped"]
    assert stopped == ["libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service"]
    assert all(move["masked"] for move in result["moves"] if move["unit"] in stopped)
    assert result["moves"].index({"unit": "libvirtd.service", "state": "stopped", "masked": True}) < result[
        "moves"
    ].index({"unit": "virtqemud.socket", "enabled": True, "state": "started"})


def test_the_other_family_is_masked_once_and_its_sockets_for_other_hosts_with_it() -> None:
    seen = FRESH_EL9 | DEBIAN | {"libvirtd-tls.socket": ON}
    moved = [move["unit"] for move in plan(seen, asked="modular")["moves"] if move.get("masked")]
    assert "libvirtd-tls.socket" in moved
    masked = FRESH_EL9 | dict.fromkeys(MODULAR, ON) | dict.fromkeys(units.services("modular", systemd=True), IDLE)
    masked |= dict.fromkeys(moved, MASKED)
    assert plan(masked, asked="modular")["moves"] == []


def test_nothing_is_disabled_for_that_would_disable_virtlogd_too() -> None:
    """systemctl(1): disable follows Also=, and libvirtd.service has virtlogd.socket there."""
    everything = (
        plan(FRESH_EL9 | DEBIAN, asked="modular")["moves"] + plan(FRESH_EL9 | DEBIAN, asked="monolithic")["moves"]
    )
    assert not [move for move in everything if move.get("enabled") is False]
    assert not [move for move in everything if move["unit"].startswith("virtlogd") and move.get("masked")]


def test_a_family_that_is_wanted_again_is_unmasked_before_it_is_enabled() -> None:
    seen = FRESH_EL9 | DEBIAN | dict.fromkeys(["libvirtd.service", "libvirtd.socket"], MASKED)
    result = plan(seen, asked="monolithic")["moves"]
    unmasked = [move["unit"] for move in result if move.get("masked") is False]
    assert unmasked == ["libvirtd.socket", "libvirtd.service"]
    assert result.index({"unit": "libvirtd.socket", "masked": False}) < result.index(
        {"unit": "libvirtd.socket", "enabled": True, "state": "started"}
    )


def test_a_masked_family_is_not_in_use() -> None:
    seen = FRESH_EL9 | DEBIAN | {name: MASKED for name in DEBIAN if name.startswith("libvirtd")}
    assert plan(seen, usual="monolithic")["family"] == "modular"


def test_where_both_families_are_in_use_the_platform_decides() -> None:
    assert plan(FRESH_EL9 | DEBIAN, usual="modular")["family"] == "modular"


def test_an_upgrade_that_left_libvirtd_behind_ends_with_one_family() -> None:
    """EL 9 after EL 8: libvirtd runs, and the presets of the new packages have enabled the modular sockets as well."""
    left = FRESH_EL9 | DEBIAN | {"libvirtd.service": ON, "virtlogd.service": ON}
    result = plan(left, usual="modular")
    ended = [move["unit"] for move in result["moves"] if move.get("state") == "stopped"]
    assert result["family"] == "modular"
    assert ended == ["libvirtd.socket", "libvirtd-ro.socket", "libvirtd-admin.socket", "libvirtd.service"]
    after = (
        left
        | dict.fromkeys(ended, MASKED)
        | dict.fromkeys(result["sockets"], ON)
        | dict.fromkeys(result["services"], IDLE)
    )
    assert moves(after, usual="modular") == []


@pytest.mark.parametrize("asked", ["auto", "monolithic", "modular"])
@pytest.mark.parametrize("standing", [ON, IDLE, OFF, {"enabled": False, "active": True}])
@pytest.mark.parametrize("holder", [ON, IDLE, OFF])
def test_no_way_from_one_standing_to_another_stops_virtlogd_or_virtlockd(
    asked: str, standing: dict[str, bool], holder: dict[str, bool]
) -> None:
    everything = dict.fromkeys([*units.units(systemd=True), "virtlockd.socket", "virtlockd.service"], standing)
    everything |= {name: holder for name in everything if name.endswith(".service")}
    stopped = [unit for unit, _, state in moves(everything, asked=asked) if state != "started"]
    assert not [unit for unit in stopped if unit.startswith("virtlock")]
    assert ("virtlogd.service", None, "stopped") not in moves(everything, asked=asked)
    assert ("virtlogd.socket", False, "stopped") not in moves(everything, asked=asked)


def test_a_platform_may_be_wrong_about_what_is_there() -> None:
    assert plan(DEBIAN | {"libvirtd.service": OFF, "libvirtd.socket": OFF}, usual="modular")["family"] == "monolithic"


def test_a_family_that_is_asked_for_and_missing_is_not_present() -> None:
    assert plan(DEBIAN, asked="modular")["present"] is False


def test_drivers_that_are_not_installed_are_not_wanted() -> None:
    seen = {name: standing for name, standing in FRESH_EL9.items() if "interfaced" not in name}
    assert not [name for name in plan(seen, usual="modular")["sockets"] if "interfaced" in name]


def test_openrc_has_services_and_no_sockets() -> None:
    result = plan({"libvirtd": OFF, "virtlogd": ON}, systemd=False)
    assert (result["sockets"], result["services"], result["main"]) == ([], ["libvirtd", "virtlogd"], "libvirtd")
    assert result["moves"] == [{"unit": "libvirtd", "enabled": True, "state": "started"}]


def test_every_unit_of_a_move_was_looked_at() -> None:
    looked_at = set(units.units(systemd=True))
    assert {"libvirtd-ro.socket", "virtproxyd.service", "virtlogd.service", "virtqemud.socket"} <= looked_at
    assert {units.owner(name) for name in looked_at if name.endswith(".socket")} <= looked_at


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (True, "1"),
        (False, "0"),
        (32768, "32768"),
        ("libvirt-qemu", '"libvirt-qemu"'),
        (["cpu", "memory"], '[ "cpu", "memory" ]'),
        ([], "[ ]"),
    ],
)
def test_values_are_written_in_libvirts_syntax(value: Any, written: str) -> None:
    assert units.literal(value) == written


@pytest.mark.parametrize("value", [None, 1.5, -1, {"a": 1}, 'a"b', "a\nb", ["a", 1], ['a"b']])
def test_what_libvirt_cannot_read_is_refused_without_showing_it(value: Any) -> None:
    with pytest.raises(AnsibleFilterError) as refused:
        units.literal(value)
    assert repr(value) not in str(refused.value)
    assert units.wrong_settings({"vnc_password": value}, systemd=True) == [f"vnc_password: {refused.value}"]


def test_settings_of_sockets_are_refused_under_systemd_alone() -> None:
    assert "drop-in" in units.wrong_settings({"listen_tcp": True}, systemd=True)[0]
    assert units.wrong_settings({"listen_tcp": True}, systemd=False) == []


@pytest.mark.parametrize("key", ["max files", "max-files", "1st", "schlüssel", ""])
def test_a_key_that_is_no_name_is_refused(key: str) -> None:
    assert "is no name" in units.wrong_settings({key: 1}, systemd=True)[0]


def test_settings_that_are_no_table_are_refused() -> None:
    assert units.wrong_settings("max_files=1", systemd=True) == ["it must be a table, key: value."]


# --- the look at the host


@pytest.fixture
def look(tmp_path: Path) -> Any:
    """The script with a systemctl and a getent that say something, and with libvirt's files in one folder."""

    def run(systemctl: str, *question: str) -> subprocess.CompletedProcess[str]:
        for name, text in (("systemctl", systemctl), ("getent", f"test $2 = libvirt && echo {MEMBERS}")):
            (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
            (tmp_path / name).chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        command = ["/bin/sh", "-s", "--", *question]
        script = LOOK.read_text().replace("/run/", f"{tmp_path}/").replace("/etc/libvirt", str(tmp_path))
        script = script.replace("/usr/lib/*/libvirt", str(tmp_path))
        return subprocess.run(command, input=script, env=environment, capture_output=True, text=True)

    return run


MEMBERS = "libvirt:x:107:admin,backup"
SHOWN = """
Id=libvirtd.service
LoadState=loaded
UnitFileState=enabled
ActiveState=inactive

Id=virtqemud.service
LoadState=not-found
"""


def test_a_look_tells_units_and_who_is_in_the_group(look: Any) -> None:
    said = json.loads(look(f"echo '{SHOWN}'", "@libvirt", "libvirtd.service", "virtqemud.service").stdout)
    assert said["units"] == {"libvirtd.service": {"enabled": True, "active": False, "masked": False}}
    assert (said["members"], said["unknown"]) == ("admin,backup", [])


def test_a_systemd_that_does_not_answer_is_not_taken_for_a_host_without_libvirt(look: Any) -> None:
    done = look("echo 'Failed to connect to bus' >&2; exit 1", "@libvirt", "libvirtd.service")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Failed to connect to bus\n")


@pytest.mark.parametrize(
    ("daemon", "file", "stale"),
    [
        ("libvirtd", "libvirtd.conf", True),
        ("libvirtd", "qemu.conf", True),
        ("virtqemud", "qemu.conf", True),
        ("virtproxyd", "qemu.conf", False),  # which it does not read
        ("libvirtd", "storage-backend", True),  # where a package has put another driver
    ],
)
def test_a_daemon_that_is_older_than_its_settings_is_seen(
    look: Any, tmp_path: Path, daemon: str, file: str, stale: bool
) -> None:
    """As a run leaves it that ended between writing them and the restart."""
    shutil.copy(Path("/bin/sleep").resolve(), tmp_path / daemon)
    (tmp_path / file).touch()

    def seen() -> Any:
        return json.loads(look(":", f"{daemon}.service").stdout)

    with subprocess.Popen([tmp_path / daemon, "60"]) as process:
        try:
            (tmp_path / f"{daemon}.pid").write_text(str(process.pid))
            os.utime(tmp_path / file, (time.time() - 60,) * 2)
            assert seen()["stale"] is False
            os.utime(tmp_path / file, (time.time() + 60,) * 2)
            assert seen()["stale"] is stale
            (tmp_path / f"{daemon}.pid").write_text(str(os.getpid()))  # left by one that was killed
            assert seen()["stale"] is False
        finally:
            process.kill()


@pytest.mark.parametrize(("daemon", "stale"), [("libvirtd", True), ("virtqemud", True), ("virtproxyd", False)])
def test_a_daemon_that_is_older_than_mounts_of_hugepages_is_seen(
    look: Any, tmp_path: Path, daemon: str, stale: bool
) -> None:
    """As a run leaves it that ended between mounting them and the restart."""
    shutil.copy(Path("/bin/sleep").resolve(), tmp_path / daemon)
    with subprocess.Popen([tmp_path / daemon, "60"]) as process:
        try:
            (tmp_path / f"{daemon}.pid").write_text(str(process.pid))
            now_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
            for mounted_us, expected in ((now_us - 60_000_000, False), (now_us + 60_000_000, stale), (0, False)):
                (tmp_path / "mounts").write_text(
                    "".join(f"ActiveEnterTimestampMonotonic={t}\n\n" for t in (7, mounted_us))
                )
                said = look(f"case $* in *dev-hugepages*) cat {tmp_path}/mounts ;; esac", f"{daemon}.service")
                assert json.loads(said.stdout)["stale"] is expected
        finally:
            process.kill()
