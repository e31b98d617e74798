"""The module that decides who logs in to libvirt with a password, on files of our own and an invented saslpasswd2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.kvmfleet.host.plugins.module_utils.record import open_record
from ansible_collections.kvmfleet.host.plugins.modules import libvirt_sasl

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")
CONFIGURATION, DATABASE = "/etc/sasl2/libvirt.conf", "/etc/libvirt/passwd.db"
THEIRS = "mech_list: gssapi\nsql_passwd: theirs\n"


class Host:
    """A host below a folder. Its database holds names and, as the real one, nothing of a password that can be read."""

    def __init__(self, root: Path) -> None:
        self.root, self.programs, self.calls = root, {"saslpasswd2", "sasldblistusers2", "systemctl"}, list[str]()
        self.realm, self.active, self.stores = "hv1", {"libvirtd.service"}, True
        for folder in ("etc/libvirt", "etc/sasl2"):
            (root / folder).mkdir(parents=True)
        self.path(CONFIGURATION).write_text(THEIRS)

    def path(self, name: str) -> Path:
        return self.root / name[1:]

    def run(self, argv: list[str], said: str = "") -> tuple[int, str, str]:
        self.calls.append(" ".join(argv))
        if argv[0] == "systemctl":
            return int(argv[1] == "is-active" and argv[-1] not in self.active), "", ""
        path = Path(argv[argv.index("-f") + 1])
        if argv[0] == "saslpasswd2":
            assert "mech_list: scram-sha-256" in self.path(CONFIGURATION).read_text(), (
                "users are stored by the settings"
            )
            with path.open("a") as stream:
                stream.write(f"{argv[-1]}@{self.realm}: authPassword {hash(said)}\n")
            if not self.stores:
                path.write_text("")
            return 0, "", ""
        return 0, "".join(f"{line.split(':')[0]}: authPassword\n" for line in path.read_text().splitlines()), ""

    def settle(self, check: bool = False, **users: str) -> Any:
        self.calls.clear()
        wish = {
            "mechanism": "scram-sha-256",
            "users": [{"name": name, "password": password} for name, password in users.items()],
            "configuration": CONFIGURATION,
            "database": DATABASE,
        }
        host = libvirt_sasl.Host(self.run, lambda name: name if name in self.programs else None, str(self.root))
        with open_record(str(self.root / "lib/record.json"), check=check) as record:
            if not users:
                return libvirt_sasl.remove(host, record, wish, check)
            return libvirt_sasl.settle(host, record, wish, check, self.realm)

    def everything(self) -> dict[str, tuple[int, bytes]]:
        return {str(p): (p.stat().st_mode, p.read_bytes()) for p in sorted(self.root.rglob("*")) if p.is_file()}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@root_only
def test_users_are_written_once_and_their_passwords_go_in_by_stdin_alone(host: Host) -> None:
    assert host.settle(ada="geheim-1", bob="geheim-2")["users"] == {"ada": "added", "bob": "added"}
    assert [oct(host.path(path).stat().st_mode & 0o777) for path in (DATABASE, libvirt_sasl.STATE, CONFIGURATION)] == [
        "0o600", "0o600", "0o644"
    ]  # fmt: skip
    assert "geheim" not in "".join(host.calls)
    assert all(call.startswith("saslpasswd2 -p -c -n -a libvirt -f ") for call in host.calls[:2]), "-n: none in clear"
    assert not [path for path, (_, content) in host.everything().items() if b"geheim" in content]
    assert host.settle(ada="geheim-1", bob="geheim-2") == {"users": {}, "done": []}
    assert host.calls == []


@root_only
def test_a_new_password_and_a_user_who_left_are_told_and_done(host: Host) -> None:
    host.settle(ada="geheim-1", bob="geheim-2")
    before = host.path(DATABASE).read_bytes()
    said = host.settle(ada="geheim-3", eve="geheim-2")
    assert said["users"] == {"ada": "new password", "bob": "removed", "eve": "added"}
    assert host.path(DATABASE).read_bytes() != before
    assert b"bob" not in host.path(DATABASE).read_bytes()
    assert "geheim" not in str(said)
    assert not any(call.startswith("systemctl") for call in host.calls), "users are read when they log in"


@root_only
@pytest.mark.parametrize("damage", ["changed", "deleted", "forgotten", "nonsense", "renamed"])
def test_a_database_that_is_not_as_it_was_left_is_written_anew(host: Host, damage: str) -> None:
    host.settle(ada="geheim-1")
    if damage == "changed":
        host.path(DATABASE).write_bytes(b"eve@hv1: authPassword 1\n")
    elif damage == "deleted":
        host.path(DATABASE).unlink()
    elif damage == "renamed":
        host.realm = "hv2"
    else:
        host.path(libvirt_sasl.STATE).write_text('{"users": 1}' if damage == "forgotten" else "{")
    known = damage in ("changed", "deleted", "renamed")
    assert host.settle(ada="geheim-1")["users"] == {"ada": "written again" if known else "added"}
    assert host.path(DATABASE).read_bytes().startswith(f"ada@{host.realm}".encode())
    assert host.settle(ada="geheim-1")["users"] == {}


@root_only
def test_files_that_others_can_read_or_write_are_put_right(host: Host) -> None:
    host.settle(ada="geheim-1")
    os.chmod(host.path(DATABASE), 0o644)
    os.chown(host.path(CONFIGURATION), 1, 0)
    assert host.settle(ada="geheim-1")["done"] == [
        f"{CONFIGURATION} is root's again",
        f"{DATABASE} is root's alone again",
    ]
    assert host.settle(ada="geheim-1")["done"] == []


@root_only
def test_links_to_files_of_others_are_replaced_and_come_back(host: Host) -> None:
    for path in (CONFIGURATION, DATABASE):
        host.path(path).unlink(missing_ok=True)
        host.path(path).symlink_to(f"{host.root}/theirs")
    host.settle(ada="geheim-1")
    assert not (host.root / "theirs").exists()
    for path in (CONFIGURATION, DATABASE):  # the same content elsewhere
        host.path(path).rename(host.root / host.path(path).name)
        host.path(path).symlink_to(host.root / host.path(path).name)
    assert len(host.settle(ada="geheim-1")["done"]) == 3
    assert host.settle(ada="geheim-1")["done"] == []
    host.settle()
    assert str(host.path(DATABASE).readlink()) == str(host.path(CONFIGURATION).readlink()) == f"{host.root}/theirs"


@root_only
def test_settings_that_somebody_changed_reach_the_daemon_that_runs(host: Host) -> None:
    host.settle(ada="geheim-1")
    assert not any(call.startswith("systemctl") for call in host.calls), "the role libvirt restarts it"
    host.path(CONFIGURATION).write_text("mech_list: plain\n")
    host.settle(ada="geheim-1")
    assert "systemctl try-restart libvirtd.service" in host.calls
    assert "systemctl try-restart virtproxyd.service" not in host.calls


@root_only
def test_what_was_there_before_comes_back_byte_for_byte(host: Host) -> None:
    host.path(DATABASE).write_bytes(b"\0\xff theirs")
    os.chmod(host.path(DATABASE), 0o640)
    before = host.everything()
    host.settle(ada="geheim-1")
    host.settle(ada="geheim-2")
    assert len(host.settle(check=True)["done"]) == 3
    assert len(host.settle()["done"]) == 3
    assert (host.everything().pop(str(host.root / "lib/record.json"))[1], host.settle()["done"]) == (b"{}\n", [])
    after = host.everything()
    del after[str(host.root / "lib/record.json")]
    assert after == before


@root_only
def test_check_mode_tells_and_changes_nothing(host: Host) -> None:
    host.programs.clear()  # as on a bare host
    before = host.everything()
    said = host.settle(check=True, ada="geheim-1")
    assert said["done"] == [f"{CONFIGURATION} is written", f"{DATABASE} is written", "user ada: added"]
    assert (host.everything(), host.calls) == (before, [])


@root_only
def test_what_is_missing_is_named(host: Host) -> None:
    host.programs.discard("saslpasswd2")
    with pytest.raises(libvirt_sasl.SaslError, match="no saslpasswd2 on this host"):
        host.settle(ada="geheim-1")
    host.programs.add("saslpasswd2")
    host.stores = False
    with pytest.raises(libvirt_sasl.SaslError, match="scram-sha-256 stored nothing for ada") as said:
        host.settle(ada="geheim-1")
    assert "geheim" not in str(said.value)
    assert not host.path(DATABASE).exists()
    assert [path.name for path in host.path(DATABASE).parent.iterdir()] == [], "nothing is left lying about"
