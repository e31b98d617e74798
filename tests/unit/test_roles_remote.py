"""What the role libvirt_remote does to a host, on files that are ours and a systemd that is invented."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import pwd
import shutil
import signal
import ssl
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.kvmfleet.host.plugins.action.certificates import ActionModule as Action
from ansible_collections.kvmfleet.host.plugins.module_utils.record import open_record
from ansible_collections.kvmfleet.host.plugins.modules import certificate_files, libvirt_listener
from ansible_collections.kvmfleet.host.plugins.plugin_utils.certificates import PkiError

from orchestrator import pki
from orchestrator.collector import limits, remote, tls
from orchestrator.collector.contract import Contract
from plugins.plugin_utils import certificates

ME = pwd.getpwuid(os.geteuid()).pw_name
NAMES = ["hv1", "192.0.2.11"]
SOCKET, SERVICE = "libvirtd-tls.socket", "libvirtd.service"
CANDIDATES = {SOCKET: SERVICE, "virtproxyd-tls.socket": "virtproxyd.service"}


# --- the listener


class Systemd:
    """Units with a state. As the real one, it starts no socket whose service runs."""

    def __init__(self, root: Path) -> None:
        self.units = {name: {"active": False, "enabled": False} for pair in CANDIDATES.items() for name in pair}
        self.units[SERVICE]["active"] = True
        self.calls: list[str] = []
        self.root, self.clients = root, 0  # a client wakes the service as often

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        verb, *rest = argv[1:]
        unit = self.units.get(rest[-1] if rest else "")
        if verb == "show":
            shown = ["LoadState=loaded" if unit else "LoadState=not-found"]
            if unit:
                shown += [f"ActiveState={'active' if unit['active'] else 'inactive'}"]
                shown += [f"UnitFileState={'enabled' if unit['enabled'] else 'disabled'}"]
            return 0, "\n".join(shown) + "\n", ""
        self.calls.append(" ".join(argv[1:]))
        if verb == "start" and rest[0] in CANDIDATES and self.units[CANDIDATES[rest[0]]]["active"]:
            return 1, "", "Socket service libvirtd.service already active, refusing."
        for name in [rest[-1]] if unit else []:
            if verb in ("start", "restart", "stop"):
                self.units[name]["active"] = verb != "stop"
            if verb in ("enable", "disable"):
                self.units[name]["enabled"] = verb == "enable"
            if verb == "disable" and "--now" in rest:
                self.units[name]["active"] = False
            if verb == "stop" and name == SERVICE and self.clients:
                self.clients -= 1
                self.units[name]["active"] = True
        return 0, "", ""

    def settle(self, *sockets: str, check: bool = False, **wanted: Any) -> Any:
        self.calls.clear()
        host = libvirt_listener.Host(self.run, str(self.root / "system"), lambda _: None)
        wish = {"sockets": list(sockets), "candidates": CANDIDATES, "addresses": [], "port": 16514} | wanted
        with open_record(str(self.root / "lib/record.json"), check=check) as record:
            return libvirt_listener.settle(host, record, wish, check=check)


@pytest.fixture
def systemd(tmp_path: Path) -> Systemd:
    return Systemd(tmp_path)


def test_the_service_stops_for_the_moment_in_which_its_socket_starts(systemd: Systemd) -> None:
    assert systemd.settle(SOCKET).moves
    assert systemd.calls == [
        f"enable {SOCKET}", f"stop {SOCKET}", "daemon-reload", f"stop {SERVICE}", f"start {SOCKET}", f"start {SERVICE}"
    ]  # fmt: skip
    assert systemd.units[SOCKET] == {"active": True, "enabled": True}
    assert systemd.settle(SOCKET).moves == []


def test_an_idle_service_stays_idle(systemd: Systemd) -> None:
    systemd.units[SERVICE]["active"] = False
    systemd.settle(SOCKET)
    assert not systemd.units[SERVICE]["active"]


def test_a_client_that_wakes_the_service_in_between_only_costs_a_try(systemd: Systemd) -> None:
    systemd.clients = 2
    systemd.settle(SOCKET)
    assert systemd.units[SOCKET]["active"]


def test_a_service_that_is_always_woken_ends_in_systemds_words(systemd: Systemd) -> None:
    systemd.clients = 99
    with pytest.raises(libvirt_listener.ListenerError, match="already active, refusing"):
        systemd.settle(SOCKET)


def test_a_libvirt_without_the_socket_is_told_and_check_mode_goes_on(systemd: Systemd) -> None:
    del systemd.units[SOCKET]
    assert systemd.settle(SOCKET, check=True).moves == [f"start {SOCKET}"]
    with pytest.raises(libvirt_listener.ListenerError, match="take tls out of libvirt_remote_transports"):
        systemd.settle(SOCKET)


def test_addresses_go_into_a_dropin_and_out_again(systemd: Systemd) -> None:
    path = systemd.root / f"system/{SOCKET}.d/kvmfleet.conf"
    said = systemd.settle(SOCKET, addresses=["192.0.2.11", "2001:db8::1"], port=1)
    lines = path.read_text().splitlines()[1:]
    assert lines == [
        "[Socket]", "ListenStream=", "ListenStream=192.0.2.11:1", "ListenStream=[2001:db8::1]:1", "FreeBind=true"
    ]  # fmt: skip
    assert said.diff[0]["after"] == path.read_text()
    assert systemd.settle(SOCKET, addresses=["192.0.2.11", "2001:db8::1"], port=1).moves == []
    systemd.settle(SOCKET)
    assert not path.parent.exists()
    assert f"start {SOCKET}" in systemd.calls, "only a socket that starts again listens elsewhere"


def test_what_we_opened_is_closed_and_what_others_opened_stays(systemd: Systemd) -> None:
    systemd.units["virtproxyd-tls.socket"] = {"active": True, "enabled": True}
    systemd.settle(SOCKET, addresses=["192.0.2.11"])
    systemd.settle()
    assert systemd.units[SOCKET] == {"active": False, "enabled": False}
    assert systemd.calls[-1] == f"restart {SERVICE}", "a daemon keeps the port that it was handed"
    assert systemd.units["virtproxyd-tls.socket"]["active"]
    record = json.loads((systemd.root / "lib/record.json").read_text())
    assert "listener" not in record
    assert "file" not in record
    assert systemd.settle().moves == []


class EndedError(Exception):
    """Where a run was killed."""


@pytest.mark.parametrize("ours", [True, False])
def test_a_run_that_was_killed_anywhere_is_ended_by_the_next_one(systemd: Systemd, ours: bool) -> None:
    """What the socket listens on is what its drop-in said when systemd last read it and started it."""
    listens = loaded = ""
    path = systemd.root / f"system/{SOCKET}.d/kvmfleet.conf"
    left, run = 99, systemd.run

    def killed(argv: list[str]) -> tuple[int, str, str]:
        nonlocal left, listens, loaded
        if argv[1] != "show":
            left -= 1
            if left < 0:
                raise EndedError
        answer = run(argv)
        if argv[1] == "daemon-reload":
            loaded = libvirt_listener.read(str(path))
        if argv[1:] == ["start", SOCKET] and not answer[0]:
            listens = loaded
        return answer

    systemd.run = killed  # type: ignore[method-assign]
    systemd.units[SOCKET] = dict.fromkeys(("active", "enabled"), not ours)
    for step in range(9):
        for wish in ([SOCKET], []):
            left = step
            with contextlib.suppress(EndedError):
                systemd.settle(*wish, addresses=["192.0.2.11"])
            left = 99
            systemd.settle(*wish, addresses=["192.0.2.11"])
            stands = bool(wish) or not ours
            assert systemd.units[SOCKET] == {"active": stands, "enabled": stands}
            assert not stands or ("192.0.2.11" in listens) == bool(wish)
            assert path.exists() == bool(wish)


def test_check_mode_tells_and_changes_nothing(systemd: Systemd) -> None:
    assert systemd.settle(SOCKET, check=True, addresses=["192.0.2.11"]).moves
    assert systemd.calls == []
    assert list(systemd.root.iterdir()) == []


# --- keys and certificates on a host


@pytest.fixture
def store(tmp_path: Path) -> dict[str, Any]:
    etc = tmp_path / "pki"
    return {
        "name": "libvirt",
        "ca": [f"{etc}/CA/cacert.pem"],
        "certificate": [f"{etc}/libvirt/servercert.pem", f"{etc}/libvirt/clientcert.pem"],
        "key": [f"{etc}/libvirt/private/serverkey.pem", f"{etc}/libvirt/private/clientkey.pem"],
        "owner": ME,
    }


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("state") / "pki"
    pki.init(folder)
    return certificates.Authority(str(folder))


@pytest.fixture
def pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where keys wait; the module looks it up when it installs."""
    monkeypatch.setattr(certificate_files, "PENDING", str(tmp_path / "pending"))
    monkeypatch.setattr(certificate_files, "KEY_BITS", "2048")  # sooner made
    return tmp_path / "pending"


needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to root")


def issue(store: dict[str, Any], authority: Any, pending: Path, names: list[str] = NAMES, now: Any = None) -> list[str]:
    asked = certificate_files.request([store], str(pending))
    made = authority.sign(asked["libvirt"], "hv1", "libvirt", names, 365, now)
    with open_record(str(pending.parent / "lib/record.json")) as record:
        return list(certificate_files.install([store], {}, authority.pem, {"libvirt": made}, record, do_nothing))


def do_nothing() -> None:
    """In the place of reloading daemons."""


@needs_openssl
@root_only
def test_a_host_gets_its_certificate_and_keeps_its_key(store: dict[str, Any], authority: Any, pending: Path) -> None:
    assert issue(store, authority, pending) == [*store["key"], *store["certificate"], *store["ca"]]
    seen = certificate_files.look_at(store)
    assert (seen["fits"], seen["right"], seen["ca"]) == (True, True, [authority.pem])
    assert "PRIVATE" not in str(seen), "what a look tells goes to the controller"
    assert [oct(os.stat(path).st_mode & 0o777) for path in (*store["key"], *store["certificate"])] == [
        "0o400", "0o400", "0o644", "0o644"
    ]  # fmt: skip
    assert not pending.exists()


@needs_openssl
@root_only
def test_what_was_in_the_place_comes_back(store: dict[str, Any], authority: Any, pending: Path, tmp_path: Path) -> None:
    ca, certificate, key = (Path(store[kind][0]) for kind in ("ca", "certificate", "key"))
    for path in (ca, certificate, key):
        path.parent.mkdir(parents=True, exist_ok=True)
    ca.symlink_to("theirs.pem")
    certificate.write_bytes(b"\x30\x82\xff")  # no text
    key.write_text("theirs")
    key.chmod(0o640)
    os.chown(key, 0, 7)  # for whoever is in that group
    issue(store, authority, pending)
    issue(store, authority, pending)
    with open_record(str(tmp_path / "lib/record.json")) as record:
        assert certificate_files.remove([store], record, check=True)
        assert ca.read_text() == authority.pem
        certificate_files.remove([store], record, check=False)
    assert os.readlink(ca) == "theirs.pem"
    assert certificate.read_bytes() == b"\x30\x82\xff"
    assert (key.read_text(), oct(key.stat().st_mode & 0o777), key.stat().st_gid) == ("theirs", "0o640", 7)
    assert {path for path in (tmp_path / "pki").rglob("*") if not path.is_dir()} == {ca, certificate, key}
    assert (tmp_path / "lib/record.json").read_text() == "{}\n"


@needs_openssl
@root_only
def test_a_certificate_of_another_key_is_not_put_there(store: dict[str, Any], authority: Any, pending: Path) -> None:
    issue(store, authority, pending)
    before = Path(store["certificate"][0]).read_text()
    made = authority.sign(certificate_files.request([store], str(pending))["libvirt"], "hv1", "libvirt", NAMES, 365)
    certificate_files.request([store], str(pending))  # as a second run would
    with (
        open_record(str(pending.parent / "lib/record.json")) as record,
        pytest.raises(certificate_files.FilesError, match="does not belong to the key"),
    ):
        certificate_files.install([store], {}, authority.pem, {"libvirt": made}, record, do_nothing)
    assert Path(store["certificate"][0]).read_text() == before


@needs_openssl
@root_only
def test_a_key_that_others_can_read_is_seen_and_put_right(
    store: dict[str, Any], authority: Any, pending: Path, tmp_path: Path
) -> None:
    issue(store, authority, pending)
    os.chmod(store["key"][1], 0o644)
    assert not certificate_files.look_at(store)["right"]
    with open_record(str(tmp_path / "lib/record.json")) as record:
        assert certificate_files.install([store], {}, authority.pem, {}, record, do_nothing) == [store["key"][1]]
    assert certificate_files.look_at(store)["right"]


# --- the controller's half


class Task(Action):
    """The action without Ansible around it, and its module called as a function."""

    def __init__(self, tmp: Path, store: dict[str, Any], **wanted: Any) -> None:
        self._record = str(tmp / "lib/record.json")
        usual = {"stores": [store], "names": NAMES, "days": 365, "rotate": False, "source": {}, "examine": False}
        self._wanted = usual | wanted
        self._variables = {"inventory_hostname": "hv1"}
        self._task = SimpleNamespace(diff=True, check_mode=False)
        self.steps: list[str] = []

    def _host(self, step: str, **arguments: Any) -> dict[str, Any]:
        self.steps.append(step)
        if step == "look":
            return dict(certificate_files.look(**arguments))
        if step == "request":
            return {"requests": certificate_files.request(arguments["stores"], certificate_files.PENDING)}
        with open_record(self._record) as record:
            return {"paths": certificate_files.install(**arguments, record=record, reload=self.reload)}

    reload = staticmethod(do_nothing)

    def settle(self, authority: Any = None, check: bool = False) -> dict[str, Any]:
        self.steps.clear()
        self._task.check_mode = check
        seen = self._host("look", stores=self._wanted["stores"], source=self._wanted["source"])
        work = self._ours(seen, authority) if authority else self._own(seen)
        return dict(self._carry_out(*work, authority))


@needs_openssl
@root_only
def test_a_host_is_asked_once_when_nothing_is_to_be_done(
    store: dict[str, Any], authority: Any, pending: Path, tmp_path: Path
) -> None:
    task = Task(tmp_path, store)
    pretended = task.settle(authority, check=True)
    assert (pretended["changed"], pretended["renewed"], task.steps) == (True, {"libvirt": "there is none"}, ["look"])
    assert pretended["diff"] == [{"prepared": "+ certificate for libvirt: there is none\n"}]
    assert task.settle(authority)["renewed"] == {"libvirt": "there is none"}
    assert task.steps == ["look", "request", "install"]
    assert task.settle(authority) == {"changed": False, "renewed": {}}
    assert task.steps == ["look"]


@needs_openssl
@root_only
def test_certificates_that_no_daemon_read_because_a_run_was_killed_are_read_in_the_next_one(
    store: dict[str, Any], authority: Any, pending: Path, tmp_path: Path
) -> None:
    task, reloads = Task(tmp_path, store), 0

    def killed() -> None:
        raise KeyboardInterrupt

    def reload() -> None:
        nonlocal reloads
        reloads += 1

    task.reload = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        task.settle(authority)
    task.reload = reload  # type: ignore[method-assign]
    assert task.settle(authority, check=True) == {"changed": True, "renewed": {}, "diff": [{"prepared": ""}]}
    assert (task.settle(authority)["renewed"], task.steps, reloads) == ({}, ["look", "install"], 1)
    assert task.settle(authority)["changed"] is False


@needs_openssl
@root_only
def test_what_no_longer_fits_is_renewed_with_its_reason(
    store: dict[str, Any], authority: Any, pending: Path, tmp_path: Path
) -> None:
    Task(tmp_path, store).settle(authority)
    key = Path(store["key"][0]).read_text()
    assert Task(tmp_path, store, names=["hv1"]).settle(authority)["renewed"] == {"libvirt": "it is also for 192.0.2.11"}
    assert Task(tmp_path, store, names=["hv1"], rotate=True).settle(authority)["renewed"] == {
        "libvirt": "it was asked for"
    }
    assert Path(store["key"][0]).read_text() != key, "a new certificate has a new key"
    pki.init(tmp_path / "other")
    other = certificates.Authority(str(tmp_path / "other"))
    assert "which is not the CA" in Task(tmp_path, store, names=["hv1"]).settle(other)["renewed"]["libvirt"]
    assert Path(store["ca"][0]).read_text() == other.pem
    issue(store, other, pending, ["hv1"], now=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=300))
    assert "the last third" in Task(tmp_path, store, names=["hv1"]).settle(other)["renewed"]["libvirt"]


@needs_openssl
@root_only
def test_a_certificate_of_ones_own_is_copied_and_nothing_is_signed(
    store: dict[str, Any], authority: Any, pending: Path, tmp_path: Path
) -> None:
    theirs = store | {kind: [f"{tmp_path}/theirs/{kind}"] for kind in ("ca", "certificate", "key")}
    issue(theirs, authority, pending)
    source = {kind: theirs[kind][0] for kind in ("ca", "certificate", "key")}
    task = Task(tmp_path, store, source=source)
    assert task.settle()["renewed"] == {"libvirt": "the file is another"}
    assert "request" not in task.steps
    assert tls.certificate(store["ca"][0], store["certificate"][1], store["key"][1])["error"] == ""
    assert task.settle()["changed"] is False

    for mode, names, words in (
        (0o440, NAMES, "can be read by its group or by others"),
        (0o400, ["hv2"], "and not for hv2"),
    ):
        os.chmod(source["key"], mode)
        with pytest.raises(PkiError, match=words):
            Task(tmp_path, store, source=source, names=names).settle()


# --- the collector


def evidence(store: dict[str, Any]) -> dict[str, Any]:
    return dict(tls.certificate(store["ca"][0], store["certificate"][0], store["key"][0]))


@needs_openssl
@root_only
def test_a_good_certificate_shakes_hands_with_itself(store: dict[str, Any], authority: Any, pending: Path) -> None:
    issue(store, authority, pending, [*NAMES, "2001:db8::1"])
    found = evidence(store)
    assert found["error"] == ""
    assert found["subject"] == "O=kvmfleet,OU=libvirt,CN=hv1"
    assert found["names"] == ["192.0.2.11", "2001:db8::1", "hv1"]
    assert found["not_after_s"] - found["not_before_s"] == 365 * 86400 + 3600
    assert (found["key_mode"], found["key_owner"]) == (0o400, ME)


@needs_openssl
@root_only
def test_what_keeps_a_certificate_from_working_is_said_in_plain_words(
    store: dict[str, Any], authority: Any, pending: Path, tmp_path: Path
) -> None:
    issue(store, authority, pending, now=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=400))
    found = evidence(store)
    assert found["error"] == "certificate has expired"
    assert found["not_after_s"] > 0, "an expired certificate has dates, too"

    issue(store, authority, pending)
    pki.init(tmp_path / "other")
    shutil.copy(tmp_path / "other/ca.pem", store["ca"][0])
    assert "unable to get" in evidence(store)["error"] or "self" in evidence(store)["error"]

    issue(store, authority, pending)
    subprocess.run(["openssl", "genrsa", "-out", store["key"][0], "2048"], check=True, capture_output=True)
    assert evidence(store)["error"] == "the key is that of another certificate"

    Path(store["certificate"][0]).write_text("nonsense")
    assert evidence(store)["error"]
    os.unlink(store["certificate"][0])
    assert "No such file" in evidence(store)["error"]


def test_nothing_is_looked_at_where_nothing_is_promised() -> None:
    for document in (None, {}, {"remote": {}}, {"remote": {"certificates": "all"}}, {"remote": {"certificates": [1]}}):
        assert remote.look(Contract(document)) == {}


def test_a_host_asks_itself_and_those_behind_it_in_the_list() -> None:
    names = [f"hv{number:02}" for number in range(40)]
    document = {"remote": {"names": ["hv38", "192.0.2.38"], "peers": names, "addresses": ["192.0.2.38"]}}
    asked = remote.asked(Contract(document))
    assert asked[0] == ("hv38", "192.0.2.38")
    assert [name for name, _ in asked[1:]] == ["hv39", *names[:15]]


def test_a_peer_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "context", lambda *_: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    found = remote.peers([("hv1", "127.0.0.1")], 1)
    assert found["hv1"]["error"] == "Connection refused"


def test_a_signal_never_reaches_the_host_through_a_thread_that_asks_a_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits while something is cleaned up would be taken by a thread that is still busy then."""
    monkeypatch.setattr(tls, "peer", lambda *_: {"blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ())})
    found = remote.peers([("hv1", "127.0.0.1")], 1)
    assert found["hv1"]["blocked"] >= {*limits.SIGNALS, signal.SIGALRM}


@pytest.mark.parametrize("text", ["", "Jan  5 09:34:43 2018", "Foo  5 09:34:43 2018 GMT"])
def test_a_date_that_is_none_is_zero(text: str) -> None:
    assert tls.seconds(text) == 0


def test_the_documented_options_are_those_of_the_module() -> None:
    import yaml
    from ansible_collections.kvmfleet.host.plugins.action.certificates import OPTIONS, STORE
    from ansible_collections.kvmfleet.host.plugins.modules.certificates import DOCUMENTATION

    documented = yaml.safe_load(DOCUMENTATION)["options"]
    assert documented.keys() == OPTIONS.keys()
    assert documented["stores"]["suboptions"].keys() == STORE.keys()
    for name, option in OPTIONS.items():
        assert documented[name].get("default") == option.get("default")
        assert documented[name]["type"] == option["type"]
