"""Storage pools: what is declared, what libvirt is told, and how a host comes there. libvirt is a stand-in."""

from __future__ import annotations

import base64
import errno
import grp
import importlib
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from patience import longer

from orchestrator.collector import storage as collector
from orchestrator.collector.limits import Expired, within

ROOT = Path(__file__).parents[2]
COLLECTION = "ansible_collections.kvmfleet.host.plugins"


def load(name: str) -> ModuleType:
    """As Ansible finds it: through the link in collections/."""
    folder = str(ROOT / "collections")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(f"{COLLECTION}.{name}")


pools, record, hosts = (load(f"module_utils.{name}") for name in ("storage_pools", "record", "storage_host"))
labels, module = load("module_utils.storage_labels"), load("modules.libvirt_pools")


def pool(name: str = "images", **fields: Any) -> dict[str, Any]:
    """A pool with the defaults that the module fills in."""
    given = {"type": "dir", "path": f"/srv/{name}"} if "type" not in fields and "xml" not in fields else {}
    return {"name": name, "active": True, "autostart": True, "build": False, **given, **fields}


NAS = {"hosts": ["nas1"], "dir": "/export/guests", "format": "nfs"}


# --- what is declared


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (pool(path="srv/images"), "not absolute"),
        (pool(path="/srv/../etc/x"), "plain"),
        (pool(path='/srv/"x'), "plain"),
        (pool(path="/etc/libvirt/images"), "belongs to the system"),
        (pool(path="/"), "belongs to the system"),
        (pool(path=""), "needs a path"),
        (pool(type="zip", path="/srv/x"), "type zip is none of dir, fs"),
        (pool(type=""), "type (none)"),
        (pool("a/b"), "a name has letters"),
        (pool("-x"), "a name has letters"),
        (pool(mode=457), "octal and quoted"),
        (pool(mode="999"), "octal and quoted"),
        (pool(owner="a b"), "no name of an account"),
        (pool(source={"hosts": ["nas1"]}), "has no source.hosts"),
        (pool(build=True), "nothing of type dir"),
        (pool(type="netfs", path="/srv/x"), "needs source.hosts and source.dir"),
        (pool(type="netfs", path="/srv/x", source=NAS | {"hosts": ["a", "b"]}), "one host"),
        (pool(type="netfs", path="/srv/x", source=NAS | {"hosts": ["http://a"]}), "is no host"),
        (pool(type="netfs", path="/srv/x", source=NAS | {"dir": "export"}), "source.dir export is not absolute"),
        (pool(type="fs", path="/srv/x"), "needs source.devices"),
        (pool(type="logical", path="/dev/other"), "appear in /dev/images and nowhere else"),
        (pool(type="logical", mode="0711"), "this type of pool has none"),
        (pool(type="logical", build=True), "build needs source.devices"),
        (pool(type="iscsi", source={"hosts": ["a"]}), "needs source.devices"),
        (pool(type="rbd", source={"hosts": ["a"], "username": "u"}), "belong together"),
        (pool(type="rbd", path="/x", source={"hosts": ["a"]}), "has no path"),
        (pool(xml="<pool"), "not well formed"),
        (pool(xml="<domain/>"), "must be an element <pool"),
        (pool(xml="<pool type='dir'><name>other</name></pool>"), "names must be the same"),
        (pool(xml="<pool type='dir'><name>images</name></pool>"), "needs a path"),
        (pool(xml="<pool type='dir'/>", type="dir"), "type would not be read"),
    ],
)
def test_a_wrong_pool_is_told_by_name(declared: dict[str, Any], words: str) -> None:
    problems = pools.problems([declared])
    assert len(problems) >= 1
    assert words in problems[0]
    assert problems[0].startswith("libvirt_storage_pools: ")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (("/srv/a", "/srv/a/"), "a and b have one path, /srv/a"),
        (("/srv/a", "/srv/a/b"), "lie in each other"),
        (("/srv/a/b", "/srv/a"), "lie in each other"),
    ],
)
def test_two_pools_on_one_path_stop(paths: tuple[str, str], words: str) -> None:
    (problem,) = pools.problems([pool("a", path=paths[0]), pool("b", path=paths[1])])
    assert words in problem


def test_two_pools_of_one_name_stop() -> None:
    problems = pools.problems([pool("a", path="/srv/x"), pool("a", path="/srv/y")])
    assert problems == ["libvirt_storage_pools: a is there twice."]


def test_pools_beside_each_other_are_fine() -> None:
    assert pools.problems([pool("a", path="/srv/a"), pool("b", path="/srv/ab")]) == []


def test_iscsi_targets_share_their_folder_of_links() -> None:
    source = {"hosts": ["san1"], "devices": ["iqn.2026-01.org.example:a"]}
    assert pools.problems([pool("a", type="iscsi", source=source), pool("b", type="iscsi", source=source)]) == []


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ({"usage": "s", "type": "ceph", "value": "geheim!"}, "not a Ceph key in base64"),
        ({"usage": "s", "type": "iscsi", "value": ""}, "has no value"),
        ({"usage": "a\nb", "type": "iscsi", "value": "geheim!"}, "on one line"),
    ],
)
def test_a_wrong_secret_is_told_without_its_value(secret: dict[str, str], words: str) -> None:
    (problem,) = pools.problems([], [secret])
    assert words in problem
    assert "geheim" not in problem


def test_a_pool_with_a_secret_of_the_wrong_type_stops() -> None:
    declared = pool(type="rbd", source={"hosts": ["mon1"], "username": "u", "secret": "s"})
    (problem,) = pools.problems([declared], [{"usage": "s", "type": "iscsi", "value": "x"}])
    assert "needs one of type ceph" in problem


# --- what libvirt is told, and says: these documents are libvirt's own, of 9.0 and 11.3

SAID = {
    "dir": (
        pool("a-dir", path="/srv/a//"),
        "<pool type='dir'><name>a-dir</name><uuid>4-2</uuid><capacity unit='bytes'>0</capacity><source>\n  </source>"
        "<target><path>/srv/a</path><permissions><mode>0711</mode><owner>0</owner></permissions></target></pool>",
    ),
    "fs": (
        pool("b-fs", type="fs", path="/srv/b", source={"devices": ["/dev/loop7"]}),
        "<pool type='fs'><name>b-fs</name><source><device path='/dev/loop7'/><format type='auto'/></source>"
        "<target><path>/srv/b</path></target></pool>",
    ),
    "netfs": (
        pool("c-nfs", type="netfs", path="/srv/c", source={"hosts": ["10.0.0.1"], "dir": "/export/x/"}),
        "<pool type='netfs'><name>c-nfs</name><source><host name='10.0.0.1'/><dir path='/export/x'/>"
        "<format type='auto'/></source><target><path>/srv/c</path></target></pool>",
    ),
    "netfs of NFS 4": (
        pool(
            "c-nfs4",
            type="netfs",
            path="/srv/c",
            source={"hosts": ["10.0.0.1"], "dir": "/export", "format": "nfs", "protocol_version": "4"},
        ),
        "<pool type='netfs'><name>c-nfs4</name><source><host name='10.0.0.1'/><dir path='/export'/>"
        "<format type='nfs'/><protocol ver='4'/></source><target><path>/srv/c</path></target></pool>",
    ),
    "logical": (
        pool("d-vg", type="logical", source={"devices": ["/dev/loop6"]}),
        "<pool type='logical'><name>d-vg</name><source><device path='/dev/loop6'/><name>d-vg</name>"
        "<format type='lvm2'/></source><target><path>/dev/d-vg</path></target></pool>",
    ),
    "logical of another name": (
        pool("d-vg2", type="logical", source={"name": "vg2"}),
        "<pool type='logical'><name>d-vg2</name><source><name>vg2</name><format type='lvm2'/></source>"
        "<target><path>/dev/vg2</path></target></pool>",
    ),
    "iscsi": (
        pool(
            "e-iscsi",
            type="iscsi",
            source={
                "hosts": ["10.0.0.2:3261"],
                "devices": ["iqn.2026-01.x:y"],
                "initiator": "iqn.z:1",
                "username": "u",
                "secret": "s",
            },
        ),
        "<pool type='iscsi'><name>e-iscsi</name><source><host name='10.0.0.2' port='3261'/><device "
        "path='iqn.2026-01.x:y'/><initiator><iqn name='iqn.z:1'/></initiator><auth type='chap' username='u'>"
        "<secret usage='s'/></auth></source><target><path>/dev/disk/by-path</path></target></pool>",
    ),
    "xml": (
        pool(
            "f",
            xml="<pool type='netfs'><name>f</name><source><host name='n'/><dir path='/e'/></source>"
            "<target><path>/srv/f/</path></target></pool>",
        ),
        "<pool type='netfs'><name>f</name><source><host name='n'/><dir path='/e'/><format type='auto'/></source>"
        "<target><path>/srv/f</path></target></pool>",
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_libvirt_adds_by_itself_is_no_difference(case: str) -> None:
    declared, said = SAID[case]
    assert pools.problems([declared]) == []
    assert pools.facts(pools.parsed(said)) == pools.wanted(declared)


@pytest.mark.parametrize("case", SAID)
def test_the_collector_reads_the_same_facts(case: str) -> None:
    said = SAID[case][1]
    assert collector.facts(ElementTree.fromstring(said)) == pools.facts(pools.parsed(said))


def test_several_hosts_of_ceph_are_all_told() -> None:
    declared = pool("rbd", type="rbd", source={"hosts": ["m1:6789", "[fd00::1]:3300", "m3"], "name": "guests"})
    found = pools.wanted(declared)
    assert found["source/host@name"] == "m1"
    assert (found["source/host[2]@name"], found["source/host[2]@port"]) == ("fd00::1", "3300")
    assert found["source/host[3]@name"] == "m3"
    assert found["source/name"] == "guests"
    assert "target/path" not in found


def test_the_contract_has_no_value_of_a_secret() -> None:
    source = {"hosts": ["m1"], "username": "u", "secret": "s"}
    (wish,) = pools.contract([pool("rbd", type="rbd", source=source)]).values()
    assert wish["facts"]["source/auth/secret@usage"] == "s"
    assert wish["files"] is False


# --- what a host can take

ROOT_USER = hosts.User("root", 0, (0,))
SOMEBODY = hosts.User("qemu", 4242, (4242, 4243))


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("")
    assert "is a file" in hosts.folder_problem(str(tmp_path / "images"), pool(), ROOT_USER)
    assert "is a file" in hosts.folder_problem(str(tmp_path / "images/below"), pool(), ROOT_USER)


def test_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").symlink_to("nothing")
    assert "leads nowhere" in hosts.folder_problem(str(tmp_path / "images"), pool(), ROOT_USER)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "user", "enters"),
    [
        (0o700, 0, 0, None, False),
        (0o711, 0, 0, None, True),
        (0o700, 0, 0, SOMEBODY, False),
        (0o711, 0, 0, SOMEBODY, True),
        (0o700, 4242, 0, SOMEBODY, True),
        (0o750, 0, 4243, SOMEBODY, True),
        (0o701, 0, 4243, SOMEBODY, False),  # the class of the group decides, however open the others' is
        (0o671, 4242, 0, SOMEBODY, False),
    ],
)
def test_who_passes_through_a_folder(mode: int, uid: int, gid: int, user: Any, enters: bool) -> None:
    state = os.stat_result((stat.S_IFDIR | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
    assert hosts.may_enter(state, {}, user) is enters


@pytest.mark.parametrize(
    ("declared", "user", "enters"),
    [
        ({"mode": "0700"}, None, False),
        ({"mode": "0700"}, SOMEBODY, False),
        ({"mode": "0700", "owner": "qemu"}, None, True),
        ({"mode": "0700", "owner": "4242"}, SOMEBODY, True),
        ({"mode": "0770", "group": "4243"}, SOMEBODY, True),
        ({"mode": "0770", "group": "1"}, SOMEBODY, False),
        ({}, SOMEBODY, True),
    ],
)
def test_a_folder_that_would_be_made_too_closed(declared: dict[str, str], user: Any, enters: bool) -> None:
    assert hosts.may_enter(None, declared, user) is enters


def test_what_is_missing_is_no_problem_and_what_is_closed_is_named(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    problem = hosts.folder_problem(str(closed / "images"), pool(), SOMEBODY)
    # the folders above pytest's may be closed already; the first that is gets the blame
    assert "qemu cannot pass through" in problem
    assert "chmod o+x" in problem


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ((0, "", ""), ()),
        ((-9, "", ""), ("nas: what is mounted on /srv/nas did not answer within 15 s", "Bring its file server back")),
        (
            (1, "", "stat: cannot statx '/srv/nas': Stale file handle\n"),
            ("cannot be used: stat: ", "Stale file handle."),
        ),
    ],
)
def test_a_mount_whose_server_is_gone_is_named_before_anything_waits_for_it(
    said: Any, words: tuple[str, ...], open_folder: Path
) -> None:
    (open_folder / "proc/self").mkdir(parents=True)
    (open_folder / "proc/self/mounts").write_text("nas1:/export/guests /srv/nas nfs4 rw 0 0\n")
    asked = []

    def run(argv: list[str], _stdin: str) -> Any:
        asked.append(argv)
        return said

    problems = hosts.host_problems(hosts.Host(run, "test:///", str(open_folder)), [nas(mode="0711")])
    assert asked == [["timeout", "-s", "KILL", "15", "stat", "/srv/nas"]]
    assert len(problems) == bool(words)
    assert [word for word in words if word not in problems[0]] == []


# --- a libvirt that is ours


class Libvirt:
    """virsh on pools and secrets in memory; guests are XML."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pools: dict[str, dict[str, Any]] = {}
        self.known: dict[str, list[str]] = {}
        self.guests: dict[str, str] = {}
        self.calls: list[str] = []
        self.argv: list[list[str]] = []
        self.refuses: set[str] = set()
        (root / "usr/bin").mkdir(parents=True)
        for name in ("virsh", "systemctl"):
            (root / "usr/bin" / name).write_text("")
            (root / "usr/bin" / name).chmod(0o755)
        self.host = hosts.Host(self, "test:///", str(root))
        self.path = str(root / "record/record.json")

    def __call__(self, argv: list[str], stdin: str) -> tuple[int, str, str]:
        self.argv.append(argv)
        if argv[0] != "virsh":
            self.calls.append(" ".join(argv))
            return int(argv[0] in self.refuses), "", f"{argv[0]} does not work"
        assert argv[:4] == ["virsh", "-q", "-c", "test:///"]
        out = []
        for words in [part.split() for part in argv[4].split("; ")] if len(argv) == 5 else [argv[4:]]:
            if words[0] in self.refuses:
                return 1, "", f"error: {words[0]} does not work"
            try:
                out.append(getattr(self, words[0].replace("-", "_"))(*words[1:], stdin=stdin))
            except LookupError as error:
                return 1, "", f"error: {error}"
            if not re.search(r"list|dumpxml|capabilities|get-value", words[0]):
                self.calls.append(" ".join(words))
        return 0, "\n".join(out), ""

    def pool_list(self, _all: str, stdin: str) -> str:
        return "".join(
            f" {name}   {'active' if one['live'] else 'inactive'}   {'yes' if one['autostart'] else 'no'}\n"
            for name, one in self.pools.items()
        )

    def pool_dumpxml(self, *words: str, stdin: str) -> str:
        one = self.pools[words[-1]]
        return str(one["configured"] if "--inactive" in words else one["live"] or one["configured"])

    def pool_define(self, _path: str, stdin: str) -> str:
        root = ElementTree.fromstring(stdin)
        name = root.findtext("name") or ""
        if name in self.pools:
            assert root.findtext("uuid") == f"uuid-{name}", "libvirt would refuse another uuid"
        else:
            ElementTree.SubElement(root, "uuid").text = f"uuid-{name}"
        one = self.pools.setdefault(name, {"live": "", "autostart": False})
        one["configured"] = ElementTree.tostring(root, encoding="unicode")
        return ""

    def pool_start(self, name: str, stdin: str) -> str:
        one = self.pools[name]
        if "/refused" in one["configured"]:
            raise LookupError("mount.nfs: access denied")
        assert not one["live"]
        one["live"] = one["configured"]
        return ""

    def pool_destroy(self, name: str, stdin: str) -> str:
        assert self.pools[name]["live"]
        self.pools[name]["live"] = ""
        return ""

    def pool_undefine(self, name: str, stdin: str) -> str:
        assert not self.pools[name]["live"]
        del self.pools[name]
        return ""

    def pool_autostart(self, name: str, *disable: str, stdin: str) -> str:
        self.pools[name]["autostart"] = not disable
        return ""

    def pool_capabilities(self, stdin: str) -> str:
        return "".join(f"<pool type='{name}' supported='yes'>" for name in ("dir", "netfs", "logical", "rbd", "iscsi"))

    def vol_list(self, name: str, stdin: str) -> str:
        return ""

    def list(self, _uuid: str, stdin: str) -> str:
        return "\n".join(self.guests)

    def dumpxml(self, name: str, stdin: str) -> str:
        return self.guests[name]

    def secret_list(self, stdin: str) -> str:
        return "".join(f" {uuid}   {type} {usage}\n" for uuid, (type, usage, _) in self.known.items())

    def secret_define(self, _path: str, stdin: str) -> str:
        usage = ElementTree.fromstring(stdin)[0]
        uuid = f"{len(self.known):08}-0000-0000-0000-000000000000"
        self.known[uuid] = [usage.get("type") or "", usage[0].text or "", ""]
        return ""

    def secret_set_value(self, uuid: str, _file: str, path: str, stdin: str) -> str:
        assert path == "/dev/stdin"
        self.known[uuid][2] = stdin
        return ""

    def secret_get_value(self, uuid: str, stdin: str) -> str:
        if not self.known[uuid][2]:
            raise LookupError("no value")
        return self.known[uuid][2]

    def secret_undefine(self, uuid: str, stdin: str) -> str:
        del self.known[uuid]
        return ""

    def settle(self, *declared: dict[str, Any], secrets: Any = (), **options: Any) -> dict[str, Any]:
        self.calls.clear()
        check = options.pop("check", False)
        with record.open_record(self.path, check=check) as notes:
            return dict(
                module.settle(
                    self.host,
                    notes,
                    list(declared),
                    list(secrets),
                    **{"allow_disruption": False, **options},
                    check=check,
                )
            )


@pytest.fixture
def libvirt(tmp_path: Path) -> Libvirt:
    return Libvirt(tmp_path)


def disk(path: str) -> str:
    return f"<domain><name>web</name><devices><disk><source file='{path}'/></disk></devices></domain>"


def test_a_pool_is_made_started_and_left_alone_the_second_time(libvirt: Libvirt, tmp_path: Path) -> None:
    declared = pool(mode="0711", path="/srv/deep/images")
    assert libvirt.settle(declared)["changed"]
    assert libvirt.calls == ["pool-define /dev/stdin", "pool-start images", "pool-autostart images"]
    assert stat.S_IMODE((tmp_path / "srv/deep/images").stat().st_mode) == 0o711
    assert stat.S_IMODE((tmp_path / "srv/deep").stat().st_mode) == 0o755
    again = libvirt.settle(declared)
    assert (again["changed"], again["diff"], libvirt.calls) == (False, [], [])


def test_check_mode_shows_it_and_does_nothing(libvirt: Libvirt, tmp_path: Path) -> None:
    result = libvirt.settle(pool(mode="0711"), check=True)
    assert result["changed"]
    assert result["diff"][0]["before"] == ""
    assert result["diff"][0]["after"] == (
        "active: yes\nautostart: yes\nmode: 0711\ntarget/path: /srv/images\ntype: dir\n"
    )
    assert libvirt.calls == []
    assert not (tmp_path / "srv").exists()
    assert not Path(libvirt.path).exists()


def test_check_mode_works_where_libvirt_is_not_installed_yet(libvirt: Libvirt, tmp_path: Path) -> None:
    (tmp_path / "usr/bin/virsh").unlink()
    declared = pool("vg", type="logical", source={"devices": ["/dev/loop0"]})
    assert libvirt.settle(declared, check=True)["changed"]
    with pytest.raises(hosts.PoolError, match="no virsh"):
        libvirt.settle(declared)


def test_nothing_declared_and_nothing_made_asks_nobody(libvirt: Libvirt, tmp_path: Path) -> None:
    (tmp_path / "usr/bin/virsh").unlink()
    assert not libvirt.settle()["changed"]
    assert libvirt.argv == []


def nas(path: str = "/export/guests", **fields: Any) -> dict[str, Any]:
    return pool("nas", type="netfs", path="/srv/nas", source=NAS | {"dir": path}, **fields)


def test_an_edited_pool_is_really_changed_and_the_diff_shows_it(libvirt: Libvirt) -> None:
    libvirt.settle(nas())
    result = libvirt.settle(nas("/export/other"))
    assert libvirt.calls == ["pool-define /dev/stdin", "pool-destroy nas", "pool-start nas"]
    assert "source/dir@path: /export/guests" in result["diff"][0]["before"]
    assert "source/dir@path: /export/other" in result["diff"][0]["after"]
    assert "/export/other" in libvirt.pools["nas"]["live"]
    assert not libvirt.settle(nas("/export/other"))["changed"]


def test_a_pool_that_a_guest_uses_is_changed_and_waits_for_its_restart(libvirt: Libvirt) -> None:
    libvirt.settle(nas())
    libvirt.guests["u-1"] = disk("/srv/nas/web.qcow2")
    result = libvirt.settle(nas("/export/other"))
    assert libvirt.calls == ["pool-define /dev/stdin"]
    assert "nas is not restarted with its new definition, because web uses it" in result["pending"][0]
    waiting = libvirt.settle(nas("/export/other"))
    assert (waiting["changed"], len(waiting["pending"]), libvirt.calls) == (False, 1, [])
    libvirt.guests.clear()
    assert libvirt.settle(nas("/export/other"))["pools"] == {"nas": ["stopped", "started"]}


def test_allowed_disruption_restarts_it_all_the_same(libvirt: Libvirt) -> None:
    libvirt.settle(nas())
    libvirt.guests["u-1"] = disk("/srv/nas/web.qcow2")
    assert libvirt.settle(nas("/export/other"), allow_disruption=True)["pending"] == []
    assert "pool-start nas" in libvirt.calls


@pytest.mark.parametrize(
    "xml",
    [
        disk("/srv/nas/web.qcow2"),
        "<domain><name>web</name><source pool='nas' volume='x'/></domain>",
        "<domain><name>web</name><source file='/a'/><backing><source file='/srv/nas/base'/></backing></domain>",
        "<domain><name>web</name><filesystem><source dir='/srv/nas/share'/></filesystem></domain>",
    ],
)
def test_every_way_to_use_a_pool_is_seen(libvirt: Libvirt, xml: str) -> None:
    guests = [("web", ElementTree.fromstring(xml))]
    said = "<pool type='netfs'><name>nas</name><target><path>/srv/nas</path></target></pool>"
    assert hosts.users_of(libvirt.host, "nas", said, guests) == ["web"]


def test_a_guest_elsewhere_does_not_count(libvirt: Libvirt) -> None:
    guests = [("web", ElementTree.fromstring(disk("/srv/nas2/web.qcow2")))]
    said = "<pool type='netfs'><name>nas</name><target><path>/srv/nas</path></target></pool>"
    assert hosts.users_of(libvirt.host, "nas", said, guests) == []


def test_a_guest_on_ceph_is_seen_by_the_name_of_the_pool(libvirt: Libvirt) -> None:
    guests = [("web", ElementTree.fromstring("<domain><source protocol='rbd' name='guests/web'/></domain>"))]
    said = "<pool type='rbd'><name>r</name><source><name>guests</name></source></pool>"
    assert hosts.users_of(libvirt.host, "r", said, guests) == ["web"]


def test_where_the_new_definition_does_not_start_the_old_one_runs_again(libvirt: Libvirt) -> None:
    libvirt.settle(nas())
    with pytest.raises(hosts.PoolError, match=r"access denied.* It runs with its old definition again\."):
        libvirt.settle(nas("/refused"))
    assert "/export/guests" in libvirt.pools["nas"]["live"]


def test_a_file_server_that_does_not_trust_root_is_named(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "chown", refuse)
    said = r"^nas: .*/srv/nas does not take mode 0711 \(Operation not permitted\): its file server trusts no root"
    with pytest.raises(hosts.PoolError, match=said):
        libvirt.settle(nas(mode="0711"))


def test_what_left_the_list_goes_when_we_made_it_and_its_data_stays(libvirt: Libvirt, tmp_path: Path) -> None:
    libvirt.pool_define("", stdin="<pool type='dir'><name>theirs</name><target><path>/srv/t</path></target></pool>")
    libvirt.settle(pool())
    (tmp_path / "srv/images/web.qcow2").write_text("data")
    result = libvirt.settle()
    assert result["pools"] == {"images": ["stopped", "removed"]}
    assert list(libvirt.pools) == ["theirs"]
    assert (tmp_path / "srv/images/web.qcow2").read_text() == "data"
    assert not any("delete" in call or "build" in call for call in libvirt.calls)


def test_what_others_made_and_we_edited_stays_when_it_leaves_the_list(libvirt: Libvirt) -> None:
    libvirt.pool_define("", stdin="<pool type='dir'><name>images</name><target><path>/srv/old</path></target></pool>")
    libvirt.settle(pool())
    assert "/srv/images" in libvirt.pools["images"]["configured"]
    libvirt.settle()
    assert list(libvirt.pools) == ["images"]


def test_a_pool_with_guests_is_not_removed(libvirt: Libvirt) -> None:
    libvirt.settle(pool())
    libvirt.guests["u-1"] = disk("/srv/images/web.qcow2")
    assert "images is not removed, because web uses it" in libvirt.settle()["pending"][0]
    libvirt.guests.clear()
    assert libvirt.settle()["pools"] == {"images": ["stopped", "removed"]}


def test_state_and_autostart_follow_what_is_declared(libvirt: Libvirt) -> None:
    libvirt.settle(pool())
    assert libvirt.settle(pool(active=False, autostart=False))["pools"] == {"images": ["stopped", "no autostart"]}
    assert libvirt.settle(pool(autostart=False))["pools"] == {"images": ["started"]}


def test_the_mode_of_a_folder_is_put_right(libvirt: Libvirt, tmp_path: Path) -> None:
    me = pwd.getpwuid(os.getuid()).pw_name
    mine = grp.getgrgid(os.getgid()).gr_name
    declared = pool(mode="0751", owner=me, group=mine)
    libvirt.settle(declared)
    (tmp_path / "srv/images").chmod(0o700)
    result = libvirt.settle(declared)
    assert (result["diff"][0]["before"].splitlines()[3], result["changed"]) == ("mode: 0700", True)
    assert stat.S_IMODE((tmp_path / "srv/images").stat().st_mode) == 0o751


def test_an_unknown_owner_is_told(libvirt: Libvirt) -> None:
    with pytest.raises(hosts.PoolError, match="nobody-at-all is no account"):
        libvirt.settle(pool(owner="nobody-at-all"))


SECRET = {"usage": "ceph guests", "type": "ceph", "value": base64.b64encode(b"key").decode()}


def test_a_secret_is_defined_set_and_left_alone(libvirt: Libvirt) -> None:
    result = libvirt.settle(secrets=[SECRET])
    assert result["changed"]
    assert [entry[2] for entry in libvirt.known.values()] == [SECRET["value"]]
    assert not libvirt.settle(secrets=[SECRET])["changed"]
    changed = SECRET | {"value": base64.b64encode(b"other").decode()}
    assert libvirt.settle(secrets=[changed])["pools"] == {"ceph guests (secret)": ["value set"]}
    assert libvirt.settle()["pools"] == {"ceph guests (secret)": ["removed"]}
    assert libvirt.known == {}


def test_the_value_of_a_secret_is_nowhere_but_in_standard_input(libvirt: Libvirt) -> None:
    secret = {"usage": "san", "type": "iscsi", "value": "geheim-4711"}
    result = libvirt.settle(secrets=[secret])
    hidden = ("geheim", base64.b64encode(b"geheim-4711").decode())
    places = [repr(result), repr(libvirt.argv), Path(libvirt.path).read_text()]
    assert not [word for word in hidden for place in places if word in place]


def test_a_volume_group_is_built_only_of_blank_devices(libvirt: Libvirt, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = pool("vg", type="logical", build=True, source={"devices": ["/dev/loop9"]})
    monkeypatch.setattr(hosts.os, "stat", lambda path: os.stat_result((stat.S_IFBLK, *[0] * 9)))
    found = {"code": 0, "text": "TYPE=ext4\n"}
    libvirt.host.run = lambda argv, stdin: (found["code"], found["text"], "")
    assert "/dev/loop9 is not blank, it holds ext4" in hosts.device_problem(libvirt.host, declared)
    found.update(code=2, text="")
    assert hosts.device_problem(libvirt.host, declared) == ""


def test_something_else_than_a_device_is_refused(libvirt: Libvirt, tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/x").write_text("")
    declared = pool("vg", type="logical", build=True, source={"devices": ["/dev/x"]})
    assert "/dev/x is no block device" in hosts.device_problem(libvirt.host, declared)
    declared["source"]["devices"] = ["/dev/y"]
    assert "No such file" in hosts.device_problem(libvirt.host, declared)


# --- labels


def test_apparmor_lets_the_helper_read_in_folders_of_our_own(libvirt: Libvirt, tmp_path: Path) -> None:
    switch = tmp_path / "sys/module/apparmor/parameters/enabled"
    switch.parent.mkdir(parents=True)
    switch.write_text("Y\n")
    (tmp_path / "etc/apparmor.d/local").mkdir(parents=True)
    (tmp_path / labels.HELPER[1:]).write_text("profile")
    local = tmp_path / labels.HELPER_LOCAL[1:]
    local.write_text("# the administrator's\n")
    parser = tmp_path / "usr/bin/apparmor_parser"
    parser.write_text("")
    parser.chmod(0o755)
    default = pool("default", path="/var/lib/libvirt/images")
    libvirt.settle(pool(), default)
    assert local.read_text() == (
        f'# the administrator\'s\n{labels.BEGIN}\n"/srv/images/" r,\n"/srv/images/**" r,\n{labels.END}\n'
    )
    assert f"apparmor_parser --replace {labels.HELPER}" in libvirt.calls
    assert not libvirt.settle(pool(), default)["changed"]
    libvirt.settle()
    assert local.read_text() == "# the administrator's\n"
    libvirt.refuses.add("apparmor_parser")
    for _ in range(2):  # what AppArmor has not read is not done
        with pytest.raises(hosts.PoolError, match="apparmor_parser does not work"):
            libvirt.settle(pool(), default)
    assert local.read_text() == "# the administrator's\n"
    libvirt.calls.clear()
    parser.unlink()  # Debian's kernel has AppArmor whether its package is installed or not
    assert libvirt.settle(pool(), default)["changed"]
    assert labels.BEGIN in local.read_text()
    assert "apparmor_parser" not in " ".join(libvirt.calls)


def test_selinux_labels_folders_of_our_own_and_takes_the_rule_back(libvirt: Libvirt, tmp_path: Path) -> None:
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    libvirt.refuses.add("restorecon")
    with pytest.raises(hosts.PoolError, match="restorecon does not work"):
        libvirt.settle(pool(path="/srv/a.b"))
    assert libvirt.calls[-1] == r"semanage fcontext --delete /srv/a\.b(/.*)?", "the next run labels what is there"
    libvirt.refuses.clear()
    libvirt.settle(pool(path="/srv/a.b"))
    add = r"semanage fcontext --add --type virt_image_t /srv/a\.b(/.*)?"
    assert [call for call in libvirt.calls if "--list" not in call and "virsh" not in call][-2:] == [
        add,
        "restorecon -R /srv/a.b",
    ]
    libvirt.settle()
    assert "pool-undefine images" in libvirt.calls
    with record.open_record(libvirt.path) as notes:
        assert notes.names("selinux_fcontext") == []


# --- what the collector tries


def test_the_collector_takes_pools_from_one_answer() -> None:
    said = (
        " images   active   yes\n nas   inactive   no\n\n"
        "<pool type='dir'><name>images</name><capacity>2097152</capacity><available>1048576</available></pool>\n"
        "<pool type='dir'><name>images</name><capacity>2097152</capacity><available>1048576</available></pool>\n"
        "<pool type='netfs'><name>nas</name></pool><pool type='netfs'><name>nas</name></pool>"
    )
    found = collector.pools(said)
    assert found["images"] == {
        "defined": True,
        "active": True,
        "autostart": True,
        "configured": {"type": "dir"},
        "live": {"type": "dir"},
        "capacity_mib": 2,
        "available_mib": 1,
    }
    assert (found["nas"]["active"], found["nas"]["autostart"]) == (False, False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_the_collector_tries_as_the_user_and_leaves_nothing(open_folder: Path) -> None:
    user = nobody()
    open_folder.chmod(0o711)

    def tried() -> Any:
        return collector.child.ask(lambda report: _caught(report, str(open_folder), user), 5.0)

    answer, _, _ = tried()
    assert (answer["outcome"], type(answer["direct"])) == ("works", bool)
    assert list(open_folder.iterdir()) == []
    open_folder.chmod(0o700)
    answer, step, _ = tried()
    assert (answer["errno"], step) == ("EACCES", "enter")
    assert list(open_folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_the_folders_are_looked_at_although_libvirt_does_not_answer(open_folder: Path) -> None:
    wishes = {"images": {"files": True, "path": str(open_folder)}, "vg": {"files": False, "path": "/dev/vg"}}
    contract = collector.Contract({"pools": wishes, "qemu": {"user": "nobody"}})
    found = collector.look(contract, False, {"connected": False, "error": "no answer in time"})
    assert found["error"] == "no answer in time"
    assert found["pools"]["images"]["use"]["outcome"] == "works"
    assert found["pools"]["vg"] == {}


@pytest.mark.parametrize(
    ("end", "outcome"),
    [(lambda: time.sleep(60), "hangs"), (lambda: os.kill(os.getpid(), signal.SIGTERM), "broken")],
)
def test_a_folder_that_hangs_is_told_from_one_that_cannot_be_used(end: Any, outcome: str) -> None:
    def job(report: Any) -> Any:
        report("folder")
        end()

    used: list[dict[str, Any]] = []
    for limit_s in longer(0.3, lambda: used[-1]["step"]):
        used.append(collector.outcome(collector.child.begin(job, limit_s), nobody())["use"])
    (*_, use) = used
    assert (use["outcome"], use["step"]) == (outcome, "folder")


def nobody() -> Any:
    entry = pwd.getpwnam("nobody")
    return collector.kvm.User("nobody", entry.pw_uid, entry.pw_gid, [entry.pw_gid])


def _caught(report: Any, folder: str, user: Any) -> dict[str, Any]:
    try:
        return dict(collector.use(report, folder, user, {}))
    except OSError as error:
        return {"outcome": "broken", "errno": collector.kvm.name(error)}


def test_the_collector_tells_the_space_of_a_folder_and_that_there_is_none(tmp_path: Path) -> None:
    found = collector.space(str(tmp_path))
    assert found is not None
    assert set(found) == {"capacity_mib", "available_mib", "inodes", "inodes_free"}
    assert found["capacity_mib"] * (1 << 20) <= shutil.disk_usage(tmp_path).total
    assert collector.space(str(tmp_path / "absent")) is None
    (tmp_path / "file").touch()
    assert collector.space(str(tmp_path / "file" / "below")) == {}  # not read, for another reason


def test_what_has_no_direct_way_is_told_from_what_does_not_open() -> None:
    assert collector.direct("/dev/null") is False
    with pytest.raises(FileNotFoundError):
        collector.direct("/no/such/file")


CLIENT = """#!/bin/sh
echo "$1 $2 $3" >> {folder}/calls
case $1-{mode} in
vol-create-as-full) echo "error: Failed to create vol" >&2; echo "error: No space left on device" >&2; exit 1;;
vol-delete-full|vol-delete-slow) echo "error: Storage volume not found: no storage vol" >&2; exit 1;;
vol-delete-stuck) echo "error: it is busy" >&2; exit 1;;
vol-create-as-slow) sleep 60;;
vol-delete-hit) kill -TERM $PPID; sleep 0.2; echo deleted >> {folder}/calls;;
esac
"""


def client(folder: Path, mode: str) -> list[str]:
    """Plays virsh."""
    (folder / "virsh").write_text(CLIENT.format(folder=folder, mode=mode))
    (folder / "virsh").chmod(0o755)
    return [str(folder / "virsh")]


def calls(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / "calls").read_text().splitlines()]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("fine", {"outcome": "works", "step": "delete", "detail": ""}),
        ("full", {"outcome": "broken", "step": "create", "detail": "Failed to create vol No space left on device"}),
        ("stuck", {"outcome": "broken", "step": "delete", "detail": "it is busy"}),
    ],
)
def test_a_volume_is_made_and_deleted(tmp_path: Path, mode: str, expected: dict[str, str]) -> None:
    assert collector.volume(client(tmp_path, mode), "images", "dir") == expected
    assert calls(tmp_path) == ["vol-create-as", "vol-delete"]


def test_a_volume_is_deleted_when_the_time_ends_in_between(tmp_path: Path) -> None:
    virsh = client(tmp_path, "slow")

    def make(limit_s: float) -> None:
        with within(limit_s):
            collector.volume(virsh, "images", "dir")

    for limit_s in longer(0.5, lambda: "vol-create-as" in calls(tmp_path)):
        (tmp_path / "calls").write_text("")
        with pytest.raises(Expired):
            make(limit_s)
    assert calls(tmp_path) == ["vol-create-as", "vol-delete"]


def test_a_signal_waits_until_the_volume_is_deleted(tmp_path: Path) -> None:
    """In a process of its own: this one has threads of others, which would take the signal."""
    program = f"""
from orchestrator.collector import limits, storage
limits.heed_signals()
try:
    storage.volume({client(tmp_path, "hit")!r}, "images", "dir")
except limits.Stopped:
    print("stopped")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("stopped\n", "")
    assert calls(tmp_path) == ["vol-create-as", "vol-delete", "deleted"]


def test_no_volume_is_made_in_a_pool_whose_volumes_are_the_servers(tmp_path: Path) -> None:
    assert collector.volume(client(tmp_path, "fine"), "san", "iscsi")["outcome"] == "skipped"
    assert not (tmp_path / "calls").exists()


# --- packages

TABLES = sorted((ROOT / "roles/libvirt_storage/vars/platforms").glob("*.yml"))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_storage_table_knows_every_type(path: Path) -> None:
    (content,) = yaml.safe_load(path.read_text()).values()
    assert set(content) == {"types"}
    assert set(content["types"]) == set(pools.KINDS)


def test_every_platform_has_a_storage_table() -> None:
    assert [path.name for path in TABLES] == sorted(
        path.name for path in (ROOT / "roles/libvirt/vars/platforms").glob("*.yml")
    )


def test_what_does_not_answer_in_time_ends_as_the_preflight_expects() -> None:
    """timeout(1) as it is, on something that waits."""
    assert hosts.run(["timeout", "-s", "KILL", "0.2", "sleep", "30"], "")[0] == -signal.SIGKILL
