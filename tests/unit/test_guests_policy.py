"""What happens to guests when their host starts and stops: written by the module, read back by the collector."""

from __future__ import annotations

import pytest
from test_taking_back import Commands, load, process, shown

from orchestrator.collector import guests as collector
from orchestrator.collector.contract import Contract

policy = load("modules.guests_policy")
open_record = load("module_utils.record").open_record
THEIRS = "# what the package says\n#ON_SHUTDOWN=suspend"
VIRSH = "virsh -q -c qemu:///system"
UNIT = "libvirt-guests.service"


@pytest.fixture
def settle(tmp_path):
    """One run of the module with these commands; gives the result and the file's text."""
    file = tmp_path / "libvirt-guests"
    file.write_text(THEIRS)

    def run(commands, *, check=False, **wish):
        whole = {"file": str(file), "settings": {}, "unit": UNIT, "autostart": [], "uri": "qemu:///system", **wish}
        with open_record(str(tmp_path / "lib/record.json"), check=check) as record:
            host = policy.Host(commands, commands.which, str(tmp_path / "proc"))
            return policy.settle(host, record, whole, check), file.read_text()

    return run


def host(unit=("enabled", "active"), there="", on=""):
    commands = Commands(**{"systemctl show": shown(**{UNIT: unit})})
    commands.answers |= {
        f"{VIRSH} list --all --persistent": there,
        f"{VIRSH} list --all --autostart": on,
        f"{VIRSH} autostart": "",
    }
    return commands


def test_settings_go_to_the_end_where_they_win_and_leave_again_without_a_trace(settle):
    result, text = settle(host(), settings={"ON_SHUTDOWN": "shutdown", "URIS": "default qemu:///session"})
    assert result["changed"]
    assert text.startswith(THEIRS + "\n# BEGIN kvmfleet")
    assert collector.parse(text) == {"ON_SHUTDOWN": "shutdown", "URIS": "default qemu:///session"}
    assert not settle(host(), settings={"ON_SHUTDOWN": "shutdown", "URIS": "default qemu:///session"})[0]["changed"]
    assert settle(host())[1].rstrip("\n") == THEIRS


def test_a_policy_needs_its_unit_now_and_after_a_boot(settle):
    commands = host(unit=("disabled", "inactive"))
    settle(commands, settings={"ON_SHUTDOWN": "shutdown"})
    assert [line for line in commands.called if "show" not in line] == [
        f"systemctl enable {UNIT}",
        f"systemctl start {UNIT}",
    ]


def test_nothing_declared_changes_nothing_and_asks_libvirt_nothing(settle):
    commands = host(unit=("disabled", "inactive"))
    result, text = settle(commands)
    assert (result["changed"], text) == (False, THEIRS)
    assert not [line for line in commands.called if line.startswith("virsh")]


def test_the_unit_is_not_stopped_while_a_guest_runs(settle, tmp_path):
    with open_record(str(tmp_path / "lib/record.json")) as record:
        record.note("unit", UNIT, {"enabled": False, "active": False, "masked": False})
    settle(host(), settings={"ON_SHUTDOWN": "shutdown"})
    process(tmp_path, 10, "/usr/bin/qemu-system-x86_64", "qemu")
    commands = host()
    result, _ = settle(commands)
    assert result["pending"] == [f"{UNIT} goes on, because stopping it would shut down the guests that run"]
    assert f"systemctl disable {UNIT}" in commands.called
    assert f"systemctl stop {UNIT}" not in commands.called

    assert not settle(host(unit=("disabled", "active")))[0]["changed"]
    (tmp_path / "proc/10/exe").unlink()
    commands = host(unit=("disabled", "active"))
    _, text = settle(commands)
    assert commands.called[-1] == f"systemctl stop {UNIT}", "now that no guest runs"
    assert text.rstrip("\n") == THEIRS
    assert not settle(host(unit=("disabled", "inactive")))[0]["changed"]


def test_a_unit_goes_back_also_where_a_run_failed(settle, tmp_path):
    with open_record(str(tmp_path / "lib/record.json")) as record:
        record.note("unit", UNIT, {"enabled": False, "active": False, "masked": False})
    settle(host(), settings={"ON_SHUTDOWN": "shutdown"})
    commands = host()
    commands.answers["systemctl disable"] = (1, "Connection timed out")
    with pytest.raises(policy.PolicyError):
        settle(commands)
    commands = host()
    settle(commands)
    assert commands.called[-2:] == [f"systemctl disable {UNIT}", f"systemctl stop {UNIT}"]


def test_only_autostart_of_ours_is_turned_off_again(settle):
    settle(host(there="dns\nweb\n", on="web\n"), autostart=["dns", "web", "later"])
    commands = host(there="dns\nweb\n", on="dns\nweb\n")
    settle(commands)
    assert [line for line in commands.called if " autostart " in line] == [f"{VIRSH} autostart --disable -- dns"]


def test_a_guest_that_does_not_exist_is_named_and_no_failure(settle):
    result, _ = settle(host(there="dns\n", on="dns\n"), autostart=["dns", "later"])
    assert (result["changed"], result["missing"]) == (False, ["later"])


def test_check_mode_says_so_and_writes_nothing(settle):
    commands = host(unit=("disabled", "inactive"), there="dns\n")
    result, text = settle(commands, check=True, settings={"ON_BOOT": "ignore"}, autostart=["dns"])
    assert (result["changed"], text) == (True, THEIRS)
    assert "autostart -- dns" in result["diff"][1]["prepared"]
    assert not [line for line in commands.called if "enable" in line or " autostart " in line]


def test_a_bare_host_in_check_mode_has_neither_unit_nor_virsh(settle):
    commands = Commands(**{"systemctl show": "Id=x\nLoadState=not-found\n"})
    assert settle(commands, check=True, settings={"ON_BOOT": "ignore"}, autostart=["dns"])[0]["missing"] == ["dns"]


# --- the collector


def test_the_collector_reads_only_what_the_contract_names(tmp_path):
    for name in ("dns.xml", "web.xml", "autostart/dns.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    contract = Contract({"guests": {"autostart": ["dns", "web", "gone", "../../etc/passwd"], "unit": UNIT}})
    found = collector.look(contract, {"libvirt": {"units": {UNIT: {"active": "active"}}}}, str(tmp_path))
    assert found == {
        "settings": {},
        "unit": {"active": "active"},
        "defined": ["dns", "web"],
        "autostart": ["dns"],
    }


@pytest.mark.parametrize("file", ["/etc/shadow", "/etc/default/../shadow", "", "/etc/sysconfig/a/b"])
def test_no_other_file_is_read_for_a_contract(file):
    assert collector.settings(Contract({"guests": {"file": file, "settings": {"ON_BOOT": "1"}}})) == {}


def test_the_last_value_of_a_setting_counts_and_comments_do_not():
    assert collector.parse("A=1\n#A=2\n export B='x y'\nA=\"3\" # no\nC=`reboot`\n")["A"] == "3"
    assert collector.parse("export B='x y'\n")["B"] == "x y"
